from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from etude.core.context import Context
from etude.core.predictions import Predictions
from etude.models.classifier import Classifier
from etude.study.run.blend import Kept, blend_of
from etude.study.run.network import Candidate

CLASSES = ("x", "y", "z")
NOBODY: Any = Classifier(nn.Identity(), 4, 3)  # a blend is chosen by predictions alone


def candidates(**noises: tuple[int, float]) -> list[Candidate]:
    """Stages whose logits tell the label up to their noise, each with the seed of its errors."""
    labels = np.arange(240) % 3
    ids = tuple(f"i{row:03}" for row in range(240))
    found: list[Candidate] = []
    for stage, (seed, noise) in noises.items():
        logits = 2 * np.eye(3)[labels] + np.random.default_rng(seed).normal(scale=noise, size=(240, 3))
        found.append(Candidate(stage, NOBODY, NOBODY, Predictions(ids, CLASSES, logits[None], labels=labels)))
    return found


def shortened(candidate: Candidate, count: int) -> Candidate:
    return Candidate(candidate.stage, NOBODY, NOBODY, candidate.valid.take(range(count)))


def test_two_models_that_err_differently_are_blended():
    head, network = candidates(head=(0, 1.2), finetune=(1, 1.0))
    kept = blend_of(network, [head], Context())
    assert {member.stage for member in kept.members} == {"head", "finetune"}
    assert kept.weights[0] >= kept.weights[1] > 0.05
    labels = head.valid.labels
    best = max((one.valid.predicted() == labels).mean() for one in (head, network))
    assert (kept.valid.predicted() == labels).mean() > best


@pytest.mark.parametrize("other", [(1, 30.0), (0, 1.0)], ids=["a useless one", "a copy"])
def test_one_model_is_kept_where_another_adds_nothing(other: tuple[int, float]):
    head, network = candidates(head=(0, 1.0), finetune=other)
    kept = blend_of(head, [network], Context())
    assert [member.stage for member in kept.members] == ["head"]


@pytest.mark.parametrize("factor", [0.3, 1.0, 3.0])
def test_a_model_that_is_kept_alone_is_calibrated(factor: float):
    labels, rng = np.arange(900) % 3, np.random.default_rng(0)
    drawn = np.array([rng.choice(3, p=[0.6 if k == label else 0.2 for k in range(3)]) for label in labels])
    logits = factor * np.log(np.where(np.arange(3) == drawn[:, None], 0.6, 0.2))
    model = Classifier(nn.Identity(), 4, 3)
    before = model.head.weight.detach().clone()
    valid = Predictions(tuple(map(str, range(900))), CLASSES, logits[None], labels=labels)
    (kept,) = blend_of(Candidate("head", model, NOBODY, valid), [], Context()).members
    assert kept.valid.probabilities().max(axis=1).mean() == pytest.approx(0.6, abs=0.06)
    torch.testing.assert_close(model.head.weight, before * kept.scale)
    assert (kept.scale == 1.0) == (factor == 1.0)


def test_the_one_model_that_is_left_of_a_blend_is_calibrated():
    noisy, good = candidates(finetune=(0, 30.0), head=(1, 1.0))
    good = replace(good, model=Classifier(nn.Identity(), 4, 3))
    kept = blend_of(noisy, [good], Context())
    assert [member.stage for member in kept.members] == ["head"]
    assert kept.weights == (1.0,)
    np.testing.assert_allclose(kept.valid.logits, good.valid.logits * kept.main.scale)
    assert kept.main.scale != 1.0


def test_models_that_are_much_too_sure_are_blended_with_small_weights():
    head, network = (too_sure(one) for one in candidates(head=(0, 1.2), finetune=(1, 1.0)))
    blend = blend_of(network, [head], Context())
    assert len(blend.members) == 2
    assert 0.0 < sum(blend.weights) < 0.1


def too_sure(candidate: Candidate) -> Candidate:
    return replace(candidate, valid=replace(candidate.valid, logits=100 * candidate.valid.logits))


def test_a_useless_model_still_predicts_its_own_classes():
    labels, rng = np.arange(900) % 3, np.random.default_rng(0)
    valid = Predictions(tuple(map(str, range(900))), CLASSES, 50 * rng.normal(size=(1, 900, 3)), labels=labels)
    (kept,) = blend_of(Candidate("head", Classifier(nn.Identity(), 4, 3), NOBODY, valid), [], Context()).members
    assert 0.0 < kept.scale < 0.1
    np.testing.assert_array_equal(kept.valid.predicted(), valid.predicted())


@pytest.mark.parametrize("count", [1, 9])
def test_too_few_validation_images_choose_no_weights(count: int):
    head, network = (shortened(one, count) for one in candidates(head=(0, 1.2), finetune=(1, 1.0)))
    assert blend_of(network, [head], Context()).members == (network,)


def test_the_first_model_has_the_folders_own_place():
    kept = Kept(tuple(candidates(finetune=(0, 1.0), head=(1, 1.0))), (0.6, 0.3))
    assert kept.folders == [".", "head"]
    assert kept.stage == "finetune + head"
    assert kept.described.startswith("0.60 finetune + 0.30 head")


def test_further_networks_share_the_weight_of_the_first():
    head, network, second, third = candidates(head=(0, 1.0), finetune=(1, 1.0), two=(2, 1.0), three=(3, 1.0))
    network = replace(network, scale=0.5)
    kept = replace(Kept((head, network), (0.4, 0.9)), further=(second, third)).shared()
    assert [member.stage for member in kept.members] == ["head", "finetune", "two", "three"]
    assert kept.weights == pytest.approx((0.4, 0.3, 0.15, 0.15))
    assert not kept.further
