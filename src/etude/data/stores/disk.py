"""What all stores on disk share: a folder with a record, and files with checksums."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Self

import cv2
import numpy as np

from etude.core.progress import Progress
from etude.data.stores.record import DamagedStoreError, StoreRecord, checksum_of

ROWS_NAME = "rows.bin"
ENDS_NAME = "ends.i64"


class DiskStore(ABC):
    """A :class:`~etude.data.stores.protocol.Store` in a folder. Opens at once and pickles as its path.

    Raises:
        DamagedStoreError: the folder's files do not fit together.
    """

    kind: str
    file_names: ClassVar[tuple[str, ...]] = (ROWS_NAME, ENDS_NAME)
    """The file of the rows; where rows differ in length, also the file of where each of them ends."""

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder).absolute()
        self.record = StoreRecord.load(self.folder)
        if self.record.kind != self.kind or set(self.record.files) != set(self.file_names):
            raise DamagedStoreError(self.folder, f"its files are not those of a {self.kind} store")

    @property
    def size(self) -> int:
        """Side of the stored images in pixels."""
        return self.record.shape[1]

    @property
    def channels(self) -> int:
        """1 (grey) or 3 (RGB)."""
        return self.record.shape[3]

    def __len__(self) -> int:
        return self.record.shape[0]

    def __reduce__(self) -> tuple[type[Self], tuple[Path]]:
        return type(self), (self.folder,)

    @staticmethod
    @abstractmethod
    def encode(pixels: np.ndarray) -> bytes:
        """Return what the store keeps of one image (S, S, C) uint8."""

    @abstractmethod
    def gather(self, indices: np.ndarray | Sequence[int], size: int) -> np.ndarray:
        """Return rows ``indices``, resized to ``size``: (B, size, size, channels) uint8, contiguous.

        Raises:
            IndexError: a row is not in the store.
        """

    def source_size(self, size: int) -> int:
        """Return the side at which rows are cheapest to read: the stored one."""
        return self.size

    def check(self, progress: Progress) -> None:
        """Read all files and compare them with the checksums that were taken when they were written.

        Raises:
            DamagedStoreError: they differ.
        """
        total = sum(expected.bytes for expected in self.record.files.values())
        read = shown = 0
        with progress.bar("check store", len(self)) as advance:

            def count(held: int) -> None:
                nonlocal read, shown
                read += held
                advance(read * len(self) // total - shown)
                shown = read * len(self) // total

            for name, expected in self.record.files.items():
                if checksum_of(self.folder / name, expected.bytes, count) != expected.checksum:
                    raise DamagedStoreError(self.folder, f"{name} changed since it was written")


def place(pixels: np.ndarray, target: np.ndarray) -> None:
    """Write an image (S, S, C) into ``target`` (T, T, C): area average when T is smaller, cubic when it is larger."""
    if pixels.shape == target.shape:
        target[...] = pixels
        return
    size = target.shape[0]
    method = cv2.INTER_AREA if size < pixels.shape[0] else cv2.INTER_CUBIC
    target[...] = cv2.resize(pixels, (size, size), interpolation=method).reshape(target.shape)
