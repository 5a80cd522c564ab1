"""What every store of images answers, and what stores on disk share: a folder with a record, files with checksums."""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

import numpy as np

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

    bytes: int
    checksum: int


Marks = tuple[tuple[int, str], ...]
"""(position in the scan, text) of some images."""


def parse_files(value: Mapping[str, Any]) -> dict[str, FileSum]:
    """Return what :func:`dataclasses.asdict` wrote of files and their sums."""
    return {str(name): FileSum(int(held["bytes"]), int(held["checksum"])) for name, held in value["files"].items()}


def parse_marks(value: Mapping[str, Any], name: str) -> Marks:
    """Return the marks that a record holds under ``name``."""
    return tuple((int(position), str(text)) for position, text in value.get(name, ()))


@dataclass(frozen=True)
class StoreRecord:
    """What ``store.json`` holds.

    ``shape`` is (N, H, W, C), ``bad`` the images that could be scanned but not decoded, ``dull`` those that are nearly
    black, nearly white or of one colour.
    """

    kind: str
    shape: tuple[int, int, int, int]
    fit: str
    content_hashes: Digests
    bad: Marks
    files: dict[str, FileSum]
    dull: Marks = ()
    version: int = STORE_VERSION

    @property
    def total_bytes(self) -> int:
        """Bytes of the images on disk."""
        return sum(held.bytes for held in self.files.values())

    def save(self, folder: Path) -> None:
        """Write ``store.json`` into ``folder``."""
        # The hashes as one text: as a list they would take forty times their memory while they are written.
        write_json(folder / RECORD_NAME, {**asdict(self), "content_hashes": self.content_hashes.hex()})

    @staticmethod
    def load(folder: Path) -> StoreRecord:
        """Read ``store.json`` and check that the files next to it have their sizes, else DamagedStoreError."""
        try:
            record = _parse(read_json(folder / RECORD_NAME))
            for name, expected in record.files.items():
                held = (folder / name).stat().st_size
                if held != expected.bytes:
                    raise ValueError(f"{name} has {held:,} bytes instead of {expected.bytes:,}")
        except (EtudeError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DamagedStoreError(folder, str(error)) from None
        return record


def _parse(value: dict[str, Any]) -> StoreRecord:
    if value["version"] != STORE_VERSION:
        raise ValueError(f"its version is {value['version']!r}, not {STORE_VERSION}")
    count, height, width, channels = (int(extent) for extent in value["shape"])
    hashes = value["content_hashes"]  # a list, in stores that earlier versions wrote
    digests = Digests.from_hex(hashes if isinstance(hashes, str) else "".join(hashes))
    shape = (count, height, width, channels)
    if min(shape) < 1 or height != width or len(digests) != count:
        raise ValueError(f"its shape {shape} does not fit its {len(digests)} rows")
    bad, dull = parse_marks(value, "bad"), parse_marks(value, "dull")
    return StoreRecord(str(value["kind"]), shape, str(value["fit"]), digests, bad, parse_files(value), dull)


def checksum_of(path: Path, count: int, advance: Callable[[int], None]) -> int:
    """Return the CRC-32 of the first ``count`` bytes of a file, or of all it has; ``advance`` receives the bytes."""
    checksum = 0
    with path.open("rb") as file:
        while count > 0 and (block := file.read(min(count, _READ_AT_ONCE))):
            checksum = zlib.crc32(block, checksum)
            count -= len(block)
            advance(len(block))
    return checksum


ROWS_NAME, ENDS_NAME = "rows.bin", "ends.i64"
ENDS_TYPE = np.dtype("<i8")


class DiskStore(ABC):
    """A :class:`Store` in a folder. Opens at once and pickles as its path; DamagedStoreError where files do not fit."""

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
        """Return rows as :meth:`Store.gather` does; DamagedStoreError where one cannot be decoded."""

    def source_size(self, size: int) -> int:
        """Return the side at which rows are cheapest to read: the stored one."""
        return self.size

    def check(self, context: Context) -> None:
        """Compare all files with the checksums that were taken when they were written, else DamagedStoreError."""
        total = self.record.total_bytes
        read = shown = 0
        with context.bar("check store", len(self)) as advance:

            def count(held: int) -> None:
                nonlocal read, shown
                read += held
                advance(read * len(self) // total - shown)
                shown = read * len(self) // total

            for name, expected in self.record.files.items():
                if checksum_of(self.folder / name, expected.bytes, count) != expected.checksum:
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
