from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from etude.core.errors import EtudeError
from etude.core.images import resized
from etude.core.seeds import rng_for
from etude.functional.augment import POLICIES, Policy, augment, draw_changes
from etude.functional.augment_tensor import area_weights, augment_tensor, resized_tensor

FIELDS = {
    "crop": Policy("crop", flip=True, crop=0.8, log_aspect=0.3),
    "perspective": Policy("perspective", perspective=0.3, angle=20, log_scale=0.5, border="replicate"),
    "colour": Policy("colour", saturation=0.8, hue=60, grey=0.3, contrast=0.5, brightness=0.3),
    "erase": Policy("erase", erase=1.0, angle=5),
    "erase noise": Policy("erase noise", erase=1.0, erase_fill="noise"),
    "noise": Policy("noise", noise=1.0, noise_level=0.1, shift=0.1),
    "blur": Policy("blur", blur=1.0, blur_width=0.05, angle=5),
}
EVERY = pytest.mark.each("policy", [*POLICIES.values(), *FIELDS.values()], ids=lambda policy: policy.name)
SIZES = pytest.mark.each(
    ("side", "size"), [(40, 40), (64, 32), (75, 32), (90, 24), (24, 40)], ids=lambda value: str(value)
)


def smooth(count: int, size: int, channels: int = 3) -> np.ndarray:
    """Images without sharp edges, uint8 (B, S, S, C), that reach from level 0 to 255."""
    coarse = torch.rand(count, channels, 6, 6, generator=torch.Generator().manual_seed(0))
    images = torch.nn.functional.interpolate(coarse, (size, size), mode="bicubic", align_corners=True)
    images = (images - images.amin()) / (images.amax() - images.amin()) * 255
    return images.round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()


def as_floats(images: np.ndarray, policy: Policy, strength: float, size: int | None) -> np.ndarray:
    """What the path for devices makes of ``images``."""
    floats = torch.from_numpy(images).permute(0, 3, 1, 2).float()
    return augment_tensor(floats, policy, strength, rng_for(0, "x"), size=size).permute(0, 2, 3, 1).numpy()


@EVERY
@SIZES
@pytest.mark.each("channels", [1, 3])
@pytest.mark.each("strength", [0.0, 0.4, 1.0])
def test_both_paths_agree(policy: Policy, side: int, size: int, channels: int, strength: float):
    """Half a level in the mean and two levels for 99 of 100 values: OpenCV interpolates at 32nds of a pixel and rounds
    after each stage, which a tone curve's steps can make visible."""
    images = smooth(24, side, channels)
    expected = augment(images, policy, strength, rng_for(0, "x"), size).astype(float)
    difference = np.abs(as_floats(images, policy, strength, size) - expected)
    assert expected.shape == (24, size, size, channels)
    if policy.trivial and strength:
        # Where rounding moves a level over a step of posterize or solarize, those pixels differ by the step.
        tone = draw_changes(policy, strength, rng_for(0, "x"), 24).tone
        assert tone is not None
        stepped = (tone.bits < 8) | (tone.solarize < 256)
        assert np.median(difference[stepped], axis=(1, 2, 3)).max() <= 1.0
        assert (difference[stepped] > 2).mean() < 0.05
        difference = difference[~stepped]
    assert difference.mean() < 0.5
    assert np.quantile(difference, 0.99) <= 2.0


@pytest.mark.parametrize("fill", ["mean", "noise"])
def test_erased_rectangles_are_the_same_pixels(fill: str):
    images = smooth(16, 40)
    policy = Policy("erase", erase=1.0, erase_fill=fill)
    one, other = augment(images, policy, 1.0, rng_for(0, "x")), as_floats(images, policy, 1.0, None)
    assert ((one != images).any(3) == (np.abs(other - images) > 0.5).any(3)).mean() > 0.995
    assert np.abs(one - other).max() <= (1.0 if fill == "mean" else 1e-3)


@EVERY
@pytest.mark.each("channels_last", [False, True])
def test_uint8_on_the_cpu_takes_the_way_of_arrays(policy: Policy, channels_last: bool):
    images = smooth(5, 30)
    expected = augment(images, policy, 0.7, rng_for(0, "x"), 20)
    given = torch.from_numpy(images) if channels_last else torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    changed = augment_tensor(given, policy, 0.7, rng_for(0, "x"), channels_last=channels_last, size=20)
    assert changed.is_contiguous()
    np.testing.assert_array_equal(changed if channels_last else changed.permute(0, 2, 3, 1), expected)


@EVERY
def test_the_input_stays_and_results_keep_the_range_and_type(policy: Policy):
    images = torch.from_numpy(smooth(12, 40)).permute(0, 3, 1, 2).to(torch.float64) / 100 - 1
    before = images.clone()
    changed = augment_tensor(images, policy, 1.0, rng_for(0, "x"), size=30)
    assert torch.equal(images, before)
    assert changed.dtype == torch.float64
    assert changed.shape == (12, 3, 30, 30)
    assert float(changed.amin()) >= float(images.amin()) - 1e-9
    assert float(changed.amax()) <= float(images.amax()) + 1e-9


class Foreign(torch.overrides.TorchFunctionMode):
    """Fails where the host would have to wait for a device."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "")
        assert name not in {"item", "__bool__", "__float__", "__int__", "tolist", "numpy", "cpu", "nonzero"}, name
        return func(*args, **(kwargs or {}))


@EVERY
def test_the_host_never_reads_a_value_off_the_device(policy: Policy):
    images = torch.from_numpy(smooth(12, 40)).permute(0, 3, 1, 2).float()
    with Foreign():
        augment_tensor(images, policy, 1.0, rng_for(0, "x"), size=24)


def test_that_reading_would_be_noticed():
    with pytest.raises(AssertionError, match="item"), Foreign():
        torch.ones(1).item()


@pytest.mark.parametrize(("side", "size"), [(9, 9), (30, 10), (31, 12), (10, 27), (200, 64)])
def test_resizing_agrees_too(side: int, size: int):
    images = smooth(3, side)
    floats = torch.from_numpy(images).permute(0, 3, 1, 2).float()
    changed = resized_tensor(floats, size).permute(0, 2, 3, 1).numpy()
    assert np.abs(np.clip(changed, 0, 255) - resized(images, size)).max() < 1.1


@pytest.mark.parametrize(("side", "size"), [(3, 2), (7, 7), (100, 33)])
def test_area_weights_share_out_all_pixels_evenly(side: int, size: int):
    weights = area_weights(side, size)
    np.testing.assert_allclose(weights.sum(1), 1.0)
    np.testing.assert_allclose(weights.sum(0), size / side)


def test_images_that_are_not_square_are_told():
    with pytest.raises(EtudeError, match="images to augment are 8 × 6 pixels"):
        augment_tensor(torch.rand(1, 3, 8, 6), POLICIES["photos"], 1.0, rng_for(0, "x"))


def test_flat_images_survive_every_operation():
    flat = torch.full((40, 3, 16, 16), 7.0)
    for policy in (*POLICIES.values(), dataclasses.replace(FIELDS["blur"], noise=1.0, erase=1.0)):
        changed = augment_tensor(flat, policy, 1.0, rng_for(0, "x"))
        assert torch.allclose(changed, flat, atol=1e-4)
