"""Colour maps and tone curves of batches of tensors, as :mod:`etude.functional.color` and ``tone`` do them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from etude.functional.color import Color, chroma_matrices
from etude.functional.tone import Tone
from etude.functional.warp_tensor import sent


@dataclass(frozen=True, slots=True)
class Range:
    """The values that stand for level 0 and level 255, as tensors (): the host need not wait to know them.

    Args:
        lowest: of level 0.
        highest: of level 255.
    """

    lowest: torch.Tensor
    highest: torch.Tensor

    @classmethod
    def of(cls, images: torch.Tensor) -> Range:
        """Return the full range of uint8, or from the smallest to the largest value of floats."""
        if images.dtype == torch.uint8:
            return cls(torch.zeros((), device=images.device), torch.full((), 255.0, device=images.device))
        exact = images if images.dtype == torch.float64 else images.float()
        return cls(exact.amin(), exact.amax())

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
