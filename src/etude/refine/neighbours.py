"""``NeighbourIndex``: the nearest rows of a table of features, exactly by matrix products or by an HNSW graph."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from etude.core.errors import EtudeError, listed, nearest
from etude.refine.distances import Floats, UnitRows, nearest_of_block, pair_distances, squared_distances

Method = Literal["auto", "exact", "hnsw"]
# Rows of the index from which "auto" takes the graph where nmslib is installed. Estimated from the two counts of
# operations (building: about 2,000 distances a row in one thread; exact: one row of a matrix product a query), for as
# many queries as rows; it was not measured.
HNSW_FROM = 200_000
_BLOCK = 2**24  # distances held at once: 64 MiB
_CACHED = 2**21  # of them that stay in the processor's cache, where the nearest are found at half the cost
_ROWS = 256  # queries at once all the same: a matrix product of fewer is slow
_GRAPH = {"M": 16, "efConstruction": 200, "post": 0, "indexThreadQty": 1}  # one thread: the same graph every time


@dataclass(frozen=True, eq=False)
class Neighbours:
    """The neighbours of Q queries, nearest first; ties go to the row that comes first in the index.

    Args:
        positions: (Q, k) int64 rows of the index, -1 where there are no more.
        distances: (Q, k) float64, infinite where there are no more.
    """

    positions: NDArray[np.int64]
    distances: NDArray[np.float64]


class NeighbourIndex:
    """Answers which of N rows lie nearest, by Euclidean distance between centred rows of length one.

        x ← (x - m) / |x - m|,    m: mean of the index;    d = |x - y| = sqrt(2 - 2 cos), from 0 to 2

    A row that equals the mean has no direction: it stays zero, at distance 1 from all others.

    Args:
        features: (N, D) floats.
        ids: N unique ids; a query of the same id does not find itself.
        method: ``"exact"``; ``"hnsw"``, approximate, needs nmslib; ``"auto"`` takes HNSW from 200,000 rows on where
            nmslib is installed.

    Source: centring and scaling as in Wang et al. 2019, SimpleShot (https://arxiv.org/abs/1911.04623); HNSW: Malkov &
    Yashunin 2018 (https://arxiv.org/abs/1603.09320).

    Raises:
        EtudeError: features or ids cannot be used, or nmslib was asked for and is missing.

    >>> index = NeighbourIndex([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]], ids=["e", "n", "w", "s"])
    >>> index.neighbours_of([[2.0, 1.0]], k=2)
    [[('e', 0.4595), ('n', 1.0515)]]
    """

    def __init__(self, features: ArrayLike, ids: Sequence[str] | None = None, method: Method = "auto") -> None:
        table = checked_features(features, "the index")
        self.ids = None if ids is None else _checked_ids(ids, len(table))
        self.method: Literal["exact", "hnsw"] = _method(method, len(table))
        self.centre: NDArray[np.float64] = table.mean(axis=0, dtype=np.float64)
        self.rows = UnitRows.of(table, self.centre)
        self._position = {} if self.ids is None else {name: row for row, name in enumerate(self.ids)}
        self._graph: Any = _built(self.rows.values) if self.method == "hnsw" else None

    def __len__(self) -> int:
        """Return N, the number of rows."""
        return len(self.rows.values)

    def query(self, features: ArrayLike, k: int, ids: Sequence[str] | None = None) -> Neighbours:
        """Return the ``min(k, N)`` nearest rows of each query; with ``ids``, never the row of the query's own id.

        Args:
            features: (Q, D) floats.
            k: neighbours wanted, at least one.
            ids: the queries' ids.

        Raises:
            EtudeError: the features are not of D columns, or ``k`` is below one.
        """
        return self.nearest(self.directions(features), k, self.own_rows(ids))

    def directions(self, features: ArrayLike) -> UnitRows:
        """Return (Q, D) features centred and scaled as the rows of the index are."""
        return UnitRows.of(checked_features(features, "the queries", columns=len(self.centre)), self.centre)

    def own_rows(self, ids: Sequence[str] | None) -> NDArray[np.int64] | None:
        """Return the row of each id in the index, -1 where it has none; None when nobody has ids."""
        if ids is None or self.ids is None:
            return None
        return np.array([self._position.get(name, -1) for name in ids], np.int64)

    def nearest(self, queries: UnitRows, k: int, own: NDArray[np.int64] | None = None) -> Neighbours:
        """Return the ``min(k, N)`` nearest rows of each query, without its ``own`` row, (Q,), where that is not -1."""
        count = len(queries.values)
        if k < 1:
            raise EtudeError(f"k must be at least 1 neighbour, not {k}")
        if own is None:
            own = np.full(count, -1)
        if len(own) != count:
            raise EtudeError(f"there are {len(own):,} ids for {count:,} queries: give one id a query")
        answer = self._by_graph if self._graph is not None else self._exactly
        return answer(queries, min(k, len(self)), own)

    def among_themselves(self, k: int) -> Neighbours:
        """Return the nearest other rows of each row of the index."""
        return self.nearest(self.rows, k, np.arange(len(self)))

    def neighbours_of(
        self, features: ArrayLike, k: int = 5, ids: Sequence[str] | None = None
    ) -> list[list[tuple[str, float]]]:
        """Return (id, distance to four digits) of each query's neighbours, nearest first, for a report.

        Raises:
            EtudeError: as :meth:`query`.
        """
        found = self.query(features, k, ids)
        names = self.ids or tuple(str(row) for row in range(len(self)))
        return [
            [(names[row], round(float(far), 4)) for row, far in zip(rows, distances, strict=True) if row >= 0]
            for rows, distances in zip(found.positions, found.distances, strict=True)
        ]

    def _exactly(self, queries: UnitRows, k: int, own: NDArray[np.int64]) -> Neighbours:
        count = len(queries.values)
        positions, distances = np.empty((count, k), np.int64), np.empty((count, k))
        step = max(1, min(_BLOCK // len(self), max(_CACHED // len(self), _ROWS)))
        for start in range(0, count, step):
            part = slice(start, min(start + step, count))
            block = queries.take(part)
            squared = squared_distances(block, self.rows)
            known = np.flatnonzero(own[part] >= 0)
            squared[known, own[part][known]] = np.inf
            positions[part], distances[part] = nearest_of_block(squared, block.values, self.rows.values, k)
        return Neighbours(positions, distances)

    def _by_graph(self, queries: UnitRows, k: int, own: NDArray[np.int64]) -> Neighbours:
        """The graph names rows; their distances and order are computed here. What it misses is looked up exactly."""
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
            rest = self._exactly(queries.take(np.array(short)), k, own[short])
            positions[short], distances[short] = rest.positions, rest.distances
        return Neighbours(positions, distances)


def checked_features(features: ArrayLike, where: str, columns: int | None = None) -> Floats:
    """Return (N, D) finite floats, at least one of each, with D = ``columns`` when given; ``where`` is for messages."""
    table = np.asarray(features)
    if table.dtype.kind not in "fiu" or table.ndim != 2 or not table.size:
        raise EtudeError(f"features of {where} must be numbers of shape (N, D), not {table.dtype} of {table.shape}")
    if columns is not None and table.shape[1] != columns:
        raise EtudeError(
            f"features of {where} have {table.shape[1]:,} columns and those of the index {columns:,}: "
            "take both from the same network"
        )
    if not np.isfinite(table).all():
        raise EtudeError(f"features of {where} hold NaN or infinity: take them from images that a network can read")
    return table if table.dtype.kind == "f" else table.astype(np.float32)


def _checked_ids(ids: Sequence[str], count: int) -> tuple[str, ...]:
    names = tuple(ids)
    if len(names) != count:
        raise EtudeError(f"there are {len(names):,} ids for {count:,} rows of features: give one id a row")
    if len(set(names)) < count:
        repeated = [name for name, times in Counter(names).items() if times > 1]
        raise EtudeError(f"ids of the index must be unique, and {listed(repeated)} came more than once")
    return names


def _method(method: str, rows: int) -> Literal["exact", "hnsw"]:
    if method not in get_args(Method):
        known = get_args(Method)
        raise EtudeError(f"method must be one of {listed(known)}, not {method!r}.{nearest(method, known)}")
    if method == "hnsw":
        nmslib_module()
        return "hnsw"
    return "hnsw" if method == "auto" and rows >= HNSW_FROM and _has_nmslib() else "exact"


def nmslib_module() -> Any:
    """Return nmslib, which only the graph needs.

    Raises:
        EtudeError: it is not installed.
    """
    try:
        return import_module("nmslib")
    except ImportError as error:
        raise EtudeError(
            f"method 'hnsw' needs the package nmslib, which cannot be imported ({error}): "
            "pip install nmslib, or take method 'exact'"
        ) from error


def _has_nmslib() -> bool:
    try:
        nmslib_module()
    except EtudeError:
        return False
    return True


def _built(rows: NDArray[np.float32]) -> Any:
    graph = nmslib_module().init(method="hnsw", space="l2")
    graph.addDataPointBatch(rows)
    graph.createIndex(_GRAPH, print_progress=False)
    return graph
