"""Resizing of square images, the one way it is done on the CPU, and thumbnails."""

from __future__ import annotations

import cv2
import numpy as np

_JPEG = [cv2.IMWRITE_JPEG_QUALITY, 82]

THUMBNAIL = 96
"""Pixels at most of a thumbnail's side; images that are stored smaller stay as they are."""


def resize_into(image: np.ndarray, target: np.ndarray) -> None:
    """Write (S, S, C) into ``target`` (T, T, C), uint8: area average when T is smaller, cubic when it is larger."""
    size = len(target)
    if size == len(image):
        target[...] = image
    else:
        cv2.resize(image, (size, size), target, interpolation=cv2.INTER_AREA if size < len(image) else cv2.INTER_CUBIC)


def resized(images: np.ndarray, size: int) -> np.ndarray:
    """Return uint8 (B, size, size, C) from (B, S, S, C); ``images`` itself where S is ``size``."""
    if images.shape[1] == size:
        return images
    result = np.empty((len(images), size, size, images.shape[3]), np.uint8)
    for image, target in zip(images, result, strict=True):
        resize_into(image, target)
    return result


def thumbnail(pixels: np.ndarray) -> bytes:
    """Return an RGB or grey image (S, S, 3 or 1) uint8 as a JPEG file."""
    ordered = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR) if pixels.shape[2] == 3 else pixels
    return cv2.imencode(".jpg", ordered, _JPEG)[1].tobytes()
