"""Decoding every image once into a store under the cache folder; a second run over the same contents reuses it."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from etude.core.context import Context
from etude.core.errors import EtudeError, listed, nearest
from etude.core.files import digest_of, explained_write, lock_file
from etude.core.processor import usable_cores
from etude.core.text import file_size
from etude.data.compact import Digests
from etude.data.decode import DECODER_VERSION, FITS, choose_fit
from etude.data.scan import Scan
from etude.data.sources import BadFile, ImageSet
from etude.data.stores.choose import Room, check_kind, choose_kind
from etude.data.stores.disk import STORE_VERSION, DamagedStoreError, DiskStore, Store
from etude.data.stores.formats import KINDS, Blosc2Store, RawStore, has_blosc2
from etude.data.stores.partial import Begun, Decoding, ingest, remove
from etude.data.value_range import ValueRange


@dataclass(frozen=True)
class StoreBuild:
    """A store and how its rows belong to the images."""

    store: Store  # row i holds image ``kept[i]``
    kept: np.ndarray  # (N,) int64 indices into the image set
    bad: tuple[BadFile, ...]  # every image that was left out, those of the scan included
    fit: str
    fit_reason: str
    kind: str
    kind_reason: str
    content_hashes: Digests  # (N,) of the file behind each row; equal files have equal hashes
    reused: bool  # whether the store was already there
    value_range: ValueRange | None = None
    dull: tuple[tuple[str, str], ...] = ()  # (id, what) of images that are nearly black or white or of one colour


def build_store(
    images: ImageSet,
    scan: Scan,
    size: int,
    context: Context,
    *,
    fit: str = "auto",
    kind: str = "auto",
    limit: int | None = None,
    threads: int | None = None,
) -> StoreBuild:
    """Decode the scanned images at one size into the cache's ``stores/<key>``, or reuse the store that is there.

    The key covers the files' contents in order, size, fit, channels, the range of values, the decoder's version and
    the kind, not the files' names. A store appears under its key when it is whole. A run that is killed leaves partial
    work next to it, from which the next run goes on; of two runs at once the second waits for the first.
    ``auto`` chooses the fit by the aspect ratios, the kind by what is there or by measurement; ``limit`` is in bytes,
    by default half of the free disk space.
    """
    fit, reason = _chosen_fit(fit, scan)
    check_kind(kind)
    if size < 1:
        raise EtudeError(f"the image size is {size}; it must be 1 pixel or more")
    stores = context.cached("stores")
    with explained_write(stores):
        stores.mkdir(parents=True, exist_ok=True)
    versions = f"{STORE_VERSION}.{DECODER_VERSION}"
    values = "" if scan.deep is None else str(scan.value_range)
    key = digest_of(versions, str(size), fit, str(scan.channels) + values, *scan.content_hashes)
    work = Decoding(images, scan, size, fit, context, threads or usable_cores())
    store, built = _Build(work, stores, key).store(kind, limit)
    return StoreBuild(
        store=store,
        kept=np.delete(scan.kept, [position for position, _ in store.record.bad]),
        bad=(*scan.bad, *work.undecoded(store.record.bad)),
        fit=fit,
        fit_reason=reason,
        kind=store.kind,
        kind_reason=built or f"{store.kind}: {file_size(store.record.total_bytes)}, already there",
        content_hashes=store.record.content_hashes,
        reused=built is None,
        value_range=scan.value_range,
        dull=tuple((images.ids[int(scan.kept[position])], what) for position, what in store.record.dull),
    )


def _chosen_fit(fit: str, scan: Scan) -> tuple[str, str]:
    if fit == "auto":
        return choose_fit(scan.widths, scan.heights)
    if fit not in FITS:
        raise EtudeError(f"data.fit is {fit!r}; choose one of {listed(('auto', *FITS))}.{nearest(fit, FITS)}")
    return fit, f"{fit}, as asked for"


@dataclass(frozen=True)
class _Build:
    """The stores of one content key, one a kind at most, and what it takes to build one."""

    work: Decoding
    stores: Path
    key: str

    def store(self, asked: str, limit: int | None) -> tuple[DiskStore, str | None]:
        """Return the store, and why it is of its kind if this run built it."""
        if (found := self._usable(asked)) is not None:
            return found, None
        # What a run holds that decodes these images, into any kind.
        with alone(self.stores / f"{self.key}.lock", self.work.context) as locked:
            if (found := self._usable(asked, discard=True)) is not None:  # built while this run waited
                return found, None
            kind, reason = self._chosen_kind(asked, limit, locked)
            partial = self._partial(kind, locked)
            if locked:
                self._clear(except_for=kind)
            try:
                ingest(self.work, KINDS[kind], partial, self._folder(kind))
            finally:
                if not locked:  # nobody would find it
                    remove(partial)
            return KINDS[kind](self._folder(kind)), reason

    def _folder(self, kind: str) -> Path:
        """Where the whole store appears."""
        return self.stores / (self.key if kind == RawStore.kind else f"{self.key}-{kind}")

    def _partial(self, kind: str, locked: bool = True) -> Path:
        """Where a store grows; a name of this run's own when no lock keeps others out."""
        own = "" if locked else f".{socket.gethostname()}.{os.getpid()}.{secrets.token_hex(4)}"
        return self._folder(kind).with_suffix(f"{own}.partial")

    def _usable(self, asked: str, discard: bool = False) -> DiskStore | None:
        """Return the store of the kind ``asked`` that is already there, of any kind for ``auto``, or None.

        A damaged one is passed over; with ``discard`` it is moved out of the way, with a warning.
        """
        for kind in _readable_kinds() if asked == "auto" else [asked]:
            if not self._folder(kind).exists():
                continue
            try:
                store = KINDS[kind](self._folder(kind))
                store.check(self.work.context)
                return store
            except DamagedStoreError as problem:
                if discard:
                    why = f"the image store {problem.folder} is damaged ({problem.why})"
                    self.work.context.warn(f"{why}: it is built again")
                    _discard(self._folder(kind))
        return None

    def _chosen_kind(self, asked: str, limit: int | None, locked: bool) -> tuple[str, str]:
        partials = [self._partial(kind) for kind in KINDS]
        held = sum(file.stat().st_size for folder in partials if folder.is_dir() for file in folder.iterdir())
        room = Room(shutil.disk_usage(self.stores).free + held, limit, self.stores)
        for kind in _readable_kinds() if asked == "auto" and locked else ():
            begun = Begun.of(self._partial(kind), KINDS[kind])
            if begun is not None and begun.rows:
                size = begun.total_bytes / begun.rows * len(self.work.scan)  # if the others take as much
                if size <= room.allowed:
                    return kind, f"{kind}: {file_size(size)}, as an earlier run began"
        return choose_kind(self.work, asked, room)

    def _clear(self, except_for: str) -> None:
        """Remove partial work of other kinds, which nobody would take up, and what is left of damaged stores."""
        for left in self.stores.glob(f".{self.key}*.discarded"):
            shutil.rmtree(left, ignore_errors=True)
        for kind in KINDS:
            if kind != except_for:
                remove(self._partial(kind))


def _readable_kinds() -> list[str]:
    return [kind for kind in KINDS if kind != Blosc2Store.kind or has_blosc2()]


def _discard(folder: Path) -> None:
    with explained_write(folder), suppress(FileNotFoundError):
        discarded = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.discarded")
        folder.rename(discarded)  # at once; a run that still reads it keeps its files
        shutil.rmtree(discarded, ignore_errors=True)


@contextmanager
def alone(path: Path, context: Context) -> Iterator[bool]:
    """Hold the lock ``path``, waiting for the run that has it; yield whether the file system has locks at all.

    The system releases a lock when its process ends, however it ends.
    """
    with explained_write(path):
        try:
            handle = lock_file(path)
        except BlockingIOError:
            context.warn(f"another run decodes the same images (it holds {path}); this one waits for its store")
            handle = lock_file(path, wait=True)
    if handle is None:
        context.warn(
            f"{path.parent} is on a file system without locks, so what this run decodes is kept separate from "
            "other runs' work, and a run that is killed while it decodes begins anew"
        )
    try:
        yield handle is not None
    finally:
        if handle is not None:
            os.close(handle)
