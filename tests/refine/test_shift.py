from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from etude.core.context import Context
from etude.core.errors import EtudeError
from etude.health import dataset_shift
from etude.health.shift import area_and_variance


def rows(count: int, seed: int, moved: float = 0.0) -> np.ndarray:
    found = np.random.default_rng(seed).normal(size=(count, 40))
    found[:, 0] += moved
    return found.astype(np.float32)


def test_the_interval_covers_chance_where_nothing_differs():
    found = [
        dataset_shift(rows(150, 2 * seed), rows(90, 2 * seed + 1), context=Context(seed=seed)) for seed in range(60)
    ]
    covered = [one.low <= 0.5 <= one.high for one in found]
    assert sum(covered) >= 52  # 57 are expected
    assert abs(np.mean([one.auc for one in found]) - 0.5) < 0.02
    assert all(one.images == (150, 90) for one in found)


def test_the_interval_covers_what_a_clear_shift_amounts_to():
    found = dataset_shift(rows(600, 0), rows(600, 1, moved=1.0))
    best = 0.76  # Φ(1/√2): what the one column that differs allows
    assert found.beyond_noise
    assert found.low < best < found.high + 0.03  # a little is lost in estimating the direction
    assert found.high - found.low < 0.1


def test_only_so_many_rows_are_looked_at():
    found = dataset_shift(rows(300, 0), rows(40, 1), most=50)
    assert found.images == (50, 40)
    assert found == dataset_shift(rows(300, 0), rows(40, 1), most=50)


@given(st.lists(st.integers(0, 5), min_size=2, max_size=12), st.lists(st.integers(0, 5), min_size=2, max_size=12))
def test_the_area_is_that_of_scikit_learn(positive: list[int], negative: list[int]):
    area, variance = area_and_variance(np.array(positive, float), np.array(negative, float))
    truth = [1] * len(positive) + [0] * len(negative)
    assert area == pytest.approx(roc_auc_score(truth, positive + negative))
    assert variance >= 0


def test_the_variance_is_that_of_repeated_draws():
    rng = np.random.default_rng(0)
    draws = [area_and_variance(rng.normal(size=40) + 1, rng.normal(size=30)) for _ in range(400)]
    areas, variances = np.array(draws).T
    assert np.mean(variances) == pytest.approx(np.var(areas), rel=0.2)


@pytest.mark.parametrize(
    ("first", "second", "sentence"),
    [
        (np.ones((20, 3)), np.ones((20, 4)), "4 columns and those of the first 3"),
        (np.ones((20, 3)), np.ones((9, 3)), "10 images of each, not 20 and 9"),
        (np.ones((20, 3)), np.ones(9), "shape"),
    ],
)
def test_what_cannot_be_used_is_told_in_one_sentence(first: Any, second: Any, sentence: str):
    with pytest.raises(EtudeError, match=sentence):
        dataset_shift(first, second)


def test_features_that_are_all_the_same_tell_nothing_apart():
    found = dataset_shift(np.ones((30, 3)), np.ones((30, 3)))
    assert (found.auc, found.beyond_noise) == (0.5, False)
