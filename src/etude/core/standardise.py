"""Standardisation of columns, with a least deviation to divide by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import DTypeLike, NDArray

Floats = NDArray[np.floating[Any]]
Array = NDArray[np.float64]

FLOOR = 1.0
"""Chosen by ``make bench-head-floor`` over seven data sets; see ``docs/results.md``."""

_BLOCK = 4096


@dataclass(frozen=True, eq=False)
class Standardised:
    """Columns of mean zero and deviation one; less than one where a column hardly varies, zero where it never does.

    A column that hardly varies in the rows it is learned from may be far from their mean in another row. Divided by
    its own deviation it would then outweigh all others, so no column is divided by less than ``floor`` times the
    median deviation.
    """

    mean: Array  # (D,)
    deviation: Array  # (D,), what columns are divided by

    @classmethod
    def of(cls, table: Floats, floor: float = FLOOR, same_unit: int | None = None) -> Self:
        """Return what standardises ``table``, (N, D) of any float type.

        ``floor`` is the least deviation, as a share of the median among the columns that vary. Only the first
        ``same_unit`` columns share a unit (None: all); the others are divided by their own deviation.
        """
        mean, deviation = _moments(table)
        varies = deviation > 1e-6 * np.abs(mean) + 1e-12  # what is below is rounding
        deviation = np.where(varies, deviation, 0.0)
        shared = deviation[:same_unit]
        if shared.any():
            shared[:] = np.maximum(shared, floor * np.median(shared[shared > 0]))
        return cls(mean, np.where(deviation > 0, deviation, 1.0))

    def apply(self, table: Floats, dtype: DTypeLike = np.float64) -> NDArray[Any]:
        """Return (table - mean) / deviation, (..., D), computed in ``dtype``."""
        done = table.astype(dtype)
        done -= self.mean.astype(dtype)
        done /= self.deviation.astype(dtype)
        return done


def _moments(table: Floats) -> tuple[Array, Array]:
    """Mean and standard deviation of each column, by blocks: float16 sums overflow, a float64 copy costs memory."""
    # Squares of distances from a first guess of the mean: those from zero would lose the digits of a large mean.
    guess = table[:_BLOCK].mean(axis=0, dtype=np.float64)
    total, squares = np.zeros_like(guess), np.zeros_like(guess)
    for start in range(0, len(table), _BLOCK):
        block = table[start : start + _BLOCK].astype(np.float64)
        block -= guess
        total += block.sum(axis=0)
        squares += np.einsum("nd,nd->d", block, block)
    shift = total / len(table)
    return guess + shift, np.sqrt(np.maximum(squares / len(table) - shift**2, 0.0))
