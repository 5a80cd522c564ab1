"""``run.json``: what a run was asked, what it ran on, and what each of its stages took and reached."""

from __future__ import annotations

import hashlib
import math
import os
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from etude.core.errors import EtudeError, listed
from etude.core.files import explained_write, read_json, write_json
from etude.journal.environment import describe_environment

SCHEMA_VERSION = 1
FILE_NAME = "run.json"
STATES = ("running", "finished", "failed", "interrupted")
_OWN = ("schema_version", "state", "error", "started", "ended", "seconds", "pid", "resumed", "command", "recipe")
_SECTIONS = ("seed", "settings", "changed", "environment", "stages", "warnings", "artefacts")

_REMAINS = frozenset({FILE_NAME, "bad_files.csv"})  # of a run that failed before it made anything


class Stage:
    """One timed stage of a run, made by :meth:`RunRecord.stage`."""

    def __init__(self, record: RunRecord, entry: dict[str, Any]) -> None:
        self._record, self._entry = record, entry

    @property
    def seconds(self) -> float | None:
        """How long the stage took; None while it runs."""
        return self._entry["seconds"]

    def score(self, name: str, value: float) -> None:
        """Record a score such as ``valid_accuracy``; NaN and infinity are written as null."""
        self._entry["scores"][name] = _plain(value)
        self._record.write()

    def note(self, key: str, value: Any) -> None:
        """Record any other fact of the stage, made of JSON values, numpy values and paths."""
        self._entry["notes"][key] = _plain(value)
        self._record.write()


class RunRecord:
    """The record of one run; every call writes ``run.json`` anew, whole, so that a killed run leaves a valid one.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     record = RunRecord.open(Path(folder), command=["etude", "fit"], recipe="quick",
    ...                             settings={}, changed={}, seed=0)
    ...     with record.stage("features") as stage:
    ...         stage.score("valid_accuracy", 0.9)
    ...     record.close("finished")
    ...     read_run(Path(folder))["stages"][0]["scores"]
    {'valid_accuracy': 0.9}
    """

    def __init__(self, folder: Path, content: dict[str, Any]) -> None:
        self.folder = folder
        self._content = content
        self._opened = time.monotonic()
        self._seconds_before = float(content["seconds"])

    @classmethod
    def open(
        cls,
        folder: Path,
        *,
        command: Sequence[str],
        recipe: str,
        settings: Mapping[str, Any],
        changed: Mapping[str, Any],
        seed: int,
        extra: Mapping[str, Any] | None = None,
        resume: bool = False,
    ) -> RunRecord:
        """Create ``folder`` and its record, in state ``running``.

        Args:
            folder: the run's folder: absent, empty, or with the record of a run that failed before it made anything.
            command: the command line, word by word.
            recipe: the recipe's name or file.
            settings: every setting the run uses.
            changed: those that differ from the recipe's, as the user gave them.
            seed: the run's seed.
            extra: more of the environment, such as the GPU names, which only torch knows.
            resume: go on with the run in ``folder``: its stages and sections are kept. An absent or empty folder
                starts a new run.

        Raises:
            EtudeError: ``folder`` is a file or not empty, or is to be resumed and holds no run.
        """
        asked = {"pid": os.getpid(), "command": list(command), "recipe": recipe, "seed": seed}
        asked |= {"settings": dict(settings), "changed": dict(changed)}
        asked["environment"] = {**describe_environment(), **(extra or {})}
        content = _content_to_go_on_with(folder, resume)
        record = cls(folder, {**content, **_plain(asked), "state": "running", "error": None, "ended": None})
        record.write()
        return record

    @contextmanager
    def stage(self, name: str) -> Generator[Stage]:
        """Time a stage. An exception in it marks it failed (a stop by hand: interrupted) and passes on."""
        entry: dict[str, Any] = {"name": name, "state": "running", "started": _now(), "seconds": None}
        entry |= {"scores": {}, "notes": {}}
        self._content["stages"].append(entry)
        self.write()
        start, state = time.perf_counter(), "failed"
        try:
            yield Stage(self, entry)
            state = "finished"
        except BaseException as error:
            state = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
            entry["error"] = _plain(_told(error))
            raise
        finally:
            entry |= {"state": state, "seconds": time.perf_counter() - start}
            self._write_after(state)

    def set(self, section: str, value: Any) -> None:
        """Write a section of its own, such as ``data`` or ``split``, at the top level.

        Raises:
            ValueError: the record keeps that name for itself.
        """
        if section in (*_OWN, *_SECTIONS):
            raise ValueError(f"{section!r} is written by the record itself")
        self._content[section] = _plain(value)
        self.write()

    def get(self, section: str) -> Any:
        """Return a section, or None; a resumed run finds those that were written before it was stopped."""
        return self._content.get(section)

    def warn(self, text: str) -> None:
        """Keep a warning with the time it came at."""
        self._content["warnings"].append({"at": _now(), "text": _plain(text)})
        self.write()

    def artefact(self, path: Path) -> None:
        """Record a finished file: its place (relative to the folder when inside), its bytes, its BLAKE2b hash."""
        inside = path.resolve().is_relative_to(self.folder.resolve())
        name = path.resolve().relative_to(self.folder.resolve()).as_posix() if inside else str(path.resolve())
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
        entry = _plain({"name": name, "bytes": path.stat().st_size, "blake2b": digest})
        others = [known for known in self._content["artefacts"] if known["name"] != entry["name"]]
        self._content["artefacts"] = [*others, entry]
        self.write()

    def close(self, state: str, error: BaseException | str | None = None) -> None:
        """End the run in ``state``: finished, failed or interrupted."""
        if state not in STATES[1:]:
            raise ValueError(f"a run ends {', '.join(STATES[1:])}, not {state!r}")
        told = _told(error) if isinstance(error, BaseException) else error
        self._content |= {"state": state, "error": _plain(told), "ended": _now()}
        self._write_after(state)

    def write(self) -> None:
        """Write ``run.json`` as things stand."""
        self._content["seconds"] = self._seconds_before + time.monotonic() - self._opened
        write_json(self.folder / FILE_NAME, self._content)

    def _write_after(self, state: str) -> None:
        # What stopped the run, a full disk perhaps, must not be hidden by its record failing for the same cause.
        with nullcontext() if state == "finished" else suppress(EtudeError, OSError):
            self.write()


def read_run(folder: Path) -> dict[str, Any]:
    """Return the content of a run's ``run.json``.

    Raises:
        EtudeError: there is no such folder, it is not a run, or its record is damaged or of a newer etude.
    """
    if not folder.is_dir():
        raise EtudeError(f"{folder} is no folder: give the folder of a run, such as runs/first")
    file = folder / FILE_NAME
    if not file.is_file():
        raise EtudeError(f"{folder} is not a run: it holds no {FILE_NAME}; give a folder that `etude fit` wrote")
    content = read_json(file)
    version = content.get("schema_version") if isinstance(content, dict) else None
    if not isinstance(version, int):
        raise EtudeError(f"{file} is not the record of a run: it was damaged or written by something else")
    if version > SCHEMA_VERSION:
        raise EtudeError(
            f"{file} was written by a newer etude (schema {version}, and this one reads up to {SCHEMA_VERSION}): "
            "update etude to read it"
        )
    missing = [key for key in (*_OWN, *_SECTIONS) if key not in content]
    if missing or content["state"] not in STATES:
        raise EtudeError(f"{file} is damaged: it lacks {listed(missing) if missing else 'a known state'}")
    return content


def _content_to_go_on_with(folder: Path, resume: bool) -> dict[str, Any]:
    with explained_write(folder):
        if folder.exists() and not folder.is_dir():
            raise EtudeError(f"{folder} is a file, and a run needs a folder: choose another --out")
        names = {path.name for path in folder.iterdir()} if folder.is_dir() else set[str]()
        if not resume and names <= _REMAINS and _has_failed(folder):
            for name in names:
                (folder / name).unlink()
            names = set[str]()
    occupied = bool(names)
    if occupied and not resume:
        raise EtudeError(f"{folder} is not empty: choose another --out, or leave it out for a new folder below runs/")
    if not occupied:
        fresh: dict[str, Any] = {"schema_version": SCHEMA_VERSION, "state": "running", "error": None}
        fresh |= {"started": _now(), "ended": None, "seconds": 0.0, "resumed": []}
        return {**fresh, "stages": [], "warnings": [], "artefacts": []}
    content = read_run(folder)
    for stage in content["stages"]:
        if stage["state"] == "running":  # the process was killed before it could say so
            stage["state"] = "interrupted"
    return {**content, "resumed": [*content["resumed"], _now()]}


def _has_failed(folder: Path) -> bool:
    """Whether a run failed in ``folder``: with nothing made, the corrected command may use it again."""
    try:
        return read_run(folder)["state"] == "failed"
    except EtudeError:
        return False


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _told(error: BaseException) -> str:
    return str(error) if isinstance(error, EtudeError) else f"{type(error).__name__}: {error}".removesuffix(": ")


def _plain(value: Any) -> Any:
    """Return ``value`` made of what JSON holds; a number that is not finite becomes None."""
    if isinstance(value, np.generic | np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, bool | int | None):
        return value
    if isinstance(value, str | Path):
        # A file name that is not UTF-8 holds lone surrogates, which JSON text cannot.
        return str(value).encode("utf-8", "backslashreplace").decode("utf-8")
    if isinstance(value, Mapping):
        return {_plain(str(key)): _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence | set | frozenset):
        return [_plain(item) for item in (sorted(value) if isinstance(value, set | frozenset) else value)]
    raise TypeError(f"a run record holds JSON values, numpy values and paths, not {type(value).__name__}")
