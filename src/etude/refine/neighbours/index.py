"""``NeighbourIndex``: the nearest rows of a table of features, exactly by matrix products or by an HNSW graph.

Distances are computed in float32 and again in float64 where that may change the order, so that ties go by position.
scikit-learn's brute force took 1.4 to 1.8 times as long for k = 512 (1,000 queries of 4,000 to 60,000 rows, one
thread), and orders ties at random.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Self, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from etude.core.errors import EtudeError, listed, nearest
from etude.core.metrics import FloatArray, IntArray
from etude.refine.base import optional_package

Floats = NDArray[np.floating[Any]]
Float32 = NDArray[np.float32]
_CHUNK = 2**23  # numbers held at once where rows are worked on in float64: 64 MiB
_CLOSE = 0.01  # squared distances below it lose digits in float32 and are computed again
_EXACT = 64  # nearest rows whose order is exact in float64; computing all of 512 again would cost more than the search
_MOST_TIES = 4096  # rows tied at the k-th place that are compared exactly
Method = Literal["auto", "exact", "hnsw"]
# Rows from which "auto" takes the graph. Estimated, not measured, from the two counts of operations (building: about
# 2,000 distances a row in one thread; exact: one row of a matrix product a query), for as many queries as rows.
HNSW_FROM = 200_000
_BLOCK = 2**24  # distances held at once: 64 MiB
_CACHED = 2**21  # of them that stay in the processor's cache, where the nearest are found at half the cost
_ROWS = 256  # queries at once all the same: a matrix product of fewer is slow
_GRAPH = {"M": 16, "efConstruction": 200, "post": 0, "indexThreadQty": 1}  # one thread: the same graph every time


@dataclass(frozen=True, eq=False)
class UnitRows:
    """Centred rows of length one, or of length zero where a row equals the centre."""

    values: NDArray[np.float32]
    squares: NDArray[np.float32]

    @classmethod
    def of(cls, features: Floats, centre: FloatArray) -> Self:
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

    def take(self, rows: slice | IntArray) -> Self:
        """Return some of the rows."""
        return type(self)(self.values[rows], self.squares[rows])


def _squares_of(rows: FloatArray) -> FloatArray:
    """Return the squared length of each row, (N,), without a table of squares."""
    return np.einsum("nd,nd->n", rows, rows)


def squared_distances(queries: UnitRows, rows: UnitRows) -> NDArray[np.float32]:
    """Return |q|² + |x|² - 2 qx, (Q, N) float32, off by about 1e-6."""
    squared = queries.values @ rows.values.T
    squared *= -2
    squared += queries.squares[:, None]
    squared += rows.squares[None]
    return squared


def pair_distances(queries: Float32, rows: Float32, which: IntArray, positions: IntArray) -> FloatArray:
    """Return |queries[which] - rows[positions]|, (P,) float64: the same for equal rows, wherever they stand."""
    distances = np.empty(len(which))
    step = max(1, _CHUNK // queries.shape[1])
    for start in range(0, len(which), step):
        part = slice(start, start + step)
        difference = queries[which[part]].astype(np.float64) - rows[positions[part]]
        distances[part] = np.sqrt((difference**2).sum(axis=1))
    return distances


def _nearest_of_block(squared: Float32, queries: Float32, rows: Float32, k: int) -> tuple[IntArray, FloatArray]:
    """Return positions and distances (Q, k); ``squared`` (Q, N) holds infinity where a row may not be found."""
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


def _nearest_of_row(squared: Float32, query: Float32, rows: Float32, k: int, last: float, tolerance: float) -> IntArray:
    """The k nearest rows where several share the last place up to rounding; the first 4,096 of those are compared."""
    sure = np.flatnonzero(squared < last - tolerance)
    tied = np.flatnonzero((squared >= last - tolerance) & (squared <= last + tolerance))[: max(_MOST_TIES, k)]
    far = pair_distances(query[None], rows, np.zeros(len(tied), np.int64), tied)
    return np.concatenate([sure, tied[np.lexsort((tied, far))[: k - len(sure)]]])


class Neighbours(NamedTuple):
    """The neighbours of Q queries, nearest first; ties go to the row that comes first in the index."""

    positions: IntArray  # (Q, k) rows of the index, -1 where there are no more
    distances: FloatArray  # (Q, k), infinite where there are no more


class NeighbourIndex:
    """Answers which of N rows lie nearest, by Euclidean distance between centred rows of length one.

        x ← (x - m) / |x - m|,    m: mean of the index;    d = |x - y| = sqrt(2 - 2 cos), from 0 to 2

    A row that equals the mean has no direction: it stays zero, at distance 1 from all others.

    Args:
        features: (N, D) floats.
        ids: N unique ids; a query of the same id does not find itself.
        method: ``"exact"``; ``"hnsw"``, approximate, needs nmslib; ``"auto"`` takes HNSW from 200,000 rows on where
            nmslib is installed.

    Raises:
        EtudeError: features or ids cannot be used, or nmslib is missing.

    Source: centring and scaling as in Wang et al. 2019, SimpleShot (https://arxiv.org/abs/1911.04623); HNSW: Malkov &
    Yashunin 2018 (https://arxiv.org/abs/1603.09320).

    >>> index = NeighbourIndex([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]], ids=["e", "n", "w", "s"])
    >>> index.neighbours_of([[2.0, 1.0]], k=2)
    [[('e', 0.4595), ('n', 1.0515)]]
    """

    def __init__(self, features: ArrayLike, ids: Sequence[str] | None = None, method: Method = "auto") -> None:
        table = checked_features(features, "the index")
        self.ids = None if ids is None else _unique_ids(ids, len(table))
        self.method: Literal["exact", "hnsw"] = _method(method, len(table))
        self.centre: FloatArray = table.mean(axis=0, dtype=np.float64)
        self.rows = UnitRows.of(table, self.centre)
        self._position = {} if self.ids is None else {name: row for row, name in enumerate(self.ids)}
        self._graph: Any = None
        if self.method == "hnsw":
            self._graph = _nmslib().init(method="hnsw", space="l2")
            self._graph.addDataPointBatch(self.rows.values)
            self._graph.createIndex(_GRAPH, print_progress=False)

    def __len__(self) -> int:
        """Return N, the number of rows."""
        return len(self.rows.values)

    def query(self, features: ArrayLike, k: int, ids: Sequence[str] | None = None) -> Neighbours:
        """Return the ``min(k, N)`` nearest rows of each query, (Q, D); with ``ids``, never that of its own id."""
        queries = UnitRows.of(checked_features(features, "the queries", columns=len(self.centre)), self.centre)
        if ids is not None and len(ids) != len(queries.values):
            raise EtudeError(f"there are {len(ids):,} ids for {len(queries.values):,} queries: give one id a query")
        own = np.full(len(queries.values), -1)
        if ids is not None and self.ids is not None:
            own = np.array([self._position.get(name, -1) for name in ids], np.int64)
        return self._nearest(queries, k, own)

    def among_themselves(self, k: int) -> Neighbours:
        """Return the nearest other rows of each row of the index."""
        return self._nearest(self.rows, k, np.arange(len(self)))

    def _nearest(self, queries: UnitRows, k: int, own: IntArray) -> Neighbours:
        if k < 1:
            raise EtudeError(f"k must be at least 1 neighbour, not {k}")
        search = self._exactly if self._graph is None else self._by_graph
        return search(queries, min(k, len(self)), own)

    def neighbours_of(
        self, features: ArrayLike, k: int = 5, ids: Sequence[str] | None = None
    ) -> list[list[tuple[str, float]]]:
        """Return (id, distance to four digits) of each query's neighbours, nearest first, for a report."""
        found = self.query(features, k, ids)
        names = self.ids or tuple(str(row) for row in range(len(self)))
        return [
            [(names[row], round(float(far), 4)) for row, far in zip(rows, distances, strict=True) if row >= 0]
            for rows, distances in zip(found.positions, found.distances, strict=True)
        ]

    def _exactly(self, queries: UnitRows, k: int, own: IntArray) -> Neighbours:
        count = len(queries.values)
        positions, distances = np.empty((count, k), np.int64), np.empty((count, k))
        step = max(1, min(_BLOCK // len(self), max(_CACHED // len(self), _ROWS)))
        for start in range(0, count, step):
            part = slice(start, min(start + step, count))
            block = queries.take(part)
            squared = squared_distances(block, self.rows)
            known = np.flatnonzero(own[part] >= 0)
            squared[known, own[part][known]] = np.inf
            positions[part], distances[part] = _nearest_of_block(squared, block.values, self.rows.values, k)
        return Neighbours(positions, distances)

    def _by_graph(self, queries: UnitRows, k: int, own: IntArray) -> Neighbours:
        """The graph names rows; their distances and order are computed here. What it misses is searched exactly."""
        wanted = min(k + int((own >= 0).any()), len(self))
        self._graph.setQueryTimeParams({"efSearch": max(200, 2 * wanted)})
        positions, distances = np.full((len(own), k), -1), np.full((len(own), k), np.inf)
        short: list[int] = []
        for row, (found, _) in enumerate(self._graph.knnQueryBatch(queries.values, k=wanted)):
            rows = np.asarray(found, dtype=np.int64)
            rows = rows[rows != own[row]]
            if len(rows) < k:
                short.append(row)
                continue
            far = pair_distances(queries.values, self.rows.values, np.full(len(rows), row), rows)
            order = np.lexsort((rows, far))[:k]
            positions[row], distances[row] = rows[order], far[order]
        if short:
            positions[short], distances[short] = self._exactly(queries.take(np.array(short)), k, own[short])
        return Neighbours(positions, distances)


def checked_features(features: ArrayLike, where: str, columns: int | None = None, other: str = "the index") -> Floats:
    """Return (N, D) finite floats, at least one of each, with D = ``columns`` of ``other`` when given."""
    table = np.asarray(features)
    if table.dtype.kind not in "fiu" or table.ndim != 2 or not table.size:
        raise EtudeError(f"features of {where} must be numbers of shape (N, D), not {table.dtype} of {table.shape}")
    if columns is not None and table.shape[1] != columns:
        raise EtudeError(
            f"features of {where} have {table.shape[1]:,} columns and those of {other} {columns:,}: "
            "take both from the same network"
        )
    if not np.isfinite(table).all():
        raise EtudeError(f"features of {where} hold NaN or infinity: take them from images that a network can read")
    return table if table.dtype.kind == "f" else table.astype(np.float32)


def _unique_ids(ids: Sequence[str], count: int) -> tuple[str, ...]:
    names = tuple(ids)
    if len(names) != count:
        raise EtudeError(f"there are {len(names):,} ids for {count:,} rows of features: give one id a row")
    if repeated := [name for name, times in Counter(names).items() if times > 1]:
        raise EtudeError(f"ids of the index must be unique, and {listed(repeated)} came more than once")
    return names


def _method(method: str, rows: int) -> Literal["exact", "hnsw"]:
    if method not in (known := get_args(Method)):
        raise EtudeError(f"method must be one of {listed(known)}, not {method!r}.{nearest(method, known)}")
    if method == "auto" and rows >= HNSW_FROM:
        with suppress(EtudeError):
            return "hnsw" if _nmslib() else "exact"
    return "hnsw" if method == "hnsw" else "exact"


def _nmslib() -> Any:
    return optional_package("nmslib", "method 'hnsw'", "method 'exact'")
