"""Decoded images at one size, in a raw memory map that answers for any rows at any smaller size."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np

from etude.core.errors import EtudeError
from etude.core.files import read_json, write_json
from etude.core.progress import Progress

STORE_VERSION = 1
PIXELS_NAME = "pixels.u8"
RECORD_NAME = "store.json"
_CHECKED_AT_ONCE = 1 << 24  # bytes


class Store(Protocol):
    """Square images by row. Everything that trains or predicts reads its pixels through this."""

    @property
    def size(self) -> int:
        """Side of the stored images in pixels."""
        ...

    @property
    def channels(self) -> int:
        """1 (grey) or 3 (RGB)."""
        ...

    def __len__(self) -> int: ...

    def gather(self, indices: np.ndarray | Sequence[int], size: int) -> np.ndarray:
        """Return rows ``indices``, resized to ``size``: (B, size, size, channels) uint8, contiguous."""
        ...


class DamagedStoreError(EtudeError):
    """A store folder whose files do not fit together."""


@dataclass(frozen=True)
class StoreRecord:
    """What ``store.json`` holds.

    Attributes:
        shape: (N, H, W, C) of the pixels.
        fit: how images became squares.
        content_hashes: (N,) hash of the file behind each row.
        bad: (position in the survey, reason) of the files that could be surveyed but not decoded.
        checksum: CRC-32 of the pixels.
        version: layout of the folder.
    """

    shape: tuple[int, int, int, int]
    fit: str
    content_hashes: tuple[str, ...]
    bad: tuple[tuple[int, str], ...]
    checksum: int
    version: int = STORE_VERSION

    def save(self, folder: Path) -> None:
        """Write ``store.json`` into ``folder``."""
        write_json(folder / RECORD_NAME, asdict(self))

    @staticmethod
    def load(folder: Path) -> StoreRecord:
        """Read ``store.json`` and check that it fits the pixels beside it.

        Raises:
            DamagedStoreError: a file is missing, unreadable or of the wrong size.
        """
        try:
            record = _parse(read_json(folder / RECORD_NAME))
            held = (folder / PIXELS_NAME).stat().st_size
        except (EtudeError, OSError, ValueError, KeyError, TypeError) as error:
            raise DamagedStoreError(f"the image store {folder} is damaged ({error}); delete it and run again") from None
        expected = int(np.prod(record.shape))
        if held != expected:
            raise DamagedStoreError(
                f"the image store {folder} is damaged ({PIXELS_NAME} has {held:,} bytes instead of {expected:,}); "
                "delete it and run again"
            )
        return record


class RawStore:
    """A :class:`Store` in a folder: raw uint8 pixels and a record. Opens at once and pickles as its path.

    Raises:
        DamagedStoreError: the folder's files do not fit together.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder).absolute()
        self.record = StoreRecord.load(self.folder)
        mapped = np.memmap(self.folder / PIXELS_NAME, dtype=np.uint8, mode="r", shape=self.record.shape)
        self._pixels = mapped.view(np.ndarray)  # rows of a plain array are cheaper than rows of a memmap

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

    def __reduce__(self) -> tuple[type[RawStore], tuple[Path]]:
        return RawStore, (self.folder,)

    def gather(self, indices: np.ndarray | Sequence[int], size: int) -> np.ndarray:
        """Return rows ``indices``, resized to ``size``: (B, size, size, channels) uint8, contiguous.

        Smaller sizes average areas (no aliasing); larger ones interpolate cubically.

        Raises:
            IndexError: a row is not in the store.
        """
        rows = np.asarray(indices, dtype=np.int64)
        if size == self.size:
            return self._pixels[rows]
        gathered = np.empty((len(rows), size, size, self.channels), dtype=np.uint8)
        method = cv2.INTER_AREA if size < self.size else cv2.INTER_CUBIC
        for row, target in zip(rows, gathered, strict=True):
            target[...] = cv2.resize(self._pixels[row], (size, size), interpolation=method).reshape(target.shape)
        return gathered

    def check(self, progress: Progress) -> None:
        """Read all pixels and compare them with the checksum that was taken when they were written.

        Raises:
            DamagedStoreError: they differ.
        """
        checksum = 0
        with progress.bar("check store", len(self)) as advance, (self.folder / PIXELS_NAME).open("rb") as file:
            row_bytes = self._pixels[0].nbytes
            rows_at_once = max(1, _CHECKED_AT_ONCE // row_bytes)
            while block := file.read(rows_at_once * row_bytes):
                checksum = zlib.crc32(block, checksum)
                advance(len(block) // row_bytes)
        if checksum != self.record.checksum:
            raise DamagedStoreError(
                f"the image store {self.folder} is damaged (its pixels changed since they were written); "
                "delete it and run again"
            )


def _parse(value: dict[str, Any]) -> StoreRecord:
    if value["version"] != STORE_VERSION:
        raise ValueError(f"its version is {value['version']!r}, not {STORE_VERSION}")
    count, height, width, channels = (int(extent) for extent in value["shape"])
    record = StoreRecord(
        shape=(count, height, width, channels),
        fit=str(value["fit"]),
        content_hashes=tuple(str(content) for content in value["content_hashes"]),
        bad=tuple((int(position), str(reason)) for position, reason in value["bad"]),
        checksum=int(value["checksum"]),
    )
    if min(record.shape) < 1 or len(record.content_hashes) != count:
        raise ValueError(f"its shape {record.shape} does not fit its {len(record.content_hashes)} rows")
    return record
