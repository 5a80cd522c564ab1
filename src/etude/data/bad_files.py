"""Files that cannot be used: listed with a reason, never silently dropped."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from etude.core.files import replacing


@dataclass(frozen=True)
class BadFile:
    """An image that was left out, and why."""

    id: str
    path: Path
    reason: str


def read_bad_ids(path: Path) -> list[str]:
    """Return the ids in a file that :func:`write_bad_files` wrote; none where it is something else."""
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        return [row["id"] for row in csv.DictReader(file) if row.get("id")]


def write_bad_files(path: Path, bad: Iterable[BadFile]) -> None:
    """Write ``bad_files.csv`` with the columns id, path and reason, atomically.

    Raises:
        EtudeError: the disk is full or the place cannot be written.
    """
    # File names on Linux are bytes; those that are no UTF-8 are written as \xNN.
    with replacing(path) as temporary, temporary.open("w", -1, "utf-8", "backslashreplace", "") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "path", "reason"])
        writer.writerows([left_out.id, str(left_out.path), left_out.reason] for left_out in bad)
