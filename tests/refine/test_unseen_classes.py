"""Steps fitted on labels of which none is of class c: what they may not learn is never to predict it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from etude.core.metrics import metric_named
from etude.core.predictions import Predictions
from etude.refine.base import Refiner
from etude.refine.calibration import VectorScaling
from etude.refine.chain import Chain
from etude.refine.chain_steps import standard_steps
from etude.refine.ensemble import average, geometric_mean
from etude.refine.last_layer import LastLayer
from etude.refine.neighbours.knn import KNN
from etude.refine.stacking import Stacking
from etude.refine.thresholds import Thresholds

CLASSES = ("a", "b", "c")


def drawn(seed: int, count: int, kinds: int) -> Predictions:
    """A model of three classes on images of the first ``kinds`` of them; it favours b somewhat."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, kinds, count)
    logits = rng.normal(size=(count, 3)) + 2.0 * np.eye(3)[labels] + [0.0, 0.8, 0.0]
    features = (np.eye(3)[labels] + rng.normal(scale=0.4, size=(count, 3))).astype(np.float32)
    return Predictions([f"{seed}-{row}" for row in range(count)], CLASSES, logits[None], features, labels)


VALID, TARGET, TRAIN = drawn(0, 300, 2), drawn(1, 600, 3), drawn(2, 200, 2)

STEPS: dict[str, Callable[[], Refiner]] = {
    "vector scaling": VectorScaling,
    "thresholds": lambda: Thresholds("macro_f1", level=None),
    "balanced thresholds": lambda: Thresholds("balanced_accuracy", level=None),
    "knn": lambda: KNN(TRAIN.features, TRAIN.labels, noise=None),
    "last layer": lambda: LastLayer(TRAIN.features, TRAIN.labels, prior=None, pseudo_share=0, noise=None),
}


def recall(predictions: Predictions, c: int = 2) -> float:
    assert TARGET.labels is not None
    return float((predictions.predicted() == c)[TARGET.labels == c].mean())


@pytest.mark.parametrize("name", STEPS)
def test_a_class_that_no_label_is_of_is_predicted_as_before(name: str):
    step = STEPS[name]().fit(VALID, TARGET)
    after = step.transform(TARGET)
    assert recall(after) >= recall(TARGET)
    assert TARGET.labels is not None
    kept = (after.predicted() == TARGET.labels).mean(), (TARGET.predicted() == TARGET.labels).mean()
    assert kept[0] > kept[1] - 0.01
    if name != "vector scaling":  # its temperature moves all probabilities
        np.testing.assert_allclose(after.probabilities()[:, 2], TARGET.probabilities()[:, 2], atol=1e-5)
        assert np.abs(after.probabilities() - TARGET.probabilities()).max() > 0.05  # the others do move


def test_stacking_leaves_the_class_to_the_models():
    def models(one: Predictions) -> list[Predictions]:
        turned = Predictions(one.ids, CLASSES, one.logits[:, :, [1, 0, 2]], labels=one.labels)
        return [one, turned, turned]  # the mean takes a for b

    stack, mean = Stacking().fit(models(VALID)), average(models(TARGET))
    assert stack.stacked_
    after = stack.transform(models(TARGET))
    assert recall(after, 0) > recall(mean, 0) + 0.2
    assert recall(after) >= recall(geometric_mean(models(TARGET)))


def test_scaling_of_the_other_classes_is_that_without_the_class():
    scaled = VectorScaling().fit(VALID)
    two = Predictions(VALID.ids, CLASSES[:2], VALID.logits[:, :, :2], labels=VALID.labels)
    alone = VectorScaling().fit(two)
    assert scaled.temperature_ == pytest.approx(alone.temperature_, rel=1e-4)
    np.testing.assert_allclose(scaled.bias_, [*alone.bias_, 0.0], atol=1e-4)
    assert "'c'" in scaled.described
    assert "'c'" not in VectorScaling().fit(TARGET).described
    tempered = TARGET.log_probabilities() / scaled.temperature_
    share = np.exp(tempered) / np.exp(tempered).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(scaled.transform(TARGET).probabilities()[:, 2], share[:, 2], atol=1e-6)


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1", "log_loss"])
def test_a_chain_keeps_the_class_and_promises_no_gain_from_dropping_it(metric: str):
    labelled = Predictions(VALID.ids, CLASSES, VALID.logits, labels=VALID.labels)
    target = Predictions(TARGET.ids, CLASSES, TARGET.logits)
    chain = Chain(standard_steps(labelled, metric=metric), metric).fit(labelled, target)
    assert recall(chain.transform(target)) >= recall(TARGET)


def test_macro_f1_gains_nothing_from_a_class_that_has_no_labels():
    labels = np.array([0, 0, 1, 1])
    before = np.log([[0.8, 0.1, 0.1], [0.2, 0.1, 0.7], [0.1, 0.8, 0.1], [0.1, 0.8, 0.1]])
    f1 = metric_named("macro_f1")
    assert f1.value(before, labels) == pytest.approx((2 / 3 + 1) / 2)  # a: 1 of 2 found, none wrongly; b: all
    after = before[:, [0, 1, 1]] - [0, 0, 50]  # the second image goes to a, as it should
    assert f1.value(after, labels) == pytest.approx(1.0)
