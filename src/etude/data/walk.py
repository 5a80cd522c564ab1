"""Finding image files below a folder: fast, in one order on every machine, and safe with links that loop."""

from __future__ import annotations

import mimetypes
import os
import unicodedata
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from etude.core.errors import EtudeError
from etude.data.decode import image_suffixes, is_image_content

_USUAL_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif"})
_TYPES = mimetypes.MimeTypes()  # the types that Python knows by itself, the same on every machine

# Folders that operating systems and network drives leave behind; some hold thumbnails that look like images.
_SYSTEM_FOLDERS = frozenset({"__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information"})


@dataclass
class FoundImages:
    """What :func:`find_images` found, all relative to the root and not sorted."""

    ids: list[str] = field(default_factory=list[str])  # POSIX path of each image, Unicode in NFC
    names: list[str] = field(default_factory=list[str])  # the file of each id
    others: list[str] = field(default_factory=list[str])  # files that are no images by ending or content
    repeated: int = 0  # linked folders left out because their content was already read
    runs: int = 0  # folders left out because etude wrote them: runs, and stores of a cache


def is_image_name(name: str) -> bool:
    """Whether ``name`` ends like an image file of any format that is read, in any case."""
    suffix = os.path.splitext(name)[1].lower()
    return suffix in _USUAL_SUFFIXES or suffix in image_suffixes()


def is_image_file(path: str, name: str) -> bool:
    """Whether a file is an image by its name; where that says nothing, by its content."""
    if is_image_name(name):
        return True  # of any kind: the scan names what cannot be read, a missing or special file too
    kind = _TYPES.guess_type(name)[0]
    known = kind is not None and not kind.startswith("image/") and kind != "application/octet-stream"
    return not known and is_image_content(path)


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


def find_images(root: Path, inner: str = "", found: FoundImages | None = None) -> FoundImages:
    """Add every image file in the folder ``inner`` of ``root``, by default in all of it, to ``found``.

    Links are followed, but each real folder is read once, by its real path where it has one in there: a link that
    leads back up, as far as to ``root``, cannot loop.
    """
    found = FoundImages() if found is None else found
    seen = {_identity(str(root))} if inner else set[tuple[int, int]]()
    pending = [(str(root / inner), f"{inner}/" if inner else "")]
    linked: list[tuple[str, str]] = []
    while pending or linked:
        if not pending:  # links come last and in order, so that which of two paths wins is no accident
            linked.sort(reverse=True)
            pending.append(linked.pop())
        path, prefix = pending.pop()
        identity = _identity(path)
        if identity in seen:
            found.repeated += 1
            continue
        seen.add(identity)
        for entry in visible_entries(path):
            name = prefix + entry.name
            if not is_folder(entry):
                if is_image_file(entry.path, entry.name):
                    found.ids.append(portable_text(name))
                    found.names.append(name)
                else:
                    found.others.append(name)
            elif is_own_folder(entry.path):
                found.runs += 1
            else:
                (linked if entry.is_symlink() else pending).append((entry.path, f"{name}/"))
    return found


def visible_entries(folder: Path | str) -> Iterator[os.DirEntry[str]]:
    """Yield the entries of one folder in no particular order, without ``.DS_Store``, ``__MACOSX`` and their like."""
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if not entry.name.startswith(".") and entry.name not in _SYSTEM_FOLDERS:
                    yield entry
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
