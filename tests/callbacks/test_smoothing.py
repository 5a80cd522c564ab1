from __future__ import annotations

import etude.compat  # noqa: F401  (before lightning)

import pytest
import torch
from torch.utils.data import TensorDataset

from etude.callbacks import Clock, CutMix, LabelSmoothing, MixUp
from etude.core.errors import EtudeError
from etude.timeline import Phase, Timeline


@pytest.mark.parametrize("amount", [-0.1, 1.0, float("nan")])
def test_an_amount_out_of_bounds_is_refused(amount: float):
    with pytest.raises(EtudeError, match="at least 0 and below 1"):
        LabelSmoothing(amount)


def test_labels_become_smoothed_targets(fit_images, image_module):
    module = image_module()
    fit_images(module, [LabelSmoothing(0.3)])
    assert module.seen
    for _, target in module.seen:
        assert target.shape[1] == 3
        assert torch.allclose(target.max(1).values, torch.tensor(0.8))
        assert torch.allclose(target.min(1).values, torch.tensor(0.1))
    assert not any(target.is_floating_point() for _, target in module.validated)


def test_the_timeline_says_when(fit_images, image_module):
    module = image_module()
    plan = Timeline((Phase("first", 0.5, label_smoothing=0.6), Phase("second", 0.5, label_smoothing=0.0)))
    fit_images(module, [Clock(plan), LabelSmoothing(0.1)])
    targets = [target for _, target in module.seen]
    half = len(targets) // 2
    assert all(torch.allclose(target.max(1).values, torch.tensor(0.6)) for target in targets[:half])
    assert not any(target.is_floating_point() for target in targets[half:])  # off: labels stay as they are


def test_smoothing_and_mixing_may_stand_together(fit_images, image_module):
    module = image_module()
    fit_images(module, [MixUp(0.5), CutMix(), LabelSmoothing(0.3)])
    for _, target in module.seen:
        assert torch.allclose(target.sum(1), torch.ones(len(target)), atol=1e-5)
        assert float(target.min()) >= 0.1 - 1e-6


@pytest.mark.parametrize("shape", [(24,), (24, 1)])
def test_targets_without_columns_for_classes_are_refused(shape: tuple[int, ...], fit_images, image_module, images):
    data = TensorDataset(images.tensors[0], torch.rand(shape))
    with pytest.raises(EtudeError, match=rf"LabelSmoothing got float targets \(6,{' 1' if len(shape) > 1 else ''}\)"):
        fit_images(image_module(), [LabelSmoothing()], data=data, limit_val_batches=0)


def test_an_image_of_no_class_stays_without_one(fit_images, image_module, images):
    """As PseudoLabels leaves an image that does not count: none of its mass of 0 is spread."""
    targets = torch.nn.functional.one_hot(images.tensors[1], 3) * torch.tensor([2.0, 0.0, 1.0]).repeat(8)[:, None]
    module = image_module()
    fit_images(module, [LabelSmoothing(0.3)], data=TensorDataset(images.tensors[0], targets), limit_val_batches=0)
    for _, target in module.seen:
        torch.testing.assert_close(target.sum(1), torch.tensor([2.0, 0.0, 1.0] * 2))
