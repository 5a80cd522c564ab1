"""Finding image files below a folder: fast, in one order on every machine, and safe with links that loop."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from etude.core.errors import EtudeError

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif"})

# Folders that operating systems and network drives leave behind; some hold thumbnails that look like images.
_SYSTEM_FOLDERS = frozenset({"__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information"})


@dataclass
class FoundImages:
    """What :func:`find_images` saw.

    Attributes:
        ids: POSIX path of each image relative to the folder, Unicode in NFC; not sorted.
        names: the file of each id, relative to the folder.
        others: number of files left out because their suffix is not an image's.
        repeated: number of linked folders left out because their content was already read.
        runs: number of folders left out because etude wrote them: runs, and stores of a cache.
    """

    ids: list[str] = field(default_factory=list[str])
    names: list[str] = field(default_factory=list[str])
    others: int = 0
    repeated: int = 0
    runs: int = 0


def is_image_name(name: str) -> bool:
    """Whether ``name`` ends like an image file, in any case.

    >>> is_image_name("a.JPG"), is_image_name("notes.txt")
    (True, False)
    """
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is left out everywhere (``.DS_Store``, ``__MACOSX``, ...).

    >>> is_hidden("._cat.jpg"), is_hidden("cat.jpg")
    (True, False)
    """
    return name.startswith(".") or name in _SYSTEM_FOLDERS


def portable_text(name: str) -> str:
    """Return a file name as text that is the same on every machine.

    macOS may hand out ``é`` as two code points where Linux has one; NFC makes them equal, so ids, their order and
    the class order agree. Bytes that are no UTF-8 become ``\\xNN``, so that the id can be written to a CSV.
    """
    if name.isascii():
        return name
    if any("\udc80" <= character <= "\udcff" for character in name):
        name = os.fsencode(name).decode("utf-8", "backslashreplace")
    return unicodedata.normalize("NFC", name)


def find_images(folder: Path, *, already_read: Path | None = None) -> FoundImages:
    """Find every image file below ``folder``, nested at any depth.

    Links are followed, but each real folder is read once, by its real path where it has one below ``folder``: a
    link that leads back up cannot loop.

    Args:
        folder: where to look.
        already_read: a folder that is not entered again through a link, such as the folder above.

    Raises:
        EtudeError: a folder may not be read.
    """
    found = FoundImages()
    seen = {_identity(str(already_read))} if already_read else set[tuple[int, int]]()
    pending = [(str(folder), "")]
    linked: list[tuple[str, str]] = []
    while pending or linked:
        if not pending:  # links come last and in order, so that which of two paths wins is no accident
            linked.sort(reverse=True)
            pending.append(linked.pop())
        place, prefix = pending.pop()
        identity = _identity(place)
        if identity in seen:
            found.repeated += 1
            continue
        seen.add(identity)
        _read_folder(place, prefix, found, pending, linked)
    return found


def visible_entries(folder: Path | str) -> Iterator[os.DirEntry[str]]:
    """Yield the entries of one folder without the hidden ones, in no particular order, as they are read.

    Raises:
        EtudeError: the folder may not be read.
    """
    try:
        with os.scandir(folder) as entries:
            yield from (entry for entry in entries if not is_hidden(entry.name))
    except OSError as error:
        raise _unreadable(folder, error) from None


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder or a link to one; a link that goes nowhere or in a circle is not."""
    return entry.is_dir(follow_symlinks=False) or (entry.is_symlink() and os.path.isdir(entry.path))


def is_own_folder(folder: Path | str) -> bool:
    """Whether etude wrote this folder: a run, whose figures are no data, or a store of decoded images."""
    for name, key in (("run.json", b'"schema_version"'), ("store.json", b'"kind"')):
        path = os.path.join(folder, name)
        if os.path.isfile(path):
            with suppress(OSError), open(path, "rb") as file:
                return key in file.read(1000)
    return False


def _read_folder(
    place: str, prefix: str, found: FoundImages, pending: list[tuple[str, str]], linked: list[tuple[str, str]]
) -> None:
    for entry in visible_entries(place):
        if is_folder(entry):
            if is_own_folder(entry.path):
                found.runs += 1
                continue
            queue = linked if entry.is_symlink() else pending
            queue.append((entry.path, f"{prefix}{entry.name}/"))
        elif is_image_name(entry.name) and (entry.is_file(follow_symlinks=False) or entry.is_symlink()):
            # A broken link is kept: the survey lists it as a missing file instead of hiding it.
            name = prefix + entry.name
            found.ids.append(portable_text(name))
            found.names.append(name)
        else:
            found.others += 1


def _identity(folder: str) -> tuple[int, int]:
    try:
        status = os.stat(folder)
    except OSError as error:
        raise _unreadable(folder, error) from None
    return status.st_dev, status.st_ino


def _unreadable(folder: Path | str, error: OSError) -> EtudeError:
    reason = (error.strerror or str(error)).lower()
    return EtudeError(
        f"the folder {os.fspath(folder)!r} cannot be read ({reason}): change its permissions or move it elsewhere"
    )
