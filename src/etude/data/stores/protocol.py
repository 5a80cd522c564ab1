"""What every store of images answers, wherever it keeps them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np


class Store(Protocol):
    """Square images by row. Everything that trains or predicts reads its pixels through this.

    Stores pickle as their folder, and threads may gather at the same time.
    """

    @property
    def size(self) -> int:
        """Side of the stored images in pixels."""
        ...

    @property
    def channels(self) -> int:
        """1 (grey) or 3 (RGB)."""
        ...

    @property
    def kind(self) -> str:
        """``raw``, ``blosc2``, ``encoded`` or ``device``."""
        ...

    @property
    def folder(self) -> Path:
        """The folder of the store on disk, also of one that was copied to a device."""
        ...

    def __len__(self) -> int: ...

    def gather(self, indices: np.ndarray | Sequence[int], size: int) -> np.ndarray:
        """Return rows ``indices``, resized to ``size``: (B, size, size, channels) uint8, contiguous.

        Smaller sizes average areas (no aliasing); larger ones interpolate cubically.

        Raises:
            IndexError: a row is not in the store.
        """
        ...

    def source_size(self, size: int) -> int:
        """Return the side, at least ``min(size, self.size)``, at which rows are cheapest to read.

        A caller that samples the pixels down to ``size`` by itself gathers at this side.
        """
        ...


def checked_rows(indices: np.ndarray | Sequence[int], count: int) -> np.ndarray:
    """Return ``indices`` as int64 (B,), all of them within a store of ``count`` rows.

    Raises:
        IndexError: an index is no whole number, negative, or ``count`` or more.

    >>> checked_rows([2, 0], 3)
    array([2, 0])
    """
    rows = np.asarray(indices)
    if not rows.size:
        return np.empty(0, np.int64)
    if rows.ndim != 1 or rows.dtype.kind not in "iu":
        raise IndexError(f"rows are a list of whole numbers, not an array of {rows.dtype} with shape {rows.shape}")
    lowest, highest = int(rows.min()), int(rows.max())
    if lowest < 0 or highest >= count:
        raise IndexError(f"row {lowest if lowest < 0 else highest} is not in a store of {count} rows")
    return rows.astype(np.int64, copy=False)
