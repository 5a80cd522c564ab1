from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from etude.core.context import Context
from etude.core.errors import EtudeError
from etude.health import suspect_labels
from etude.health.label_errors import doubts, held_out_probabilities


def clusters(classes: int, each: int, spread: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = np.arange(classes * each) % classes
    centres = rng.normal(size=(classes, 20)) * 3
    return (centres[labels] + rng.normal(size=(len(labels), 20)) * spread).astype(np.float32), labels


def with_wrong(labels: np.ndarray, share: float, classes: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    rows = rng.choice(len(labels), round(share * len(labels)), replace=False)
    given = labels.copy()
    given[rows] = (labels[rows] + rng.integers(1, classes, len(rows))) % classes
    return given, rows


@pytest.mark.parametrize("classes", [2, 10])
def test_wrong_labels_are_ranked_first(classes: int):
    features, labels = clusters(classes, 600 // classes, 2.0)
    given, wrong = with_wrong(labels, 0.02, classes)
    found = suspect_labels(features, given, classes)
    first = np.argsort(-found.scores)[: 2 * len(wrong)]
    assert np.isin(wrong, first).mean() >= 0.9
    assert (found.suggested[wrong] == labels[wrong]).mean() >= 0.9
    assert np.isin(wrong, found.rows).mean() >= 0.9
    assert len(found.rows) <= 4 * len(wrong)
    assert (np.diff(found.scores[found.rows]) <= 0).all()


def test_no_row_speaks_for_itself():
    """Features that mean nothing: who could look at the own label would be right."""
    features, labels = np.random.default_rng(0).normal(size=(400, 30)), np.arange(400) % 2
    probabilities = held_out_probabilities(features, labels, 2)
    assert (probabilities.argmax(axis=1) == labels).mean() < 0.6
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)


def test_classes_that_no_straight_line_parts_are_judged():
    rng = np.random.default_rng(0)
    radius = np.repeat([1.0, 3.0], 200)
    angle = rng.uniform(0, 2 * np.pi, 400)
    rings = np.c_[np.cos(angle), np.sin(angle)] * (radius + rng.normal(scale=0.2, size=400))[:, None]
    labels = (radius > 2).astype(np.int64)
    given, wrong = with_wrong(labels, 0.02, 2)
    assert np.isin(wrong, suspect_labels(rings, given, 2).rows).all()


def test_right_labels_of_distinct_classes_are_not_suspected():
    features, labels = clusters(4, 50, 0.3)
    found = suspect_labels(features, labels, 4)
    assert found.rows.tolist() == []
    assert found.scores.max() < 0.5


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_right_labels_that_are_hard_to_tell_are_doubted_and_few_of_them_listed(seed: int):
    features, labels = clusters(10, 120, 4.0, seed)  # one in seven looks like another class
    found = suspect_labels(features, labels, 10)
    assert found.agreement < 0.92
    assert found.doubted > 25
    assert len(found.rows) == math.ceil(found.most) <= 15


@pytest.mark.parametrize("share", [0.02, 0.05, 0.1])
def test_the_list_is_as_long_as_labels_are_wrong(share: float):
    caught: list[float] = []
    for seed in range(3):  # how much of it is listed differs by 15 points from one draw of the clusters to another
        features, labels = clusters(10, 120, 4.0, seed)
        given, wrong = with_wrong(labels, share, 10)
        found = suspect_labels(features, given, 10)
        assert len(wrong) <= len(found.rows) <= 2 * len(wrong) + 20
        caught.append(float(np.isin(wrong, found.rows).mean()))
    assert np.mean(caught) >= 0.7


def test_without_anything_to_tell_them_by_all_labels_may_be_wrong():
    features, labels = np.random.default_rng(0).normal(size=(300, 10)), np.arange(300) % 3
    found = suspect_labels(features, labels, 3)
    assert found.most >= 100
    assert found.agreement < 0.5


@given(st.integers(2, 5), st.integers(1, 8), st.integers(0, 1000))
def test_doubt_is_above_one_half_where_another_class_is_more_probable(classes: int, count: int, seed: int):
    rng = np.random.default_rng(seed)
    probabilities, labels = rng.dirichlet(np.ones(classes), count), rng.integers(0, classes, (count, 3))
    doubt = doubts(probabilities, labels)
    assert ((doubt >= 0) & (doubt <= 1)).all()
    np.testing.assert_array_equal(doubt > 0.5, probabilities.argmax(axis=1)[:, None] != labels)


def test_a_class_of_two_images_is_not_judged():
    features, labels = clusters(3, 40, 0.3)
    labels = labels.copy()
    labels[[5, 8]] = 3
    found = suspect_labels(features, labels, 5)  # of the fifth class there is none
    assert found.scores[[5, 8]].tolist() == [0.0, 0.0]
    assert not np.isin([5, 8], found.rows).any()


def test_the_same_data_give_the_same_answer():
    features, labels = clusters(3, 40, 2.5)
    one, two = (suspect_labels(features, labels, 3, context=Context(seed=4)) for _ in range(2))
    np.testing.assert_array_equal(one.scores, two.scores)
    np.testing.assert_array_equal(one.rows, two.rows)


@pytest.mark.parametrize(
    ("labels", "classes", "sentence"),
    [
        ([0, 1, 0], 2, "3 labels for 4 rows"),
        ([0, 1, 2, 0], 2, "between 0 and 1"),
        ([0, -1, 1, 0], 2, "labelled images only"),
        ([0, 0, 0, 0], 1, "two classes or more"),
        ([0, 0, 1, 1], 2, "3 images or more"),
        ([0.0, 1.0, 0.0, 1.0], 2, "integers"),
    ],
)
def test_what_cannot_be_used_is_told_in_one_sentence(labels: Any, classes: int, sentence: str):
    with pytest.raises(EtudeError, match=sentence):
        suspect_labels(np.eye(4), labels, classes)
