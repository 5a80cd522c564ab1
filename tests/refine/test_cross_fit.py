from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from etude.core.context import Context
from etude.core.predictions import Predictions
from etude.refine.cross_fit import choose, exceeds_noise, fold_numbers, fold_sums, standard_error_of


def made(n: int, seed: int = 0) -> Predictions:
    labels = np.random.default_rng(seed).integers(-1, 3, size=n)
    return Predictions(tuple(f"i{row}" for row in range(n)), ("x", "y", "z"), np.zeros((1, n, 3)), labels=labels)


@given(st.integers(1, 40), st.integers(1, 7), st.integers(0, 5))
def test_folds_are_even_also_within_each_class(n: int, folds: int, seed: int):
    one = made(n, seed)
    numbers = fold_numbers(one, folds, Context(seed=seed))
    assert one.labels is not None
    for label in (None, -1, 0, 1, 2):
        among = numbers if label is None else numbers[one.labels == label]
        counts = np.bincount(among, minlength=min(folds, n))
        assert len(counts) == min(folds, n)
        assert counts.max() - counts.min() <= 1


@given(st.integers(2, 30), st.randoms(use_true_random=False))
def test_folds_follow_ids_and_class_names(n: int, random: object):
    one = made(n)
    rows = np.random.default_rng(n).permutation(n)
    np.testing.assert_array_equal(fold_numbers(one.take(rows), 4), fold_numbers(one, 4)[rows])
    assert one.labels is not None
    renumbered = np.where(one.labels >= 0, 2 - one.labels, -1)
    turned = Predictions(one.ids, ("z", "y", "x"), one.logits, labels=renumbered)
    np.testing.assert_array_equal(fold_numbers(turned, 4), fold_numbers(one, 4))


def test_folds_depend_on_the_seed_and_do_without_labels():
    one = made(50)
    assert (fold_numbers(one, 5) != fold_numbers(one, 5, Context(seed=1))).any()
    bare = Predictions(one.ids, one.classes, one.logits)
    assert np.bincount(fold_numbers(bare, 5)).tolist() == [10] * 5


def test_fold_sums_by_hand():
    assert fold_sums(np.array([[1.0, 2.0, 4.0]]), np.array([0, 1, 0])).tolist() == [[5, 2]]


def test_the_choice_is_scored_on_images_that_had_no_say():
    # The first candidate gains 2 on fold 0 and nothing else; the second gains 1 everywhere.
    gains, numbers = np.array([[2.0] * 10 + [0.0] * 10, [1.0] * 20]), np.array([0] * 10 + [1] * 10)
    choice = choose(fold_sums(gains, numbers), lambda one: gains[one], numbers)
    # Without fold 0 the second is best, gaining 1 there; without fold 1 the first is, gaining 0.
    assert choice.gain == 0.5
    assert choice.best == 0  # equal totals: the earlier
    assert choice.error == pytest.approx(standard_error_of(np.repeat([1.0, 0.0], 10)))


def test_what_gains_on_no_fold_but_its_own_is_not_chosen():
    rng = np.random.default_rng(0)
    gains, numbers = rng.normal(size=(500, 40)), np.arange(40) % 5
    sums = fold_sums(gains, numbers)
    assert sums.sum(axis=1).max() / 40 > 0.3  # the best of many looks good
    assert choose(sums, lambda one: gains[one], numbers).best is None
    forced = choose(sums, lambda one: gains[one], numbers, noise=None)
    assert forced.best == sums.sum(axis=1).argmax()


def test_losses_are_never_chosen():
    gains, numbers = np.full((3, 20), -0.1), np.arange(20) % 4
    assert choose(fold_sums(gains, numbers), lambda one: gains[one], numbers) == (None, 0.0, 0.0)


def test_noise_is_two_standard_errors():
    values = np.array([0.0, 1.0] * 20)
    error = standard_error_of(values)
    assert error == pytest.approx(np.sqrt(values.var(ddof=1) / 40))
    assert exceeds_noise(values - 0.5 + 2.01 * error)
    assert not exceeds_noise(values - 0.5 + 1.99 * error)
    assert not exceeds_noise([1.0] * 9)
    assert standard_error_of([1.0]) == float("inf")
