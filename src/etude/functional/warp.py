"""All geometry of an augmentation, the change of size too, composed into one warp per image."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

BORDERS = {"reflect": cv2.BORDER_REFLECT_101, "replicate": cv2.BORDER_REPLICATE}

# Source pixels from one sample to the next up to which a bilinear warp needs no reduction first. Measured as root mean
# square error against area averages, turned by up to 15 degrees: on 1/f noise, polygons and text, averaging over 2 × 2
# pixels first gets better than none between steps of 1.65 and 1.9, 3 × 3 than 2 × 2 between 3.2 and 3.8.
LONGEST_STEP = 1.8

# OpenCV warps four channels faster than three; from this side on that pays for the two conversions.
_FOUR_CHANNELS_FROM = 48

_Entries = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


@dataclass(frozen=True, slots=True)
class Geometry:
    """Per-image parameters of a warp about the image's centre; every array is (B,).

    They apply in this order: flip, shears, turns, rotation, zoom and aspect, shift, perspective.
    """

    flip: np.ndarray  # mirror left to right
    quarter_turns: np.ndarray  # number of turns by 90 degrees, clockwise
    angle: np.ndarray  # rotation in degrees, clockwise
    log_scale: np.ndarray  # natural logarithm of the zoom factor; 0 keeps the scale
    shear: np.ndarray  # horizontal, in degrees
    shift_x: np.ndarray  # to the right, as a share of the side
    shift_y: np.ndarray  # downwards
    shear_y: np.ndarray  # vertical, in degrees
    log_aspect: np.ndarray  # natural logarithm of the factor by which the width grows against the height
    perspective_x: np.ndarray  # by how much of itself the right edge is farther away than the centre
    perspective_y: np.ndarray  # the same of the lower edge

    @classmethod
    def identity(cls, count: int) -> Geometry:
        """Return parameters that change nothing."""
        zeros = np.zeros(count)
        return cls(zeros.astype(bool), zeros.astype(int), *[zeros] * 9)


def warp_matrices(geometry: Geometry, side: int, size: int | None = None) -> np.ndarray:
    """Return float64 matrices that map pixels of ``side`` × ``side`` images to those of ``size`` × ``size`` results.

    Coordinates count from pixel centres, and the images' centres coincide. The matrices are (B, 2, 3), or
    (B, 3, 3) as soon as one image has perspective.

    >>> warp_matrices(Geometry.identity(1), 8)[0].tolist()
    [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
    >>> warp_matrices(Geometry.identity(1), 8, 4)[0].tolist()  # pixels 0 and 1 become pixel 0
    [[0.5, 0.0, -0.25], [0.0, 0.5, -0.25]]
    """
    size = int(side if size is None else size)
    a, b, c, d = _linear(geometry, size / side)
    inner, outer = (side - 1) / 2.0, (size - 1) / 2.0
    right, down = geometry.shift_x * size - (a + b) * inner, geometry.shift_y * size - (c + d) * inner
    affine = np.stack([a, b, right, c, d, down], axis=1).reshape(-1, 2, 3)
    if not (geometry.perspective_x.any() or geometry.perspective_y.any()):
        affine[:, :, 2] += outer
        return affine
    depth = (np.stack([geometry.perspective_x, geometry.perspective_y], 1) / (size / 2.0))[:, None] @ affine
    depth[:, :, 2] += 1.0
    return np.concatenate([affine + outer * depth, depth], axis=1)


def reduction_factors(matrices: np.ndarray, side: int) -> np.ndarray:
    """Return int (B,): by which whole factor each image is averaged before its warp, against moiré."""
    linear = matrices[:, :2, :2]
    if matrices.shape[1] == 3:  # of the projection at the image's centre
        centre = np.array([(side - 1) / 2.0, (side - 1) / 2.0, 1.0])
        x, y, depth = (matrices @ centre).T
        places = (np.stack([x, y], 1) / depth[:, None])[:, :, None]
        linear = (linear - places * matrices[:, 2:, :2]) / depth[:, None, None]
    area = np.abs(linear[:, 0, 0] * linear[:, 1, 1] - linear[:, 0, 1] * linear[:, 1, 0])
    steps = 1.0 / np.sqrt(np.maximum(area, 1.0 / side**2))
    return np.maximum(np.ceil(steps / LONGEST_STEP - 1e-9), 1.0).astype(int)


def reduced_matrices(matrices: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """Return the matrices for images that are averaged over ``factors`` (B,) × ``factors`` pixels first."""
    enlarge = np.zeros((len(factors), 3, 3))
    enlarge[:, 0, 0] = enlarge[:, 1, 1] = factors
    enlarge[:, :2, 2] = ((factors - 1) / 2.0)[:, None]
    enlarge[:, 2, 2] = 1.0
    return matrices @ enlarge


def warp(images: np.ndarray, matrices: np.ndarray, border: str = "reflect", size: int | None = None) -> np.ndarray:
    """Return uint8 (B, size, size, C) warped from (B, S, S, C), bilinear, with ``border`` beyond the edge.

    The matrices (B, 2, 3) or (B, 3, 3) are those of :func:`warp_matrices` for S and ``size``, by default S. The border
    ``reflect`` mirrors the image about its edge, ``replicate`` repeats the edge pixels.
    """
    count, side, _, channels = images.shape
    size = int(side if size is None else size)
    warped = np.empty((count, size, size, channels), images.dtype)
    factors = reduction_factors(matrices, side)
    still = (matrices == np.eye(3)[: matrices.shape[1]]).all((1, 2)) & (size == side)
    if still.any():
        warped[still] = images[still]
    if factors.max(initial=1) > 1:
        matrices = reduced_matrices(matrices, factors)
    move = cv2.warpPerspective if matrices.shape[1] == 3 else cv2.warpAffine
    shape, mode, linear = (size, size), BORDERS[border], cv2.INTER_LINEAR
    four = np.empty((size, size, 4), images.dtype) if channels == 3 and size >= _FOUR_CHANNELS_FROM else None
    for row in np.flatnonzero(~still).tolist():
        source = images[row] if factors[row] == 1 else _averaged(images[row], int(factors[row]))
        if four is None:
            move(source, matrices[row], shape, warped[row], linear, mode)
        else:
            move(cv2.cvtColor(source, cv2.COLOR_RGB2RGBA), matrices[row], shape, four, linear, mode)
            cv2.cvtColor(four, cv2.COLOR_RGBA2RGB, warped[row])
    return warped


def _averaged(image: np.ndarray, factor: int) -> np.ndarray:
    """Average ``factor`` × ``factor`` pixels; the edge is repeated up to a whole number of them."""
    side = image.shape[0]
    if beyond := -side % factor:
        # OpenCV averages over whole factors many times faster than over fractional ones.
        image = cv2.copyMakeBorder(image, 0, beyond, 0, beyond, cv2.BORDER_REPLICATE)
    return cv2.resize(image, (-(-side // factor),) * 2, interpolation=cv2.INTER_AREA)


def _linear(geometry: Geometry, scale: float) -> _Entries:
    """Return the entries (B,) of the linear part, row by row."""
    # Quarter turns are exact integers, so that a pure turn or flip moves pixels without interpolation.
    turns = geometry.quarter_turns % 4
    turn_cos, turn_sin = np.array([1.0, 0.0, -1.0, 0.0])[turns], np.array([0.0, 1.0, 0.0, -1.0])[turns]
    angle = np.deg2rad(geometry.angle)
    cos, sin = np.cos(angle), np.sin(angle)
    one = np.ones_like(angle)
    right, down = np.tan(np.deg2rad(geometry.shear)), np.tan(np.deg2rad(geometry.shear_y))
    turned = _product((cos, -sin, sin, cos), (turn_cos, -turn_sin, turn_sin, turn_cos))
    a, b, c, d = _product(turned, (one + right * down, right, down, one))
    mirror = np.where(geometry.flip, -1.0, 1.0)
    width = scale * np.exp(geometry.log_scale + geometry.log_aspect / 2.0)
    height = scale * np.exp(geometry.log_scale - geometry.log_aspect / 2.0)
    return width * mirror * a, width * b, height * mirror * c, height * d


def _product(left: _Entries, right: _Entries) -> _Entries:
    a, b, c, d = left
    e, f, g, h = right
    return a * e + b * g, a * f + b * h, c * e + d * g, c * f + d * h
