"""Decoding every image once into a store under the cache folder; a second run over the same contents reuses it."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import socket
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO

import numpy as np

from etude.core.errors import EtudeError, listed, nearest
from etude.core.files import digest_of, explained_write
from etude.core.progress import Progress
from etude.data.bad_files import BadFile
from etude.data.decode import DECODER_VERSION, FITS, UnreadableImage, decode, read_image_file
from etude.data.geometry import choose_fit
from etude.data.in_order import map_in_order, usable_cores
from etude.data.sources import ImageSet
from etude.data.store import PIXELS_NAME, STORE_VERSION, DamagedStoreError, RawStore, StoreRecord
from etude.data.survey import SurveyResult, none_readable


@dataclass(frozen=True)
class StoreBuild:
    """A store and how its rows belong to the images.

    Attributes:
        store: row i holds image ``kept[i]``.
        kept: (N,) int64 indices into the image set.
        bad: every image that was left out, those of the survey included.
        fit: ``squash``, ``crop`` or ``letterbox``.
        fit_reason: one sentence for the screen.
        content_hashes: (N,) hash of the file behind each row; equal files have equal hashes.
        reused: whether the store was already there.
    """

    store: RawStore
    kept: np.ndarray
    bad: tuple[BadFile, ...]
    fit: str
    fit_reason: str
    content_hashes: tuple[str, ...]
    reused: bool


def build_store(
    images: ImageSet,
    survey: SurveyResult,
    size: int,
    *,
    fit: str = "auto",
    cache: Path,
    progress: Progress,
    warn: Callable[[str], None],
    threads: int | None = None,
) -> StoreBuild:
    """Decode the surveyed images at one size into ``cache/stores/<key>``, or reuse the store that is there.

    The key covers the files' contents in order, size, fit, channels and the decoder's version, not their names. A
    store is written beside its place and moved there when whole, so a killed run leaves nothing under the key and two
    runs at once both succeed.

    Args:
        images: the image set that was surveyed.
        survey: what :func:`etude.data.survey.survey` returned for it.
        size: side of the stored squares in pixels.
        fit: ``squash``, ``crop``, ``letterbox``, or ``auto`` to choose from the aspect ratios.
        cache: the cache folder.
        progress: shows a bar.
        warn: is told one sentence when a damaged store is rebuilt.
        threads: decoding threads; one for each core by default.

    Raises:
        EtudeError: no image can be decoded, the fit is unknown, the size is below 1, or the disk is full.
    """
    fit, reason = _settled_fit(fit, survey)
    if size < 1:
        raise EtudeError(f"the image size is {size}; it must be 1 pixel or more")
    stores = cache / "stores"
    versions = f"{STORE_VERSION}.{DECODER_VERSION}"
    folder = stores / digest_of(versions, str(size), fit, str(survey.channels), *survey.content_hashes)
    with explained_write(stores):
        stores.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(stores)
    store = _usable(folder, progress, warn)
    reused = store is not None
    if store is None:
        _write_store(images, survey, (size, fit), folder, progress, threads or usable_cores())
        store = RawStore(folder)
    unreadable = {position for position, _ in store.record.bad}
    kept = survey.kept[[position for position in range(len(survey)) if position not in unreadable]]
    undecoded = [(int(survey.kept[position]), told) for position, told in store.record.bad]
    bad = (*survey.bad, *(BadFile(images.ids[index], images.paths[index], told) for index, told in undecoded))
    return StoreBuild(store, kept, bad, fit, reason, store.record.content_hashes, reused)


def _settled_fit(fit: str, survey: SurveyResult) -> tuple[str, str]:
    if fit == "auto":
        return choose_fit(survey.widths, survey.heights)
    if fit not in FITS:
        raise EtudeError(f"data.fit is {fit!r}; choose one of {listed(('auto', *FITS))}.{nearest(fit, FITS)}")
    return fit, f"{fit}, as asked for"


def _usable(folder: Path, progress: Progress, warn: Callable[[str], None]) -> RawStore | None:
    """Return the store that is already there, or None; a damaged one is told and moved out of the way."""
    if not folder.exists():
        return None
    try:
        store = RawStore(folder)
        store.check(progress)
        return store
    except DamagedStoreError as problem:
        warn(f"{problem.args[0].removesuffix('; delete it and run again')}: it is built again")
        with explained_write(folder), suppress(FileNotFoundError):  # another run may have moved it already
            discarded = _temporary_name(folder)
            folder.rename(discarded)
            shutil.rmtree(discarded, ignore_errors=True)
        return None


def _write_store(
    images: ImageSet, survey: SurveyResult, target: tuple[int, str], folder: Path, progress: Progress, threads: int
) -> None:
    size, fit = target
    shape = (len(survey), size, size, survey.channels)
    read = partial(_read_row, size=size, fit=fit, channels=survey.channels)
    files = ((images.paths[index], content) for index, content in zip(survey.kept, survey.content_hashes, strict=True))
    hashes: list[str] = []
    bad: list[tuple[int, str]] = []
    checksum = 0
    with _appearing(folder) as temporary, explained_write(folder), (temporary / PIXELS_NAME).open("wb") as file:
        _reserve(file, int(np.prod(shape)))
        with progress.bar("decode", len(survey)) as advance:
            for position, pixels in enumerate(map_in_order(read, files, threads)):
                advance()
                if isinstance(pixels, str):
                    bad.append((position, pixels))
                    continue
                file.write(pixels)
                checksum = zlib.crc32(pixels, checksum)
                hashes.append(survey.content_hashes[position])
        file.truncate()
        if not hashes:
            undecoded = [BadFile(images.ids[survey.kept[at]], images.paths[survey.kept[at]], why) for at, why in bad]
            raise EtudeError(none_readable(images, [*survey.bad, *undecoded]))
        shape = (len(hashes), *shape[1:])
        StoreRecord(shape, fit, tuple(hashes), tuple(bad), checksum).save(temporary)


def _read_row(file: tuple[Path, str], size: int, fit: str, channels: int) -> bytes | str:
    """Return the pixels of one file, or the reason why there are none."""
    path, content = file
    try:
        data = read_image_file(path)
        if digest_of(data) != content:  # otherwise the store would be kept under another file's hash
            return "changed while it was being read"
        return decode(data, size, fit, channels).tobytes()
    except UnreadableImage as problem:
        return str(problem)


def _reserve(file: IO[bytes], count: int) -> None:
    """Take the disk space at once: a full disk shows now, not after an hour of decoding."""
    if not hasattr(os, "posix_fallocate"):
        return
    try:
        os.posix_fallocate(file.fileno(), 0, count)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):  # file systems that cannot reserve
            raise


@contextmanager
def _appearing(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes ``folder`` when the block succeeds, and vanishes when it does not."""
    temporary = _temporary_name(folder)
    try:
        with explained_write(folder):
            temporary.mkdir()
        yield temporary
        try:
            temporary.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
            # Another run finished the same store first; its content is the same by its key.
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _temporary_name(folder: Path) -> Path:
    """Name a folder by host and process, so that leftovers of a killed run can be told from one that works."""
    return folder.with_name(f".{folder.name}.{socket.gethostname()}.{os.getpid()}.{secrets.token_hex(4)}.tmp")


def _remove_leftovers(stores: Path) -> None:
    """Remove temporary folders of this host's processes that are gone; other hosts' are theirs to judge."""
    for leftover in stores.glob(f".*.{socket.gethostname()}.*.tmp"):
        process = leftover.name.split(".")[-3]
        if process.isdigit() and not _is_running(int(process)):
            shutil.rmtree(leftover, ignore_errors=True)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
