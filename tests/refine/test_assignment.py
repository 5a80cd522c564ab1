from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from etude.core.errors import EtudeError
from etude.core.predictions import Predictions
from etude.core.seeds import rng_for
from etude.refine.base import normalised
from etude.refine.prior import assignment as assignment_exact
from etude.refine.prior.assignment import BalancedAssignment, assign


def best_by_hungarian(log_p: np.ndarray, low: np.ndarray, high: np.ndarray) -> float:
    """The greatest log likelihood: every class has ``high`` seats, of which ``low`` must be taken."""
    must = 1e6  # worth more than any likelihood
    columns = [log_p[:, c] + (must if seat < low[c] else 0.0) for c in range(len(low)) for seat in range(high[c])]
    cost = np.stack(columns, axis=1)
    rows, seats = linear_sum_assignment(cost, maximize=True)
    return float(cost[rows, seats].sum() - must * low.sum())


def scores(seed: int, n: int, classes: int, spread: float, grid: float) -> np.ndarray:
    """Log probabilities in float32; ``grid`` above zero rounds the logits, so that many are tied."""
    logits = rng_for(seed, "scores").normal(size=(n, classes)) * spread
    logits = np.round(logits / grid) * grid if grid else logits
    return normalised(logits).astype(np.float32)


@given(st.integers(0, 10_000), st.integers(1, 24), st.integers(1, 6), st.sampled_from([0.1, 3, 300]), st.data())
def test_no_labels_within_the_bounds_are_more_likely(seed: int, n: int, classes: int, spread: float, data: Any):
    log_p = scores(seed, n, classes, spread, data.draw(st.sampled_from([0, spread])))
    rng = rng_for(seed, "bounds")
    counts = np.bincount(rng.integers(classes, size=n), minlength=classes)
    slack = data.draw(st.sampled_from([0, 1, 5]))
    low, high = np.maximum(counts - rng.integers(slack + 1, size=classes), 0), counts + rng.integers(slack + 1)
    found = assign(log_p, low, high)
    got = np.bincount(found.labels, minlength=classes)
    assert ((got >= low) & (got <= high)).all()
    own = log_p.astype(np.float64)[np.arange(n), found.labels].sum()
    assert own == pytest.approx(found.log_likelihood)
    assert own == pytest.approx(best_by_hungarian(log_p.astype(np.float64), low, high), abs=1e-5 * spread + 1e-6)
    assert found.gap <= 1e-6 * max(1, spread)


def test_the_labels_maximise_what_the_offsets_were_added_to():
    log_p = scores(0, 300, 5, 2.0, 0)
    found = assign(log_p, np.full(5, 60), np.full(5, 60))
    shifted = log_p + found.offsets
    np.testing.assert_allclose(shifted[np.arange(300), found.labels], shifted.max(axis=1), atol=1e-9)
    assert found.offsets.mean() == pytest.approx(0, abs=1e-9)


def test_soft_offsets_leave_little_to_move(monkeypatch: pytest.MonkeyPatch):
    left: list[int] = []
    settle = assignment_exact.Flow.settle

    def counted(flow: assignment_exact.Flow) -> None:
        left.append(int(np.abs(flow._surplus).sum()))
        settle(flow)

    monkeypatch.setattr(assignment_exact.Flow, "settle", counted)
    log_p = scores(0, 20_000, 20, 2.0, 0) + np.linspace(-1, 1, 20)
    assign(log_p, np.full(20, 1000), np.full(20, 1000))
    assert left[0] < 400


def predictions(log_p: np.ndarray) -> Predictions:
    n, classes = log_p.shape
    ids = tuple(f"image {number:04}" for number in rng_for(0, "ids").permutation(n))
    return Predictions(ids, tuple(f"class {number}" for number in range(classes)), log_p[None])


@pytest.mark.each(("n", "classes"), [(300, 7), (3, 5), (100, 10)])
@pytest.mark.each("grid", [0, 1.0, 100.0])
def test_counts_are_those_of_the_prior_and_predictions_follow(n: int, classes: int, grid: float):
    target = predictions(scores(1, n, classes, 2.0, grid))
    refiner = BalancedAssignment().fit(target=target)
    counts = np.bincount(refiner.labels_, minlength=classes)
    assert set(counts) <= {n // classes, -(-n // classes)}
    np.testing.assert_array_equal(refiner.transform(target).predicted(), refiner.labels_)
    some = np.arange(n)[::-2]
    np.testing.assert_array_equal(refiner.transform(target.take(some)).predicted(), refiner.labels_[some])
    assert refiner.described.startswith(f"{classes} classes of {counts.min()} to {counts.max()} images, offsets from")
    assert refiner.gap_ < 1e-5


def test_any_prior_and_classes_that_may_not_occur():
    target = predictions(scores(2, 200, 4, 2.0, 0))
    refiner = BalancedAssignment(prior=[120, 60, 20, 0]).fit(target=target)
    assert np.bincount(refiner.labels_, minlength=4).tolist() == [120, 60, 20, 0]
    refined = refiner.transform(target)
    assert refined.probabilities()[:, 3].max() < 1e-200
    np.testing.assert_array_equal(refined.predicted(), refiner.labels_)


def test_bounds_hold_and_change_nothing_where_they_are_kept_anyway():
    target = predictions(scores(3, 200, 4, 2.0, 0) + np.array([1, 0, 0, -2], np.float32))
    plain = np.bincount(target.predicted(), minlength=4)
    assert plain[3] < 20
    loose = BalancedAssignment(prior=None, at_most=200).fit(target=target)
    np.testing.assert_array_equal(loose.labels_, target.predicted())
    np.testing.assert_array_equal(loose.offsets_, 0)
    bounded = BalancedAssignment(prior=None, at_least={"class 3": 20}, at_most=80).fit(target=target)
    counts = np.bincount(bounded.labels_, minlength=4)
    assert counts[3] == 20
    assert counts.max() <= 80
    assert bounded.offsets_[3] > 0
    assert (bounded.offsets_[:3] <= 0).all()


@pytest.mark.parametrize("change", [lambda z: z * 0, lambda z: np.round(z)])
def test_ties_do_not_depend_on_the_order_of_images_and_classes(change: Any):
    target = predictions(change(scores(4, 90, 6, 2.0, 0)))
    rows, columns = rng_for(0, "rows").permutation(90), rng_for(0, "columns").permutation(6)
    turned = Predictions(
        tuple(target.ids[row] for row in rows),
        tuple(target.classes[column] for column in columns),
        target.logits[:, rows][:, :, columns],
    )
    here, there = BalancedAssignment().fit(target=target), BalancedAssignment().fit(target=turned)
    np.testing.assert_array_equal(columns[there.labels_], here.labels_[rows])
    np.testing.assert_allclose(there.offsets_, here.offsets_[columns], atol=1e-9)


def test_balance_makes_a_biased_model_more_accurate():
    rng = rng_for(0, "biased")
    labels = np.arange(600) % 6
    logits = 2 * np.eye(6)[labels] + rng.normal(size=(600, 6)) + np.linspace(-2, 2, 6)
    target = predictions(logits)
    refined = BalancedAssignment().fit(target=target).transform(target)
    assert (refined.predicted() == labels).mean() > (target.predicted() == labels).mean() + 0.1


@pytest.mark.each(
    ("arguments", "told"),
    [
        ({"prior": "estimate"}, "PriorCorrection"),
        ({"prior": None}, "either a prior or bounds"),
        ({"at_least": 2}, "either a prior or bounds"),
        ({"prior": None, "at_least": 30}, "add up to 120 to 240"),
        ({"prior": None, "at_most": 5}, "add up to 0 to 20"),
        ({"prior": None, "at_least": 9, "at_most": 8}, "at least 9"),
        ({"prior": None, "at_most": {"class 9": 8}}, "is no class"),
        ({"prior": None, "at_most": {"class 1": 0.5}}, "whole number"),
        ({"prior": None, "at_most": -1}, "whole number"),
    ],
)
def test_mistakes_are_told_in_one_sentence(arguments: dict[str, Any], told: str):
    with pytest.raises(EtudeError, match=told) as caught:
        BalancedAssignment(**arguments).fit(target=predictions(scores(0, 60, 4, 1.0, 0)))
    assert "\n" not in str(caught.value)
