from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from etude.core.errors import EtudeError
from etude.core.metrics import accuracy, log_loss
from etude.core.predictions import Predictions
from etude.refine.last_layer import LastLayer, Standardised, fit_head, shift_weights

CLASSES = ("x", "y", "z")
MEANS = np.random.default_rng(42).normal(size=(3, 6))


def world(
    n: int, seed: int, shares: tuple[float, ...] = (1, 1, 1), sure: float = 1.0, noise: float = 1.0
) -> Predictions:
    """Images whose features tell the class, up to ``noise``; logits of a network that knows it less well."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(3, size=n, p=np.array(shares) / sum(shares))
    features = 5 + MEANS[labels] + rng.normal(scale=noise, size=(n, 6))
    logits = sure * np.eye(3)[labels] + rng.normal(size=(n, 3))
    ids = tuple(f"{seed}-{row}" for row in range(n))
    return Predictions(ids, CLASSES, logits[None], features.astype(np.float32), labels)


def last_layer_on(train: Predictions, **options: Any) -> LastLayer:
    assert train.features is not None
    assert train.labels is not None
    return LastLayer(train.features, train.labels, train.ids, train.classes, **options)


TRAIN, LABELLED, TARGET = world(400, 1), world(200, 2), world(300, 3)


def test_a_head_that_knows_more_helps():
    last = last_layer_on(TRAIN).fit(LABELLED, TARGET)
    assert last.weight_ > 0
    assert last.gain_ > 2 * last.error_ > 0
    assert not last.corrects_
    assert f"λ = {last.weight_:.2f}" in last.described
    fresh = world(1000, 4)
    assert fresh.labels is not None
    after = last.transform(fresh)
    assert log_loss(after.probabilities(), fresh.labels) < log_loss(fresh.probabilities(), fresh.labels) - 0.1
    assert accuracy(after.predicted(), fresh.labels) > accuracy(fresh.predicted(), fresh.labels) + 0.05


@pytest.mark.parametrize("seed", range(4))
def test_the_network_is_left_alone_where_features_tell_nothing(seed: int):
    train = world(200, 10 + seed, noise=100.0)
    labelled, target = world(150, 20 + seed, sure=4, noise=100.0), world(150, 30 + seed, sure=4, noise=100.0)
    last = last_layer_on(train).fit(labelled, target)
    assert last.weight_ == 0
    assert "λ = 0" in last.described
    np.testing.assert_allclose(last.transform(target).probabilities(), target.probabilities(), atol=1e-6)


def test_alone_it_is_the_regression_on_standardised_features():
    last = last_layer_on(TRAIN, prior=None, pseudo_share=0, strengths=(0.1,), weights=(1.0,)).fit(LABELLED, TARGET)
    assert TRAIN.features is not None
    assert TARGET.features is not None
    scaling = Standardised.of(TRAIN.features)
    head = fit_head(scaling.apply(TRAIN.features), np.asarray(TRAIN.labels), 3, 0.1)
    expected = np.exp(head.log_probabilities(scaling.apply(TARGET.features)))
    np.testing.assert_allclose(last.transform(TARGET).probabilities(), expected, atol=1e-4)
    assert last.described == "C = 0.1, λ = 1.00, 0 pseudo-labels"


def test_weights_bring_the_shares_of_the_target():
    labels = np.array([0, 0, 0, 1, 1, 2])
    weights = shift_weights(labels, np.array([0.2, 0.2, 0.6]))
    assert weights.mean() == pytest.approx(1)
    np.testing.assert_allclose(np.bincount(labels, weights) / 6, [0.2, 0.2, 0.6])
    assert shift_weights(labels[:3], np.array([0, 0.5, 0.5])).tolist() == [1, 1, 1]


@pytest.mark.parametrize("prior", ["estimate", {"x": 8, "y": 1, "z": 1}])
def test_a_shifted_target_is_fitted_to(prior: Any):
    target = world(600, 5, shares=(8, 1, 1), sure=1.5)
    labelled = world(600, 6, sure=1.5)
    assert target.labels is not None
    options: dict[str, Any] = {"weights": (1.0,), "noise": None, "pseudo_share": 0, "strengths": (1.0,)}
    fitted = last_layer_on(TRAIN, prior=prior, **options).fit(labelled, target)
    plain = last_layer_on(TRAIN, prior=None, **options).fit(labelled, target)
    assert fitted.corrects_
    np.testing.assert_allclose(fitted.prior_, [0.8, 0.1, 0.1], atol=0.05)
    assert fitted.described.endswith("weighted to the target's prior")
    losses = [log_loss(one.transform(target).probabilities(), target.labels) for one in (fitted, plain)]
    assert losses[0] < losses[1] - 0.03


def test_confident_target_images_join_at_the_fixed_share():
    last = last_layer_on(TRAIN, pseudo_share=0.25, confidence=0.8, prior=None).fit(LABELLED, TARGET)
    rows = last._rows(LABELLED, TARGET)
    confident = TARGET.probabilities().max(axis=1) >= 0.8
    assert rows.pseudo == confident.sum() > 10
    assert rows.importance[-rows.pseudo :].sum() == pytest.approx(0.25 * rows.importance.sum())
    np.testing.assert_array_equal(rows.columns[-rows.pseudo :], TARGET.predicted()[confident])
    assert last.pseudo_labels_ == rows.pseudo
    assert last_layer_on(TRAIN, confidence=1.0, prior=None).fit(LABELLED, TARGET).pseudo_labels_ == 0


def test_training_images_that_are_labelled_ones_are_left_out():
    both = Predictions(
        (*TRAIN.ids, *LABELLED.ids), CLASSES, np.concatenate([TRAIN.logits, LABELLED.logits], axis=1),
        np.concatenate([TRAIN.features, LABELLED.features]), np.concatenate([TRAIN.labels, LABELLED.labels]),  # type: ignore[arg-type]
    )  # fmt: skip
    np.testing.assert_array_equal(
        last_layer_on(both).fit(LABELLED, TARGET).transform(TARGET).logits,
        last_layer_on(TRAIN).fit(LABELLED, TARGET).transform(TARGET).logits,
    )
    with pytest.raises(EtudeError, match="every training image of LastLayer is a labelled one"):
        last_layer_on(LABELLED).fit(LABELLED, TARGET)


def test_classes_are_matched_by_name():
    order = ("z", "x", "y")
    labels = np.array([order.index(CLASSES[label]) for label in np.asarray(TRAIN.labels)])
    turned = LastLayer(TRAIN.features, labels, TRAIN.ids, order).fit(LABELLED, TARGET)  # type: ignore[arg-type]
    plain = last_layer_on(TRAIN).fit(LABELLED, TARGET)
    np.testing.assert_allclose(turned.transform(TARGET).logits, plain.transform(TARGET).logits, atol=1e-5)


def test_a_class_without_training_images_keeps_the_networks_share():
    two = TRAIN.take(np.asarray(TRAIN.labels) < 2)
    last = last_layer_on(two, prior=None, pseudo_share=0, weights=(0.5,), noise=None).fit(LABELLED, TARGET)
    np.testing.assert_allclose(last.transform(TARGET).probabilities()[:, 2], TARGET.probabilities()[:, 2], atol=1e-6)


@pytest.mark.each(
    ("options", "sentence"),
    [
        ({"pseudo_share": 1.0}, "pseudo_share from 0 to below 1"),
        ({"confidence": 0.0}, "confidence"),
        ({"strengths": (0.0,)}, "strengths above 0"),
        ({"weights": (2.0,)}, "λ from 0 to 1"),
        ({"folds": 1}, "2 folds"),
        ({"train_features": np.zeros((400, 4), np.float32)}, "have 6 columns and those of the training images 4"),
        ({"train_classes": ("x", "y", "w")}, "hold 'w'"),
        ({"prior": {"x": 1}}, "lacks 'y', 'z'"),
    ],
)
def test_what_cannot_be_used_is_told_in_one_sentence(options: dict[str, Any], sentence: str):
    with pytest.raises(EtudeError, match=sentence):
        LastLayer(**last_layer_on(TRAIN).params() | options).fit(LABELLED, TARGET)


def test_other_features_are_refused():
    last = last_layer_on(TRAIN).fit(LABELLED, TARGET)
    other = Predictions(("a",), CLASSES, np.zeros((1, 1, 3)), np.zeros((1, 2), np.float32))
    with pytest.raises(EtudeError, match="2 columns and those of the training images 6"):
        last.transform(other)
