"""Labels propagated through features: the graph, the iteration, and how strength is chosen."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax, xlogy
from sklearn.datasets import load_digits, make_blobs
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import kneighbors_graph
from sklearn.preprocessing import StandardScaler, normalize
from sklearn.semi_supervised import LabelSpreading

from etude.core.errors import EtudeError
from etude.refine.propagation import Propagation, neighbour_graph, propagate


def blobs(count: int = 120, classes: int = 3, spread: float = 1.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    features, truth = make_blobs(count, 6, centers=classes, cluster_std=spread, random_state=seed)
    return features.astype(np.float32), truth


def partly(truth: np.ndarray, each: int) -> np.ndarray:
    labels = np.full(len(truth), -1)
    for number in np.unique(truth):
        rows = np.flatnonzero(truth == number)[:each]
        labels[rows] = number
    return labels


def linear(features: np.ndarray, truth: np.ndarray):
    """A classifier as ``fit`` takes it: scikit-learn's, its classes all of the truth's."""

    def fitted(rows: np.ndarray) -> np.ndarray:
        model = LogisticRegression(max_iter=500).fit(features[rows], truth[rows])
        logits = np.full((len(features), truth.max() + 1), -30.0)
        logits[:, model.classes_] = model.predict_log_proba(features)
        return logits

    return fitted


# --- the graph ---


def test_the_graph_is_that_of_scikit_learn():
    features, _ = blobs(60)
    features /= features.std(axis=0)  # so that no deviation is below the median, where both standardise alike
    rows = normalize(PCA(4, whiten=True).fit_transform(StandardScaler().fit_transform(features)))
    joined = kneighbors_graph(rows, 5)
    joined = joined.maximum(joined.T).toarray() > 0
    weights = np.where(joined, np.maximum(rows @ rows.T, 1e-3) ** 3, 0.0)
    expected = weights / weights.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(neighbour_graph(features, 5, 4).toarray(), expected, atol=1e-4)


def test_more_neighbours_and_components_than_there_are_images():
    graph = neighbour_graph(np.eye(4, dtype=np.float32), neighbours=50, components=50).toarray()
    assert (np.diag(graph) == 0).all()
    np.testing.assert_allclose(graph.sum(axis=1), 1.0)


def test_constant_features_make_a_graph():
    graph = neighbour_graph(np.ones((6, 3), np.float16), neighbours=2).toarray()
    np.testing.assert_allclose(graph.sum(axis=1), 1.0)


# --- the iteration ---


def test_propagation_minimises_what_laplacian_shot_does():
    """Σ q (log q - log p) - λ/2 Σ q_i W q_j, found by another optimiser over all unlabelled images together."""
    features, truth = blobs(14, 2, spread=3.0)
    graph = neighbour_graph(features, 4, 3).toarray()
    graph = (graph + graph.T) / 2  # the objective's gradient is the iteration's only for a symmetric matrix
    labels, strength = partly(truth, 2), 0.8
    log_p = log_softmax(np.random.default_rng(0).normal(size=(14, 2)), axis=1)
    free = labels < 0

    def whole(flat: np.ndarray) -> np.ndarray:
        q = np.eye(2)[np.maximum(labels, 0)]
        q[free] = softmax(flat.reshape(-1, 2), axis=1)
        return q

    def objective(flat: np.ndarray) -> float:
        q = whole(flat)
        return float((xlogy(q, q) - q * log_p)[free].sum() - strength / 2 * (q * (graph @ q)).sum())

    best = minimize(objective, log_p[free].ravel(), tol=1e-12)
    np.testing.assert_allclose(propagate(graph, log_p, labels, strength), whole(best.x), atol=5e-3)


def test_without_strength_the_classifier_is_left_alone():
    graph, logits = neighbour_graph(blobs(20)[0], 3), np.random.default_rng(1).normal(size=(20, 4))
    labels = np.full(20, -1)
    labels[3] = 2
    found = propagate(graph, logits, labels, 0.0)
    expected = softmax(logits, axis=1)
    expected[3] = np.eye(4)[2]
    np.testing.assert_allclose(found, expected)


@pytest.mark.parametrize("strength", [0.5, 4.0, 32.0])
def test_probabilities_sum_to_one_and_labels_stay(strength: float):
    features, truth = blobs(spread=6.0)
    labels = partly(truth, 3)
    found = propagate(neighbour_graph(features), np.zeros((120, 3)), labels, strength)
    np.testing.assert_allclose(found.sum(axis=1), 1.0)
    assert (found[labels >= 0].argmax(axis=1) == labels[labels >= 0]).all()
    assert (found[labels >= 0].max(axis=1) == 1.0).all()


def test_the_order_of_images_and_classes_does_not_matter():
    features, truth = blobs(60, spread=4.0)
    labels, logits = partly(truth, 3), np.random.default_rng(0).normal(size=(60, 3))
    graph, order = neighbour_graph(features, 5), np.random.default_rng(2).permutation(60)
    found = propagate(graph, logits, labels, 4.0)
    np.testing.assert_allclose(propagate(graph[order][:, order], logits[order], labels[order], 4.0), found[order])
    swapped = np.array([2, 0, 1])
    other = propagate(graph, logits[:, swapped], np.where(labels < 0, -1, np.argsort(swapped)[labels]), 4.0)
    np.testing.assert_allclose(other, found[:, swapped])


# --- the choice of the strength ---


def digits() -> tuple[np.ndarray, np.ndarray]:
    held = load_digits()
    return held.data.astype(np.float32), held.target


def test_ten_labels_a_class_of_digits_gain_more_than_by_label_spreading():
    features, truth = digits()
    labels = partly(truth, 10)
    known, rest = np.flatnonzero(labels >= 0), labels < 0
    head = linear(features, truth)
    propagation = Propagation().fit(features, labels, head)
    errors = {
        "head": (head(known).argmax(axis=1) != truth)[rest].mean(),
        "both": (propagation.probabilities(head(known)).argmax(axis=1) != truth)[rest].mean(),
        "spreading": (LabelSpreading("knn", n_neighbors=10).fit(features, labels).transduction_ != truth)[rest].mean(),
    }
    assert propagation.strength_ > 0
    assert propagation.gain_ > 0
    assert errors["both"] < 0.75 * errors["head"]
    assert errors["both"] < errors["spreading"]


def test_neighbours_that_say_nothing_are_left_out():
    rng = np.random.default_rng(0)
    truth = np.arange(400) % 2
    known = np.stack([3 * truth - 1.5, np.zeros(400)], axis=1) + rng.normal(size=(400, 2))
    noise = rng.normal(size=(400, 30)).astype(np.float32)
    propagation = Propagation().fit(noise, partly(truth, 60), linear(known, truth))
    assert (propagation.strength_, propagation.gain_) == (0.0, 0.0)
    assert "λ = 0" in propagation.described


def test_held_out_labels_are_not_seen():
    """Every label of a wrong class: a choice that looked at them would find the graph useful."""
    features, _ = blobs(200, 2)
    wrong = np.random.default_rng(0).integers(2, size=200)
    labels = np.where(np.arange(200) < 100, wrong, -1)
    asked: list[np.ndarray] = []

    def classifier(rows: np.ndarray) -> np.ndarray:
        asked.append(rows)
        return np.zeros((200, 2))

    propagation = Propagation().fit(features, labels, classifier)
    assert propagation.gain_ < 0.02
    assert len(asked) == 5
    counts = np.bincount(np.concatenate(asked), minlength=200)
    assert counts.tolist() == [4] * 100 + [0] * 100


def test_one_image_of_a_class_can_be_propagated():
    features, truth = blobs(30, 3)
    labels = partly(truth, 1)
    propagation = Propagation().fit(features, labels, lambda rows: np.zeros((30, 3)))
    assert propagation.probabilities(np.zeros((30, 3))).shape == (30, 3)


@pytest.mark.parametrize("wrong", [{"neighbours": 0}, {"components": 0}, {"folds": 1}, {"strengths": (0.0, 1.0)}])
def test_a_number_out_of_range_is_refused(wrong: dict[str, object]):
    with pytest.raises(EtudeError, match="Propagation"):
        Propagation(**wrong).fit(np.eye(4), np.array([0, 1, -1, -1]), lambda rows: np.zeros((4, 2)))


@pytest.mark.parametrize("labels", [[-1, -1, -1, -1], [0, 1], [0.0, 1.0, 1.0, 0.0]])
def test_labels_that_cannot_be_are_refused(labels: list[float]):
    with pytest.raises(EtudeError, match="labels"):
        Propagation().fit(np.eye(4), np.array(labels), lambda rows: np.zeros((4, 2)))
