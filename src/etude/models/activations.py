"""Activations after a frozen prefix of a network, computed once into a file that survives a kill."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from filelock import FileLock

from etude.core.errors import EtudeError
from etude.core.files import digest_of, explained_write, read_json, write_json
from etude.core.progress import Advance, Progress
from etude.models.classifier import Preprocessing
from etude.models.features import Gather, outputs_of, weights_digest
from etude.models.prefix import Split

_BLOCK_BYTES = 16 << 20  # a few seconds of work on a CPU, which a kill may cost


def extract_prefix(
    split: Split,
    gather: Gather,
    rows: np.ndarray,
    preprocessing: Preprocessing,
    *,
    data: str,
    cache: Path,
    progress: Progress,
    precision: str = "fp32",
    batch_size: int = 32,
) -> np.ndarray:
    """Return the float16 activations (N, C, H, W) after the prefix, mapped from a file in ``cache``; read-only.

    They are written in blocks, so memory stays flat, and an extraction that was killed goes on after its last whole
    block. The file is found again by the data, the rows, the preprocessing, the numeric mode, the prefix's name, its
    structure and its weights. Blocks that were damaged on the disk are computed anew. Of two processes that want the
    same activations, one waits for the other.

    Args:
        split: see :func:`~etude.models.prefix.prefix_of`; other networks' activations may be (N, T, D).
        data: tells the store from every other.

    Raises:
        EtudeError: the disk is full, or the cache cannot be written.
    """
    key = digest_of(
        f"prefix-1 {split.name} {precision}", data, weights_digest(split.prefix), str(split.prefix),
        repr(preprocessing), np.asarray(rows, np.int64).tobytes(),
    )  # fmt: skip
    if not len(rows):
        return np.empty((0, 0, 0, 0), np.float16)
    file = _Activations(cache / f"{key}.f16", len(rows))
    with explained_write(file.path):
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(cache / f"{key}.lock"):
            done = file.sound_rows()
            name = f"activations after {split.name}"
            with progress.bar(f"{name} (resumed at {done:,})" if done else name, len(rows)) as advance:
                advance(done)
                if done < len(rows):
                    outputs = outputs_of(
                        split.prefix, lambda part: gather(rows[part], preprocessing.size), len(rows), preprocessing,
                        precision=precision, batch_size=batch_size, first=done,
                    )  # fmt: skip
                    file.append(outputs, done, advance)
            return file.mapped()


@dataclass(slots=True)
class _Activations:
    """A file of rows and, beside it, a record of the blocks of them that are whole.

    Args:
        path: of the values; the record is a JSON file of the same name.
        count: rows of the whole file.
        shape: of a row, empty until one is known.
        checksums: CRC-32 of each block that is on the disk.
    """

    path: Path
    count: int
    shape: tuple[int, ...] = ()
    checksums: tuple[int, ...] = ()

    @property
    def record(self) -> Path:
        """What tells which blocks are whole."""
        return self.path.with_suffix(".json")

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return int(np.prod(self.shape)) * 2

    @property
    def block(self) -> int:
        """Rows of a block; the last one may have fewer."""
        return max(1, _BLOCK_BYTES // self.row_bytes)

    def sound_rows(self) -> int:
        """Return how many rows from the first on are as they were written."""
        try:
            held = read_json(self.record)
            self.shape = tuple(int(extent) for extent in held["shape"])
            checksums = [int(each) for each in held["checksums"]]
            sound: list[int] = []
            with self.path.open("rb") as file:
                for checksum in checksums:
                    rows = min(self.block, self.count - len(sound) * self.block)
                    if zlib.crc32(file.read(rows * self.row_bytes)) != checksum:
                        break
                    sound.append(checksum)
        except (EtudeError, OSError, ValueError, KeyError, TypeError, ZeroDivisionError):
            self.shape, sound = (), []  # a damaged entry costs a recomputation, never an error
        self.checksums = tuple(sound)
        return min(len(sound) * self.block, self.count) if sound else 0

    def append(self, outputs: Iterable[np.ndarray], done: int, advance: Advance) -> None:
        """Write the rows that are missing after the first ``done``."""
        with self.path.open("r+b" if done else "wb") as file:
            file.seek(done * self.row_bytes if done else 0)
            file.truncate()  # a tail that no record vouches for
            checksum = 0
            for values in outputs:
                self.shape = values.shape[1:]
                while len(values):
                    start = done % self.block
                    piece, values = values[: self.block - start], values[self.block - start :]
                    content = piece.tobytes()
                    file.write(content)
                    checksum = zlib.crc32(content, checksum if start else 0)
                    done += len(piece)
                    if done % self.block == 0 or done == self.count:
                        self._vouch(file, checksum)
                    advance(len(piece))

    def _vouch(self, file: IO[bytes], checksum: int) -> None:
        """Tell that the block is whole, once it is on the disk."""
        file.flush()
        os.fsync(file.fileno())
        self.checksums = (*self.checksums, checksum)
        write_json(self.record, {"shape": list(self.shape), "checksums": list(self.checksums)})

    def mapped(self) -> np.ndarray:
        """Return the whole file, (N, ...) float16, without reading it."""
        return np.memmap(self.path, dtype=np.float16, mode="r", shape=(self.count, *self.shape))
