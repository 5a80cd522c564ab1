"""Which kind of store: by what a sample of the images takes in each, and how much room there is."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from etude.core.errors import EtudeError, listed, nearest
from etude.core.text import counted, file_size
from etude.data.stores.disk import ENDS_TYPE, DiskStore
from etude.data.stores.formats import (
    KINDS,
    Blosc2Store,
    EncodedStore,
    RawStore,
    blosc2_module,
    bytes_per_second,
    has_blosc2,
)
from etude.data.stores.partial import Decoding, sample_rows

SMALL = 1 << 28
"""Bytes of pixels up to which nothing is measured: there is little to save."""
LEAST_RATIO = 2.0
LEAST_IMAGES_PER_SECOND = 5_000
"""Of 128 px RGB images, on one core: faster than most machines train."""
_REFERENCE_BYTES = 128 * 128 * 3
_MAX_SAMPLED, _LEAST_SAMPLED = 64, 16


@dataclass(frozen=True)
class Room:
    """Bytes that the disk has left (this store's partial work included) and that the user allows (None: half)."""

    free: int
    limit: int | None
    folder: Path

    @property
    def allowed(self) -> int:
        """Bytes that a store may take which was chosen for the user."""
        return self.free // 2 if self.limit is None else min(self.limit, self.free)

    @property
    def maximum(self) -> int:
        """Bytes that a store may take which the user asked for."""
        return self.free if self.limit is None else min(self.limit, self.free)


class Sizes:
    """What the images take in each kind of store, by a sample."""

    def __init__(self, work: Decoding) -> None:
        self.work, self.count = work, len(work.scan)
        self.raw = self.count * work.size**2 * work.scan.channels
        self._chunks: dict[str, list[bytes]] = {}

    @cached_property
    def rows(self) -> list[np.ndarray]:
        """The sampled images (S, S, C); little next to decoding all of them."""
        return sample_rows(self.work, min(_MAX_SAMPLED, max(_LEAST_SAMPLED, self.count // 64)))

    def chunks(self, store: type[DiskStore]) -> list[bytes]:
        """Return the sampled images as ``store`` keeps them."""
        if store.kind not in self._chunks:
            self._chunks[store.kind] = [store.encode(row) for row in self.rows]
        return self._chunks[store.kind]

    def expected(self, store: type[DiskStore]) -> float:
        """Return the bytes of the whole set."""
        if store is RawStore or not self.rows:
            return self.raw
        return (sum(map(len, self.chunks(store))) / len(self.rows) + ENDS_TYPE.itemsize) * self.count


def check_kind(asked: str) -> None:
    """Refuse a kind that does not exist or is not installed."""
    known = ("auto", *KINDS)
    if asked not in known:
        raise EtudeError(f"data.store is {asked!r}; choose one of {listed(known)}.{nearest(asked, known)}")
    if asked == Blosc2Store.kind:
        blosc2_module()


def choose_kind(work: Decoding, asked: str, room: Room) -> tuple[str, str]:
    """Choose raw, blosc2 or encoded, and say why in one sentence.

    Raw when it is small, or when it fits, unless Blosc2 is installed, compresses a sample twofold and reads at least
    5,000 images of 128 px a second. When raw does not fit, Blosc2 where that fits (it loses nothing and reads faster
    than JPEG even where it reads slowly), otherwise JPEG. Refuses where no kind, or not the one asked for, fits.
    """
    sizes = Sizes(work)
    raw = file_size(sizes.raw)
    if asked != "auto":
        if sizes.raw <= room.maximum:
            return asked, f"{asked}, as asked for" if asked != RawStore.kind else f"raw: {raw}, as asked for"
        if sizes.expected(KINDS[asked]) > room.maximum:
            raise EtudeError(_refusal(sizes, room, room.maximum))
        return asked, f"{asked}: {file_size(sizes.expected(KINDS[asked]))}, as asked for"
    fits = sizes.raw <= room.allowed
    if fits and (sizes.raw <= SMALL or not has_blosc2()):
        return RawStore.kind, f"raw: {raw}"
    if not sizes.rows:
        return RawStore.kind, f"raw: {raw}, and no sampled image can be decoded"
    if fits:
        worth, measured = _worth_compressing(sizes)
        if not worth:
            return RawStore.kind, f"raw: {raw}, and {measured}"
        return Blosc2Store.kind, (
            f"blosc2: {file_size(sizes.expected(Blosc2Store))}, since raw would take {raw} and {measured}"
        )
    for store in _compressed():
        if (expected := sizes.expected(store)) <= room.allowed:
            too_large = f"raw would take {raw} of at most {file_size(room.allowed)}"
            return store.kind, f"{store.kind}: {file_size(expected)}, since {too_large}"
    raise EtudeError(_refusal(sizes, room, room.allowed))


def _compressed() -> tuple[type[DiskStore], ...]:
    return (Blosc2Store, EncodedStore) if has_blosc2() else (EncodedStore,)


def _worth_compressing(sizes: Sizes) -> tuple[bool, str]:
    """Return whether Blosc2 saves enough and reads quickly enough, and what was measured."""
    ratio = sizes.raw / sizes.expected(Blosc2Store)
    if ratio < LEAST_RATIO:
        return False, f"a sample compresses only {ratio:.1f}x"
    speed = bytes_per_second(sizes.chunks(Blosc2Store), sizes.rows[0].shape) / _REFERENCE_BYTES
    if speed < LEAST_IMAGES_PER_SECOND:
        return False, f"a sample compresses {ratio:.1f}x but reads at only {speed:,.0f} images/s of 128 px"
    return True, f"a sample compresses {ratio:.1f}x"


def _refusal(sizes: Sizes, room: Room, allowed: int) -> str:
    needs = [f"{file_size(sizes.expected(store))} as {store.kind}" for store in (RawStore, *_compressed())]
    limit = "the limit" if room.limit is not None and room.limit <= room.free else "the free disk space to be used"
    return (
        f"{counted(sizes.count, 'image')} of {sizes.work.size} px take {', '.join(needs)}, but {limit} in "
        f"{room.folder} is {file_size(allowed)}: raise data.cache_limit, free some space, choose another cache folder, "
        "or smaller images"
    )
