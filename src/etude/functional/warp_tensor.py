"""Warps and resizing of batches of tensors, on whatever device they are, as :mod:`etude.functional.warp` does them."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch.nn.functional import avg_pool2d, grid_sample, interpolate, pad

from etude.functional.warp import reduced_matrices, reduction_factors

_PADDING = {"reflect": "reflection", "replicate": "border"}


def warp_tensor(
    images: torch.Tensor, matrices: np.ndarray, border: str = "reflect", size: int | None = None
) -> torch.Tensor:
    """Return float (B, C, size, size) warped from (B, C, S, S), bilinear, in channels_last memory.

    Args:
        matrices: (B, 2, 3) or (B, 3, 3), from :func:`~etude.functional.warp.warp_matrices` for S and ``size``.
        border: ``reflect`` mirrors the image about its edge, ``replicate`` repeats the edge pixels.
        size: side of the results; None keeps S.
    """
    size = images.shape[2] if size is None else size
    images = images.contiguous(memory_format=torch.channels_last)
    factors = reduction_factors(matrices, images.shape[2])
    whole = np.zeros((len(matrices), 3, 3))
    whole[:, 2, 2] = 1.0
    whole[:, : matrices.shape[1]] = matrices
    sources = np.linalg.inv(reduced_matrices(whole, factors))
    known = np.unique(factors).tolist()  # the host drew the matrices, so nothing has to wait for the device
    if len(known) == 1:
        return _sampled(averaged(images, known[0]), sources, border, size)
    shape = (len(images), images.shape[1], size, size)
    warped = torch.empty(shape, dtype=images.dtype, device=images.device, memory_format=torch.channels_last)
    for factor in known:
        rows = np.flatnonzero(factors == factor)
        places = sent(rows, images.device, torch.int64)
        warped[places] = _sampled(averaged(images[places], factor), sources[rows], border, size)
    return warped


def resized_tensor(images: torch.Tensor, size: int) -> torch.Tensor:
    """Return float (B, C, size, size): area averages where that is smaller, cubic where larger, else the images.

    >>> resized_tensor(torch.tensor([[[[0.0, 2.0], [4.0, 6.0]]]]), 1)
    tensor([[[[3.]]]])
    """
    side = images.shape[2]
    if side == size:
        return images
    if size > side:
        return interpolate(images, (size, size), mode="bicubic", align_corners=False)
    weights = sent(area_weights(side, size), images.device, images.dtype)
    return torch.einsum("ij,bcjk,lk->bcil", weights, images, weights)


@lru_cache(maxsize=32)
def area_weights(side: int, size: int) -> np.ndarray:
    """Return float64 (size, side): which share each of ``side`` pixels has in an average over ``side / size`` of them.

    >>> area_weights(3, 2).round(3).tolist()
    [[0.667, 0.333, 0.0], [0.0, 0.333, 0.667]]
    """
    edges = np.arange(size + 1)[:, None] * (side / size)
    pixels = np.arange(side)[None]
    covered = np.minimum(edges[1:], pixels + 1) - np.maximum(edges[:-1], pixels)
    return np.maximum(covered, 0.0) * (size / side)


def averaged(images: torch.Tensor, factor: int) -> torch.Tensor:
    """Average ``factor`` × ``factor`` pixels; the edge is repeated up to a whole number of them."""
    if factor == 1:
        return images
    if beyond := -images.shape[2] % factor:
        images = pad(images, (0, beyond, 0, beyond), mode="replicate")
    return avg_pool2d(images, factor)


def sent(values: np.ndarray, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """Return small values on the device, without waiting for what the device is doing."""
    return torch.from_numpy(values).to(dtype).to(device, non_blocking=True)


def _sampled(images: torch.Tensor, sources: np.ndarray, border: str, size: int) -> torch.Tensor:
    """Sample each output pixel where ``sources`` (B, 3, 3) maps it."""
    # grid_sample counts places from -1 to 1 between the centres of the outermost pixels.
    half = max(images.shape[2] - 1, 1) / 2.0
    shrink = np.array([[1.0 / half, 0.0, -1.0], [0.0, 1.0 / half, -1.0], [0.0, 0.0, 1.0]])
    theta = sent(shrink @ sources, images.device, images.dtype)
    line = torch.arange(size, device=images.device, dtype=images.dtype)
    down, across = torch.meshgrid(line, line, indexing="ij")
    places = torch.stack([across, down, torch.ones_like(across)], dim=-1).reshape(size * size, 3)
    seen = places @ theta.transpose(1, 2)
    grid = (seen[..., :2] / seen[..., 2:]).reshape(len(images), size, size, 2)
    return grid_sample(images, grid, mode="bilinear", padding_mode=_PADDING[border], align_corners=True)
