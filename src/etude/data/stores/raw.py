"""Decoded images as they are, in a memory map: the quickest to read, and the largest."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from etude.data.stores.disk import DiskStore, place
from etude.data.stores.protocol import checked_rows
from etude.data.stores.record import DamagedStoreError

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
        """Return rows ``indices``, resized to ``size``: (B, size, size, channels) uint8, contiguous.

        Raises:
            IndexError: a row is not in the store.
        """
        rows = checked_rows(indices, len(self))
        if size == self.size:
            return self._pixels[rows]
        gathered = np.empty((len(rows), size, size, self.channels), dtype=np.uint8)
        for row, target in zip(rows, gathered, strict=True):
            place(self._pixels[row], target)
        return gathered
