from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from etude.core.errors import EtudeError
from etude.core.metrics import accuracy, log_loss
from etude.core.predictions import Predictions
from etude.refine.neighbours.index import Neighbours
from etude.refine.neighbours.knn import KNN, mixed, row_gains, votes

CLASSES = ("x", "y", "z")


def world(n: int, seed: int, noise: float = 0.7, sure: float = 1.0) -> Predictions:
    """Images whose features tell their class up to noise, and a network that is right a little more often than not."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(3, size=n)
    features = np.eye(3)[labels] + rng.normal(scale=noise, size=(n, 3))
    logits = sure * np.eye(3)[labels] + rng.normal(size=(n, 3))
    ids = tuple(f"{seed}-{number}" for number in range(n))
    return Predictions(ids, CLASSES, logits[None], features.astype(np.float32), labels)


def knn_on(train: Predictions, **options: Any) -> KNN:
    assert train.features is not None
    assert train.labels is not None
    return KNN(train.features, train.labels, train.ids, train.classes, **options)


TRAIN, LABELLED, TARGET = world(300, 1), world(150, 2), world(400, 3)


# --- the arithmetic ---


def test_votes_by_hand():
    found = Neighbours(
        np.array([[2, 0, 1], [1, -1, -1], [-1, -1, -1]]),
        np.array([[0.1, 0.2, 0.4], [0.3, np.inf, np.inf], [np.inf] * 3]),
    )
    first, second = votes(found, np.array([0, 0, 1]), 2, 0.1, [1, 3])
    np.testing.assert_allclose(first, [[0, 1], [1, 0], [0, 0]])
    e = np.exp([0.0, -1.0, -3.0])
    np.testing.assert_allclose(second, [[(e[1] + e[2]) / e.sum(), e[0] / e.sum()], [1, 0], [0, 0]])


def test_the_nearest_keeps_its_vote_at_the_smallest_temperature():
    found = Neighbours(np.array([[0, 1]]), np.array([[1.5, 1.9]]))
    np.testing.assert_allclose(next(votes(found, np.array([1, 0]), 2, 1e-4, [2])), [[0, 1]])


@pytest.mark.parametrize("metric", ["log_loss", "accuracy"])
def test_gains_are_those_of_the_blend(metric: Any):
    rng = np.random.default_rng(0)
    vote, network, labels = rng.dirichlet(np.ones(3), 20), rng.dirichlet(np.ones(3), 20), rng.integers(3, size=20)
    vote[4] = 0
    weights = (0.0, 0.3, 1.0)
    gains = row_gains(vote, network, labels, weights, metric).mean(axis=1)
    assert gains[0] == 0
    for weight, gain in zip(weights[1:], gains[1:], strict=True):
        with np.errstate(divide="ignore"):
            blend = np.exp(mixed(vote, np.log(network), weight))
        np.testing.assert_allclose(blend[4], network[4])
        if metric == "log_loss":
            assert gain == pytest.approx(log_loss(network, labels) - log_loss(blend, labels))
        else:
            better = accuracy(blend.argmax(axis=1), labels) - accuracy(network.argmax(axis=1), labels)
            assert gain == pytest.approx(better, abs=1e-7)


@pytest.mark.parametrize("options", [{}, {"metric": "accuracy"}])
def test_neighbours_help_where_they_know_more(options: dict[str, Any]):
    knn = knn_on(TRAIN, **options).fit(LABELLED)
    after = knn.transform(TARGET)
    assert TARGET.labels is not None
    assert knn.weight_ > 0.3
    assert knn.gain_ > 2 * knn.error_ > 0
    assert knn.described == f"k = {knn.k_}, T = {knn.temperature_:g}, λ = {knn.weight_:.2f}"
    assert log_loss(after.probabilities(), TARGET.labels) < log_loss(TARGET.probabilities(), TARGET.labels) - 0.1
    assert accuracy(after.predicted(), TARGET.labels) > accuracy(TARGET.predicted(), TARGET.labels) + 0.05
    expected = knn.weight_ * knn.vote(TARGET) + (1 - knn.weight_) * TARGET.probabilities()
    np.testing.assert_allclose(after.probabilities(), expected, atol=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_the_network_is_left_alone_where_features_tell_nothing(seed: int):
    rng = np.random.default_rng(seed)
    labelled = world(120, 4 + seed, sure=4)
    knn = KNN(rng.normal(size=(200, 3)), rng.integers(3, size=200)).fit(labelled)
    assert knn.weight_ == 0
    assert "λ = 0" in knn.described
    np.testing.assert_allclose(knn.transform(TARGET).probabilities(), TARGET.probabilities(), atol=1e-6)


def test_labelled_images_in_the_index_do_not_vote_for_themselves():
    noise = world(120, 9, noise=100.0, sure=2)  # the features tell nothing but who it is
    cheated = KNN(noise.features, noise.labels).fit(noise)
    assert cheated.weight_ > 0.5
    honest = knn_on(noise).fit(noise)
    assert honest.weight_ == 0
    assert all(
        name != own for own, row in zip(noise.ids, honest.neighbours_of(noise, 3), strict=True) for name, _ in row
    )


def test_classes_are_matched_by_name_and_unlabelled_training_rows_left_out():
    assert TRAIN.labels is not None
    order = ("z", "x", "y")
    labels = np.array([order.index(CLASSES[label]) for label in TRAIN.labels])
    labels[:100] = -1
    assert TRAIN.features is not None
    renamed = KNN(TRAIN.features, labels, TRAIN.ids, order).fit(LABELLED)
    plain = knn_on(TRAIN.take(np.arange(100, 300))).fit(LABELLED)
    np.testing.assert_allclose(renamed.transform(TARGET).logits, plain.transform(TARGET).logits)
    assert len(renamed.index_) == 200


def test_few_training_images_limit_k():
    knn = knn_on(TRAIN.take(range(3)), weights=(1.0,)).fit(LABELLED)
    assert knn.k_ <= 3


def test_few_labelled_images_say_nothing():
    assert knn_on(TRAIN).fit(LABELLED.take(range(9))).weight_ == 0


@pytest.mark.each(
    ("options", "sentence"),
    [
        ({"ks": (0,)}, "k of at least 1"),
        ({"temperatures": (0.0,)}, "T above 0"),
        ({"weights": (1.5,)}, "λ from 0 to 1"),
        ({"weights": ()}, "at least one value"),
        ({"metric": "acuracy"}, "Did you mean 'accuracy'"),
        ({"folds": 1}, "2 folds"),
        ({"train_labels": np.zeros(3, int)}, "300 training labels"),
        ({"train_labels": np.full(300, 3)}, "from 0 to 2"),
        ({"train_labels": np.full(300, -1)}, "at least one must be known"),
        ({"train_ids": ("a",)}, "1 training ids"),
        ({"train_classes": ("x", "y", "w")}, "hold 'w'"),
        ({"train_features": np.zeros((300, 4), np.float32)}, "3 columns and those of the index 4"),
    ],
)
def test_what_cannot_be_used_is_told_in_one_sentence(options: dict[str, Any], sentence: str):
    with pytest.raises(EtudeError, match=sentence):
        KNN(**knn_on(TRAIN).params() | options).fit(LABELLED)


def test_the_repr_is_short():
    assert repr(knn_on(TRAIN, ks=(1, 2))).startswith("KNN((300, 3) training features, ks=(1, 2), ")
