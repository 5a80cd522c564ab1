"""A small convolutional network for tiny images, where a pretrained backbone would be wasted."""

from __future__ import annotations

from typing import cast

import torch
from torch import nn


class _ConvBlock(nn.Module):
    """Two 3x3 convolutions with batch norm; the second is residual. Ends by halving the side."""

    def __init__(self, channels_in: int, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.pool = nn.MaxPool2d(2)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        # Pooling straight after the first convolution leaves a quarter of the pixels to everything that follows.
        image = torch.relu(self.norm1(self.pool(self.conv1(image))))
        return image + torch.relu(self.norm2(self.conv2(image)))


class TinyNet(nn.Module):
    """Map (B, channels, H, W) floats to (B, ``num_features``) features, for images of about 16 to 64 px.

    Args:
        channels: of the input, 1 or 3.
        widths: channels of the blocks; each block halves the side.

    >>> TinyNet(channels=1)(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 128])
    """

    def __init__(self, channels: int = 3, widths: tuple[int, ...] = (32, 64, 128)) -> None:
        super().__init__()
        self.num_features = widths[-1]
        blocks = [_ConvBlock(before, after) for before, after in zip((channels, *widths[:-1]), widths, strict=True)]
        self.blocks = nn.Sequential(*blocks)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return the features: the maximum over places, so that where a stroke lies matters little."""
        return torch.amax(cast(torch.Tensor, self.blocks(image)), dim=(2, 3))
