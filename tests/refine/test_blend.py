from __future__ import annotations

from itertools import permutations
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.stats import rankdata

from etude.core.errors import EtudeError
from etude.core.predictions import Predictions
from etude.refine.ensemble import average, geometric_mean, majority_vote, rank_mean

IDS, CLASSES = ("a", "b", "c"), ("x", "y", "z")
LOGITS = hnp.arrays(np.float32, (2, 3, 3), elements=st.floats(-8, 8, width=32))


def made(logits: Any, **fields: Any) -> Predictions:
    return Predictions(**({"ids": IDS, "classes": CLASSES, "logits": logits} | fields))


def shuffled(one: Predictions, rows: list[int], columns: list[int]) -> Predictions:
    """The same predictions with images and classes in another order."""
    labels = None if one.labels is None else np.array([columns.index(x) if x >= 0 else -1 for x in one.labels[rows]])
    return Predictions(
        tuple(one.ids[row] for row in rows),
        tuple(one.classes[column] for column in columns),
        one.logits[:, rows][:, :, columns],
        labels=labels,
    )


@given(LOGITS)
def test_one_model_stays_as_it_is(logits: np.ndarray):
    one = made(logits, features=np.ones((3, 5), np.float32))
    blended = average([one])
    np.testing.assert_allclose(blended.probabilities(), one.probabilities(), atol=1e-6)
    assert blended.logits.shape == (1, 3, 3)
    assert blended.features is None


@given(LOGITS, LOGITS, st.permutations(range(3)), st.permutations(range(3)), st.floats(0.1, 10))
def test_the_mean_does_not_depend_on_the_order_of_images_and_classes(
    first: np.ndarray, second: np.ndarray, rows: list[int], columns: list[int], weight: float
):
    one = made(first, labels=np.array([2, 0, -1]))
    other = made(second, labels=np.array([2, 0, -1]))
    blended = average([one, shuffled(other, rows, columns)], weights=[weight, 1])
    expected = (weight * one.probabilities() + other.probabilities()) / (weight + 1)
    np.testing.assert_allclose(blended.probabilities(), expected, atol=1e-6)
    assert (blended.ids, blended.classes) == (IDS, CLASSES)
    assert blended.labels is not None
    assert blended.labels.tolist() == [2, 0, -1]


def test_weights_count_by_their_ratio_and_zero_leaves_a_model_out():
    one, other = made(np.eye(3)[None]), made(-np.eye(3)[None])
    np.testing.assert_array_equal(average([one, other]).logits, average([one, other], [5, 5]).logits)
    np.testing.assert_array_equal(average([one, other], [0, 2]).logits, average([other]).logits)


def test_labels_come_from_any_model_that_has_them():
    labels = np.array([0, 1, 2])
    one, other = made(np.eye(3)[None]), shuffled(made(np.eye(3)[None], labels=labels), [2, 0, 1], [1, 2, 0])
    blended = average([one, other])
    assert blended.labels is not None
    assert blended.labels.tolist() == [0, 1, 2]
    assert average([one, one]).labels is None
    with pytest.raises(EtudeError, match=r"different labels for 1 images \(the first is 'c'\)"):
        average([other, made(np.eye(3)[None], labels=np.array([0, 1, 1]))])


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"ids": ("a", "b", "q")}, "same ids .* model 2 lacks 'c' and has 'q' as well"),
        ({"classes": ("x", "y", "w")}, "same classes .* model 2 lacks 'z' and has 'w' as well"),
    ],
)
def test_other_images_or_classes_are_refused(fields: dict[str, Any], sentence: str):
    with pytest.raises(EtudeError, match=sentence):
        average([made(np.eye(3)[None]), made(np.eye(3)[None], **fields)])


def test_a_model_with_more_images_is_refused():
    more = Predictions((*IDS, "d"), CLASSES, np.zeros((1, 4, 3)))
    with pytest.raises(EtudeError, match="model 3 has 'd' as well"):
        average([made(np.eye(3)[None]), made(np.eye(3)[None]), more])


@pytest.mark.parametrize("weights", [[1.0], [1.0, 2.0, 3.0], [0.0, 0.0], [-1.0, 2.0], [np.nan, 1.0], [np.inf, 1.0]])
def test_weights_that_are_no_weights_are_refused(weights: list[float]):
    with pytest.raises(EtudeError, match="weights"):
        average([made(np.eye(3)[None])] * 2, weights)


def test_nothing_can_not_be_blended():
    with pytest.raises(EtudeError, match="at least one model"):
        average([])


@pytest.mark.parametrize(
    ("ours", "theirs"), [(IDS, ("a.png", "b.png", "c.png")), (("1/a.jpg", "1/b.jpg", "1/c.jpg"), ("a", "b", "c"))]
)
def test_ids_may_lack_endings_or_folders(ours: tuple[str, ...], theirs: tuple[str, ...]):
    one, other = made(np.eye(3)[None], ids=ours), shuffled(made(2 * np.eye(3)[None], ids=theirs), [2, 0, 1], [0, 1, 2])
    blended = average([one, other])
    assert blended.ids == ours
    assert blended.predicted().tolist() == [0, 1, 2]
    twice = made(np.eye(3)[None], ids=("a.png", "a.jpg", "b"))
    with pytest.raises(EtudeError, match="same ids"):
        average([one, twice])


# --- votes ---


def ballots(*rows: str) -> list[Predictions]:
    """One model a row, which predicts the class of each letter."""
    ids = [f"{place}" for place in range(len(rows[0]))]
    return [Predictions.from_probabilities(ids, "xyz", np.eye(3)[["xyz".index(name) for name in row]]) for row in rows]


@pytest.mark.each(
    ("rows", "weights", "winners"),
    [
        (("xyz", "xyx", "yyy"), None, "xyz"),
        (("xxx", "yyy"), None, "xxx"),
        (("xzx", "yyy", "yzx", "xyz"), None, "xzx"),
        (("xxx", "yyy", "yyz"), [3, 1, 1], "xxx"),
        (("xxx", "yyy", "yyz"), [2, 1, 1], "xxx"),
        (("xxx", "yyy", "yyz"), [1, 1, 0], "xxx"),
        (("xxx", "yyy", "zzz"), [0, 1, 1], "yyy"),
        (("zzz", "xxx", "yyy", "yyy", "xxx"), [0.1, 0.1, 0.2, 0.1, 0.2], "xxx"),
    ],
)
def test_the_class_of_most_votes_wins_and_ties_go_to_the_first(rows: tuple[str, ...], weights: Any, winners: str):
    voted = majority_vote(ballots(*rows), weights)
    assert "".join(voted.classes[place] for place in voted.predicted()) == winners
    shares = np.array([1.0] * len(rows) if weights is None else weights)
    won = [sum(share for row, share in zip(rows, shares, strict=True) if row[0] == winners[0]) / shares.sum()]
    np.testing.assert_allclose(voted.probabilities().max(axis=1)[:1], won, atol=1e-5)


# --- other means ---


@given(LOGITS)
def test_one_model_is_its_own_geometric_mean(logits: np.ndarray):
    one = made(logits)
    np.testing.assert_allclose(geometric_mean([one]).probabilities(), one.probabilities(), atol=1e-6)


@given(LOGITS, LOGITS, st.permutations(range(3)), st.permutations(range(3)), st.floats(0.1, 10))
def test_the_geometric_mean_averages_log_probabilities(
    first: np.ndarray, second: np.ndarray, rows: list[int], columns: list[int], weight: float
):
    one, other = made(first, labels=np.array([2, 0, -1])), made(second)
    blended = geometric_mean([one, shuffled(other, rows, columns)], weights=[weight, 1])
    expected = one.probabilities() ** (weight / (weight + 1)) * other.probabilities() ** (1 / (weight + 1))
    np.testing.assert_allclose(blended.probabilities(), expected / expected.sum(axis=1, keepdims=True), atol=1e-6)
    assert blended.labels is not None
    assert blended.labels.tolist() == [2, 0, -1]


def test_a_weight_of_one_and_zeros_leaves_one_model():
    one, other = made(np.eye(3)[None]), made(-np.eye(3)[None])
    for mean in (average, geometric_mean):
        np.testing.assert_allclose(mean([one, other], [0, 1]).probabilities(), other.probabilities(), atol=1e-6)
    np.testing.assert_array_equal(rank_mean([one, other], [0, 1]).logits, rank_mean([other]).logits)


def test_the_geometric_mean_survives_zeros():
    sure = Predictions.from_probabilities(IDS, CLASSES, np.eye(3))
    turned = Predictions.from_probabilities(IDS, CLASSES, np.eye(3)[[1, 2, 0]])
    expected = [[0.5, 0.5, 0], [0, 0.5, 0.5], [0.5, 0, 0.5]]
    np.testing.assert_allclose(geometric_mean([sure, turned]).probabilities(), expected, atol=1e-6)


def test_ranks_by_hand():
    one = Predictions.from_probabilities("abcd", "xy", [[0.9, 0.1], [0.6, 0.4], [0.6, 0.4], [0.1, 0.9]])
    other = Predictions.from_probabilities("abcd", "xy", [[0.51, 0.49], [0.5, 0.5], [0.49, 0.51], [0.4, 0.6]])
    # ranks of x by one: 4, 2.5, 2.5, 1; by the other: 4, 3, 2, 1; less a half, of 4
    expected = np.array([3.5, 2.25, 1.75, 0.5]) / 4
    np.testing.assert_allclose(rank_mean([one, other]).probabilities()[:, 0], expected, atol=1e-6)
    np.testing.assert_allclose(rank_mean([one, other], [3, 1]).probabilities()[1, 0], (3 * 2 + 2.5) / 16, atol=1e-6)


@given(LOGITS, st.permutations(range(3)), st.permutations(range(3)))
def test_the_rank_mean_goes_with_images_and_classes(logits: np.ndarray, rows: list[int], columns: list[int]):
    one = made(logits)
    turned = rank_mean([shuffled(one, rows, columns)]).probabilities()
    np.testing.assert_allclose(turned, rank_mean([one]).probabilities()[rows][:, columns], atol=1e-6)


def test_what_rounding_sets_apart_is_a_tie():
    logits = np.array([[[1.75, 0, 0], [0, 1.75, 0], [0, 0, 0]], np.zeros((3, 3))], np.float32)
    for columns in permutations(range(3)):  # the last class is as likely for the first image as for the second
        ranks = rank_mean([shuffled(made(logits), [0, 1, 2], list(columns))]).probabilities()
        expected = np.array([[5, 1, 2], [1, 5, 2]])[:, list(columns)] / 8
        np.testing.assert_allclose(ranks[:2], expected, atol=1e-6)


def test_equal_probabilities_share_a_rank_whatever_the_other_classes_have():
    counts = np.random.default_rng(0).multinomial(1000, [0.3, 0.6, 0.1], 60)
    counts[:5] = [[300, 600, 100], [300, 0, 700], [300, 700, 0], [0, 0, 1000], [1000, 0, 0]]
    ids = [str(row) for row in range(60)]
    ranks = rank_mean([Predictions.from_probabilities(ids, tuple("xyz"), counts / 1000)]).probabilities()
    places = (rankdata(counts, axis=0) - 0.5) / len(counts)
    np.testing.assert_allclose(ranks, places / places.sum(axis=1, keepdims=True), atol=1e-6)


def test_only_the_order_of_probabilities_counts_for_ranks():
    logits = np.random.default_rng(0).normal(size=(1, 50, 2)).astype(np.float32)
    ids = tuple(f"{row}" for row in range(50))
    calm, shrill = Predictions(ids, ("x", "y"), logits), Predictions(ids, ("x", "y"), logits * 3)
    np.testing.assert_allclose(rank_mean([calm, shrill]).probabilities(), rank_mean([calm]).probabilities(), atol=1e-6)


def test_labels_that_one_model_lacks_come_from_another():
    one = made(np.zeros((1, 3, 3), np.float32), labels=np.array([0, -1, 2]))
    other = made(np.zeros((1, 3, 3), np.float32), labels=np.array([-1, 1, 2]))
    mean = average([one, other])
    assert mean.labels is not None
    assert mean.labels.tolist() == [0, 1, 2]
