"""The augmentation policies for batches of tensors, on whatever device they are."""

from __future__ import annotations

import numpy as np
import torch

from etude.functional.augment import augment, refuse_oblong
from etude.functional.changes import Changes, draw_changes
from etude.functional.color_tensor import Range, color_tensor, tone_tensor
from etude.functional.effects_tensor import effects_tensor
from etude.functional.policies import Policy
from etude.functional.warp import warp_matrices
from etude.functional.warp_tensor import resized_tensor, warp_tensor


def augment_tensor(
    images: torch.Tensor,
    policy: Policy,
    strength: float,
    rng: np.random.Generator,
    *,
    channels_last: bool = False,
    size: int | None = None,
) -> torch.Tensor:
    """Return images changed by ``policy``, as :func:`~etude.functional.augment.augment` does with the same draws.

    Floats are taken as they are, in the range from the batch's smallest to its largest value: brightness moves by
    shares of that range, and nothing leaves it. So the batch may be normalised or not. uint8 runs from 0 to 255.
    The host never waits for the device. On smooth images the two differ by less than half a level in the mean.

    Args:
        images: square (B, C, S, S), or (B, S, S, C) with ``channels_last``; float or uint8, and so is the result.
        strength: in [0, 1]; 0 only resizes, by area averages.
        rng: draws the parameters.
        size: side of the results; None keeps S.

    Raises:
        EtudeError: the images are not square.

    >>> images = torch.rand(2, 3, 8, 8)
    >>> augment_tensor(images, Policy("mirror", flip=True), 0.0, np.random.default_rng(0)) is images
    True
    """
    height, width = images.shape[1:3] if channels_last else images.shape[2:]
    still = strength <= 0.0 or policy.changes_nothing
    if still and (size or height) == height == width:
        return images
    refuse_oblong(height, width)
    if images.dtype == torch.uint8 and images.device.type == "cpu":
        last = images if channels_last else images.permute(0, 2, 3, 1)
        changed = torch.from_numpy(augment(np.ascontiguousarray(last.numpy()), policy, strength, rng, size))
        return changed if channels_last else changed.permute(0, 3, 1, 2).contiguous()
    first = images.permute(0, 3, 1, 2) if channels_last else images
    changes = Changes() if still else draw_changes(policy, strength, rng, len(images))
    changed = apply_changes_tensor(first, changes, size)
    return changed.permute(0, 2, 3, 1).contiguous() if channels_last else changed.contiguous()


def apply_changes_tensor(images: torch.Tensor, changes: Changes, size: int | None = None) -> torch.Tensor:
    """Return (B, C, size, size): ``changes`` applied to square (B, C, S, S) images, uint8 or float."""
    side = images.shape[2]
    size = side if size is None else size
    limits = Range.of(images)
    exact = images if images.dtype == torch.float64 else images.float()
    if changes.geometry is None:
        changed = limits.held(resized_tensor(exact, size)) if size > side else resized_tensor(exact, size)
    else:
        changed = warp_tensor(exact, warp_matrices(changes.geometry, side, size), changes.border, size)
    if changes.color is not None:
        changed = color_tensor(changed, changes.color, limits)
    if changes.tone is not None:
        changed = tone_tensor(changed, changes.tone, limits)
    if changes.effects is not None:
        changed = effects_tensor(changed, changes.effects, limits)
    return changed.round().to(torch.uint8) if images.dtype == torch.uint8 else changed.to(images.dtype)
