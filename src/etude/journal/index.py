"""All runs below a folder: listed at once, also when there are thousands, by an index that keeps itself up to date.

The index, ``.etude-index.db``, is a cache and nothing more: a run writes its own ``run.json`` only, and whoever lists
runs reads the records that have changed since the index last saw them. So two runs that end at once cannot lose each
other, and the file may be deleted at any time.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sqlite3
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from etude.core.errors import EtudeError, listed, nearest
from etude.core.files import explained_write
from etude.journal.runs import FILE_NAME, KILLED, NOTES_NAME, REMAINS, is_alive, read_run, stopped_at

INDEX_NAME = ".etude-index.db"
DAMAGED = "damaged"
"""The state of a run whose record cannot be read; ``error`` says why."""

_DEEPEST = 6  # levels of folders in which runs nest: a study, its arms, their seeds, their rounds
_NO_RUNS = ("tb", "checkpoints")  # folders of a run that hold no others
_SHORTEST_ID = 4
_PATIENCE = 30.0  # seconds for another process that writes the index

Warn = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class RunSummary:
    """What the lists say of a run.

    Args:
        path: its folder, relative to that of the runs, with forward slashes.
        state: as in :func:`etude.journal.runs.state_of`, or :data:`DAMAGED`.
        where: the stage that a run is in or was stopped in; empty when it has finished.
        started: ISO 8601, UTC.
        described: its data, in words.
        fingerprint: its data, as a hash.
        accuracy: of what it kept, on the validation images; None before its end.
        command: the command line.
        notes: texts of the notes that people made.
    """

    path: str
    id: str = ""
    kind: str = ""
    parent: str | None = None
    state: str = DAMAGED
    error: str | None = None
    where: str = ""
    started: str = ""
    seconds: float | None = None
    recipe: str = ""
    seed: int | None = None
    images: int | None = None
    classes: int | None = None
    described: str = ""
    fingerprint: str = ""
    accuracy: float | None = None
    log_loss: float | None = None
    validation_images: int | None = None
    command: str = ""
    tags: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    pid: int = 0
    host: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return {**asdict(self), "tags": list(self.tags), "notes": list(self.notes)}

    def is_about(self, data: str) -> bool:
        """Whether ``data`` is the beginning of its data's fingerprint, or part of its description or command line."""
        words = data.casefold()
        return self.fingerprint.startswith(words) or words in f"{self.command}\n{self.described}".casefold()


def list_runs(runs: Path, warn: Warn | None = None) -> list[RunSummary]:
    """Return all runs below ``runs``, the newest first; each as it stands now.

    Args:
        warn: is told when the index cannot be kept, so that every record is read anew.

    Raises:
        EtudeError: there is no such folder.
    """
    if not runs.is_dir():
        raise EtudeError(f"there is no folder {runs} of runs: give one with --runs, or make a run with `etude fit`")
    stamps = dict(_stamps(str(runs)))
    file = runs / INDEX_NAME
    try:
        contents = _contents(str(file), runs, stamps)
    except sqlite3.OperationalError as error:  # a place that cannot be written, a full disk, or locked for very long
        if warn is not None:
            warn(f"the index {file} cannot be kept ({error}), so all records are read anew")
        contents = _contents(":memory:", runs, stamps)
    except sqlite3.DatabaseError:  # damaged
        file.unlink(missing_ok=True)
        contents = _contents(str(file), runs, stamps)
    return sorted(_summaries(runs, contents), key=lambda run: (run.started, run.path), reverse=True)


def read_runs(runs: Path) -> list[RunSummary]:
    """Return all runs below ``runs`` in the order of their start, from their records alone: no index is kept there."""
    return sorted(
        _summaries(runs, _contents(":memory:", runs, dict(_stamps(str(runs))))), key=lambda run: (run.started, run.path)
    )


def find_run(runs: Path, name: str) -> Path:
    """Return the folder of the run ``name``: a folder, a path below ``runs``, its last part, or the start of an id.

    Raises:
        EtudeError: there is none, or more than one.
    """
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


def summary_of_run(path: str, run: dict[str, Any]) -> RunSummary:
    """Return the summary of the run at ``path``, given its record as ``read_run`` returns it."""
    data, result = run.get("data") or {}, run.get("result") or {}
    classes = data.get("classes")
    return RunSummary(
        path=path,
        error=None if run["error"] is None else str(run["error"]),
        where="" if run["state"] == "finished" else stopped_at(run["stages"]),
        images=_whole(data.get("images")),
        classes=len(classes) if isinstance(classes, dict) else None,
        described=str(data.get("described", "")),
        fingerprint=str(data.get("fingerprint", "")),
        accuracy=_number(result.get("accuracy")),
        log_loss=_number(result.get("log_loss")),
        validation_images=_whole(result.get("validation_images")),
        command=" ".join(map(str, run["command"])),
        tags=tuple(map(str, run["tags"])),
        notes=tuple(str(note["text"]) for note in run["notes"] if isinstance(note, dict) and "text" in note),
        **{key: run[key] for key in _AS_RECORDED},
    )


_VERSION = zlib.crc32(" ".join(("1", *RunSummary.__dataclass_fields__)).encode()) >> 1
"""Of what the index holds; one of another version is built anew. Raise the 1 when a field changes its meaning."""

_ALL = "SELECT path, stamp, content FROM runs"
_AS_RECORDED = ("id", "kind", "parent", "state", "started", "seconds", "recipe", "seed", "pid", "host")


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) else None


def _summaries(runs: Path, contents: Sequence[str]) -> Iterator[RunSummary]:
    for values in json.loads(f"[{','.join(contents)}]"):  # at once: several times as fast as one by one
        values["tags"], values["notes"] = tuple(values["tags"]), tuple(values["notes"])
        # A run that is killed changes nothing on the disk.
        yield _read(runs, values["path"]) if values["state"] == "running" else RunSummary(**values)


def _stamps(folder: str, path: str = "") -> Iterator[tuple[str, str]]:
    """Yield the path of each run in and below ``folder``, and what changes whenever its record or its notes do.

    A folder is read once, and only the two files are asked for: this is what takes the time in a list of thousands.
    """
    stamp, notes, inner = "", "", list[str]()
    with suppress(OSError), os.scandir(folder) as entries:  # a folder may go while it is looked at
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


def _contents(place: str, runs: Path, stamps: dict[str, str]) -> list[str]:
    """Return the summaries, as JSON, of the runs that ``stamps`` names, and bring the index at ``place`` up to date."""
    with closing(sqlite3.connect(place, timeout=_PATIENCE, isolation_level=None)) as index:
        known = {os.fsdecode(path): row for path, *row in index.execute(_ALL)} if _is_current(index) else None
        kept = {path: content for path, (stamp, content) in (known or {}).items() if stamps.get(path) == stamp}
        # A record that changes after its stamp was taken is read again next time: an old one is never taken for it.
        read = {path: _read(runs, path) for path in stamps if path not in kept}
        rows = [(os.fsencode(path), stamps[path], _as_json(run)) for path, run in read.items() if run.state != DAMAGED]
        gone = [(os.fsencode(path),) for path in known or {} if path not in kept]
        if known is None or rows or gone:
            index.execute("BEGIN IMMEDIATE")
            if not _is_current(index):
                index.execute("DROP TABLE IF EXISTS runs")
                index.execute("CREATE TABLE runs (path BLOB PRIMARY KEY, stamp TEXT, content TEXT)")
                index.execute(f"PRAGMA user_version = {_VERSION}")
            index.executemany("DELETE FROM runs WHERE path = ?", gone)
            index.executemany("INSERT OR REPLACE INTO runs VALUES (?, ?, ?)", rows)
            index.execute("COMMIT")
    return [*kept.values(), *map(_as_json, read.values())]


def _is_current(index: sqlite3.Connection) -> bool:
    return index.execute("PRAGMA user_version").fetchone() == (_VERSION,)


def _read(runs: Path, path: str) -> RunSummary:
    try:
        return summary_of_run(path, read_run(runs / path))
    except (EtudeError, OSError) as error:
        return RunSummary(path, error=str(error))


def _as_json(run: RunSummary) -> str:
    return json.dumps(run.to_json())


_HALF = re.compile(r"\..+\.(\d+)\.tmp")  # as core.files.replacing names what it writes before it is whole
_AT_WORK = ("running", DAMAGED)  # of a damaged record it is not known


@dataclass(frozen=True, slots=True)
class Garbage:
    """A file or folder that can go.

    Args:
        path: its place.
        size: in bytes, with everything below it.
        reason: why it can go.
    """

    path: Path
    size: int
    reason: str


def find_garbage(runs: Path, unfinished: bool = False) -> list[Garbage]:
    """Return what can go from the runs below ``runs``; nothing of a run that is at work.

    These are halves of files whose writer was killed, checkpoints of finished runs, and whole folders of runs that
    stopped before they made anything and that nobody has given a note or a tag.

    Args:
        unfinished: also the checkpoints of stopped runs, which cannot be resumed without them.

    Raises:
        EtudeError: there is no such folder.
    """
    known = list_runs(runs)
    around = {str(above) for run in known for above in PurePosixPath(run.path).parents}  # folders with runs in them
    found: list[Garbage] = []
    for run in known:
        folder = runs / run.path
        if run.state in _AT_WORK:
            continue
        if run.path not in around and _made_nothing(run, folder):
            found.append(_garbage(folder, f"{run.state}, and nothing was made"))
            continue
        if run.state == "finished" or unfinished:
            told = "the run has finished" if run.state == "finished" else "the run could not be resumed any more"
            found += [_garbage(place, told) for place in _checkpoints(folder)]
        found += [_garbage(half, "its writer was killed") for half in _halves(folder, {item.path for item in found})]
    return found


def remove_garbage(found: Iterable[Garbage]) -> int:
    """Remove it and return how many bytes that freed; what has gone meanwhile is left out.

    Raises:
        EtudeError: a place cannot be written.
    """
    freed = 0
    for item in found:
        with explained_write(item.path):
            try:
                if item.path.is_dir():
                    shutil.rmtree(item.path)
                else:
                    item.path.unlink()
            except FileNotFoundError:
                continue
        freed += item.size
    return freed


def _made_nothing(run: RunSummary, folder: Path) -> bool:
    if run.state not in ("failed", "interrupted", KILLED) or run.notes or run.tags:
        return False
    names = {path.name for path in folder.iterdir() if not _HALF.fullmatch(path.name)}
    return names <= REMAINS


def _checkpoints(folder: Path) -> list[Path]:
    """Return the folders of checkpoints that are the run's own, and not a link to somewhere else."""
    places = (folder / "checkpoints", *folder.glob("fold-*/checkpoints"))
    return [place for place in places if place.is_dir() and place.resolve().is_relative_to(folder.resolve())
            and not place.is_symlink()]  # fmt: skip


def _halves(folder: Path, leaving: set[Path]) -> Iterator[Path]:
    """Yield the halves of files below ``folder``, but for folders that are removed whole and for runs of their own."""
    for place, folders, files in os.walk(folder):
        here = Path(place)
        folders[:] = [name for name in folders if here / name not in leaving and not (here / name / FILE_NAME).exists()]
        for name in files:
            half = _HALF.fullmatch(name)
            if half and not is_alive(int(half[1])):
                yield here / name


def _garbage(path: Path, reason: str) -> Garbage:
    return Garbage(path, _size(path), reason)


def _size(path: Path) -> int:
    size = path.lstat().st_size
    if path.is_dir() and not path.is_symlink():
        size += sum(_size(inner) for inner in path.iterdir())
    return size
