from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from etude.core.errors import EtudeError
from etude.core.metrics import accuracy
from etude.core.predictions import Predictions
from etude.core.seeds import rng_for
from etude.refine.base import normalised
from etude.refine.prior.correction import PriorCorrection, bbse_prior, em_prior, expected_gain, shift_p_value

CLASSES = ("ant", "bee", "cat", "dog")
EVEN = np.full(4, 0.25)
SHIFTED = np.array([0.7, 0.1, 0.15, 0.05])


def drawn(name: str, n: int, shares: np.ndarray = EVEN, *, sharpness: float = 1.0) -> Predictions:
    """Exact posteriors, under even shares, of points around four corners that come with ``shares``.

    With a sharpness above one the model is too sure of itself.
    """
    rng = rng_for(0, name)
    labels = rng.choice(4, size=n, p=shares)
    points = 2 * np.eye(4)[labels] + rng.normal(size=(n, 4))
    ids = tuple(f"{name}-{number}" for number in range(n))
    return Predictions(ids, CLASSES, 2 * sharpness * points[None], labels=labels)


def score(predictions: Predictions) -> float:
    assert predictions.labels is not None
    return accuracy(predictions.predicted(), predictions.labels)


def test_em_is_at_the_greatest_likelihood():
    p = drawn("em", 500, SHIFTED).probabilities()
    q = em_prior(p, EVEN, tolerance=1e-10, most=10_000)

    def likelihood(shares: np.ndarray) -> float:
        return float(np.log(p @ (shares / EVEN)).sum())

    for other in (EVEN, SHIFTED, *(0.99 * q + 0.01 * np.eye(4))):
        assert likelihood(q) >= likelihood(other)


@settings(max_examples=15)
@given(st.lists(st.floats(0.05, 1), min_size=4, max_size=4))
def test_em_and_bbse_find_the_shares(weights: list[float]):
    shares = np.array(weights) / sum(weights)
    valid, target = drawn("valid", 4000), drawn("target", 4000, shares)
    assert valid.labels is not None
    np.testing.assert_allclose(em_prior(target.probabilities(), EVEN), shares, atol=0.04)
    found = bbse_prior(target.probabilities(), valid.probabilities(), valid.labels, EVEN)
    np.testing.assert_allclose(found, shares, atol=0.05)


def test_bbse_never_gives_a_negative_share_and_keeps_that_of_a_class_without_labels():
    valid, target = drawn("valid", 40), drawn("target", 10, np.array([1.0, 0, 0, 0]))
    assert valid.labels is not None
    known = valid.labels != 3
    found = bbse_prior(target.probabilities(), valid.probabilities()[known], valid.labels[known], EVEN)
    assert (found >= 0).all()
    assert found.sum() == pytest.approx(1)
    assert found[3] > 0


@pytest.mark.parametrize("labelled", [12, 400])
def test_p_values_without_a_shift_are_even(labelled: int):
    def p_value(number: int) -> float:
        target, valid = drawn(f"target {number}", 300), drawn(f"valid {number}", labelled)
        return shift_p_value(target.probabilities(), valid.probabilities(), rng_for(number, "p"), draws=100)

    values = np.array([p_value(number) for number in range(100)])
    assert 0.4 < values.mean() < 0.6
    assert (values < 0.1).mean() < 0.2


def test_a_shift_has_a_small_p_value():
    valid, target = drawn("valid", 400).probabilities(), drawn("target", 300, SHIFTED).probabilities()
    assert shift_p_value(target, valid, rng_for(0, "p"), draws=99) == 0.01
    assert shift_p_value(valid, valid, rng_for(0, "p"), draws=99) == 1.0


def test_the_promised_gain_is_kept_where_probabilities_are_right():
    target = drawn("target", 20_000, SHIFTED)
    right = np.exp(normalised(target.log_probabilities() + np.log(SHIFTED)))
    gain, spread = expected_gain(right, target.predicted())
    assert target.labels is not None
    kept = accuracy(right.argmax(axis=1), target.labels) - score(target)
    assert gain > 0.03
    assert abs(kept - gain) < 3 * spread
    assert expected_gain(right, right.argmax(axis=1)) == (0.0, 0.0)


@pytest.mark.parametrize("method", ["em", "bbse"])
def test_a_large_shift_is_corrected(method: Any):
    valid, target = drawn("valid", 1500, sharpness=2), drawn("target", 1500, SHIFTED, sharpness=2)
    refiner = PriorCorrection(method=method).fit(valid, target)
    assert refiner.corrects_
    assert score(refiner.transform(target)) > score(target) + 0.03
    np.testing.assert_allclose(refiner.prior_, SHIFTED, atol=0.06)
    assert "'ant' from 2" in refiner.described
    assert method.upper() in refiner.described


def test_without_a_shift_everything_stays_as_it_is():
    valid, target = drawn("valid", 800, sharpness=2), drawn("target", 800, sharpness=2)
    refiner = PriorCorrection().fit(valid, target)
    assert "no shift worth correcting (p = " in refiner.described
    np.testing.assert_allclose(refiner.transform(target).probabilities(), target.probabilities(), atol=1e-6)


def test_a_real_but_small_shift_is_left_alone():
    small = np.array([0.29, 0.25, 0.25, 0.21])
    valid, target = drawn("valid", 3000), drawn("target", 3000, small)
    refiner = PriorCorrection().fit(valid, target)
    assert refiner.p_value_ is not None
    assert refiner.p_value_ <= 0.05
    assert not refiner.corrects_
    assert "points promised" in refiner.described
    assert PriorCorrection(alpha=None).fit(valid, target).corrects_
    assert PriorCorrection(alpha=None).fit(valid, target).p_value_ is None


def test_a_known_prior_needs_no_target_and_gains():
    valid, target = drawn("valid", 1500), drawn("target", 1500, SHIFTED)
    refiner = PriorCorrection(prior=dict(zip(CLASSES, SHIFTED, strict=True))).fit(valid)
    assert score(refiner.transform(target)) > score(target) + 0.03
    assert refiner.described.startswith("known prior: 'ant' from 2")


def test_a_known_prior_equal_to_the_source_changes_nothing():
    target = drawn("target", 50)
    refiner = PriorCorrection(prior=SHIFTED, source=SHIFTED, calibrate=False).fit(target=target)
    np.testing.assert_allclose(refiner.transform(target).probabilities(), target.probabilities(), atol=1e-6)


def test_em_with_a_known_source_needs_no_labels():
    target = drawn("target", 1500, SHIFTED)
    refiner = PriorCorrection(source="uniform", calibrate=False).fit(target=target)
    assert refiner.corrects_
    assert refiner.p_value_ is None
    assert score(refiner.transform(target)) > score(target) + 0.03


def test_the_promise_counts_the_luck_of_few_labelled_images():
    target = drawn("target", 1000, SHIFTED)
    few, many = (PriorCorrection(calibrate=False).fit(drawn("valid", n), target) for n in (50, 5000))
    assert few.gain_sd_ is not None
    assert many.gain_sd_ is not None
    assert few.gain_sd_ > 2 * many.gain_sd_


@pytest.mark.each(
    ("arguments", "told"),
    [
        ({"method": "emm"}, "Did you mean 'em'"),
        ({"alpha": 0.0}, "alpha"),
        ({"alpha": 5}, "alpha"),
        ({"caution": -1}, "caution"),
        ({"prior": "unifrom"}, "Did you mean 'uniform'"),
        ({"prior": {"ant": 1}}, "lacks"),
        ({"source": "estimate", "calibrate": False, "labelled": None}, "'estimate' is for the target"),
        ({"target": None}, "target"),
        ({"method": "bbse", "source": "uniform", "calibrate": False, "labelled": None}, "labelled"),
        ({"prior": "uniform", "source": "uniform", "calibrate": False, "labelled": None, "target": None}, "got none"),
        ({"labelled": Predictions(("a",), ("x", "y"), np.zeros((1, 1, 2)), labels=np.array([0]))}, "classes"),
    ],
)
def test_mistakes_are_told_in_one_sentence(arguments: dict[str, Any], told: str):
    sets: dict[str, Any] = {"labelled": drawn("valid", 20), "target": drawn("target", 20)}
    sets |= {name: arguments[name] for name in sets if name in arguments}
    made = {name: value for name, value in arguments.items() if name not in sets}
    with pytest.raises(EtudeError, match=told) as caught:
        PriorCorrection(**made).fit(**sets)
    assert "\n" not in str(caught.value)
