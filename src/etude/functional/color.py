"""All colour changes of an augmentation composed into one affine map per image."""

from __future__ import annotations

import numpy as np


def color_map(images: np.ndarray, gain: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """Return uint8 images with contrast scaled about each image's mean and brightness shifted.

    ``out = clip(gain * (image - mean) + mean + 255 * offset)``.

    Args:
        images: uint8 (B, H, W, C).
        gain: contrast factor (B,); 1 keeps it.
        offset: brightness change (B,) as a share of the full range; 0 keeps it.

    >>> image = np.full((1, 2, 2, 1), 100, np.uint8)
    >>> int(color_map(image, np.ones(1), np.full(1, 0.2))[0, 0, 0, 0])
    151
    """
    levels = np.arange(256, dtype=np.float32)
    changed = np.empty_like(images)
    for image, g, o, out in zip(images, gain, offset, changed, strict=True):
        mean = float(image.mean())
        # A table of 256 entries does the arithmetic once a level instead of once a pixel.
        table = np.clip(np.rint(g * (levels - mean) + mean + 255.0 * o), 0, 255).astype(np.uint8)
        np.take(table, image, out=out)
    return changed
