"""Images compressed without loss by Blosc2, one chunk an image, decompressed straight into their places.

Measured on 128 px images, one core (images/s read, times smaller), against 530,000 of a raw map in cache:

    ============================  ===============  ===============  =============
    drawings                      no filter        shuffle          bitshuffle
    ============================  ===============  ===============  =============
    LZ4, level 9                  69,000   5.6x    25,000   3.5x    22,000   1.8x
    Zstandard, level 1            23,000   6.4x    12,000   4.5x    10,000   2.9x
    ============================  ===============  ===============  =============

Photos stay below 1.4x with all of them. Images that compress well are flat ones, and there runs of equal bytes say
more than bit planes do: LZ4 without a filter.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from etude.core.errors import EtudeError
from etude.data.stores.disk import place
from etude.data.stores.packed import PackedStore
from etude.data.stores.protocol import checked_rows
from etude.data.stores.record import DamagedStoreError

_LEVEL = 9
_TIMED_SECONDS = 0.01
_HEADER_BYTES = 32
_DECODED_LENGTH = slice(4, 8)  # of a chunk's header


class Blosc2Store(PackedStore):
    """A store of losslessly compressed pixels.

    Raises:
        EtudeError: blosc2 is not installed.
        DamagedStoreError: the folder's files do not fit together.
    """

    kind = "blosc2"

    def __init__(self, folder: Path | str) -> None:
        blosc2_module()  # a missing package is told before the first batch
        super().__init__(folder)

    @staticmethod
    def encode(pixels: np.ndarray) -> bytes:
        """Return one image (S, S, C) uint8 as a Blosc2 chunk."""
        return blosc2_module().compress2(np.ascontiguousarray(pixels), **_settings())

    def gather(self, indices: np.ndarray | Sequence[int], size: int) -> np.ndarray:
        """Return rows ``indices``, resized to ``size``: (B, size, size, channels) uint8, contiguous.

        Raises:
            IndexError: a row is not in the store.
            DamagedStoreError: a row cannot be decompressed.
        """
        rows = checked_rows(indices, len(self))
        gathered = np.empty((len(rows), size, size, self.channels), dtype=np.uint8)
        own_size = size == self.size
        scratch = np.empty(self.record.shape[1:], dtype=np.uint8)
        for row, target in zip(rows, gathered, strict=True):
            pixels = target if own_size else scratch
            try:
                decompress(self.row_bytes(row), pixels)
            except ValueError as error:
                raise DamagedStoreError(self.folder, f"row {row}: {error}") from None
            if not own_size:
                place(pixels, target)
        return gathered


@cache
def blosc2_module() -> ModuleType:
    """Return the optional package ``blosc2``.

    Raises:
        EtudeError: it is not installed.
    """
    try:
        return importlib.import_module("blosc2")
    except ImportError as error:
        raise EtudeError(
            f"images are kept compressed by the package blosc2, which cannot be imported ({error}); run "
            'pip install "etude[blosc2]", or choose another data.store, such as raw'
        ) from None


def has_blosc2() -> bool:
    """Return whether the package is installed, without importing it."""
    return importlib.util.find_spec("blosc2") is not None


def decompress(chunk: np.ndarray, target: np.ndarray) -> None:
    """Fill the contiguous array ``target`` from a chunk.

    Raises:
        ValueError: the chunk is damaged or was made of another number of bytes.
    """
    # Blosc2 writes as many bytes as the chunk's header says, whatever room there is.
    if len(chunk) < _HEADER_BYTES or int.from_bytes(chunk[_DECODED_LENGTH], "little") != target.nbytes:
        raise ValueError(f"it does not hold {target.nbytes:,} bytes")
    blosc2_module().decompress2(chunk, dst=target, nthreads=1)  # threads of its own cost more than an image


def bytes_per_second(chunks: Sequence[bytes], shape: tuple[int, ...]) -> float:
    """Return how many decompressed bytes one core reads in a second, as the median of several passes over ``chunks``.

    Processor time of this thread counts, not the clock, so that a busy machine gives the same answer.
    """
    rows = [np.frombuffer(chunk, dtype=np.uint8) for chunk in chunks]
    target = np.empty(shape, dtype=np.uint8)
    seconds: list[float] = []
    while len(seconds) < 3 or sum(seconds) < _TIMED_SECONDS:
        start = time.thread_time()
        for row in rows:
            decompress(row, target)
        seconds.append(time.thread_time() - start)
    return len(rows) * target.nbytes / max(float(np.median(seconds)), 1e-9)


@cache
def _settings() -> dict[str, Any]:
    blosc2 = blosc2_module()
    nothing = [blosc2.Filter.NOFILTER]
    return {
        "codec": blosc2.Codec.LZ4, "clevel": _LEVEL, "typesize": 1, "nthreads": 1,
        "filters": nothing, "filters_meta": [0],
    }  # fmt: skip
