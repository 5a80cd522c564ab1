"""Whether two pictures show the same: their pixels compared once light is evened out and one is laid onto the other."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np

from etude.core.processor import usable_cores

SIDE = 32
"""Pixels on a side at which pictures are compared."""

_COARSE = 16
_MARGIN = SIDE // 12  # pixels at the border that a crop or a frame may have changed
_FINE, _WIDE = SIDE / 40, SIDE / 8  # blurs: what is finer is noise of the file, what is wider is light
_NOISE = 8.0  # levels: structure of less contrast than this counts for less
_CLOSE = 0.15  # difference above which no small movement makes two pictures the same
_STEPS = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 20, 1e-3)
_SMALL_MOVE = 0.15  # how far from the identity a movement may go; beyond it much can be laid onto much
_TINT = 16.0  # levels of colour, light aside, by which two pictures differ in more than a file's way of storing it
_LEAST_SEEN = 0.4  # of the picture that must be left to compare once one is moved
_AT_ONCE = 4_096
_A_BLOCK = 128


def reliefs(pictures: np.ndarray) -> np.ndarray:
    """Return (N, S, S) float32 reliefs of (N, S, S, channels) uint8 pictures: structure without light and contrast.

    Each grey picture less its surroundings, divided by their spread: (p - m) / (s + 8 levels).

    >>> ramp = np.tile(np.arange(0, 160, 5, dtype=np.uint8), (32, 1))[None, ..., None]
    >>> bool(np.abs(reliefs(ramp)[0, 8:-8, 8:-8]).max() < 0.05)  # a slope is light, not structure
    True
    """
    found = np.empty(pictures.shape[:3], np.float32)

    def fill(place: int) -> None:
        grey = cv2.GaussianBlur(pictures[place].mean(axis=2, dtype=np.float32), (0, 0), _FINE)
        above = grey - cv2.GaussianBlur(grey, (0, 0), _WIDE)
        found[place] = above / (np.sqrt(cv2.GaussianBlur(above * above, (0, 0), _WIDE)) + _NOISE)

    _for_each(fill, np.arange(len(pictures)))
    return found


def coarse(relief: np.ndarray) -> np.ndarray:
    """Return (N, 256) float32: reliefs so blurred that small movements hardly change them, to find neighbours by."""
    rows = [
        cv2.resize(cv2.GaussianBlur(one, (0, 0), SIDE / 24), (_COARSE, _COARSE), interpolation=cv2.INTER_AREA)
        for one in relief
    ]
    return np.array(rows, np.float32).reshape(len(relief), _COARSE**2)


def differences(pictures: np.ndarray, relief: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return how much pairs of pictures differ, (P,) from 0 to 2: 1 - the correlation of their reliefs.

    Where that is small, the second relief is laid onto the first by an affine movement (Evangelidis & Psarakis 2008,
    enhanced correlation coefficient), and the smaller difference counts. Pictures of other colours differ by 1.

    Args:
        pictures: (N, S, S, channels) uint8, S = :data:`SIDE`.
        relief: (N, S, S) of :func:`reliefs`.
        first, second: (P,) places in both.
    """
    found = _plain(relief, first, second)
    found[_tints_apart(pictures, first, second)] = 1.0

    def lay(pair: int) -> None:
        found[pair] = min(found[pair], _moved(relief[first[pair]], relief[second[pair]]))

    _for_each(lay, np.flatnonzero(found <= _CLOSE))
    return found


def _for_each(work: Callable[[int], None], places: np.ndarray) -> None:
    """Do ``work`` at each place, in threads; many places at once, as handing one over costs as much as some of them."""
    blocks = [places[start : start + _A_BLOCK].tolist() for start in range(0, len(places), _A_BLOCK)]

    def do(block: list[int]) -> None:
        for place in block:
            work(place)

    with ThreadPoolExecutor(usable_cores(), thread_name_prefix="etude-alike") as pool:
        list(pool.map(do, blocks))


def _plain(relief: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    inner = relief[:, _MARGIN:-_MARGIN, _MARGIN:-_MARGIN].reshape(len(relief), -1)
    inner = inner - inner.mean(axis=1, keepdims=True)
    inner /= np.maximum(np.linalg.norm(inner, axis=1, keepdims=True), 1e-6)
    found = np.empty(len(first))
    for start in range(0, len(first), _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        found[part] = 1 - np.einsum("pd,pd->p", inner[first[part]], inner[second[part]])
    return found


def _tints_apart(pictures: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return a mask (P,) of the pairs whose colours differ, looked at in sixteen fields."""
    count, side, _, channels = pictures.shape
    if channels == 1:
        return np.zeros(len(first), bool)
    field = side // 4
    fields = pictures.reshape(count, 4, field, 4, field, channels).mean(axis=(2, 4), dtype=np.float32)
    tint = (fields - fields.mean(axis=3, keepdims=True)).reshape(count, -1)
    apart = np.abs(tint[first] - tint[second]).mean(axis=1)
    return apart > _TINT


def _moved(first: np.ndarray, second: np.ndarray) -> float:
    """Return the difference once ``second`` is moved onto ``first``; 2 where no small movement is found."""
    inside = np.zeros(first.shape, np.uint8)
    inside[_MARGIN:-_MARGIN, _MARGIN:-_MARGIN] = 1
    warp = np.eye(2, 3, dtype=np.float32)
    try:
        cv2.findTransformECC(first, second, warp, cv2.MOTION_AFFINE, _STEPS, inside, 1)
    except cv2.error:  # it does not converge: the pictures have little in common
        return 2.0
    if np.abs(warp - np.eye(2, 3))[:, :2].max() > _SMALL_MOVE:
        return 2.0
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    laid = cv2.warpAffine(second, warp, first.shape[::-1], flags=flags)
    covered = cv2.warpAffine(np.ones_like(first), warp, first.shape[::-1], flags=flags) > 0.99
    seen = covered & (inside > 0)
    if seen.mean() < _LEAST_SEEN:
        return 2.0
    x, y = first[seen] - first[seen].mean(), laid[seen] - laid[seen].mean()
    length = float(np.sqrt((x @ x) * (y @ y)))
    return 1 - float(x @ y) / length if length > 0 else 2.0
