"""The augmentation policies for batches of tensors, on their device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch.nn.functional import avg_pool2d, conv2d, grid_sample, interpolate, pad

from etude.functional.augment import Changes, Policy, augment, draw_changes, refuse_oblong
from etude.functional.color import Color, Tone, chroma_matrices
from etude.functional.effects import Effects, blur_kernels, hashed_levels, hashed_normal, sharpening_kernel
from etude.functional.warp import reduced_matrices, reduction_factors, warp_matrices


def shrink(images: torch.Tensor, height: int, width: int, *, channels_last: bool = False) -> torch.Tensor:
    """Return float or uint8 images of at most ``height`` × ``width`` pixels, antialiased; nothing is enlarged."""
    if channels_last:
        return shrink(images.permute(0, 3, 1, 2), height, width).permute(0, 2, 3, 1).contiguous()
    size = (min(height, images.shape[2]), min(width, images.shape[3]))
    if size == tuple(images.shape[2:]):
        return images
    # In float32: not every device interpolates half precision and uint8 with antialiasing.
    return _as_before(interpolate(_exact(images), size, mode="bilinear", antialias=True), images)


def _exact(images: torch.Tensor) -> torch.Tensor:
    return images if images.dtype == torch.float64 else images.float()


def _as_before(changed: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    return changed.round().to(torch.uint8) if images.dtype == torch.uint8 else changed.to(images.dtype)


_PADDING = {"reflect": "reflection", "replicate": "border"}


def warp_tensor(
    images: torch.Tensor, matrices: np.ndarray, border: str = "reflect", size: int | None = None
) -> torch.Tensor:
    """Return float (B, C, size, size) warped from (B, C, S, S), bilinear, in channels_last memory."""
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
    """Return float (B, C, size, size): area averages where that is smaller, cubic where larger, else the images."""
    side = images.shape[2]
    if side == size:
        return images
    if size > side:
        return interpolate(images, (size, size), mode="bicubic", align_corners=False)
    weights = sent(area_weights(side, size), images.device, images.dtype)
    return torch.einsum("ij,bcjk,lk->bcil", weights, images, weights)


@lru_cache(maxsize=32)
def area_weights(side: int, size: int) -> np.ndarray:
    """Return float64 (size, side): the share of each of ``side`` pixels in averages over ``side / size`` of them."""
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
    mapped = places @ theta.transpose(1, 2)
    grid = (mapped[..., :2] / mapped[..., 2:]).reshape(len(images), size, size, 2)
    return grid_sample(images, grid, mode="bilinear", padding_mode=_PADDING[border], align_corners=True)


@dataclass(frozen=True, slots=True)
class Range:
    """The values that stand for level 0 and level 255, as tensors (): the host need not wait to know them."""

    lowest: torch.Tensor
    highest: torch.Tensor

    @classmethod
    def of(cls, images: torch.Tensor) -> Range:
        """Return the full range of uint8, or from the smallest to the largest value of floats."""
        if images.dtype == torch.uint8:
            return cls(torch.zeros((), device=images.device), torch.full((), 255.0, device=images.device))
        return cls(_exact(images).amin(), _exact(images).amax())

    @property
    def span(self) -> torch.Tensor:
        """Return the distance between the two."""
        return self.highest - self.lowest

    def held(self, images: torch.Tensor) -> torch.Tensor:
        """Return the images with values beyond the range set to its ends."""
        return images.clamp(self.lowest, self.highest)

    def levels(self, images: torch.Tensor) -> torch.Tensor:
        """Return the images in levels from 0 to 255."""
        return (images - self.lowest) * torch.where(self.span > 0, 255.0 / self.span, 0.0)

    def values(self, levels: torch.Tensor) -> torch.Tensor:
        """Return what :meth:`levels` was given."""
        return levels * (self.span / 255.0) + self.lowest


def color_tensor(images: torch.Tensor, color: Color, limits: Range) -> torch.Tensor:
    """Return float (B, C, H, W) through one affine map of each image's colours, within the range."""
    packed = [color.contrast[:, None], color.brightness[:, None], chroma_matrices(color).reshape(-1, 9)]
    sheet = sent(np.concatenate(packed, axis=1), images.device, images.dtype)  # one transfer for all of it
    gain, brightness = sheet[:, 0, None, None], sheet[:, 1, None, None]
    means = images.mean((2, 3))
    shift = limits.span * brightness
    if images.shape[1] != 3 or color.keeps_chroma:
        offset = means.mean(1)[:, None, None] * (1.0 - gain) + shift
        return limits.held(images * gain[..., None] + offset[..., None])
    chroma = sheet[:, 2:].reshape(-1, 3, 3)
    mean = (chroma @ means[:, :, None]).mean(1, keepdim=True)
    offset = (mean * (1.0 - gain) + shift).expand(-1, 1, 3)
    # In channels_last memory the pixels lie side by side, so this is one matrix product an image.
    height, width = images.shape[2:]
    pixels = images.permute(0, 2, 3, 1).reshape(len(images), height * width, 3)
    mapped = torch.baddbmm(offset, pixels, (gain * chroma).transpose(1, 2))
    return limits.held(mapped).reshape(-1, height, width, 3).permute(0, 3, 1, 2)


def tone_tensor(images: torch.Tensor, tone: Tone, limits: Range) -> torch.Tensor:
    """Return float (B, C, H, W) through each image's tone curves; those without any are left as they are."""
    if not len(rows := tone.touched):
        return images
    places = sent(rows, images.device, torch.int64)
    packed = np.stack([tone.stretch, 2.0 ** (8 - tone.bits), tone.solarize], axis=1)[rows]
    stretch, step, solarize = sent(packed, images.device, images.dtype).T[:, :, None, None, None]
    levels = limits.levels(images[places]).round()
    lowest, highest = levels.amin((2, 3), keepdim=True), levels.amax((2, 3), keepdim=True)
    stretched = (levels - lowest) * (255.0 / (highest - lowest).clamp_min(1.0))
    levels = torch.where((stretch > 0) & (highest > lowest), stretched, levels).round()
    levels = (levels / step).floor() * step
    levels = torch.where(levels >= solarize, 255.0 - levels, levels)
    changed = images.clone()
    changed[places] = limits.values(levels)
    return changed


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
    height, width = kernels.shape[1:]
    weights = sent(kernels, images.device, images.dtype).repeat_interleave(images.shape[1], 0)[:, None]
    padded = pad(images, (width // 2, width // 2, height // 2, height // 2), mode="replicate").flatten(0, 1)[None]
    return conv2d(padded, weights, groups=len(weights)).reshape(images.shape)


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

    Floats, normalised or not, have the range from the batch's smallest to its largest value: brightness moves by shares
    of it, and nothing leaves it. uint8 runs from 0 to 255. The host never waits for the device. On smooth images the
    two functions differ by less than half a level in the mean.

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
    limits, exact = Range.of(images), _exact(images)
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
    return _as_before(changed, images)
