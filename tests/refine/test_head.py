from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from etude.refine.last_layer import Head, fit_head


def drawn(seed: int = 0, n: int = 80, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    return np.eye(classes)[labels] @ rng.normal(size=(classes, 5)) + rng.normal(size=(n, 5)), labels


@pytest.mark.each("classes", [2, 3, 5])
@pytest.mark.each("strength", [0.01, 1.0])
@pytest.mark.each("weighted", [False, True])
def test_it_is_scikit_learns_regression(classes: int, strength: float, weighted: bool):
    rows, labels = drawn(classes=classes)
    importance = np.random.default_rng(1).uniform(0.2, 3, 80) if weighted else None
    ours = fit_head(rows, labels, classes, strength, importance=importance, most=500).log_probabilities(rows)
    # With two classes scikit-learn has one column, w, where we have w / 2 and -w / 2: half the penalty.
    same = 2 * strength if classes == 2 else strength
    theirs = LogisticRegression(C=same, tol=1e-9, max_iter=2000).fit(rows, labels, importance)
    np.testing.assert_allclose(np.exp(ours), theirs.predict_proba(rows), atol=1e-4)


def test_a_start_changes_where_the_search_begins_and_not_where_it_ends():
    rows, labels = drawn()
    best = fit_head(rows, labels, 3, 0.1, most=500)
    stopped = fit_head(rows, labels, 3, 0.1, start=best, most=1)
    np.testing.assert_allclose(stopped.weights, best.weights, atol=1e-4)
    assert np.abs(fit_head(rows, labels, 3, 0.1, most=1).weights - best.weights).max() > 1e-3
    far = Head(np.full((5, 3), 2.0), np.arange(3.0))
    again = fit_head(rows, labels, 3, 0.1, start=far, most=500)
    np.testing.assert_allclose(again.log_probabilities(rows), best.log_probabilities(rows), atol=1e-3)


def test_a_correction_of_no_strength_leaves_the_offset():
    rows, labels = drawn()
    offset = np.random.default_rng(2).normal(size=(80, 3))
    offset -= np.log(np.exp(offset).sum(axis=1, keepdims=True))
    weak = fit_head(rows, labels, 3, 1e-9, offset=offset)
    np.testing.assert_allclose(weak.log_probabilities(rows, offset), offset, atol=1e-5)
    strong = fit_head(rows, labels, 3, 1.0, offset=offset).log_probabilities(rows, offset)
    picked = np.arange(80), labels
    assert strong[picked].mean() > offset[picked].mean() + 0.1


@settings(max_examples=10)
@given(st.integers(0, 100), st.permutations(range(3)))
def test_classes_may_come_in_any_order(seed: int, order: list[int]):
    rows, labels = drawn(seed)
    plain = fit_head(rows, labels, 3, 0.1).log_probabilities(rows)
    turned = fit_head(rows, np.argsort(order)[labels], 3, 0.1).log_probabilities(rows)
    np.testing.assert_allclose(turned, plain[:, order], atol=1e-4)
