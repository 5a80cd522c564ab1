"""Notes and tags that people give to runs: lines added to ``notes.jsonl`` beside ``run.json``.

A run that is at work writes its ``run.json`` anew at every step. Lines that are only ever added, each by a single
write, need no lock against that or against each other: a note can be made at any time, and none is lost.
"""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from etude.core.errors import EtudeError
from etude.core.files import explained_write

NOTES_NAME = "notes.jsonl"
_TAG = re.compile(r"[\w.:/=+@-]{1,40}")


def now() -> str:
    """Return the time as the records write it: ISO 8601, UTC, in whole seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def add_note(folder: Path, text: str) -> None:
    """Add a note to the run in ``folder``.

    Raises:
        EtudeError: the note is empty, or the folder cannot be written.
    """
    if not (text := text.strip()):
        raise EtudeError("the note is empty: give its text, in quotes, such as 'more dropout overfits less'")
    _append(folder, [{"at": now(), "note": text}])


def add_tags(folder: Path, tags: Sequence[str]) -> None:
    """Give tags to the run in ``folder``.

    Raises:
        EtudeError: a tag is none, or the folder cannot be written.
    """
    _append(folder, [{"at": now(), "tag": checked_tag(tag)} for tag in tags])


def remove_tags(folder: Path, tags: Sequence[str]) -> None:
    """Take tags off the run in ``folder``; one that it does not have makes no difference.

    Raises:
        EtudeError: a tag is none, or the folder cannot be written.
    """
    _append(folder, [{"at": now(), "untag": checked_tag(tag)} for tag in tags])


def checked_tag(tag: str) -> str:
    """Return ``tag``.

    Raises:
        EtudeError: it is not one short word.

    >>> checked_tag("baseline")
    'baseline'
    """
    if not _TAG.fullmatch(tag):
        raise EtudeError(
            f"{tag!r} cannot be a tag: give one word such as baseline, "
            "of at most 40 letters, digits and the signs . : / = + @ _ -"
        )
    return tag


def read_notes(folder: Path, tags: Iterable[str] = ()) -> tuple[list[dict[str, str]], list[str]]:
    """Return the notes, ``{"at", "text"}`` each, and the tags of a run that began with ``tags``.

    A line that is cut short, since its writer was killed, is passed over.
    """
    notes: list[dict[str, str]] = []
    kept = dict.fromkeys(tags)
    for line in _lines(folder):
        match line:
            case {"at": str(at), "note": str(text)}:
                notes.append({"at": at, "text": text})
            case {"tag": str(tag)}:
                kept[tag] = None
            case {"untag": str(tag)}:
                kept.pop(tag, None)
            case _:
                pass
    return notes, list(kept)


def _lines(folder: Path) -> Iterator[Any]:
    try:
        lines = (folder / NOTES_NAME).read_bytes().splitlines()
    except FileNotFoundError:
        return
    for line in lines:
        try:
            yield json.loads(line)
        except ValueError:  # not JSON, or not UTF-8
            continue


def _append(folder: Path, lines: Sequence[dict[str, str]]) -> None:
    """Add all lines by one write to the end of the file: writes of several processes do not mix."""
    # The line end before it closes what a writer that was killed has left.
    text = "".join(f"\n{json.dumps(line)}\n" for line in lines)  # in ASCII: also lone surrogates of a command line
    file = folder / NOTES_NAME
    with explained_write(file):
        handle = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            written = os.write(handle, text.encode("ascii"))
        finally:
            os.close(handle)
        if written < len(text):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
