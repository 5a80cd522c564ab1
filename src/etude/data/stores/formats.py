"""The kinds of stores on disk, by name."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import cv2
import numpy as np

from etude.core.errors import EtudeError
from etude.core.images import resize_into
from etude.data.stores.disk import DamagedStoreError, DiskStore, PackedStore, checked_rows

PIXELS_NAME = "pixels.u8"


class RawStore(DiskStore):
    """A store of raw uint8 pixels."""

    kind = "raw"
    file_names: ClassVar[tuple[str, ...]] = (PIXELS_NAME,)

    def __init__(self, folder: Path | str) -> None:
        super().__init__(folder)
        shape = self.record.shape
        if self.record.files[PIXELS_NAME].bytes != int(np.prod(shape)):
            raise DamagedStoreError(self.folder, f"{PIXELS_NAME} does not hold {shape} pixels")
        mapped = np.memmap(self.folder / PIXELS_NAME, dtype=np.uint8, mode="r", shape=shape)
        self._pixels = mapped.view(np.ndarray)  # rows of a plain array are cheaper than rows of a memmap

    @staticmethod
    def encode(pixels: np.ndarray) -> bytes:
        """Return the pixels of one image (S, S, C) uint8 as they are."""
        return pixels.tobytes()

    def gather(self, indices: np.ndarray | Sequence[int], size: int) -> np.ndarray:
        """Return rows as :meth:`Store.gather` does; at their own size in one copy."""
        if size == self.size:
            return self._pixels[checked_rows(indices, len(self))]
        return super().gather(indices, size)

    def read_into(self, row: int, target: np.ndarray) -> None:
        """As :meth:`DiskStore.read_into`."""
        resize_into(self._pixels[row], target)


_SETTINGS = [
    *(cv2.IMWRITE_JPEG_QUALITY, 95),
    *(cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444),
]
# Part of the side that is decoded -> OpenCV's flag for grey and for colour.
_FLAGS = {
    1: (cv2.IMREAD_GRAYSCALE, cv2.IMREAD_COLOR),
    2: (cv2.IMREAD_REDUCED_GRAYSCALE_2, cv2.IMREAD_REDUCED_COLOR_2),
    4: (cv2.IMREAD_REDUCED_GRAYSCALE_4, cv2.IMREAD_REDUCED_COLOR_4),
    8: (cv2.IMREAD_REDUCED_GRAYSCALE_8, cv2.IMREAD_REDUCED_COLOR_8),
}


class EncodedStore(PackedStore):
    """A store of JPEG images, decoded at the smallest scale that is large enough."""

    kind = "encoded"

    @staticmethod
    def encode(pixels: np.ndarray) -> bytes:
        """Return one image (S, S, C) uint8, grey or RGB, as JPEG."""
        ordered = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR) if pixels.shape[2] == 3 else pixels
        return cv2.imencode(".jpg", ordered, _SETTINGS)[1].tobytes()

    def source_size(self, size: int) -> int:
        """Return the smallest side that is large enough and that the decoder can stop at."""
        return self.size // _reduction(self.size, size)

    def read_into(self, row: int, target: np.ndarray) -> None:
        """As :meth:`DiskStore.read_into`, decoded at :meth:`source_size`, then averaged over areas."""
        reduction = _reduction(self.size, len(target))
        side = self.size // reduction
        pixels = cv2.imdecode(self.row_bytes(row), _FLAGS[reduction][self.channels == 3])
        if pixels is None or pixels.shape[:2] != (side, side):
            raise DamagedStoreError(self.folder, f"row {row} is no JPEG image of {self.size} px")
        if self.channels == 3:
            pixels = cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)
        resize_into(pixels.reshape(side, side, self.channels), target)


def _reduction(stored: int, size: int) -> int:
    """Return the largest of 1, 2, 4, 8 that divides ``stored`` and leaves at least ``size``.

    Where a side does not divide, the decoder fills it up beyond the image's border, which would shift the pixels.
    """
    return max((part for part in _FLAGS if stored % part == 0 and stored // part >= size), default=1)


_LEVEL = 9
_TIMED_SECONDS = 0.01
_HEADER_BYTES = 32
_DECODED_LENGTH = slice(4, 8)  # of a chunk's header


class Blosc2Store(PackedStore):
    """A store of losslessly compressed pixels."""

    kind = "blosc2"

    def __init__(self, folder: Path | str) -> None:
        blosc2_module()  # a missing package is an error before the first batch
        super().__init__(folder)

    @staticmethod
    def encode(pixels: np.ndarray) -> bytes:
        """Return one image (S, S, C) uint8 as a Blosc2 chunk."""
        return blosc2_module().compress2(np.ascontiguousarray(pixels), **_settings())

    def read_into(self, row: int, target: np.ndarray) -> None:
        """As :meth:`DiskStore.read_into`."""
        pixels = target if len(target) == self.size else np.empty(self.record.shape[1:], dtype=np.uint8)
        try:
            decompress(self.row_bytes(row), pixels)
        except ValueError as error:
            raise DamagedStoreError(self.folder, f"row {row}: {error}") from None
        if pixels is not target:
            resize_into(pixels, target)


@cache
def blosc2_module() -> ModuleType:
    """Return the optional package ``blosc2``, or refuse."""
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
    """Fill the contiguous array ``target`` from a chunk; ValueError where that is damaged or of another size."""
    # Blosc2 writes as many bytes as the chunk's header says, however little room there is.
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


KINDS: dict[str, type[DiskStore]] = {store.kind: store for store in (RawStore, Blosc2Store, EncodedStore)}
"""Quickest to read first."""
