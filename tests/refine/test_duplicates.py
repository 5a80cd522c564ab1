from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from etude.core.errors import EtudeError
from etude.health import duplicates, near_duplicates
from etude.health.duplicates import NearDuplicate


def table(rows: int, columns: int = 5, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, columns)).astype(np.float32)


def pairs_of(found: list[NearDuplicate]) -> set[tuple[int, int]]:
    return {(pair.first, pair.second) for pair in found}


# --- by the neighbourhood ---


def with_copies(rows: np.ndarray, of: np.ndarray, noise: float, seed: int = 1) -> np.ndarray:
    """``rows`` and, after them, copies of those at ``of``, moved by a part of the columns' spread."""
    moved = np.random.default_rng(seed).normal(size=(len(of), rows.shape[1])) * rows.std(axis=0) * noise
    return np.concatenate([rows, (rows[of] + moved).astype(np.float32)])


@pytest.mark.parametrize("seed", range(5))
def test_unrelated_rows_give_about_as_many_pairs_as_were_allowed(seed: int):
    rows = table(1_000, 12, seed)
    assert len(near_duplicates(rows)) <= 4  # one is expected
    assert len(near_duplicates(rows, false_pairs=100)) >= 10  # the many that were asked for


def test_all_copies_are_found_in_crowded_and_in_empty_places():
    crowded, empty = table(500, 10, 1) * 0.01 + 3, table(500, 10, 2)
    rows = np.concatenate([crowded, empty])
    of = np.array([0, 5, 99, 501, 720, 999])
    noise = np.concatenate([np.full((3, 10), 2e-4), np.full((3, 10), 0.02)])
    copies = (rows[of] + noise * np.random.default_rng(0).normal(size=noise.shape)).astype(np.float32)
    found = near_duplicates(rows, copies)
    assert {(int(row), number) for number, row in enumerate(of)} <= pairs_of(found)
    assert len(found) <= len(of) + 2
    one_for_all = near_duplicates(rows, copies, threshold=min(pair.similarity for pair in found))
    assert len(one_for_all) > 1_000  # what a threshold that finds the last copy would bring with it


def test_a_group_of_copies_is_found_whole():
    rows = with_copies(table(300, 10), np.full(6, 17), 0.01)
    group = {17, *range(300, 306)}
    assert pairs_of(near_duplicates(rows)) >= {(a, b) for a in group for b in group if a < b}


def test_equal_rows_are_pairs_also_where_there_are_too_few_to_tell():
    rows = table(3)
    assert near_duplicates(rows, rows[[1]]) == [NearDuplicate(1, 0, 1.0)]
    assert near_duplicates(rows) == []
    assert near_duplicates(rows[:1]) == []
    assert len(near_duplicates(np.ones((4, 2)))) == 6  # all rows are the mean: nothing tells them apart


def test_rows_stored_in_half_precision_are_equal_to_themselves():
    rows = table(200, 300)
    found = near_duplicates(rows, rows[[3, 8]].astype(np.float16).astype(np.float32))
    assert pairs_of(found) == {(3, 0), (8, 1)}


# --- by a threshold ---


@pytest.mark.parametrize("block", [1, 40, 2**24])
def test_a_threshold_returns_every_pair_that_reaches_it(block: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(duplicates, "_BLOCK", block)
    rows = table(25, 3)
    rows[20] = rows[3]
    pairs = near_duplicates(rows, threshold=0.9)
    unit = rows.astype(np.float64) - rows.mean(axis=0, dtype=np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    cosines = unit @ unit.T
    assert pairs_of(pairs) == {(a, b) for a in range(25) for b in range(a + 1, 25) if cosines[a, b] >= 0.9}
    assert pairs[0] == NearDuplicate(3, 20, 1.0)
    assert [pair.similarity for pair in pairs] == sorted((pair.similarity for pair in pairs), reverse=True)
    assert near_duplicates(rows, threshold=0.9, most=2) == pairs[:2]


@pytest.mark.parametrize("block", [1, 2**24])
def test_a_threshold_between_two_sets_leaves_pairs_within_them_out(block: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(duplicates, "_BLOCK", block)
    a, b = table(15, 3), table(10, 3, 1)
    b[7] = a[2]
    joint = near_duplicates(np.concatenate([a, b]), threshold=0.8)
    assert pairs_of(near_duplicates(a, b, 0.8)) == {(i, j - 15) for i, j in pairs_of(joint) if i < 15 <= j}
    assert near_duplicates(a, b, 0.8)[0] == NearDuplicate(2, 7, 1.0)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ((np.eye(2), None, 3.0), "from -1 to 1, not 3"),
        ((np.eye(2), np.eye(3)), "3 columns and those of the first images 2"),
        ((np.zeros(4),), "shape"),
        ((np.array([[np.nan, 1.0]]),), "NaN"),
    ],
)
def test_what_cannot_be_used_is_told_in_one_sentence(given: Any, sentence: str):
    with pytest.raises(EtudeError, match=sentence):
        near_duplicates(*given)


def test_no_false_pairs_at_all_cannot_be_promised():
    with pytest.raises(EtudeError, match="above 0"):
        near_duplicates(np.eye(4), false_pairs=0)
