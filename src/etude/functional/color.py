"""All colour changes of an augmentation composed into one affine map of RGB per image."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
_YIQ = np.array([LUMA, [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
_GREY = np.tile(LUMA, (3, 1))
_COLOR = np.eye(3) - _GREY
# A quarter turn of the colours: what remains of RGB without luma, turned by 90 degrees in the plane of I and Q.
_QUARTER = np.linalg.inv(_YIQ) @ np.array([[0.0, 0.0, 0.0], [0.0, 0.0, -1.0], [0.0, 1.0, 0.0]]) @ _YIQ


@dataclass(frozen=True, slots=True)
class Color:
    """Per-image parameters of a colour map; every array is (B,). Images that are not RGB keep to the first two."""

    contrast: np.ndarray  # factor about the image's mean; 1 keeps it
    brightness: np.ndarray  # change as a share of the full range; 0 keeps it
    saturation: np.ndarray  # factor of the distance from luma; 1 keeps it
    hue: np.ndarray  # rotation about the grey axis in degrees, in the plane of I and Q of the YIQ colours; 0 keeps it
    grey: np.ndarray  # leave only luma

    @property
    def keeps_chroma(self) -> bool:
        """Whether no image's colours change but for contrast and brightness."""
        return not (self.grey.any() or self.hue.any() or (self.saturation != 1.0).any())


def chroma_matrices(color: Color) -> np.ndarray:
    """Return float64 (B, 3, 3): saturation, hue and grey as linear maps of RGB, which keep luma and every grey."""
    saturation = np.where(color.grey, 0.0, color.saturation)
    angle = np.deg2rad(color.hue)
    along, across = saturation * np.cos(angle), saturation * np.sin(angle)
    return _GREY + along[:, None, None] * _COLOR + across[:, None, None] * _QUARTER


def color_map(images: np.ndarray, color: Color) -> None:
    """Change uint8 (B, H, W, C) in place, by one affine map an image, of RGB where a pixel has three channels.

    ``new = clip(contrast * (chroma @ pixel - mean) + mean + 255 * brightness)``, where ``mean`` is the mean over all
    pixels and channels of ``chroma @ image``. Values are within one level of the formula's.

    >>> image = np.full((1, 2, 2, 1), 100, np.uint8)
    >>> color_map(image, Color(np.ones(1), np.full(1, 0.2), np.ones(1), np.zeros(1), np.zeros(1, bool)))
    >>> int(image[0, 0, 0, 0])
    151
    """
    channels = images.shape[3]
    means = np.zeros((len(images), channels))
    if (color.contrast != 1.0).any():
        means = np.array([cv2.mean(image)[:channels] for image in images]).reshape(means.shape)
    toned = (color.contrast != 1.0) | (color.brightness != 0.0)
    if channels == 3 and not color.keeps_chroma:
        matrices = chroma_matrices(color)
        offset = np.tile(_offset(color, (matrices @ means[:, :, None]).mean((1, 2)))[:, None, None], (1, 3, 1))
        whole = np.concatenate([color.contrast[:, None, None] * matrices, offset], axis=2)
        touched = toned | color.grey | (color.saturation != 1.0) | (color.hue != 0.0)
        for row in np.flatnonzero(touched).tolist():
            cv2.transform(images[row], whole[row], images[row])
        return
    gains, offsets = color.contrast.tolist(), _offset(color, means.mean(1)).tolist()
    for row in np.flatnonzero(toned).tolist():
        image = images[row]
        # In one pass with saturation; OpenCV's plain scaling would take absolute values.
        cv2.addWeighted(image, gains[row], image, 0.0, offsets[row], image)


def _offset(color: Color, mean: np.ndarray) -> np.ndarray:
    return mean * (1.0 - color.contrast) + 255.0 * color.brightness


@dataclass(frozen=True, slots=True)
class Tone:
    """Per-image parameters of tone curves; every array is (B,). They apply in this order."""

    stretch: np.ndarray  # autocontrast: stretch each channel to the full range
    bits: np.ndarray  # of each level that are kept, the highest ones; 8 keeps all
    solarize: np.ndarray  # levels from here on are inverted; 256 inverts none

    @property
    def touched(self) -> np.ndarray:
        """Return the positions of the images that change."""
        return np.flatnonzero(self.stretch | (self.bits < 8) | (self.solarize < 256.0))


def tone_map(images: np.ndarray, tone: Tone) -> None:
    """Change uint8 (B, H, W, C) in place by its tone curves."""
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
