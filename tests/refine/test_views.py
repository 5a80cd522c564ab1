from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import softmax

from etude.core.errors import EtudeError
from etude.core.predictions import Predictions
from etude.refine.views import PLAIN, WAYS, ViewWeights, gain_by_views, sharpness_of_views


def seen(noise: list[float], count: int = 600, seed: int = 0, size: float = 2.0) -> Predictions:
    """A view for each noise, of the same labels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, count)
    views = [size * np.eye(3)[labels] + rng.normal(scale=sd, size=(count, 3)) for sd in noise]
    return Predictions([f"{i}" for i in range(count)], ["x", "y", "z"], np.stack(views), labels=labels)


def test_views_of_the_same_kind_are_averaged_plainly():
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 2, 400)
    first = np.where(rng.random(400) < 0.7, labels, 1 - labels)
    logits = np.log(0.3 + 0.4 * np.eye(2)[first])
    same = Predictions([f"{i}" for i in range(400)], ["x", "y"], np.stack([logits] * 4), labels=labels)
    step = ViewWeights().fit(same)
    assert (step.way_, step.weights_.tolist()) == (PLAIN, [0.25] * 4)
    np.testing.assert_allclose(step.transform(same).probabilities(), same.probabilities(), atol=1e-6)


def test_a_useless_view_gets_little_weight():
    step = ViewWeights().fit(seen([1.0, 6.0, 1.0]))
    assert step.way_.startswith("weighted")
    assert step.weights_.sum() == pytest.approx(1)
    assert step.weights_[1] < 0.15
    other = seen([1.0, 6.0, 1.0], seed=1)
    loss = [gain_by_views(one).log_loss[-1] for one in (other, step.transform(other))]
    assert loss[1] < loss[0]


@pytest.mark.parametrize("way", WAYS[2:4])
def test_weights_have_the_greatest_likelihood(way: str):
    one = seen([1.0, 2.0, 4.0])
    step = ViewWeights(ways=(way,), level=None).fit(one)
    if step.way_ != way:
        pytest.fail("the way was not taken, so nothing was tested")
    log_p = np.stack([view - np.log(np.exp(view).sum(1, keepdims=True)) for view in one.logits.astype(float)])
    rows = np.arange(len(one))

    def loss(u: np.ndarray) -> float:
        w = np.exp(u) / np.exp(u).sum()
        mixed = (
            np.log(np.tensordot(w, np.exp(log_p), 1)) if way.endswith("probabilities") else np.tensordot(w, log_p, 1)
        )
        mixed = mixed - np.log(np.exp(mixed).sum(1, keepdims=True))
        return float(-mixed[rows, one.labels].sum() - np.log(w).sum())

    best = minimize(loss, np.zeros(3), method="Nelder-Mead", options={"xatol": 1e-6, "fatol": 1e-9, "maxiter": 2000})
    np.testing.assert_allclose(step.weights_, np.exp(best.x) / np.exp(best.x).sum(), atol=2e-3)


def test_views_that_only_harm_are_left_out():
    step = ViewWeights().fit(seen([0.5, 30.0], size=3.0))
    assert step.way_ == "first view" or step.weights_[0] > 0.9
    alone = ViewWeights(ways=("first view",)).fit(seen([0.5, 30.0], size=3.0))
    assert alone.described == "first view alone"
    other = seen([0.5, 30.0], seed=1, size=3.0)
    expected = Predictions(other.ids, other.classes, other.logits[:1])
    np.testing.assert_allclose(alone.transform(other).probabilities(), expected.probabilities(), atol=1e-6)


def test_the_mean_of_logits_is_the_geometric_mean():
    one = seen([2.0, 2.0, 2.0], size=1.0)
    step = ViewWeights(ways=("mean of logits",), level=None).fit(one)
    assert step.way_ == "mean of logits"
    mean = np.exp(one.logits.astype(float).mean(0))
    np.testing.assert_allclose(step.transform(one).probabilities(), mean / mean.sum(1, keepdims=True), atol=1e-5)


def test_other_views_than_those_fitted_are_refused():
    step = ViewWeights().fit(seen([1.0, 6.0, 1.0]))
    with pytest.raises(EtudeError, match="fitted for 3 views, and these predictions have 2"):
        step.transform(seen([1.0, 1.0]))


def test_an_unknown_way_is_told_the_nearest():
    with pytest.raises(EtudeError, match="Did you mean 'mean of logits'"):
        ViewWeights(ways=("mean logits",)).fit(seen([1.0]))


def test_scores_of_each_count_are_those_of_the_first_views():
    one = seen([2.0, 2.0, 2.0], count=200)
    found = gain_by_views(one)
    for count, (right, loss) in enumerate(zip(found.accuracy, found.log_loss, strict=True), start=1):
        first = Predictions(one.ids, one.classes, one.logits[:count], labels=one.labels)
        assert right == pytest.approx((first.predicted() == one.labels).mean())
        given = first.log_probabilities()[np.arange(200), one.labels]
        assert loss == pytest.approx(-given.mean())


def test_the_gain_ends_where_views_stop_to_bring_any():
    rng = np.random.default_rng(0)
    useful = seen([3.0] * 4, count=2000)
    again = np.concatenate([useful.logits] * 3)
    found = gain_by_views(Predictions(useful.ids, useful.classes, again, labels=useful.labels))
    assert 3 <= found.enough["accuracy"] <= 4
    assert found.enough["log_loss"] == 4
    noise = Predictions(useful.ids, useful.classes, rng.normal(size=(5, 2000, 3)), labels=useful.labels)
    assert gain_by_views(noise).enough["accuracy"] <= 2


def test_views_do_harm_where_they_cost_more_than_chance():
    one = seen([0.5], count=400)

    def harm(*others: np.ndarray) -> tuple[str, ...]:
        return gain_by_views(Predictions(one.ids, one.classes, [*one.logits, *others], labels=one.labels)).harm

    says_nothing, wrong = np.zeros_like(one.logits[0]), -one.logits[0]
    assert harm(wrong)
    assert harm(says_nothing)
    assert not harm()
    assert not harm(one.logits[0])  # the same again is neither better nor worse
    assert not gain_by_views(seen([3.0, 3.0], count=400)).harm


@pytest.mark.parametrize(("spoilt", "harm"), [(20, ("accuracy",)), (6, ("accuracy",)), (4, ()), (0, ())])
def test_views_that_lower_accuracy_do_harm_though_log_loss_falls(spoilt: int, harm: tuple[str, ...]):
    """Beyond noise: 4 images lost and none won come by chance in 6% of cases, 6 in 2%."""
    right = np.array([[0.51] * spoilt + [0.6] * (100 - spoilt), [0.40] * spoilt + [0.99] * (100 - spoilt)])
    views = np.log(np.stack([right, 1 - right], axis=2))
    one = Predictions([str(row) for row in range(100)], ["x", "y"], views, labels=np.zeros(100, np.int64))
    found = gain_by_views(one)
    assert found.log_loss[1] < found.log_loss[0]
    assert found.accuracy[1] == pytest.approx(1 - spoilt / 100)
    assert found.harm == harm


def test_what_views_gain_is_described():
    views = np.log([[[0.4, 0.6]], [[0.9, 0.1]], [[0.9, 0.1]]])
    found = gain_by_views(Predictions(["a"], ["x", "y"], views, labels=np.array([0])))
    expected = "accuracy 0.00% with the first alone, 100.00% with all 3; 2 are enough (100.00%), for log loss 3"
    assert found.described == expected
    alone = gain_by_views(Predictions(["a"], ["x", "y"], views[:1], labels=np.array([0])))
    assert "1 is enough" in alone.described


def test_only_labelled_images_count():
    one = seen([1.0, 1.0], count=50)
    labels = np.where(np.arange(50) < 25, one.labels, -1)
    half = Predictions(one.ids, one.classes, one.logits, labels=labels)
    found, expected = gain_by_views(half), gain_by_views(one.take(np.arange(25)))
    assert found.accuracy.tolist() == expected.accuracy.tolist()
    assert found.log_loss.tolist() == expected.log_loss.tolist()


def noisy_views(count: int, scale: float = 1.0, images: int = 600) -> Predictions:
    labels, rng = np.arange(images) % 3, np.random.default_rng(0)
    logits = scale * (2.0 * np.eye(3)[labels] + 2.0 * rng.normal(size=(count, images, 3)))
    return Predictions([str(row) for row in range(images)], ["x", "y", "z"], logits, labels=labels)


@pytest.mark.parametrize(("count", "scale"), [(1, 1.0), (4, 1.0), (8, 0.5), (8, 2.0)])
def test_the_sharpness_of_views_has_the_least_log_loss(count: int, scale: float):
    views = noisy_views(count, scale)

    def loss(factor: float) -> float:
        probabilities = softmax(views.logits * factor, axis=2).mean(axis=0)
        return -np.log(probabilities[np.arange(600), views.labels]).sum() + 4.0 * np.log(factor) ** 2

    found = sharpness_of_views(views)
    grid = np.exp(np.linspace(-np.log(4), np.log(4), 801))
    assert loss(found) <= min(map(loss, grid)) + 0.01
    assert 0.25 <= found <= 4.0


def test_few_images_leave_views_as_sharp_as_they_were():
    assert abs(np.log(sharpness_of_views(noisy_views(8, images=2)))) < abs(np.log(sharpness_of_views(noisy_views(8))))


def test_harm_is_against_the_first_view_as_it_is_calibrated():
    views = noisy_views(1, 0.5)
    blunt = replace(views, logits=np.concatenate([views.logits] * 2) * 0.1)
    assert gain_by_views(blunt).harm == ()  # both views are as blunt
    assert gain_by_views(blunt, alone=views).harm == ("log_loss",)
