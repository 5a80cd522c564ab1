from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from etude.core.context import Context
from etude.models.head import LinearHead, fit_head


def blobs(count: int, classes: int, distance: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Gaussian features of very different scales and offsets, (N, 6), and labels."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    features = rng.normal(size=(count, 6)) + distance * np.eye(classes, 6)[labels]
    return features * np.array([1, 10, 0.1, 1, 5, 1]) + np.array([0, 100, 0, -3, 0, 7]), labels


def probabilities(head: LinearHead, features: np.ndarray) -> np.ndarray:
    logits = head.logits(features).astype(np.float64)
    raised = np.exp(logits - logits.max(1, keepdims=True))
    return raised / raised.sum(1, keepdims=True)


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_separable_data_are_separated(classes: int):
    features, labels = blobs(200, classes, 8.0)
    fresh, fresh_labels = blobs(200, classes, 8.0, seed=1)
    head = fit_head(features, labels, classes, candidates=(0.01, 0.1, 1.0))
    assert (head.logits(features).argmax(1) == labels).all()
    assert (head.logits(fresh).argmax(1) == fresh_labels).mean() > 0.98
    assert (head.weight.shape, head.bias.shape) == ((classes, 6), (classes,))
    assert head.weight.dtype == head.bias.dtype == np.float32
    assert head.inverse_regularization in (0.01, 0.1, 1.0)
    assert 0 < head.cross_entropy < 0.1


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("c", [0.003, 1.0])
def test_standardisation_is_folded_in_as_in_scikit_learn(classes: int, c: float):
    features, labels = blobs(150, classes, 1.5)
    weights = np.random.default_rng(2).uniform(0.2, 2.0, 150)
    head = fit_head(features, labels, classes, candidates=(c,), weights=weights, floor=0.0)
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(C=c, tol=1e-8, max_iter=5000))
    pipeline.fit(features, labels, logisticregression__sample_weight=weights)
    np.testing.assert_allclose(probabilities(head, features), pipeline.predict_proba(features), atol=5e-3)


def test_a_feature_that_hardly_varies_in_training_decides_nothing_elsewhere():
    rng = np.random.default_rng(0)
    features, labels = blobs(144, 3, 3.0)
    fresh, truth = blobs(300, 3, 3.0, seed=1)
    features, fresh = features / features.std(axis=0), fresh / features.std(axis=0)
    still = np.full((144, 1), 0.25) + rng.normal(scale=1e-4, size=(144, 1)) + 1e-4 * (labels == 2)[:, None]
    there = np.full((300, 1), 0.25)
    there[::50] += 1.0  # in 6 of 300 images something is there that no training image has
    wide, other = (np.concatenate(pair, axis=1).astype(np.float16) for pair in ((features, still), (fresh, there)))
    losses = []
    for floor in ({"floor": 0.0}, {}):
        head = fit_head(wide, labels, 3, candidates=(0.03,), **floor)
        losses.append(-np.log(probabilities(head, other)[np.arange(300), truth].clip(1e-300)))
    assert losses[0].max() > 10
    assert losses[1].max() < 5
    assert losses[1].mean() < losses[0].mean()


def test_a_constant_feature_does_no_harm():
    features, labels = blobs(90, 3, 3.0)
    with_constant = np.concatenate([features, np.full((90, 1), 5.0)], axis=1)
    plain, wider = (fit_head(x, labels, 3, candidates=(0.1,)) for x in (features, with_constant))
    np.testing.assert_allclose(probabilities(wider, with_constant), probabilities(plain, features), atol=1e-3)
    assert np.isfinite(wider.weight).all()


def test_a_row_of_double_weight_counts_as_two_rows():
    features, labels = blobs(120, 3, 1.0)
    double = np.random.default_rng(3).random(120) < 0.4
    weighted = fit_head(features, labels, 3, candidates=(0.1,), weights=1.0 + double)
    rows = np.concatenate([np.arange(120), np.flatnonzero(double)])
    duplicated = fit_head(features[rows], labels[rows], 3, candidates=(0.1,))
    # Moments are taken over rows, so duplicates move the standardisation a little.
    np.testing.assert_allclose(probabilities(weighted, features), probabilities(duplicated, features), atol=0.02)
    plain = fit_head(features, labels, 3, candidates=(0.1,))
    assert np.abs(probabilities(plain, features) - probabilities(weighted, features)).max() > 0.02


def test_a_class_that_weighs_more_wins_more():
    features, labels = blobs(200, 2, 0.5)
    plain = fit_head(features, labels, 2, candidates=(0.1,))
    heavy = fit_head(features, labels, 2, candidates=(0.1,), weights=np.where(labels == 1, 5.0, 1.0))
    assert (heavy.logits(features).argmax(1) == 1).mean() > (plain.logits(features).argmax(1) == 1).mean() + 0.2


def test_cross_validation_prefers_what_generalises():
    """Forty noise features against sixty rows: weak regularisation learns the noise by heart."""
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 2
    features = rng.normal(size=(60, 40)) + 0.3 * labels[:, None] * (np.arange(40) < 4)
    head = fit_head(features, labels, 2, candidates=(1000.0, 0.001))
    assert head.inverse_regularization == 0.001
    assert head.cross_entropy < np.log(2) + 0.01
    strong, signal = fit_head(*blobs(200, 2, 3.0), 2, candidates=(1e-6, 1.0)), 1.0
    assert strong.inverse_regularization == signal


def test_the_cross_entropy_is_the_weighted_one_of_held_out_rows():
    features, labels = blobs(600, 3, 1.5)
    wrong = np.random.default_rng(0).random(600) < 0.2
    labels, weights = np.where(wrong, (labels + 1) % 3, labels), np.where(wrong, 3.0, 0.5)
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(C=1.0, max_iter=1000))
    ours, scikit_learns = [], []
    for seed in range(5):  # the splits differ, so means are compared
        head = fit_head(features, labels, 3, candidates=(1.0, 1.0), weights=weights, context=Context(seed=seed))
        ours.append(head.cross_entropy)
        held_out = cross_val_predict(
            pipeline, features, labels, cv=StratifiedKFold(3, shuffle=True, random_state=seed), method="predict_proba",
            params={"logisticregression__sample_weight": weights},
        )  # fmt: skip
        scikit_learns.append(log_loss(labels, held_out, sample_weight=weights))
    assert np.mean(ours) == pytest.approx(np.mean(scikit_learns), rel=0.02)


def test_one_sure_mistake_does_not_make_the_loss_infinite():
    features, labels = blobs(60, 2, 30.0)
    features[0] = features[1] * 3  # the first image looks very much like the other class
    head = fit_head(features, labels, 2, candidates=(1e4, 1e5))
    assert 0.1 < head.cross_entropy < 1.0


def test_a_single_candidate_needs_no_search():
    head = fit_head(*blobs(30, 3, 2.0), 3, candidates=(0.7,))
    assert head.inverse_regularization == 0.7
    assert np.isnan(head.cross_entropy)


@pytest.mark.parametrize("missing", [0, 2, 3])
@pytest.mark.parametrize("present", [2, 3])
def test_a_class_without_images_never_wins(missing: int, present: int):
    features, labels = blobs(90, present, 2.0)
    numbers = np.array([number for number in range(5) if number != missing])[:present]
    head = fit_head(features, numbers[labels], 5, candidates=(0.1, 1.0))
    far = np.random.default_rng(0).normal(size=(500, 6)) * 1e3
    for rows in (features, far):
        assert set(head.logits(rows).argmax(1)) <= set(numbers)
    assert (head.logits(features).argmax(1) == numbers[labels]).mean() > 0.7
    absent = [number for number in range(5) if number not in numbers]
    assert probabilities(head, features)[:, absent].max() < 1e-6


def test_a_class_with_one_image_is_learned_though_it_cannot_be_searched():
    features, labels = blobs(60, 2, 6.0)
    lone = np.array([[0.0, 100.0, 3.0, -3.0, 0.0, 7.0]])
    features, labels = np.concatenate([features, lone]), np.append(labels, 2)
    head = fit_head(features, labels, 3, candidates=(1.0, 10.0))
    assert head.logits(lone).argmax(1) == 2
    assert np.isfinite(head.cross_entropy)


def test_classes_of_one_image_each_leave_nothing_to_search():
    head = fit_head(np.eye(3), np.arange(3), 3, candidates=(0.1, 1.0, 10.0))
    assert head.inverse_regularization == 1.0
    assert head.logits(np.eye(3)).argmax(1).tolist() == [0, 1, 2]


def test_the_same_seed_gives_the_same_head():
    features, labels = blobs(400, 3, 1.0)
    one, two = (
        fit_head(features, labels, 3, candidates=(0.01, 1.0), search_rows=150, context=Context(seed=4))
        for _ in range(2)
    )
    np.testing.assert_array_equal(one.weight, two.weight)
    assert (one.bias.tolist(), one.cross_entropy) == (two.bias.tolist(), two.cross_entropy)
    other = fit_head(features, labels, 3, candidates=(0.01, 1.0), search_rows=150, context=Context(seed=5))
    assert other.cross_entropy != one.cross_entropy


def test_the_last_fit_uses_all_rows():
    features, labels = blobs(400, 3, 1.0)
    searched, whole = (fit_head(features, labels, 3, candidates=(0.1,), search_rows=rows) for rows in (120, 400))
    np.testing.assert_array_equal(searched.weight, whole.weight)


def test_half_precision_features_do_not_overflow():
    features, labels = blobs(600, 2, 8.0)
    half = (features * 100).astype(np.float16)  # their sum is beyond float16
    head = fit_head(half, labels, 2, candidates=(0.1,))
    assert (head.logits(half).argmax(1) == labels).all()


def test_the_features_stay():
    features, labels = blobs(50, 2, 2.0)
    before = features.copy()
    fit_head(features, labels, 2, candidates=(0.1, 1.0))
    np.testing.assert_array_equal(features, before)
