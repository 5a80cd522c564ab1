from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.neighbors import NearestNeighbors

from etude.core.errors import EtudeError
from etude.refine.neighbours import index as distances
from etude.refine.neighbours import index as neighbours
from etude.refine.neighbours.index import NeighbourIndex


def table(rows: int, columns: int = 5, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, columns)).astype(np.float32)


def scaled(features: np.ndarray, centre: np.ndarray) -> np.ndarray:
    moved = features.astype(np.float64) - centre
    return moved / np.linalg.norm(moved, axis=1, keepdims=True)


# --- the exact search ---


@pytest.mark.parametrize("block", [1, 40, 2**24])
def test_exact_neighbours_are_those_of_scikit_learn(block: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(neighbours, "_BLOCK", block)
    rows, queries = table(60) + 3, table(17, seed=1) + 3
    found = NeighbourIndex(rows).query(queries, 7)
    centre = rows.mean(axis=0, dtype=np.float64)
    theirs = NearestNeighbors(n_neighbors=7, algorithm="brute").fit(scaled(rows, centre))
    distance, positions = theirs.kneighbors(scaled(queries, centre))
    np.testing.assert_array_equal(found.positions, positions)
    np.testing.assert_allclose(found.distances, distance, atol=1e-5)


@given(
    hnp.arrays(np.float32, st.tuples(st.integers(1, 12), st.just(2)), elements=st.integers(-2, 2)), st.integers(1, 14)
)
def test_ties_go_to_the_row_that_comes_first(rows: np.ndarray, k: int):
    index = NeighbourIndex(rows)
    found = index.query(rows, k)
    assert found.positions.shape == (len(rows), min(k, len(rows)))
    unit = index.rows.values.astype(np.float64)
    for row, (positions, far) in enumerate(zip(found.positions, found.distances, strict=True)):
        expected = np.sqrt(((unit - unit[row]) ** 2).sum(axis=1))
        order = np.lexsort((np.arange(len(rows)), expected))[:k]
        np.testing.assert_allclose(far, expected[order], atol=1e-5)
        assert positions.tolist() == order.tolist()


def test_rows_closer_than_float32_can_tell_are_told_apart():
    angles = np.array([0.0, 0.3000001, 0.3, 0.3000002, 1.0, 2.5, 4.0])
    rows = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    index = NeighbourIndex(rows)
    exact = np.linalg.norm(index.rows.values.astype(np.float64) - index.rows.values[0].astype(np.float64), axis=1)
    order = np.argsort(exact, kind="stable")
    for k in range(1, 8):
        found = index.query(rows[:1], k)
        assert found.positions[0].tolist() == order[:k].tolist()
        np.testing.assert_allclose(found.distances[0], exact[order[:k]], atol=1e-6)


def test_a_copy_lies_at_distance_zero():
    rows = table(30, 200)
    found = NeighbourIndex(rows).query(rows, 1)
    assert found.positions[:, 0].tolist() == list(range(30))
    assert not found.distances.any()


def test_the_row_of_the_own_id_is_not_found():
    rows = table(4)
    index = NeighbourIndex(rows, ["a", "b", "c", "d"])
    found = index.query(rows, 4, ["d", "z", "b", "a"])
    assert [sorted(one) for one in found.positions.tolist()] == [
        [-1, 0, 1, 2],
        [0, 1, 2, 3],
        [-1, 0, 2, 3],
        [-1, 1, 2, 3],
    ]
    assert np.isinf(found.distances[found.positions < 0]).all()
    assert found.positions[[0, 2, 3], -1].tolist() == [-1, -1, -1]
    np.testing.assert_array_equal(index.among_themselves(4).positions[:, 3], -1)
    only = NeighbourIndex(rows[:1], ["a"]).query(rows[:1], 1, ["a"])
    assert only.positions.tolist() == [[-1]]


def test_rows_that_equal_the_mean_have_no_direction():
    index = NeighbourIndex(np.full((5, 3), 0.1, np.float32))
    assert not index.rows.values.any()
    assert index.query(np.full((1, 3), 0.1, np.float32), 3).positions.tolist() == [[0, 1, 2]]
    np.testing.assert_allclose(index.query([[7.0, 8.0, 9.0]], 2).distances, [[1, 1]], atol=1e-6)


def test_many_ties_are_cut_at_the_first_ones(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(distances, "_MOST_TIES", 3)
    found = NeighbourIndex(np.ones((50, 2))).query([[2.0, 3.0]], 2)
    assert found.positions.tolist() == [[0, 1]]


def test_half_precision_is_accepted():
    rows = table(20).astype(np.float16)
    exact = NeighbourIndex(rows.astype(np.float32)).query(rows, 3)
    np.testing.assert_array_equal(NeighbourIndex(rows).query(rows, 3).positions, exact.positions)


def test_neighbours_are_listed_for_a_report():
    index = NeighbourIndex([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]], ["e", "w", "n", "s"])
    assert index.neighbours_of([[1.0, 0.0]], k=2, ids=["e"]) == [[("n", 1.4142), ("s", 1.4142)]]
    assert NeighbourIndex(np.eye(2)).neighbours_of(np.eye(2)[:1], k=1) == [[("0", 0.0)]]


# --- the graph, with a stand-in for nmslib ---


class FakeGraph:
    """Does what nmslib's HNSW index does, but exactly, in wrong order; every third query finds one row only."""

    def addDataPointBatch(self, data: np.ndarray) -> None:  # noqa: N802
        self.data = data

    def createIndex(self, params: dict[str, int], print_progress: bool) -> None:  # noqa: N802
        assert params["indexThreadQty"] == 1
        assert not print_progress
        self.ready = True

    def setQueryTimeParams(self, params: dict[str, int]) -> None:  # noqa: N802
        self.ef = params["efSearch"]

    def knnQueryBatch(self, queries: np.ndarray, k: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:  # noqa: N802
        assert self.ready
        assert self.ef >= k
        for number, query in enumerate(queries):
            far = ((self.data - query) ** 2).sum(axis=1)
            rows = np.argsort(far)[: 1 if number % 3 == 2 else k][::-1].astype(np.int32)
            yield rows, far[rows]


class FakeNmslib:
    def __init__(self) -> None:
        self.made: list[dict[str, Any]] = []

    def init(self, **settings: Any) -> FakeGraph:
        self.made.append(settings)
        return FakeGraph()


@pytest.fixture
def nmslib(monkeypatch: pytest.MonkeyPatch) -> FakeNmslib:
    module = FakeNmslib()
    monkeypatch.setitem(sys.modules, "nmslib", module)  # type: ignore[arg-type]
    return module


@pytest.mark.parametrize("ids", [None, [f"q{number}" for number in range(40)]])
def test_the_graph_answers_as_the_exact_search_does(nmslib: FakeNmslib, ids: list[str] | None):
    rows = table(40)
    graph, exact = NeighbourIndex(rows, ids, "hnsw"), NeighbourIndex(rows, ids, "exact")
    assert nmslib.made == [{"method": "hnsw", "space": "l2"}]
    assert (graph.method, exact.method) == ("hnsw", "exact")
    for k in (1, 5, 40):
        ours, theirs = graph.query(rows, k, ids), exact.query(rows, k, ids)
        np.testing.assert_array_equal(ours.positions, theirs.positions)
        np.testing.assert_allclose(ours.distances, theirs.distances, atol=1e-5)


def test_the_graph_is_taken_from_a_size_on(nmslib: FakeNmslib, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(neighbours, "HNSW_FROM", 10)
    assert NeighbourIndex(table(9)).method == "exact"
    assert NeighbourIndex(table(10)).method == "hnsw"
    monkeypatch.setitem(sys.modules, "nmslib", None)
    assert NeighbourIndex(table(10)).method == "exact"


def test_a_missing_nmslib_is_told_in_one_sentence(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "nmslib", None)
    with pytest.raises(EtudeError, match="needs the package nmslib.* pip install nmslib, or take method 'exact'"):
        NeighbourIndex(table(3), method="hnsw")


# --- what is refused ---


@pytest.mark.each(
    ("make", "sentence"),
    [
        (lambda: NeighbourIndex(np.zeros(3)), r"features of the index must be numbers of shape \(N, D\)"),
        (lambda: NeighbourIndex(np.zeros((0, 3))), "must be numbers of shape"),
        (lambda: NeighbourIndex([[np.nan]]), "hold NaN"),
        (lambda: NeighbourIndex(np.eye(2), ["a"]), "1 ids for 2 rows"),
        (lambda: NeighbourIndex(np.eye(2), ["a", "a"]), "unique, and 'a' came more than once"),
        (lambda: NeighbourIndex(np.eye(2), method="hsnw"), "Did you mean 'hnsw'"),  # type: ignore[arg-type]
        (lambda: NeighbourIndex(np.eye(2)).query(np.eye(3), 1), "have 3 columns and those of the index 2"),
        (lambda: NeighbourIndex(np.eye(2)).query(np.eye(2), 0), "at least 1"),
        (lambda: NeighbourIndex(np.eye(2), ["a", "b"]).query(np.eye(2), 1, ["a"]), "1 ids for 2 queries"),
    ],
)
def test_what_cannot_be_used_is_told_in_one_sentence(make: Any, sentence: str):
    with pytest.raises(EtudeError, match=sentence):
        make()
