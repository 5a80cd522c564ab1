from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from etude.core.errors import EtudeError
from etude.core.predictions import Predictions
from etude.refine import PseudoLabelRule, drift

CLASSES = ("a", "b", "c")


def predictions(probabilities: Any, ids: list[str] | None = None) -> Predictions:
    p = np.asarray(probabilities)
    return Predictions.from_probabilities(ids or [f"{row:03d}" for row in range(len(p))], CLASSES[: p.shape[1]], p)


def some(images: int = 60, seed: int = 0) -> Predictions:
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(1, images, 3)) * 2
    return Predictions(tuple(f"{row:03d}" for row in range(images)), CLASSES, logits)


# --- targets ---


def test_soft_labels_of_temperature_one_are_the_predictions():
    given_ = some()
    chosen = PseudoLabelRule(weights="none").select(given_)
    np.testing.assert_allclose(chosen.targets, given_.probabilities(), rtol=1e-6)
    assert chosen.targets.dtype == chosen.weights.dtype == np.float32
    assert chosen.weights.tolist() == [1.0] * 60


def test_soft_labels_are_sharpened_by_a_power():
    given_ = some()
    power = given_.probabilities() ** 2
    chosen = PseudoLabelRule(temperature=0.5).select(given_)
    np.testing.assert_allclose(chosen.targets, power / power.sum(1, keepdims=True), rtol=1e-5)


def test_hard_labels_are_the_predicted_classes():
    given_ = some()
    chosen = PseudoLabelRule("hard", temperature=0.1).select(given_)
    assert chosen.targets.sum(1).tolist() == [1.0] * 60
    assert chosen.targets.argmax(1).tolist() == given_.predicted().tolist()


def test_views_are_averaged_first():
    two = Predictions(("i",), ("a", "b"), np.log([[[0.9, 0.1]], [[0.1, 0.9]]]))
    assert PseudoLabelRule().select(two).targets.tolist() == [[0.5, 0.5]]


# --- who is used, with what weight ---


def test_thresholds_for_all_and_for_each_class():
    given_ = predictions([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6], [0.6, 0.2, 0.2]])
    rule = PseudoLabelRule(weights="none", threshold=0.7)
    assert rule.select(given_).weights.tolist() == [1, 1, 0, 0]
    rule = PseudoLabelRule(weights="none", threshold=(0.5, 0.9, 0.6 - 1e-6))
    assert rule.select(given_).weights.tolist() == [1, 0, 1, 1]


def test_quotas_keep_the_surest_of_each_class():
    given_ = predictions([[0.6, 0.4], [0.9, 0.1], [0.7, 0.3], [0.2, 0.8], [0.4, 0.6]])
    rule = PseudoLabelRule(weights="none", quotas=(2, 0))
    assert rule.select(given_).weights.tolist() == [0, 1, 1, 0, 0]
    # What a threshold leaves out takes no place.
    rule = PseudoLabelRule(weights="none", quotas=(3, 3), threshold=0.65)
    assert rule.select(given_).weights.tolist() == [0, 1, 1, 1, 0]


def test_equally_sure_images_are_chosen_by_their_ids():
    for ids, used in ((["x", "y"], [1, 0]), (["y", "x"], [0, 1])):
        chosen = PseudoLabelRule(weights="none", quotas=(1, 1)).select(predictions([[0.7, 0.3], [0.7, 0.3]], ids))
        assert chosen.weights.tolist() == used


def test_softmatchs_weights_by_hand():
    confidence = np.array([0.95, 0.9, 0.8, 0.5])
    given_ = predictions(np.stack([confidence, 1 - confidence], 1))
    below = np.minimum(confidence - confidence.mean(), 0)
    for n in (1.0, 2.0):
        chosen = PseudoLabelRule(n=n).select(given_)
        np.testing.assert_allclose(chosen.weights, np.exp(-(below**2) / (2 * confidence.var() / n**2)), rtol=1e-5)
    assert chosen.weights[:2].tolist() == [1.0, 1.0]


def test_images_that_are_all_as_sure_weigh_one():
    given_ = predictions([[0.7, 0.3], [0.3, 0.7], [0.7, 0.3]])
    assert PseudoLabelRule().select(given_).weights.tolist() == [1.0, 1.0, 1.0]


@given(st.permutations(range(12)), st.sampled_from(["softmatch", "none"]))
def test_the_order_of_the_images_does_not_matter(order: list[int], weights: Any):
    given_ = some(12)
    rule = PseudoLabelRule(weights=weights, threshold=0.5, quotas=(2, 2, 2), prior=(0.5, 0.3, 0.2))
    straight, turned = rule.select(given_), rule.select(given_.take(order))
    np.testing.assert_allclose(turned.targets, straight.targets[order], rtol=1e-5)
    np.testing.assert_allclose(turned.weights, straight.weights[order], rtol=1e-5)


def test_what_was_selected_is_told():
    given_ = predictions([[0.9, 0.1], [0.6, 0.4], [0.1, 0.9]])
    assert PseudoLabelRule(threshold=0.7).select(given_).described == "2 of 3 images, mean weight 1.00"
    assert PseudoLabelRule(threshold=0.95).select(given_).described == "0 of 3 images"


# --- alignment ---


def test_alignment_to_what_is_predicted_changes_nothing():
    given_ = some()
    prior = given_.probabilities().mean(axis=0)
    for one in (prior, prior * 600):  # shares or counts
        np.testing.assert_allclose(PseudoLabelRule(prior=one).select(given_).targets, given_.probabilities(), rtol=1e-5)


def test_alignment_moves_classes_towards_the_prior():
    given_, prior = some(400), np.array([0.8, 0.1, 0.1])
    rule = PseudoLabelRule(prior=prior)
    before, after = given_.probabilities().mean(axis=0), rule.select(given_).targets.mean(axis=0)
    assert np.abs(after - prior).sum() < 0.5 * np.abs(before - prior).sum()
    assert rule.select(given_).targets.argmax(1).tolist() != given_.predicted().tolist()


def test_a_class_of_share_zero_is_never_chosen():
    given_ = predictions([[1.0, 0.0, 0.0], [0.5, 0.3, 0.2]])
    targets = PseudoLabelRule("hard", prior=(0.0, 0.5, 0.5)).select(given_).targets
    assert targets[:, 0].tolist() == [0.0, 0.0]
    assert np.isfinite(targets).all()


# --- mistakes ---


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"kind": "sharp"}, "kind='sharp'; it is 'soft' or 'hard'"),
        ({"weights": "all"}, "weights='all'; it is 'softmatch' or 'none'"),
        ({"temperature": 0.0}, "temperature=0.0 and n=2.0; both are numbers above 0"),
        ({"n": math.inf}, "n=inf"),
        ({"threshold": 1.2}, "threshold=1.2; it takes a confidence"),
        ({"threshold": (0.5, math.nan)}, "threshold="),
        ({"quotas": (1, -1)}, "quotas=.* it takes a number of images a class"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], told: str):
    with pytest.raises(EtudeError, match=told):
        PseudoLabelRule(**settings)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"threshold": (0.5, 0.5)}, "2 thresholds for 3 classes"),
        ({"quotas": (1, 2)}, "2 quotas for 3 classes"),
        ({"prior": (0.5, 0.5)}, "a prior of 3 classes needs as many numbers, and got 2"),
        ({"prior": (0.5, -0.5, 1.0)}, "gives 'b' the share"),
    ],
)
def test_settings_for_other_classes_are_refused(settings: dict[str, Any], told: str):
    with pytest.raises(EtudeError, match=told):
        PseudoLabelRule(**settings).select(some())


# --- drift ---


def test_drift_counts_changes_by_id_whatever_the_order():
    before = predictions([[0.9, 0.1], [0.2, 0.8], [0.7, 0.3], [0.6, 0.4]], ["p", "q", "r", "s"])
    after = predictions([[0.9, 0.1], [0.2, 0.8], [0.7, 0.3], [0.1, 0.9]], ["p", "q", "r", "s"]).take([3, 1, 0, 2])
    found = drift(before, after, (0.75, 0.25))
    assert (found.changed, found.histogram.tolist(), found.from_prior) == (0.25, [2, 2], 0.25)
    assert found.described == (
        "25.0% of labels changed; class shares 0.25 from the prior, 'a' farthest: 50.0% where 75.0% are expected"
    )


def test_no_drift_is_told_as_none():
    same = predictions([[0.9, 0.1], [0.2, 0.8]])
    assert drift(same, same, (3, 3)).described == "0.0% of labels changed; class shares 0.00 from the prior"
    found = drift(same, same)
    assert (found.from_prior, found.described) == (None, "0.0% of labels changed")


def test_a_collapse_is_seen():
    before = some(300)
    collapsed = predictions(np.tile([0.98, 0.01, 0.01], (300, 1)), list(before.ids))
    found = drift(before, collapsed, (1, 1, 1))
    assert found.from_prior == pytest.approx(2 / 3)
    assert found.changed == pytest.approx((before.predicted() != 0).mean())


def test_predictions_of_other_images_or_classes_are_refused():
    before = predictions([[0.9, 0.1], [0.2, 0.8]], ["p", "q"])
    with pytest.raises(EtudeError, match="the same images, and the later set lacks 'q'"):
        drift(before, before.take([0]))
    with pytest.raises(EtudeError, match="the same images, and the later set has 'q' as well"):
        drift(before.take([0]), before)
    with pytest.raises(EtudeError, match="the drift of pseudo-labels needs the same 2 classes"):
        drift(before, predictions([[0.9, 0.1, 0.0], [0.2, 0.8, 0.0]], ["p", "q"]))
