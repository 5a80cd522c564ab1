"""What can go from the folders of runs without a loss: found first, shown, and removed when asked to."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from etude.core.files import explained_write
from etude.journal.index import DAMAGED, RunSummary, list_runs
from etude.journal.record_read import FILE_NAME, REMAINS
from etude.journal.record_state import KILLED, is_alive

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
