"""The augmentation policies for batches of tensors, on whatever device they are."""

from __future__ import annotations

import numpy as np
import torch

from etude.core.errors import EtudeError
from etude.functional.augment import Policy, augment, draw_geometry
from etude.functional.warp import affine_matrices

_PADDING = {"reflect": "reflection", "replicate": "border"}


def augment_tensor(
    images: torch.Tensor,
    policy: Policy,
    strength: float,
    rng: np.random.Generator,
    *,
    channels_last: bool = False,
) -> torch.Tensor:
    """Return images changed by ``policy``, as :func:`~etude.functional.augment.augment` does with the same draws.

    Floats are taken as they are, in the range from the batch's smallest to its largest value: brightness moves by
    shares of that range, and nothing leaves it. So the batch may be normalised or not.

    Args:
        images: square (B, C, S, S), or (B, S, S, C) with ``channels_last``; float or uint8, and so is the result.
        strength: in [0, 1]; 0 is the identity.
        rng: draws the parameters.

    Raises:
        EtudeError: the images are not square.

    >>> images = torch.rand(2, 3, 8, 8)
    >>> augment_tensor(images, Policy("mirror", flip=True), 0.0, np.random.default_rng(0)) is images
    True
    """
    if strength <= 0.0 or policy == Policy(policy.name):
        return images
    height, width = images.shape[1:3] if channels_last else images.shape[2:]
    if height != width:
        raise EtudeError(f"images to augment are {height} × {width} pixels; crop or resize them to squares first")
    if images.dtype == torch.uint8 and images.device.type == "cpu":
        last = images if channels_last else images.permute(0, 2, 3, 1)
        changed = torch.from_numpy(augment(np.ascontiguousarray(last.numpy()), policy, strength, rng))
        return changed if channels_last else changed.permute(0, 3, 1, 2).contiguous()
    first = images.permute(0, 3, 1, 2) if channels_last else images
    changed = _augment_floats(first if first.dtype == torch.float64 else first.float(), policy, strength, rng)
    changed = changed.round_().to(torch.uint8) if images.dtype == torch.uint8 else changed.to(images.dtype)
    return changed.permute(0, 2, 3, 1).contiguous() if channels_last else changed


def _augment_floats(images: torch.Tensor, policy: Policy, strength: float, rng: np.random.Generator) -> torch.Tensor:
    lowest, highest = images.amin(), images.amax()
    matrices = affine_matrices(draw_geometry(policy, strength, rng, len(images)), images.shape[2])
    changed = warp_tensor(images, matrices, policy.border)
    if not (policy.contrast or policy.brightness):
        return changed
    gain = _column(1.0 + strength * policy.contrast * rng.uniform(-1, 1, len(images)), images)
    offset = _column(strength * policy.brightness * rng.uniform(-1, 1, len(images)), images)
    mean = changed.mean((1, 2, 3), keepdim=True)
    return (gain * (changed - mean) + mean + (highest - lowest) * offset).clamp(lowest, highest)


def warp_tensor(images: torch.Tensor, matrices: np.ndarray, border: str = "reflect") -> torch.Tensor:
    """Return float (B, C, S, S) warped by (B, 2, 3) matrices that map input pixels to output pixels, bilinear.

    Args:
        border: ``reflect`` mirrors the image about its edge, ``replicate`` repeats the edge pixels.
    """
    # grid_sample asks where each output pixel comes from, in coordinates that run from -1 to 1 between pixel centres.
    size = images.shape[2]
    inverse = np.linalg.inv(matrices[:, :, :2])
    origin = -(inverse @ matrices[:, :, 2:])
    half = max(size - 1, 1) / 2.0
    centre = np.full((2, 1), (size - 1) / 2.0)
    theta = np.concatenate([inverse, (inverse @ centre + origin - centre) / half], axis=2)
    grid = torch.nn.functional.affine_grid(torch.from_numpy(theta).to(images), list(images.shape), align_corners=True)
    return torch.nn.functional.grid_sample(
        images, grid, mode="bilinear", padding_mode=_PADDING[border], align_corners=True
    )


def _column(values: np.ndarray, images: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(values).to(images)[:, None, None, None]
