"""Sharpening, blur, noise and erasing of batches of tensors, as :mod:`etude.functional.effects` does them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch.nn.functional import conv2d, pad

from etude.functional.color_tensor import Range
from etude.functional.effects import Effects, blur_kernels, hashed_levels, hashed_normal, sharpening_kernel
from etude.functional.warp_tensor import sent


def effects_tensor(images: torch.Tensor, effects: Effects, limits: Range) -> torch.Tensor:
    """Return float (B, C, S, S) with each image's effects, within the range."""
    changed = images
    if len(rows := np.flatnonzero(effects.sharpness)):
        kernels = np.stack([sharpening_kernel(float(sharpness)) for sharpness in effects.sharpness[rows]])
        changed = _replaced(changed, rows, lambda some: limits.held(_convolved(some, kernels)))
    if len(rows := np.flatnonzero(effects.blur)):
        taps = blur_kernels(effects.blur[rows] * images.shape[2])
        changed = _replaced(
            changed, rows, lambda some: _convolved(_convolved(some, taps[:, None, :]), taps[:, :, None])
        )
    if len(rows := np.flatnonzero(effects.noise)):
        changed = _replaced(changed, rows, lambda some: limits.held(_noisy(some, effects, rows, limits)))
    boxes = effects.boxes(images.shape[2])
    if len(rows := np.flatnonzero((boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1]))):
        changed = _replaced(changed, rows, lambda some: _erased(some, effects, rows, boxes[rows], limits))
    return changed


def _replaced(images: torch.Tensor, rows: np.ndarray, change: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    places = sent(rows, images.device, torch.int64)
    changed = images.clone()
    changed[places] = change(images[places])
    return changed


def _convolved(images: torch.Tensor, kernels: np.ndarray) -> torch.Tensor:
    """Convolve each image with its own kernel (B, height, width); the edge is repeated."""
    count, channels, side, _ = images.shape
    height, width = kernels.shape[1:]
    weights = sent(kernels, images.device, images.dtype).repeat_interleave(channels, 0)[:, None]
    edges = (width // 2, width // 2, height // 2, height // 2)
    padded = pad(images, edges, mode="replicate").reshape(1, count * channels, *_grown(side, edges))
    return conv2d(padded, weights, groups=count * channels).reshape(count, channels, side, side)


def _grown(side: int, edges: tuple[int, int, int, int]) -> tuple[int, int]:
    return side + edges[2] + edges[3], side + edges[0] + edges[1]


def _noisy(images: torch.Tensor, effects: Effects, rows: np.ndarray, limits: Range) -> torch.Tensor:
    deviation = sent(effects.noise[rows], images.device, images.dtype)[:, None, None, None]
    normal = _image_shaped(hashed_normal(*_counters(images, effects, rows)), images)
    return images + normal.to(images.dtype) * deviation * limits.span


def _erased(images: torch.Tensor, effects: Effects, rows: np.ndarray, boxes: np.ndarray, limits: Range) -> torch.Tensor:
    left, top, right, bottom = sent(boxes, images.device, torch.int64).T[:, :, None, None, None]
    line = torch.arange(images.shape[2], device=images.device)
    across, down = line[None, None, None, :], line[None, None, :, None]
    inside = (across >= left) & (across < right) & (down >= top) & (down < bottom)
    if effects.fill == "noise":
        levels = _image_shaped(hashed_levels(*_counters(images, effects, rows)), images).to(images.dtype)
        return torch.where(inside, limits.values(levels), images)
    return torch.where(inside, images.mean((2, 3), keepdim=True), images)


def _counters(images: torch.Tensor, effects: Effects, rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    seeds = sent(effects.seed[rows], images.device, torch.int64)[:, None]
    return seeds, torch.arange(images[0].numel(), device=images.device)[None]


def _image_shaped(flat: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """Return (B, C, H, W) from values that count pixel by pixel, as the arrays on the CPU do."""
    count, channels, height, width = images.shape
    return flat.reshape(count, height, width, channels).permute(0, 3, 1, 2)
