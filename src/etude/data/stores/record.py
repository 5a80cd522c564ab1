"""What a store's folder says of itself: ``store.json``, and the checksums of the files beside it."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from etude.core.errors import EtudeError
from etude.core.files import read_json, write_json
from etude.data.compact import Digests

STORE_VERSION = 2
RECORD_NAME = "store.json"
_READ_AT_ONCE = 1 << 24  # bytes


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

    @staticmethod
    def parse(value: Mapping[str, Any]) -> FileSum:
        """Return what :func:`dataclasses.asdict` wrote."""
        return FileSum(int(value["bytes"]), int(value["checksum"]))


@dataclass(frozen=True)
class StoreRecord:
    """What ``store.json`` holds.

    Attributes:
        kind: ``raw``, ``blosc2`` or ``encoded``.
        shape: (N, H, W, C) of the pixels.
        fit: how images became squares.
        content_hashes: (N,) hash of the file behind each row.
        bad: (position in the survey, reason) of the files that could be surveyed but not decoded.
        files: the store's other files, by name.
        dull: (position in the survey, what) of the images that are nearly black, nearly white or of one colour.
        version: layout of the folder.
    """

    kind: str
    shape: tuple[int, int, int, int]
    fit: str
    content_hashes: Digests
    bad: tuple[tuple[int, str], ...]
    files: dict[str, FileSum]
    dull: tuple[tuple[int, str], ...] = ()
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
        """Read ``store.json`` and check that the files beside it have their sizes.

        Raises:
            DamagedStoreError: a file is missing, unreadable or of the wrong size.
        """
        try:
            record = _parse(read_json(folder / RECORD_NAME))
            for name, expected in record.files.items():
                held = (folder / name).stat().st_size
                if held != expected.bytes:
                    raise ValueError(f"{name} has {held:,} bytes instead of {expected.bytes:,}")
        except (EtudeError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DamagedStoreError(folder, str(error)) from None
        return record


def checksum_of(path: Path, count: int, advance: Callable[[int], None]) -> int:
    """Return the CRC-32 of the first ``count`` bytes of a file, or of all it has; ``advance`` is told the bytes."""
    checksum = 0
    with path.open("rb") as file:
        while count > 0 and (block := file.read(min(count, _READ_AT_ONCE))):
            checksum = zlib.crc32(block, checksum)
            count -= len(block)
            advance(len(block))
    return checksum


def _parse(value: dict[str, Any]) -> StoreRecord:
    if value["version"] != STORE_VERSION:
        raise ValueError(f"its version is {value['version']!r}, not {STORE_VERSION}")
    count, height, width, channels = (int(extent) for extent in value["shape"])
    hashes = value["content_hashes"]  # a list, in stores that earlier versions wrote
    record = StoreRecord(
        kind=str(value["kind"]),
        shape=(count, height, width, channels),
        fit=str(value["fit"]),
        content_hashes=Digests.from_hex(hashes if isinstance(hashes, str) else "".join(hashes)),
        bad=tuple((int(position), str(reason)) for position, reason in value["bad"]),
        dull=tuple((int(position), str(what)) for position, what in value.get("dull", ())),
        files={str(name): FileSum.parse(held) for name, held in value["files"].items()},
    )
    if min(record.shape) < 1 or height != width or len(record.content_hashes) != count:
        raise ValueError(f"its shape {record.shape} does not fit its {len(record.content_hashes)} rows")
    return record
