from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from etude.core.errors import EtudeError
from etude.core.metrics import log_loss
from etude.core.predictions import Predictions
from etude.core.seeds import rng_for
from etude.refine.base import normalised
from etude.refine.calibration import Temperature, VectorScaling, calibration_error


def drawn(n: int, classes: int = 4, *, temperature: float = 1.0, bias: np.ndarray | None = None) -> Predictions:
    """A model whose truth follows softmax(logits / temperature + bias) exactly."""
    rng = rng_for(0, "drawn")
    logits = rng.normal(size=(n, classes)) * 2
    shift = np.zeros(classes) if bias is None else bias
    p = np.exp(normalised(normalised(logits) / temperature + shift))
    labels = (p.cumsum(axis=1) > rng.random((n, 1))).argmax(axis=1)
    return Predictions(tuple(map(str, range(n))), tuple("abcdefgh"[:classes]), logits[None], labels=labels)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_temperature_finds_the_one_that_made_the_data(temperature: float):
    assert Temperature().fit(drawn(20_000, temperature=temperature)).temperature_ == pytest.approx(
        temperature, rel=0.05
    )


def test_temperature_is_at_the_least_log_loss():
    given = drawn(300, temperature=2.0)
    best = Temperature().fit(given).temperature_
    z = given.log_probabilities()

    def loss(t: float) -> float:
        own = normalised(z / t)[np.arange(len(z)), given.labels]
        return float(-own.sum() + np.log(t) ** 2 / 2)

    assert loss(best) <= min(loss(best * 1.01), loss(best / 1.01))


def test_a_temperature_of_one_changes_nothing():
    given = drawn(50)
    refiner = Temperature().fit(given)
    refiner.temperature_ = 1.0
    np.testing.assert_allclose(refiner.transform(given).probabilities(), given.probabilities(), atol=1e-7)


@settings(max_examples=20)
@given(st.floats(0.05, 20))
def test_temperature_keeps_the_predicted_class(scale: float):
    made = drawn(60)
    given = Predictions(made.ids, made.classes, made.logits * np.float32(scale), labels=made.labels)
    np.testing.assert_array_equal(Temperature().fit(given).transform(given).predicted(), given.predicted())


def test_separable_labels_do_not_make_anything_infinite():
    labels = np.arange(30) % 3
    sure = Predictions(tuple(map(str, range(30))), ("a", "b", "c"), 2 * np.eye(3)[labels][None], labels=labels)
    assert 0.1 < Temperature().fit(sure).temperature_ < 1
    scaled = VectorScaling().fit(sure)
    assert 0.1 < scaled.temperature_ < 1
    assert np.abs(scaled.bias_).max() < 0.1


def test_views_are_averaged_before_they_are_calibrated():
    one, other = drawn(200), drawn(200).logits[0][:, ::-1]
    views = Predictions(one.ids, one.classes, np.stack([one.logits[0], other]), labels=one.labels)
    merged = Predictions.from_probabilities(one.ids, one.classes, views.probabilities(), labels=one.labels)
    assert Temperature().fit(views).temperature_ == pytest.approx(Temperature().fit(merged).temperature_, rel=1e-5)


def test_vector_scaling_finds_the_biases_that_made_the_data():
    bias = np.array([1.0, -1.0, 0.5, -0.5])
    found = VectorScaling().fit(drawn(20_000, temperature=2.0, bias=bias))
    assert found.temperature_ == pytest.approx(2, rel=0.05)
    np.testing.assert_allclose(found.bias_, bias, atol=0.1)
    assert found.bias_.mean() == pytest.approx(0, abs=1e-12)


def test_vector_scaling_predicts_each_class_as_often_as_it_occurs():
    given = drawn(5000, temperature=2.0, bias=np.array([1.0, 0, 0, -1]))
    assert given.labels is not None
    mean = VectorScaling(ridge=1e-6).fit(given).transform(given).probabilities().mean(axis=0)
    np.testing.assert_allclose(mean, np.bincount(given.labels) / 5000, atol=1e-4)


def test_calibration_lowers_the_log_loss_and_the_calibration_error_of_other_images():
    given = drawn(8000, temperature=3.0, bias=np.array([1.0, 0, 0, -1]))
    fit, other = given.take(np.arange(4000)), given.take(np.arange(4000, 8000))
    assert other.labels is not None
    losses, errors = [], []
    for one in (other, Temperature().fit(fit).transform(other), VectorScaling().fit(fit).transform(other)):
        losses.append(log_loss(one.probabilities(), other.labels))
        errors.append(calibration_error(one.probabilities(), other.labels, per_class=True))
    assert losses == sorted(losses, reverse=True)
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize("ridge", [0.0, -1.0, float("nan")])
def test_a_ridge_that_cannot_be_used_is_refused(ridge: float):
    with pytest.raises(EtudeError, match="ridge"):
        VectorScaling(ridge=ridge).fit(drawn(20))


def test_calibration_error_by_hand():
    confident = np.repeat([[0.9, 0.1], [0.6, 0.4]], 10, axis=0)
    labels = np.r_[np.zeros(7), np.ones(3), np.zeros(6), np.ones(4)].astype(int)
    assert calibration_error(confident, labels, bins=2) == pytest.approx(0.5 * 0.2)
    assert calibration_error(confident, labels, bins=1) == pytest.approx(0.1)
    assert calibration_error(confident, labels, bins=2, per_class=True) == pytest.approx(0.1)


def test_calibration_error_does_not_depend_on_the_order_of_ties():
    given = drawn(100)
    p = np.round(given.probabilities(), 1) + 1e-9
    p /= p.sum(axis=1, keepdims=True)
    rows = rng_for(0, "rows").permutation(100)
    assert given.labels is not None
    assert calibration_error(p[rows], given.labels[rows]) == pytest.approx(calibration_error(p, given.labels))


def test_the_debiased_error_of_a_perfect_model_is_nearer_to_zero():
    given = drawn(1000)
    assert given.labels is not None
    plain = calibration_error(given.probabilities(), given.labels)
    assert calibration_error(given.probabilities(), given.labels, debiased=True) < plain
    assert plain < 0.06


def test_calibration_error_refuses_no_bins_and_unlabelled_images():
    with pytest.raises(EtudeError, match="bin"):
        calibration_error([[0.5, 0.5]], [0], bins=0)
    with pytest.raises(EtudeError, match="unlabelled"):
        calibration_error([[0.5, 0.5]], [-1])
