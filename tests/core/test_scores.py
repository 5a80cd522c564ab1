from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn import metrics

from etude.core.errors import EtudeError
from etude.core.metrics import accuracy, log_loss, standard_error

LABELS = hnp.arrays(np.int64, 20, elements=st.integers(0, 3))


@given(LABELS, LABELS)
def test_accuracies_agree_with_scikit_learn(predicted: np.ndarray, labels: np.ndarray):
    assert accuracy(predicted, labels) == pytest.approx(metrics.accuracy_score(labels, predicted))


@given(LABELS, hnp.arrays(np.float64, (20, 4), elements=st.floats(0.01, 1)))
def test_log_loss_agrees_with_scikit_learn(labels: np.ndarray, weights: np.ndarray):
    probabilities = weights / weights.sum(axis=1, keepdims=True)
    assert log_loss(probabilities, labels) == pytest.approx(metrics.log_loss(labels, probabilities, labels=range(4)))


def test_one_sure_mistake_is_not_infinite():
    assert log_loss([[0.0, 1.0]], [0]) == pytest.approx(-math.log(1e-15))


def test_standard_error_is_that_of_a_share():
    draws = np.random.default_rng(0).binomial(200, 0.8, 20_000) / 200
    assert standard_error(0.8, 200) == pytest.approx(draws.std(), rel=0.02)
    assert standard_error(1.0, 5) == 0


def test_what_can_not_be_scored_is_refused():
    with pytest.raises(EtudeError, match="2 of 3 images are unlabelled"):
        accuracy([0, 1, 0], [0, -1, -1])
    with pytest.raises(EtudeError, match="at least one label"):
        accuracy([], [])
    with pytest.raises(EtudeError, match="3 integers"):
        accuracy([0, 1], [0, 1, 0])
    with pytest.raises(EtudeError, match="3 integers"):
        accuracy([0.0, 1.0, 0.0], [0, 1, 0])
    with pytest.raises(EtudeError, match="labels must be integers"):
        accuracy([0, 1], [0.0, 1.0])


def test_log_loss_refuses_what_it_can_not_score():
    with pytest.raises(EtudeError, match="unlabelled"):
        log_loss([[0.5, 0.5]], [-1])
    with pytest.raises(EtudeError, match="label 2 has no column"):
        log_loss([[0.5, 0.5]], [2])
    with pytest.raises(EtudeError, match="were logits given"):
        log_loss([[2.5, -0.5]], [0])
    with pytest.raises(EtudeError, match="were logits given"):
        log_loss([[math.nan, 0.5]], [0])
    with pytest.raises(EtudeError, match="one row a label"):
        log_loss([[0.5, 0.5]], [0, 1])


@pytest.mark.parametrize(("share", "n"), [(0.5, 0), (1.2, 10), (-0.1, 10), (math.nan, 10)])
def test_standard_error_refuses_nonsense(share: float, n: int):
    with pytest.raises(EtudeError, match="standard error needs"):
        standard_error(share, n)
