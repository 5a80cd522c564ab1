"""Batches of images made smaller."""

from __future__ import annotations

import torch


def shrink(images: torch.Tensor, height: int, width: int, *, channels_last: bool = False) -> torch.Tensor:
    """Return images of at most ``height`` × ``width`` pixels, bilinear with antialiasing; nothing is enlarged.

    Args:
        images: (B, C, H, W), or (B, H, W, C) with ``channels_last``; float or uint8, and so is the result.

    >>> shrink(torch.ones(2, 3, 8, 8), 4, 16).shape
    torch.Size([2, 3, 4, 8])
    """
    if channels_last:
        return shrink(images.permute(0, 3, 1, 2), height, width).permute(0, 2, 3, 1).contiguous()
    size = (min(height, images.shape[2]), min(width, images.shape[3]))
    if size == tuple(images.shape[2:]):
        return images
    # In float32: not every device interpolates half precision and uint8 with antialiasing.
    exact = images if images.dtype == torch.float64 else images.float()
    resized = torch.nn.functional.interpolate(exact, size, mode="bilinear", antialias=True)
    return resized.round_().to(torch.uint8) if images.dtype == torch.uint8 else resized.to(images.dtype)
