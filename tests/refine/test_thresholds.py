from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from etude.core.errors import EtudeError
from etude.core.metrics import metric_named
from etude.core.predictions import Predictions
from etude.refine.thresholds import Thresholds, offsets_for


def rare(seed: int, count: int, classes: int = 3, skill: float = 1.5) -> Predictions:
    """Calibrated predictions of images whose classes are of very different size."""
    rng = np.random.default_rng(seed)
    shares = 0.25 ** np.arange(classes)
    labels = rng.choice(classes, count, p=shares / shares.sum())
    seen = skill * np.eye(classes)[labels] + rng.normal(size=(count, classes))
    logits = skill * seen + np.log(shares)
    return Predictions([f"{i}" for i in range(count)], [f"c{k}" for k in range(classes)], logits[None], labels=labels)


@pytest.mark.parametrize("metric", ["macro_f1", "balanced_accuracy"])
def test_what_the_most_probable_class_neglects_is_gained(metric: str):
    step = Thresholds(metric).fit(rare(0, 2000, skill=1.0))
    other = rare(1, 4000, skill=1.0)
    score = metric_named(metric)
    gained = [score.value(one.log_probabilities(), other.labels) for one in (other, step.transform(other))]
    assert gained[1] > gained[0] + 0.02
    assert step.offsets_[2] > step.offsets_[0]
    assert step.described.startswith("offsets")


def test_accuracy_of_true_probabilities_needs_no_offsets():
    step = Thresholds("accuracy").fit(rare(0, 1500))
    assert not step.offsets_.any()
    assert "none helps accuracy beyond noise" in step.described


def test_labels_of_chance_need_no_offsets():
    def chance(seed: int) -> Predictions:
        rng = np.random.default_rng(seed)
        labels, ids = rng.integers(0, 3, 200), [f"{i}" for i in range(200)]
        return Predictions(ids, ["x", "y", "z"], rng.normal(size=(1, 200, 3)), labels=labels)

    moved = [bool(Thresholds("macro_f1", draws=200).fit(chance(seed)).offsets_.any()) for seed in range(10)]
    assert sum(moved) <= 2


@given(st.integers(0, 10_000), st.sampled_from(["macro_f1", "balanced_accuracy", "kappa", "accuracy"]))
def test_two_classes_are_solved_exactly(seed: int, name: str):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, 30)
    log_p = np.log(rng.dirichlet([1, 1], 30))
    metric = metric_named(name)
    gaps = np.sort(log_p[:, 0] - log_p[:, 1])
    cuts = [gaps[0] - 1, *((gaps[1:] + gaps[:-1]) / 2), gaps[-1] + 1]
    best = max(metric.value(log_p + np.array([0.0, cut]), labels) for cut in cuts if abs(cut) < 8)
    assert metric.value(log_p + offsets_for(metric, log_p, labels), labels) >= best - 1e-12


@given(st.integers(0, 10_000), st.sampled_from(["macro_f1", "balanced_accuracy", "kappa"]))
def test_no_single_offset_of_a_grid_improves_what_was_found(seed: int, name: str):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, 25)
    log_p = np.log(rng.dirichlet([1, 1, 1], 25))
    metric = metric_named(name)
    found = offsets_for(metric, log_p, labels)
    reached = metric.value(log_p + found, labels)
    assert reached >= metric.value(log_p, labels)
    for column, change in product(range(3), np.linspace(-3, 3, 41)):
        moved = found.copy()
        moved[column] += change
        if np.abs(moved).max() < 7:
            assert metric.value(log_p + moved, labels) <= reached + 1e-9


def test_a_metric_that_is_not_made_of_decisions_is_refused():
    with pytest.raises(EtudeError, match=r"log_loss is not made of them: choose one of accuracy, balanced_accuracy"):
        Thresholds("log_loss").fit(rare(0, 50))


def test_few_images_change_nothing():
    assert not Thresholds().fit(rare(0, 8)).offsets_.any()
