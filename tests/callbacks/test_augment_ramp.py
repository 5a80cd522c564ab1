from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from etude.callbacks.augment import AugmentRamp
from etude.callbacks.clock import Clock
from etude.core.errors import EtudeError
from etude.core.seeds import rng_for
from etude.functional.augment import POLICIES, Policy, augment
from etude.functional.augment_tensor import augment_tensor, warp_tensor
from etude.functional.warp import warp
from etude.timeline import Linear, Phase, Timeline

ALL = pytest.mark.each("policy", POLICIES.values(), ids=POLICIES)


def smooth(count: int = 6, size: int = 24) -> torch.Tensor:
    """Images without sharp edges: float (B, 3, S, S) with whole levels from 0 to 255."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, 5, 5, generator=generator)
    images = torch.nn.functional.interpolate(coarse, (size, size), mode="bicubic", align_corners=True)
    return ((images - images.amin()) / (images.amax() - images.amin()) * 255).round()


def changes(module: Any, images: torch.Tensor) -> list[float]:
    """The mean change of every batch that training saw."""
    originals = images.split(6) * 9
    return [float((seen - own).abs().mean()) for (seen, _), own in zip(module.seen, originals, strict=False)]


def test_without_a_clock_the_strength_rises_and_the_end_is_clean(fit_images, image_module):
    module, data = image_module(), TensorDataset(smooth(6).repeat(4, 1, 1, 1) / 255, torch.arange(24) % 3)
    fit_images(module, [AugmentRamp("digits", rise=0.5, finish=0.25)], steps=40, data=data)
    moved = [float((seen - data.tensors[0][:6]).abs().mean()) for seen, _ in module.seen]
    assert moved[30:] == [0.0] * 10
    assert 0 < np.mean(moved[:5]) < 0.5 * np.mean(moved[10:20]) < np.mean(moved[20:30])
    assert all(float((seen - data.tensors[0][:6]).abs().max()) == 0.0 for seen, _ in module.validated)


def test_the_clocks_strength_takes_precedence(fit_images, image_module, images):
    module = image_module()
    timeline = Timeline((Phase("on", 0.5, augment=Linear(0.5, 1.0)), Phase("off", 0.5, augment=0.0)))
    fit_images(module, [Clock(timeline), AugmentRamp()], steps=8)
    moved = changes(module, images.tensors[0])
    assert min(moved[:4]) > 0.0
    assert moved[4:] == [0.0] * 4


def test_a_timeline_that_leaves_augmentation_alone_leaves_it_to_the_ramp(fit_images, image_module, images):
    module, clock = image_module(), Clock(Timeline((Phase("all", 1.0, lr=0.01),)))
    fit_images(module, [clock, AugmentRamp(rise=0.0, finish=0.5)], steps=8)
    moved = changes(module, images.tensors[0])
    assert min(moved[:4]) > 0.0
    assert moved[4:] == [0.0] * 4


def test_a_strength_of_zero_never_changes_anything(fit_images, image_module, images):
    module = image_module()
    fit_images(module, [AugmentRamp(strength=0.0)], steps=4)
    assert changes(module, images.tensors[0]) == [0.0] * 4


@ALL
def test_uint8_is_augmented_as_everywhere_in_etude(policy: Policy):
    images = smooth().to(torch.uint8)
    last = images.permute(0, 2, 3, 1).contiguous()
    expected = augment(last.numpy(), policy, 0.7, rng_for(0, "x"))
    assert (augment_tensor(last, policy, 0.7, rng_for(0, "x"), channels_last=True).numpy() == expected).all()
    first = augment_tensor(images, policy, 0.7, rng_for(0, "x"))
    assert (first.permute(0, 2, 3, 1).numpy() == expected).all()


@ALL
@pytest.mark.each("channels_last", [False, True])
def test_floats_agree_with_uint8(policy: Policy, channels_last: bool):
    images = smooth()
    expected = augment_tensor(images.to(torch.uint8), policy, 0.7, rng_for(0, "x")).float()
    given = images.permute(0, 2, 3, 1) if channels_last else images
    changed = augment_tensor(given, policy, 0.7, rng_for(0, "x"), channels_last=channels_last)
    changed = changed.permute(0, 3, 1, 2) if channels_last else changed
    assert changed.dtype == torch.float32
    # OpenCV interpolates at 32nds of a pixel and rounds: a level or two at most.
    assert float((changed - expected).abs().max()) < 3.0
    assert float((changed - expected).abs().mean()) < 0.6
    assert policy.name == "none" or float((changed - images).abs().mean()) > 3.0


@ALL
def test_normalised_images_are_changed_as_those_they_come_from(policy: Policy):
    images = smooth()
    mean, deviation = 120.0, 60.0
    changed = augment_tensor((images - mean) / deviation, policy, 0.7, rng_for(0, "x"))
    expected = augment_tensor(images, policy, 0.7, rng_for(0, "x"))
    assert torch.allclose(changed * deviation + mean, expected, atol=1e-2)


@pytest.mark.parametrize("border", ["reflect", "replicate"])
def test_warps_agree_with_opencv_beyond_the_edge_too(border: str):
    images = smooth(2)
    matrices = np.array([[[0.9, 0.3, -4.0], [-0.2, 1.1, 7.0]], [[1.0, 0.0, 5.0], [0.0, 1.0, 0.0]]])
    expected = warp(images.permute(0, 2, 3, 1).contiguous().numpy(), matrices, border)
    changed = warp_tensor(images, matrices, border).permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(changed, expected, atol=2.5)
    np.testing.assert_allclose(changed[1], expected[1], atol=1e-2)  # whole pixels


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_dtype_is_kept(dtype: torch.dtype):
    assert augment_tensor(smooth().to(dtype), POLICIES["photos"], 0.5, rng_for(0, "x")).dtype == dtype


def test_symmetries_of_floats_are_exact_up_to_rounding():
    images = smooth(40)
    changed = augment_tensor(images, Policy("d4", flip=True, quarter_turns=True), 1.0, rng_for(0, "x"))
    kinds = set()
    for image, new in zip(images, changed, strict=True):
        square = [torch.rot90(side, turns, (1, 2)) for side in (image, image.flip(2)) for turns in range(4)]
        distances = [float((new - one).abs().max()) for one in square]
        assert min(distances) < 0.1
        kinds.add(int(np.argmin(distances)))
    assert len(kinds) == 8


def test_images_that_are_not_square_are_told(fit_images, image_module):
    data = TensorDataset(torch.rand(24, 3, 16, 12), torch.arange(24) % 3)
    with pytest.raises(EtudeError, match="images to augment are 16 × 12 pixels; crop or resize them to squares"):
        fit_images(image_module(), [AugmentRamp(rise=0.0)], data=data)


@pytest.mark.parametrize("settings", [{"strength": 1.5}, {"rise": 0.9, "finish": 0.2}, {"finish": -0.1}])
def test_settings_out_of_their_limits_are_refused(settings: dict[str, float]):
    with pytest.raises(EtudeError, match=r"AugmentRamp got strength=.*; strength lies in \[0, 1\]"):
        AugmentRamp(**settings)  # type: ignore[arg-type]


def test_an_unknown_policy_is_refused_at_once():
    with pytest.raises(EtudeError, match="no augmentation policy 'foto'"):
        AugmentRamp("foto")
