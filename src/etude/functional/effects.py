"""What is neither warp nor colour map: sharpening, blur, noise and erasing, per image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

SMOOTH = np.array([[1.0, 1.0, 1.0], [1.0, 5.0, 1.0], [1.0, 1.0, 1.0]]) / 13.0
_ERASE_SEED = 0x5BD1E995  # tells the noise in a rectangle from the noise over the image
_MASK = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Effects:
    """Per-image parameters of effects; every array is (B,) but ``erase``. They apply in this order."""

    sharpness: np.ndarray  # 0 keeps the image, 1 moves it as far from its smoothed self as -1 moves it there
    blur: np.ndarray  # standard deviation of a Gaussian blur as a share of the side; 0 is none
    noise: np.ndarray  # standard deviation of the noise as a share of the full range; 0 is none
    erase: np.ndarray  # (B, 4) left, top, right and bottom of the erased rectangle as shares of the side; equal: none
    seed: np.ndarray  # int64 (B,) in [0, 2³²), of the noise
    fill: str = "mean"  # of the erased rectangle: the image's mean, or uniform "noise"

    @classmethod
    def identity(cls, count: int) -> Effects:
        """Return parameters that change nothing."""
        zeros = np.zeros(count)
        return cls(zeros, zeros, zeros, np.zeros((count, 4)), np.zeros(count, np.int64))

    def boxes(self, size: int) -> np.ndarray:
        """Return the erased rectangles as int (B, 4) pixel edges in images of side ``size``."""
        return np.rint(self.erase * size).astype(int)


def apply_effects(images: np.ndarray, effects: Effects) -> None:
    """Change uint8 (B, S, S, C) in place."""
    size = images.shape[1]
    for row in np.flatnonzero(effects.sharpness).tolist():
        kernel = sharpening_kernel(float(effects.sharpness[row]))
        cv2.filter2D(images[row], -1, kernel, images[row], borderType=cv2.BORDER_REPLICATE)
    for row in np.flatnonzero(effects.blur).tolist():
        taps = blur_kernels(effects.blur[row : row + 1] * size)[0]
        cv2.sepFilter2D(images[row], -1, taps, taps, images[row], borderType=cv2.BORDER_REPLICATE)
    for row in np.flatnonzero(effects.noise).tolist():
        normal = hashed_normal(effects.seed[row : row + 1, None], np.arange(images[row].size)[None])
        noisy = images[row] + 255.0 * effects.noise[row] * normal.reshape(images[row].shape)
        images[row] = np.clip(np.rint(noisy), 0, 255)
    boxes = effects.boxes(size)
    for row in np.flatnonzero((boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])).tolist():
        (left, top, right, bottom), image = boxes[row].tolist(), images[row]
        filling = np.broadcast_to(np.rint(image.mean((0, 1))), image.shape)
        if effects.fill == "noise":
            filling = hashed_levels(effects.seed[row : row + 1], np.arange(image.size)).reshape(image.shape)
        image[top:bottom, left:right] = filling[top:bottom, left:right]


def sharpening_kernel(sharpness: float) -> np.ndarray:
    """Return the 3 × 3 kernel that moves an image away from its smoothed self, or there where negative."""
    keep = np.outer([0.0, 1.0, 0.0], [0.0, 1.0, 0.0])
    return keep + sharpness * (keep - SMOOTH)


def blur_kernels(deviations: np.ndarray) -> np.ndarray:
    """Return (B, taps) Gaussian kernels for standard deviations (B,) in pixels, each cut at three of them."""
    reach = np.ceil(3.0 * deviations)
    places = np.arange(-reach.max(), reach.max() + 1.0)
    weights = np.exp(-0.5 * (places / np.maximum(deviations, 1e-9)[:, None]) ** 2)
    weights[np.abs(places) > reach[:, None]] = 0.0
    return weights / weights.sum(1, keepdims=True)


def hashed(seeds: Any, places: Any) -> Any:
    """Return 32 random bits for each seed and place, as int64; the same from numpy arrays as from tensors.

    A counter-based generator: noise of any size from one draw an image, the same on every device. The mixing is
    ``lowbias32`` of Wellons' hash-prospector.
    """
    bits = (places * 0x9E3779B1 + seeds * 0x85EBCA6B) & _MASK
    bits = ((bits ^ (bits >> 16)) * 0x7FEB352D) & _MASK
    bits = ((bits ^ (bits >> 15)) * 0x846CA68B) & _MASK
    return bits ^ (bits >> 16)


def hashed_normal(seeds: Any, places: Any) -> Any:
    """Return noise of mean 0 and variance 1: the sum of four random bytes, near to Gaussian and within ±3.5."""
    bits = hashed(seeds, places)
    total = (bits & 255) + ((bits >> 8) & 255) + ((bits >> 16) & 255) + (bits >> 24)
    return (total - 510) / 147.8005413  # the square root of 4 · (256² - 1) / 12


def hashed_levels(seeds: Any, places: Any) -> Any:
    """Return uniform levels from 0 to 255, as int64, for the inside of erased rectangles."""
    return hashed(seeds ^ _ERASE_SEED, places) >> 24
