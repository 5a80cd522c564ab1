"""Distances between rows of length one: fast in float32, and exact wherever rounding could change an order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
_CHUNK = 2**23  # numbers held at once where rows are worked on in float64: 64 MiB
_CLOSE = 0.01  # squared distances below it lose digits in float32 and are computed again
_EXACT = 64  # nearest rows whose order is exact in float64; computing all of 512 again would cost more than the search
_MOST_TIES = 4096  # rows tied at the k-th place that are compared exactly


@dataclass(frozen=True, eq=False)
class UnitRows:
    """Centred rows of length one, or of length zero where a row equals the centre.

    Args:
        values: (N, D) float32.
        squares: (N,) float32 squared length of each row, 1 or 0 up to rounding.
    """

    values: NDArray[np.float32]
    squares: NDArray[np.float32]

    @classmethod
    def of(cls, features: Floats, centre: NDArray[np.float64]) -> Self:
        """Return ``features``, (N, D), less ``centre``, (D,), divided by their lengths."""
        values = np.empty(features.shape, np.float32)
        squares = np.empty(len(features), np.float32)
        step = max(1, _CHUNK // features.shape[1])
        for start in range(0, len(features), step):
            part = slice(start, start + step)
            rows = features[part].astype(np.float64)
            # What is left of a row that equals the centre is rounding, which has no direction.
            rounding = 1e-6 * (np.sqrt(_squares_of(rows)) + np.linalg.norm(centre))
            rows -= centre
            length = np.sqrt(_squares_of(rows))
            rows *= np.where(length > rounding, 1 / np.maximum(length, 1e-300), 0.0)[:, None]
            values[part] = rows
            squares[part] = _squares_of(rows)
        return cls(values, squares)

    def take(self, rows: slice | NDArray[np.int64]) -> Self:
        """Return some of the rows."""
        return type(self)(self.values[rows], self.squares[rows])


def _squares_of(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the squared length of each row, (N,), without a table of squares."""
    return np.einsum("nd,nd->n", rows, rows)


def squared_distances(queries: UnitRows, rows: UnitRows) -> NDArray[np.float32]:
    """Return |q|² + |x|² - 2 qx, (Q, N) float32, off by about 1e-6."""
    squared = queries.values @ rows.values.T
    squared *= -2
    squared += queries.squares[:, None]
    squared += rows.squares[None]
    return squared


def pair_distances(
    queries: NDArray[np.float32], rows: NDArray[np.float32], which: NDArray[np.int64], positions: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return |queries[which] - rows[positions]|, (P,) float64: the same for equal rows, wherever they stand."""
    distances = np.empty(len(which))
    step = max(1, _CHUNK // queries.shape[1])
    for start in range(0, len(which), step):
        part = slice(start, start + step)
        difference = queries[which[part]].astype(np.float64) - rows[positions[part]]
        distances[part] = np.sqrt((difference**2).sum(axis=1))
    return distances


def nearest_of_block(
    squared: NDArray[np.float32], queries: NDArray[np.float32], rows: NDArray[np.float32], k: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return positions (Q, k), -1 where there are no more, and distances (Q, k) of the nearest rows in order.

    ``squared`` (Q, N) holds infinity where a row may not be found. Rows whose distances float32 cannot tell apart are
    compared in float64 where they compete for the last place or are among the first 64; equal ones go by position.
    """
    tolerance = 2 * float(np.finfo(np.float32).eps) * np.sqrt(rows.shape[1]) + 1e-6
    last = np.partition(squared, k - 1, axis=1)[:, k - 1]  # several times as fast as to partition positions
    within = squared <= last[:, None] + tolerance
    clear = within.sum(axis=1) == k
    positions = np.empty((len(squared), k), np.int64)
    positions[clear] = np.nonzero(within[clear])[1].reshape(-1, k)
    for row in np.flatnonzero(~clear):
        if np.isfinite(last[row]):
            positions[row] = _nearest_of_row(squared[row], queries[row], rows, k, float(last[row]), tolerance)
        else:
            positions[row] = np.argpartition(squared[row], k - 1)[:k]
    values = np.take_along_axis(squared, positions, axis=1)
    order = np.lexsort((positions, values), axis=1)
    positions, values = np.take_along_axis(positions, order, axis=1), np.take_along_axis(values, order, axis=1)
    distances = np.sqrt(np.maximum(values, 0).astype(np.float64))
    with np.errstate(invalid="ignore"):  # infinity less infinity is no small gap
        gaps = np.diff(values, axis=1, append=np.inf, prepend=-np.inf)
    again = np.isfinite(values) & ((values < _CLOSE) | (np.minimum(gaps[:, 1:], gaps[:, :-1]) <= tolerance))
    which, column = np.nonzero(again)
    which, column = which[column < _EXACT], column[column < _EXACT]
    distances[which, column] = pair_distances(queries, rows, which, positions[which, column])
    positions[~np.isfinite(values)] = -1
    order = np.lexsort((positions, distances), axis=1)
    return np.take_along_axis(positions, order, axis=1), np.take_along_axis(distances, order, axis=1)


def _nearest_of_row(
    squared: NDArray[np.float32],
    query: NDArray[np.float32],
    rows: NDArray[np.float32],
    k: int,
    last: float,
    tolerance: float,
) -> NDArray[np.int64]:
    """The k nearest rows where several share the last place up to rounding; the first 4,096 of those are compared."""
    sure = np.flatnonzero(squared < last - tolerance)
    tied = np.flatnonzero((squared >= last - tolerance) & (squared <= last + tolerance))[: max(_MOST_TIES, k)]
    far = pair_distances(query[None], rows, np.zeros(len(tied), np.int64), tied)
    return np.concatenate([sure, tied[np.lexsort((tied, far))[: k - len(sure)]]])
