"""Rows of different lengths in one file, found by where each of them ends."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from etude.data.stores.disk import ENDS_NAME, ROWS_NAME, DiskStore
from etude.data.stores.record import DamagedStoreError

ENDS_TYPE = np.dtype("<i8")


class PackedStore(DiskStore):
    """A store whose rows are compressed one by one, so that any row is read without its neighbours."""

    def __init__(self, folder: Path | str) -> None:
        super().__init__(folder)
        held = self.record.files[ROWS_NAME].bytes
        if self.record.files[ENDS_NAME].bytes != len(self) * ENDS_TYPE.itemsize:
            raise DamagedStoreError(self.folder, f"{ENDS_NAME} does not tell of {len(self):,} rows")
        ends = np.fromfile(self.folder / ENDS_NAME, dtype=ENDS_TYPE)
        self._limits: np.ndarray = np.concatenate([np.zeros(1, ENDS_TYPE), ends])
        if (np.diff(self._limits) < 1).any() or self._limits[-1] != held:
            raise DamagedStoreError(self.folder, f"{ENDS_NAME} does not fit {ROWS_NAME}")
        self._bytes = np.memmap(self.folder / ROWS_NAME, dtype=np.uint8, mode="r").view(np.ndarray)

    def row_bytes(self, row: int) -> np.ndarray:
        """Return what is kept of one row: uint8, as long as it is."""
        return self._bytes[self._limits[row] : self._limits[row + 1]]
