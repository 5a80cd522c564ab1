"""A store in the making, from which the run after a killed one goes on.

Rows are appended to the files of a ``.partial`` folder. Every few seconds the files are written through to the disk,
and after that a small record says how long they were and what their checksums are. What is beyond the record is
cut off at the next start, and decoding goes on from there.
"""

from __future__ import annotations

import errno
import os
import shutil
import time
import zlib
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import IO, Self

import numpy as np

from etude.core.context import Context
from etude.core.errors import EtudeError
from etude.core.files import digest_of, explained_write
from etude.core.prefetch import prefetch
from etude.data.compact import Digests
from etude.data.decode import UnreadableImage, decode, dullness, read_image_file
from etude.data.scan import Scan, none_readable
from etude.data.sources import BadFile, ImageSet
from etude.data.stores.disk import ENDS_TYPE, RECORD_NAME, Contents, DiskStore, FileSum, Marks, StoreRecord
from etude.data.stores.formats import RawStore

PROGRESS_NAME = "progress.json"
SAVE_SECONDS = 2.0
"""At most so much decoding is lost when a run is killed; a record costs some milliseconds."""


@dataclass(frozen=True)
class Decoding:
    """Which images become squares of ``size`` pixels, and how: ``fit`` is squash, crop or letterbox."""

    images: ImageSet
    scan: Scan
    size: int
    fit: str
    context: Context
    threads: int

    def pixels(self, data: bytes) -> np.ndarray:
        """Return a file's image as uint8 (size, size, channels), or raise UnreadableImage."""
        return decode(data, self.size, self.fit, self.scan.channels, self.scan.value_range)

    def undecoded(self, bad: Marks) -> list[BadFile]:
        """Return the files behind (position in the scan, reason)."""
        chosen = [(int(self.scan.kept[position]), reason) for position, reason in bad]
        return [BadFile(self.images.ids[index], self.images.paths[index], reason) for index, reason in chosen]


@dataclass(frozen=True, kw_only=True)
class Begun(Contents):
    """What is done of a store: ``done`` images were read, good or bad, in the scan's order."""

    done: int = 0

    @property
    def rows(self) -> int:
        """Rows that the files hold."""
        return self.done - len(self.bad)

    @staticmethod
    def of(folder: Path, store: type[DiskStore]) -> Begun | None:
        """Return what the record in ``folder`` says; None where there is none that can be used."""
        with suppress(EtudeError, OSError, ValueError, TypeError):
            begun = Begun.load(folder / PROGRESS_NAME)
            return begun if set(begun.files) == set(store.file_names) else None
        return None


class PartialStore:
    """The files of a store in the making; a context that closes them. OSError where the folder cannot be written."""

    def __init__(self, folder: Path, store: type[DiskStore], begun: Begun | None) -> None:
        self.folder, self.store = folder, store
        # Replaced as a whole: an interrupt finds an image either done or not begun.
        self._begun = begun or Begun(files={name: FileSum() for name in store.file_names})
        # Added before the image counts as done; a mark without its image is left out of the record.
        self._bad, self._dull = list(self._begun.bad), list(self._begun.dull)
        self._files: dict[str, IO[bytes]] = {}
        self._closing = ExitStack()

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        for name, held in self._begun.files.items():
            path = self.folder / name
            path.touch()
            file = self._closing.enter_context(path.open("r+b"))
            file.truncate(held.bytes)
            file.seek(held.bytes)
            self._files[name] = file
        return self

    def __exit__(self, *exc: object) -> None:
        self._closing.close()

    @property
    def done(self) -> int:
        """Images that were read, good or bad; decoding goes on from there."""
        return self._begun.done

    def record(self) -> Begun:
        """Return what is done."""
        done = self._begun.done
        bad, dull = (tuple(mark for mark in marks if mark[0] < done) for marks in (self._bad, self._dull))
        return replace(self._begun, bad=bad, dull=dull)

    def reserve(self, rows: int, row_bytes: int) -> None:
        """Take the disk space of more ``rows`` at once: a full disk shows now, not after an hour of decoding."""
        file = self._files[self.store.file_names[0]]
        if not hasattr(os, "posix_fallocate") or not rows:
            return
        held = file.tell()
        try:
            os.posix_fallocate(file.fileno(), held, rows * row_bytes)
        except OSError as error:
            file.truncate(held)  # gives back what was taken before the disk was full
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):  # file systems that cannot reserve
                raise

    def append(self, row: bytes, dull: str = "") -> None:
        """Add the next image; ``dull`` says what it is like where it shows hardly anything."""
        rows_name, *ends_names = self.store.file_names
        files = {rows_name: self._written(rows_name, row)}
        for name in ends_names:
            files[name] = self._written(name, np.array(files[rows_name].bytes, ENDS_TYPE).tobytes())
        if dull:
            self._dull.append((self.done, dull))
        self._begun = replace(self._begun, done=self.done + 1, files=files)

    def skip(self, reason: str) -> None:
        """Leave the next image out."""
        self._bad.append((self.done, reason))
        self._begun = replace(self._begun, done=self.done + 1)

    def save(self) -> None:
        """Write the files through to the disk, then the record of how far they have come."""
        begun = self.record()
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
        begun.save(self.folder / PROGRESS_NAME)

    def complete(self) -> Begun:
        """Cut the files to what was written, save, and return the record."""
        for name, file in self._files.items():
            file.truncate(self._begun.files[name].bytes)
        self.save()
        return self.record()

    def _written(self, name: str, data: bytes) -> FileSum:
        held = self._begun.files[name]
        self._files[name].write(data)
        return FileSum(held.bytes + len(data), zlib.crc32(data, held.checksum))


def ingest(work: Decoding, kind: type[DiskStore], partial_folder: Path, folder: Path) -> None:
    """Decode the images into ``partial_folder``, going on from what is there; when whole it becomes ``folder``.

    Where the disk is full the partial work stays.
    """
    begun = _verified(partial_folder, kind, work.context)
    with explained_write(folder):
        with PartialStore(partial_folder, kind, begun) as store:
            try:
                _fill(store, work)
            except BaseException:  # an interrupt loses nothing; an error of the save itself matters less
                with suppress(OSError, EtudeError):
                    store.save() if store.done else remove(partial_folder)
                raise
            bad = store.record().bad
            if len(bad) < len(work.scan):
                _record(store, work).save(partial_folder / RECORD_NAME)
        if len(bad) == len(work.scan):
            remove(partial_folder)
            raise EtudeError(none_readable(work.images, [*work.scan.bad, *work.undecoded(bad)]))
        _appear(partial_folder, folder)


def remove(folder: Path) -> None:
    """Remove a folder of partial work."""
    with explained_write(folder), suppress(FileNotFoundError):
        shutil.rmtree(folder)


def sample_rows(work: Decoding, count: int) -> list[np.ndarray]:
    """Decode up to ``count`` images spread over the set: (S, S, C) uint8 each; those that cannot be are left out."""

    def decoded(position: int) -> np.ndarray | None:
        try:
            return work.pixels(read_image_file(work.images.paths[work.scan.kept[position]]))
        except UnreadableImage:  # the store names what it cannot read
            return None

    found = prefetch(decoded, work.scan.spread(count).tolist(), threads=work.threads)
    return [pixels for pixels in found if pixels is not None]


def _verified(folder: Path, store: type[DiskStore], context: Context) -> Begun | None:
    """Return what can be kept of the work in ``folder``; what cannot is removed, with a warning where it is damaged."""
    if not folder.exists():
        return None
    begun = Begun.of(folder, store)
    with suppress(OSError):
        if begun is not None and begun.rows and not begun.changed(folder, context, "check partial work"):
            return begun
    if (folder / PROGRESS_NAME).exists() and (begun is None or begun.rows):
        context.warn(f"the partial image store {folder} is damaged: decoding begins anew")
    remove(folder)
    return None


def _fill(store: PartialStore, work: Decoding) -> None:
    done, total = store.done, len(work.scan)
    if store.store is RawStore:
        store.reserve(total - done, work.size**2 * work.scan.channels)
    saved = time.monotonic()
    with work.context.bar(f"decode (resumed at {done:,})" if done else "decode", total - done) as advance:
        read = partial(_read_row, work=work, kind=store.store)
        for row in prefetch(read, range(done, total), threads=work.threads):
            if isinstance(row, str):
                store.skip(row)
            else:
                store.append(*row)
            advance()
            if time.monotonic() - saved >= SAVE_SECONDS:
                store.save()
                saved = time.monotonic()


def _read_row(at: int, work: Decoding, kind: type[DiskStore]) -> tuple[bytes, str] | str:
    """Return what is kept of one file and whether it shows hardly anything, or the reason why nothing is kept."""
    scan = work.scan
    try:
        data = read_image_file(work.images.paths[scan.kept[at]])
        if digest_of(data) != scan.content_hashes[at]:  # otherwise the store would be kept under another file's hash
            return "changed while it was being read"
        pixels = work.pixels(data)
        return kind.encode(pixels), dullness(pixels, work.fit, (scan.widths[at], scan.heights[at]))
    except UnreadableImage as problem:
        return str(problem)


def _record(store: PartialStore, work: Decoding) -> StoreRecord:
    begun = store.complete()
    hashes = Digests(np.delete(work.scan.content_hashes.values, [position for position, _ in begun.bad], axis=0))
    shape = (len(hashes), work.size, work.size, work.scan.channels)
    return StoreRecord(
        kind=store.store.kind, shape=shape, fit=work.fit, content_hashes=hashes, files=begun.files, bad=begun.bad,
        dull=begun.dull,
    )  # fmt: skip


def _appear(partial_folder: Path, folder: Path) -> None:
    try:
        partial_folder.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise
        remove(partial_folder)  # without locks another run may be first; its content is the same by its key
        return
    # After the move: a run that is killed in between finds its work all done.
    (folder / PROGRESS_NAME).unlink(missing_ok=True)
