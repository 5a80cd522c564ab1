"""Tone curves of single images: posterize, solarize, autocontrast, as tables of 256 levels."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np


@dataclass(frozen=True, slots=True)
class Tone:
    """Per-image parameters of tone curves; every array is (B,). They apply in this order.

    Args:
        stretch: autocontrast: stretch each channel to the full range.
        bits: of each level that are kept, the highest ones; 8 keeps all.
        solarize: levels from here on are inverted; 256 inverts none.
    """

    stretch: np.ndarray
    bits: np.ndarray
    solarize: np.ndarray

    @classmethod
    def identity(cls, count: int) -> Tone:
        """Return parameters that change nothing."""
        return cls(np.zeros(count, bool), np.full(count, 8), np.full(count, 256.0))

    @property
    def touched(self) -> np.ndarray:
        """Return the positions of the images that change."""
        return np.flatnonzero(self.stretch | (self.bits < 8) | (self.solarize < 256.0))


def tone_map(images: np.ndarray, tone: Tone) -> None:
    """Change uint8 (B, H, W, C) in place.

    >>> image = np.array([10, 200], np.uint8).reshape(1, 1, 2, 1)
    >>> tone_map(image, Tone(np.zeros(1, bool), np.array([2]), np.array([256.0])))
    >>> image.ravel().tolist()
    [0, 192]
    """
    for row in tone.touched.tolist():
        image = images[row]
        tables = _stretched(image) if tone.stretch[row] else np.arange(256.0)[:, None]
        tables = np.floor(np.rint(tables) / 2.0 ** (8 - tone.bits[row])) * 2.0 ** (8 - tone.bits[row])
        tables = np.where(tables >= tone.solarize[row], 255.0 - tables, tables).astype(np.uint8)
        # OpenCV takes one table for all channels, or one each side by side.
        cv2.LUT(image, np.ascontiguousarray(tables).reshape(1, 256, -1), image)


def _stretched(image: np.ndarray) -> np.ndarray:
    """Return (256, C) tables; a channel of one level stays as it is."""
    ends = [cv2.minMaxLoc(cv2.extractChannel(image, channel))[:2] for channel in range(image.shape[2])]
    lowest, highest = np.array(ends).T
    flat = highest == lowest
    scale = np.where(flat, 1.0, 255.0 / np.where(flat, 1.0, highest - lowest))
    return np.clip((np.arange(256.0)[:, None] - np.where(flat, 0.0, lowest)) * scale, 0.0, 255.0)
