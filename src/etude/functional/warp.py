"""All geometry of an augmentation composed into one affine warp per image."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

BORDERS = {"reflect": cv2.BORDER_REFLECT_101, "replicate": cv2.BORDER_REPLICATE}


@dataclass(frozen=True, slots=True)
class Geometry:
    """Per-image parameters of a warp about the image's centre; every array is (B,).

    Args:
        flip: mirror left to right.
        quarter_turns: number of turns by 90 degrees.
        angle: rotation in degrees.
        log_scale: natural logarithm of the zoom factor; 0 keeps the scale.
        shear: horizontal shear in degrees.
        shift_x: shift to the right as a share of the side.
        shift_y: shift downwards as a share of the side.
    """

    flip: np.ndarray
    quarter_turns: np.ndarray
    angle: np.ndarray
    log_scale: np.ndarray
    shear: np.ndarray
    shift_x: np.ndarray
    shift_y: np.ndarray

    @classmethod
    def identity(cls, count: int) -> Geometry:
        """Return parameters that change nothing."""
        zeros = np.zeros(count)
        return cls(zeros.astype(bool), zeros.astype(int), zeros, zeros, zeros, zeros, zeros)


def affine_matrices(geometry: Geometry, size: int) -> np.ndarray:
    """Return float64 (B, 2, 3) matrices that map input pixels to output pixels, centre to centre.

    >>> affine_matrices(Geometry.identity(1), 8)[0].tolist()
    [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
    """
    # Quarter turns are exact integers, so that a pure turn or flip moves pixels without interpolation.
    turn_cos = np.array([1.0, 0.0, -1.0, 0.0])[geometry.quarter_turns % 4]
    turn_sin = np.array([0.0, 1.0, 0.0, -1.0])[geometry.quarter_turns % 4]
    angle, zoom = np.deg2rad(geometry.angle), np.exp(geometry.log_scale)
    rotation = _matrices(np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle))
    turn = _matrices(turn_cos, -turn_sin, turn_sin, turn_cos)
    one, zero = np.ones_like(zoom), np.zeros_like(zoom)
    shear = _matrices(one, np.tan(np.deg2rad(geometry.shear)), zero, one)
    mirror = _matrices(np.where(geometry.flip, -1.0, 1.0), zero, zero, one)
    linear = zoom[:, None, None] * (rotation @ turn @ shear @ mirror)
    centre = np.full(2, (size - 1) / 2.0)
    shift = np.stack([geometry.shift_x, geometry.shift_y], 1) * size
    offset = centre + shift - linear @ centre
    return np.concatenate([linear, offset[:, :, None]], axis=2)


def warp(images: np.ndarray, matrices: np.ndarray, border: str = "reflect") -> np.ndarray:
    """Return uint8 (B, S, S, C) images warped by (B, 2, 3) matrices, bilinear, with ``border`` beyond the edge.

    Args:
        border: ``reflect`` mirrors the image about its edge, ``replicate`` repeats the edge pixels.
    """
    size = images.shape[1]
    warped = np.empty_like(images)
    for image, matrix, out in zip(images, matrices, warped, strict=True):
        moved = cv2.warpAffine(image, matrix, (size, size), flags=cv2.INTER_LINEAR, borderMode=BORDERS[border])
        out[...] = moved.reshape(out.shape)  # OpenCV drops a single channel
    return warped


def _matrices(a: np.ndarray, b: np.ndarray, c: np.ndarray, d: np.ndarray) -> np.ndarray:
    return np.stack([np.stack([a, b], -1), np.stack([c, d], -1)], -2)
