"""All runs below a folder: listed, found by name, and cleared of what can go.

A run writes its own ``run.json`` only. What the lists need of each is kept in ``.etude-index.json``, a cache that may
be deleted at any time: whoever lists runs reads the records that have changed since, so processes cannot lose each
other's runs. 5,000 records take seconds to read, the cache a fraction of one (benchmarks/journal.py).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import zlib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from etude.core.context import Warn
from etude.core.errors import EtudeError, listed, nearest
from etude.core.files import explained_write, replacing
from etude.journal.runs import FILE_NAME, KILLED, NOTES_NAME, REMAINS, is_alive, read_run, stopped_at

INDEX_NAME = ".etude-index.json"
DAMAGED = "damaged"  # the state of a run whose record cannot be read; ``error`` says why

_DEEPEST = 6  # levels of folders in which runs nest: a study, its arms, their seeds, their rounds
_NO_RUNS = ("tb", "checkpoints")  # folders of a run that hold no others
_SHORTEST_ID = 4
_AS_RECORDED = ("id", "kind", "parent", "state", "started", "seconds", "recipe", "seed", "pid", "host")
_HALF = re.compile(r"\..+\.(\d+)\.tmp")  # as core.files.replacing names what it writes before it is whole


@dataclass(frozen=True, slots=True)
class RunSummary:
    """What the lists show of a run; ``path`` is its folder, relative to that of the runs, with forward slashes."""

    path: str
    id: str = ""
    kind: str = ""
    parent: str | None = None
    state: str = DAMAGED
    error: str | None = None
    where: str = ""  # the stage that it is in or was stopped in
    started: str = ""
    seconds: float | None = None
    recipe: str = ""
    seed: int | None = None
    images: int | None = None
    classes: int | None = None
    described: str = ""
    fingerprint: str = ""
    accuracy: float | None = None  # of what it kept, on the validation images
    log_loss: float | None = None
    validation_images: int | None = None
    command: str = ""
    tags: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    pid: int = 0
    host: str | None = None

    @classmethod
    def of(cls, path: str, run: dict[str, Any]) -> RunSummary:
        data, result = run.get("data") or {}, run.get("result") or {}
        images, classes = data.get("images"), data.get("classes")
        return cls(
            path=path,
            error=None if run["error"] is None else str(run["error"]),
            where="" if run["state"] == "finished" else stopped_at(run["stages"]),
            images=images if isinstance(images, int) else None,
            classes=len(classes) if isinstance(classes, dict) else None,
            command=" ".join(map(str, run["command"])),
            tags=tuple(map(str, run["tags"])),
            notes=tuple(str(note["text"]) for note in run["notes"] if isinstance(note, dict) and "text" in note),
            **{key: str(data.get(key, "")) for key in ("described", "fingerprint")},
            **{key: result.get(key) for key in ("accuracy", "log_loss", "validation_images")},
            **{key: run[key] for key in _AS_RECORDED},
        )

    def is_about(self, data: str) -> bool:
        """Whether ``data`` is the beginning of its data's fingerprint, or part of its description or command line."""
        words = data.casefold()
        return self.fingerprint.startswith(words) or words in f"{self.command}\n{self.described}".casefold()


# Of what the index holds; one of another version is built anew. Raise the 1 when a field changes its meaning.
_VERSION = zlib.crc32(" ".join(("1", *RunSummary.__dataclass_fields__)).encode())


def list_runs(runs: Path, warn: Warn | None = None) -> list[RunSummary]:
    """Return all runs below ``runs``, the newest first, each as it stands now; ``warn`` where no index can be kept."""
    if not runs.is_dir():
        raise EtudeError(f"there is no folder {runs} of runs: give one with --runs, or make a run with `etude fit`")
    file, stamps = runs / INDEX_NAME, dict(_stamps(str(runs)))
    known = _load_index(file)
    found: dict[str, RunSummary] = {}
    for path, stamp in stamps.items():
        held, summary = known.get(path, ("", None))
        if summary is None or held != stamp or summary.state == "running":  # a killed run changes nothing on the disk
            summary = _read(runs, path)
        found[path] = summary
    kept = {path: (stamps[path], asdict(run)) for path, run in found.items() if run.state != DAMAGED}
    if {path: stamp for path, (stamp, _) in kept.items()} != {path: stamp for path, (stamp, _) in known.items()}:
        try:
            for half in filter(_is_left, runs.glob(f".{INDEX_NAME}.*.tmp")):
                half.unlink(missing_ok=True)
            with replacing(file) as temporary:
                temporary.write_text(json.dumps({"version": _VERSION, "runs": kept}))
        except (EtudeError, OSError) as error:
            if warn is not None:
                warn(f"the index {file} cannot be kept ({error}), so all records are read anew")
    return sorted(found.values(), key=lambda run: (run.started, run.path), reverse=True)


def read_runs(runs: Path) -> list[RunSummary]:
    """Return all runs below ``runs`` in the order of their start, from their records alone: no index is kept there."""
    return sorted((_read(runs, path) for path, _ in _stamps(str(runs))), key=lambda run: (run.started, run.path))


def find_run(runs: Path, name: str) -> Path:
    """Return the folder of the run ``name``: a folder, a path below ``runs``, its last part, or the start of an id."""
    for folder in (Path(os.path.expanduser(name)), runs / name):
        if (folder / FILE_NAME).is_file():
            return folder
    known = list_runs(runs) if runs.is_dir() else []
    found = [run for run in known if run.path.rpartition("/")[2] == name]
    if not found and len(name) >= _SHORTEST_ID:
        found = [run for run in known if run.id.startswith(name.lower())]
    if len(found) == 1:
        return runs / found[0].path
    if found:
        raise EtudeError(f"{name!r} may be any of {listed(run.path for run in found)}: give one of these")
    raise EtudeError(
        f"there is no run {name!r} below {runs}: give a folder as `etude journal list` shows it, or an id."
        f"{nearest(name, [run.path for run in known])}"
    )


def _stamps(folder: str, path: str = "") -> Iterator[tuple[str, str]]:
    """Yield the path of each run below ``folder`` and what changes whenever its record or notes do; reads no file."""
    stamp, notes, inner = "", "", list[str]()
    with suppress(OSError), os.scandir(folder) as entries:  # a folder may be removed meanwhile
        for entry in entries:
            name = entry.name
            if name == FILE_NAME:
                found = entry.stat()
                # Two records of one size may be written within one tick of the clock, but not to one inode.
                stamp = f"{found.st_mtime_ns}:{found.st_size}:{entry.inode()}"
            elif name == NOTES_NAME:
                found = entry.stat()
                notes = f":{found.st_mtime_ns}:{found.st_size}"
            elif name not in _NO_RUNS and name[0] != "." and entry.is_dir(follow_symlinks=False):
                inner.append(name)
    if path and stamp:
        yield path, stamp + notes
    if path.count("/") < _DEEPEST - 1:
        for name in inner:
            yield from _stamps(f"{folder}/{name}", f"{path}/{name}" if path else name)


def _load_index(file: Path) -> dict[str, tuple[str, RunSummary]]:
    """Return stamp and summary by path; nothing where the index is absent, damaged or of another version."""
    try:
        content = json.loads(file.read_bytes())
        if content["version"] != _VERSION:
            return {}
        return {
            path: (stamp, RunSummary(**{**one, "tags": tuple(one["tags"]), "notes": tuple(one["notes"])}))
            for path, (stamp, one) in content["runs"].items()
        }
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return {}


def _read(runs: Path, path: str) -> RunSummary:
    try:
        return RunSummary.of(path, read_run(runs / path))
    except (EtudeError, OSError) as error:
        return RunSummary(path, error=str(error))


@dataclass(frozen=True, slots=True)
class Garbage:
    """A file or folder that can go, its bytes with everything below it, and why."""

    path: Path
    size: int
    reason: str


def find_garbage(runs: Path, unfinished: bool = False) -> list[Garbage]:
    """Return half-written files, checkpoints that nobody resumes from, and runs that made nothing."""
    known = list_runs(runs)
    around = {str(above) for run in known for above in PurePosixPath(run.path).parents}  # folders with runs in them
    found: list[Garbage] = []
    for run in known:
        folder = runs / run.path
        if run.state in ("running", DAMAGED):  # a damaged record does not say whether its run is at work
            continue
        is_plain = run.state in ("failed", "interrupted", KILLED) and not (run.notes or run.tags or run.path in around)
        if is_plain and {path.name for path in folder.iterdir() if not _HALF.fullmatch(path.name)} <= REMAINS:
            found.append(Garbage(folder, _size(folder), f"{run.state}, and nothing was made"))
            continue
        leaving = set[Path]()
        if run.state == "finished" or unfinished:
            reason = "the run has finished" if run.state == "finished" else "the run could not be resumed any more"
            kept = (folder / "checkpoints", *folder.glob("fold-*/checkpoints"))  # but not links to somewhere else
            own = (place for place in kept if place.resolve().is_relative_to(folder.resolve()))
            leaving = {place for place in own if place.is_dir() and not place.is_symlink()}
            found += [Garbage(place, _size(place), reason) for place in sorted(leaving)]
        found += [Garbage(half, _size(half), "its writer was killed") for half in _halves(folder, leaving)]
    return found


def remove_garbage(found: Iterable[Garbage]) -> int:
    freed = 0
    for item in found:
        with explained_write(item.path), suppress(FileNotFoundError):
            if item.path.is_dir():
                shutil.rmtree(item.path)
            else:
                item.path.unlink()
            freed += item.size
    return freed


def _halves(folder: Path, leaving: set[Path]) -> Iterator[Path]:
    """Yield the halves of files below ``folder``, but for folders that are removed whole and for runs of their own."""
    for place, folders, files in os.walk(folder):
        here = Path(place)
        folders[:] = [name for name in folders if here / name not in leaving and not (here / name / FILE_NAME).exists()]
        yield from filter(_is_left, map(here.joinpath, files))


def _is_left(path: Path) -> bool:
    """Whether this is the half of a file whose writer was killed."""
    half = _HALF.fullmatch(path.name)
    return half is not None and not is_alive(int(half[1]))


def _size(path: Path) -> int:
    size = path.lstat().st_size
    if path.is_dir() and not path.is_symlink():
        size += sum(_size(inner) for inner in path.iterdir())
    return size
