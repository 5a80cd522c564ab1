from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from etude.core.errors import EtudeError
from etude.core.predictions import Predictions
from etude.refine.ensemble import advice, diversity

CLASSES = ("x", "y", "z")


def guessing(predicted: list[int], labels: list[int] | None, sure: float = 2.0) -> Predictions:
    ids = tuple(f"{row}" for row in range(len(predicted)))
    given = None if labels is None else np.array(labels)
    return Predictions(ids, CLASSES, sure * np.eye(3)[predicted][None], labels=given)


def noisy(noise: float, seed: int, n: int = 400) -> Predictions:
    labels = np.arange(n) % 3
    logits = 2 * np.eye(3)[labels] + np.random.default_rng(seed).normal(scale=noise, size=(n, 3))
    return Predictions(tuple(f"{row}" for row in range(n)), CLASSES, logits[None], labels=labels)


# --- the table ---


def test_the_table_by_hand():
    labels = [0, 0, 0, 0, 1, 1, 2, 2]
    one = guessing([0, 0, 0, 1, 1, 1, 0, 1], labels)  # right on 0 1 2, 4 5
    two = guessing([0, 0, 1, 1, 1, 2, 0, 0], labels)  # right on 0 1, 4
    (row,) = diversity({"one": one, "two": two})
    assert (row.first, row.second) == ("one", "two")
    assert row.disagreement == 3 / 8  # images 2, 5 and 7
    assert row.double_fault == 3 / 8  # images 3, 6 and 7
    assert row.q == 1  # n11 3, n00 3, n10 2, n01 0
    three = guessing([1, 0, 1, 0, 1, 2, 0, 2], labels)  # right on 1, 3, 4, 7
    assert diversity({"two": two, "three": three})[0].q == pytest.approx((2 * 3 - 1 * 2) / (2 * 3 + 1 * 2))


def test_q_of_models_without_errors_does_not_exist():
    right = guessing([0, 1, 2], [0, 1, 2])
    (row,) = diversity({"a": right, "b": right})
    assert (row.disagreement, row.double_fault) == (0, 0)
    assert math.isnan(row.q)


@given(st.lists(st.tuples(*[st.integers(0, 2)] * 3), min_size=1, max_size=20))
def test_pairs_are_symmetric_and_within_bounds(rows: list[tuple[int, int, int]]):
    one, two, labels = (list(column) for column in zip(*rows, strict=True))
    first, second = guessing(one, labels), guessing(two, labels)
    (row,), (turned,) = diversity({"a": first, "b": second}), diversity({"b": second, "a": first})
    assert (row.disagreement, row.double_fault) == (turned.disagreement, turned.double_fault)
    assert row.q == pytest.approx(turned.q, nan_ok=True)
    assert 0 <= row.double_fault <= 1
    assert math.isnan(row.q) or -1 <= row.q <= 1


def test_all_pairs_come_the_most_alike_first():
    models = {"far": noisy(3, 1), "a": noisy(1, 2), "copy": noisy(1, 2)}
    rows = diversity(models)
    assert len(rows) == 3
    assert {rows[0].first, rows[0].second} == {"a", "copy"}
    assert [row.disagreement for row in rows] == sorted(row.disagreement for row in rows)
    assert diversity({"alone": noisy(1, 0)}) == []


def test_unlabelled_images_do_not_count():
    half = guessing([0, 1, 2, 0], [0, 1, -1, -1])
    other = guessing([0, 2, 0, 1], None)
    assert diversity({"a": half, "b": other})[0].disagreement == 0.5


# --- advice ---


def test_a_model_that_harms_is_to_be_dropped():
    told = advice({"good": noisy(0.7, 1), "fine": noisy(0.7, 2), "wild": noisy(20, 3)})
    assert told[0].startswith("Drop 'wild': without it the log loss of the blend falls by 0.")


def test_a_model_that_helps_is_to_be_added():
    models = {"a": noisy(1.5, 1), "b": noisy(1.5, 2), "wild": noisy(20, 3)}
    told = advice(models, ["a"])
    assert [sentence for sentence in told if sentence.startswith("Add ")] == [told[0]]
    assert told[0].startswith("Add 'b': with it the log loss of the blend falls by 0.")


def test_copies_can_go():
    told = advice({"a": noisy(1.5, 1), "same": noisy(1.5, 1), "b": noisy(1.5, 2)})
    assert any("predict the same class for 100.0% of the images" in sentence for sentence in told)
    told = advice({"a": noisy(1.5, 1), "same": noisy(1.5, 1)})
    assert told[0].startswith("'a' can go: without it the log loss of the blend changes by no more than noise")


def test_a_good_blend_is_kept():
    told = advice({"a": noisy(1.5, 1), "b": noisy(1.5, 2)})
    assert told == ["Keep the blend of 'a', 'b' as it is: no change of one model beats its noise."]


def test_mistakes_are_told_in_one_sentence():
    models = {"alpha": noisy(1, 1), "beta": noisy(1, 2)}
    with pytest.raises(EtudeError, match="Did you mean 'alpha'"):
        advice(models, ["alpa"])
    with pytest.raises(EtudeError, match="at least one model"):
        advice(models, [])
    with pytest.raises(EtudeError, match="none has a label"):
        diversity({"a": guessing([0, 1], None)})
