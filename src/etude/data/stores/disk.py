"""What every store of images answers, and what stores on disk share: a folder with a record, files with checksums."""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Protocol, Self

import numpy as np
from pydantic import PlainSerializer, PlainValidator, TypeAdapter

from etude.core.context import Context
from etude.core.errors import EtudeError
from etude.core.files import read_json, write_json
from etude.data.compact import Digests

STORE_VERSION = 2
RECORD_NAME = "store.json"
_READ_AT_ONCE = 1 << 24  # bytes


class Store(Protocol):
    """Square images by row. Everything that trains or predicts reads its pixels through this.

    Stores pickle as their folder, and threads may gather at the same time.
    """

    @property
    def size(self) -> int: ...  # side of the stored images in pixels
    @property
    def channels(self) -> int: ...  # 1 (grey) or 3 (RGB)
    @property
    def kind(self) -> str: ...  # raw, blosc2, encoded or device
    @property
    def folder(self) -> Path: ...  # on disk, also of a store that was copied to a device
    def __len__(self) -> int: ...

    def gather(self, indices: np.ndarray | Sequence[int], size: int) -> np.ndarray:
        """Return rows ``indices``, resized to ``size``: (B, size, size, channels) uint8, contiguous.

        Smaller sizes average areas (no aliasing); larger ones interpolate cubically. IndexError: a row is not there.
        """
        ...

    def source_size(self, size: int) -> int:
        """Return the side, at least ``min(size, self.size)``, at which rows are cheapest to read.

        A caller that samples the pixels down to ``size`` by itself gathers at this side.
        """
        ...


def checked_rows(indices: np.ndarray | Sequence[int], count: int) -> np.ndarray:
    """Return ``indices`` as int64 (B,), all of them within a store of ``count`` rows; otherwise IndexError."""
    rows = np.asarray(indices)
    if not rows.size:
        return np.empty(0, np.int64)
    if rows.ndim != 1 or rows.dtype.kind not in "iu":
        raise IndexError(f"rows are a list of whole numbers, not an array of {rows.dtype} with shape {rows.shape}")
    lowest, highest = int(rows.min()), int(rows.max())
    if lowest < 0 or highest >= count:
        raise IndexError(f"row {lowest if lowest < 0 else highest} is not in a store of {count} rows")
    return rows.astype(np.int64, copy=False)


class DamagedStoreError(EtudeError):
    """A store folder whose files do not fit together."""

    def __init__(self, folder: Path, why: str) -> None:
        super().__init__(f"the image store {folder} is damaged ({why}); delete it and run again")
        self.folder, self.why = folder, why

    def __reduce__(self) -> tuple[type[DamagedStoreError], tuple[Path, str]]:
        return DamagedStoreError, (self.folder, self.why)


@dataclass(frozen=True)
class FileSum:
    """Length and CRC-32 of a file, or of its beginning."""

    bytes: int = 0
    checksum: int = 0


Marks = tuple[tuple[int, str], ...]
"""(position in the scan, text) of some images."""


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What the files of a store hold, be it whole or in the making.

    ``bad`` are the images that could be scanned but not decoded, ``dull`` those that are nearly black, nearly white or
    of one colour.
    """

    version: int = STORE_VERSION
    files: dict[str, FileSum]
    bad: Marks = ()
    dull: Marks = ()

    @property
    def total_bytes(self) -> int:
        """Bytes of the images on disk."""
        return sum(held.bytes for held in self.files.values())

    def changed(self, folder: Path, context: Context, action: str) -> str:
        """Return the name of a file that is not as it was written, as far as the record goes; "" where none is."""
        with context.bar(action, self.total_bytes, "bytes") as advance:
            for name, held in self.files.items():
                checksum, left = 0, held.bytes
                with (folder / name).open("rb") as file:
                    while left > 0 and (block := file.read(min(left, _READ_AT_ONCE))):
                        checksum, left = zlib.crc32(block, checksum), left - len(block)
                        advance(len(block))
                if left or checksum != held.checksum:
                    return name
        return ""

    def save(self, path: Path) -> None:
        """Write the record as JSON."""
        write_json(path, TypeAdapter(type(self)).dump_python(self))

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what :meth:`save` wrote; EtudeError or ValueError where it is something else."""
        value = read_json(path)
        if (version := dict(value).get("version")) != STORE_VERSION:
            raise ValueError(f"its version is {version!r}, not {STORE_VERSION}")
        return TypeAdapter(cls).validate_python(value)


def _parsed_hashes(held: str | list[str]) -> Digests:
    return Digests.from_hex(held if isinstance(held, str) else "".join(held))  # earlier versions wrote a list


@dataclass(frozen=True, kw_only=True)
class StoreRecord(Contents):
    """What ``store.json`` holds; ``shape`` is (N, H, W, C)."""

    kind: str
    shape: tuple[int, int, int, int]
    fit: str
    # As one text: as a list they would take forty times their memory while they are written.
    content_hashes: Annotated[Digests, PlainValidator(_parsed_hashes), PlainSerializer(Digests.hex)]

    @staticmethod
    def of(folder: Path) -> StoreRecord:
        """Read ``store.json`` and check that the files next to it have their sizes, else DamagedStoreError."""
        try:
            record = StoreRecord.load(folder / RECORD_NAME)
            count, height, width, _ = record.shape
            if min(record.shape) < 1 or height != width or len(record.content_hashes) != count:
                raise ValueError(f"its shape {record.shape} does not fit its {len(record.content_hashes)} rows")
            for name, expected in record.files.items():
                held = (folder / name).stat().st_size
                if held != expected.bytes:
                    raise ValueError(f"{name} has {held:,} bytes instead of {expected.bytes:,}")
        except (EtudeError, OSError, ValueError, TypeError) as error:
            raise DamagedStoreError(folder, str(error).partition("\n")[0]) from None
        return record


ROWS_NAME, ENDS_NAME = "rows.bin", "ends.i64"
ENDS_TYPE = np.dtype("<i8")


class DiskStore(ABC):
    """A :class:`Store` in a folder. Opens at once and pickles as its path; DamagedStoreError where files do not fit."""

    kind: str
    file_names: ClassVar[tuple[str, ...]] = (ROWS_NAME, ENDS_NAME)
    """The file of the rows; where rows differ in length, also the file of where each of them ends."""

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder).absolute()
        self.record = StoreRecord.of(self.folder)
        if self.record.kind != self.kind or set(self.record.files) != set(self.file_names):
            raise DamagedStoreError(self.folder, f"its files are not those of a {self.kind} store")
        _, _, self.size, self.channels = self.record.shape

    def __len__(self) -> int:
        return self.record.shape[0]

    def __reduce__(self) -> tuple[type[Self], tuple[Path]]:
        return type(self), (self.folder,)

    @staticmethod
    @abstractmethod
    def encode(pixels: np.ndarray) -> bytes:
        """Return what the store keeps of one image (S, S, C) uint8."""

    def gather(self, indices: np.ndarray | Sequence[int], size: int) -> np.ndarray:
        """Return rows as :meth:`Store.gather` does; DamagedStoreError where one cannot be decoded."""
        rows = checked_rows(indices, len(self))
        gathered = np.empty((len(rows), size, size, self.channels), dtype=np.uint8)
        for row, target in zip(rows, gathered, strict=True):
            self.read_into(row, target)
        return gathered

    @abstractmethod
    def read_into(self, row: int, target: np.ndarray) -> None:
        """Write a row into ``target`` (T, T, C), resized by :func:`~etude.core.images.resize_into`."""

    def source_size(self, size: int) -> int:
        """Return the side at which rows are cheapest to read: the stored one."""
        return self.size

    def check(self, context: Context) -> None:
        """Compare all files with the checksums that were taken when they were written, else DamagedStoreError."""
        if name := self.record.changed(self.folder, context, "check store"):
            raise DamagedStoreError(self.folder, f"{name} changed since it was written")


class PackedStore(DiskStore):
    """A store whose rows are compressed one by one, so that any row is read without its neighbours."""

    def __init__(self, folder: Path | str) -> None:
        super().__init__(folder)
        held = self.record.files[ROWS_NAME].bytes
        if self.record.files[ENDS_NAME].bytes != len(self) * ENDS_TYPE.itemsize:
            raise DamagedStoreError(self.folder, f"{ENDS_NAME} does not hold {len(self):,} rows")
        ends = np.fromfile(self.folder / ENDS_NAME, dtype=ENDS_TYPE)
        self._limits: np.ndarray = np.concatenate([np.zeros(1, ENDS_TYPE), ends])
        if (np.diff(self._limits) < 1).any() or self._limits[-1] != held:
            raise DamagedStoreError(self.folder, f"{ENDS_NAME} does not fit {ROWS_NAME}")
        self._bytes = np.memmap(self.folder / ROWS_NAME, dtype=np.uint8, mode="r").view(np.ndarray)

    def row_bytes(self, row: int) -> np.ndarray:
        """Return what is kept of one row: uint8, as long as it is."""
        return self._bytes[self._limits[row] : self._limits[row + 1]]
