from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import pytest

from data.storing import smooth
from etude.health.duplicates import SIDE, coarse, differences, reliefs

Change = Callable[[np.ndarray], np.ndarray]
LARGE = 128


def through_jpeg(pixels: np.ndarray) -> np.ndarray:
    data = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 60])[1]
    return cv2.imdecode(data, cv2.IMREAD_UNCHANGED).reshape(pixels.shape)


def resized(pixels: np.ndarray, side: int) -> np.ndarray:
    return cv2.resize(pixels, (side, side), interpolation=cv2.INTER_AREA).reshape(side, side, pixels.shape[2])


def turned(pixels: np.ndarray) -> np.ndarray:
    matrix = cv2.getRotationMatrix2D((LARGE / 2, LARGE / 2), 2, 1)
    return cv2.warpAffine(pixels, matrix, (LARGE, LARGE), borderMode=cv2.BORDER_REFLECT).reshape(pixels.shape)


def lit_from_one_side(pixels: np.ndarray) -> np.ndarray:
    return np.clip(pixels + np.linspace(-30, 30, LARGE)[None, :, None], 0, 255).astype(np.uint8)


CHANGES: dict[str, Change] = {
    "nothing": lambda pixels: pixels,
    "jpeg": through_jpeg,
    "darker": lambda pixels: (pixels * 0.8).astype(np.uint8),
    "lit from one side": lit_from_one_side,
    "cropped": lambda pixels: resized(np.ascontiguousarray(pixels[3:-1, 2:-3]), LARGE),
    "turned by 2 degrees": turned,
    "smaller and back": lambda pixels: resized(resized(pixels, 80), LARGE),
}


def shapes(number: int, channels: int) -> np.ndarray:
    """A picture with structure at every scale."""
    parts = [smooth(number * 10 + step, LARGE, channels).astype(np.float32) for step in range(3)]
    tiles = [parts[0], np.tile(resized(parts[1], LARGE // 2), (2, 2, 1)), np.tile(resized(parts[2], 32), (4, 4, 1))]
    return np.mean(tiles, axis=0).astype(np.uint8)


def compared(*pictures: np.ndarray) -> np.ndarray:
    """Differences of the first from each of the others."""
    small = np.stack([resized(one, SIDE) for one in pictures])
    others = np.arange(1, len(pictures))
    return differences(small, reliefs(small), np.zeros(len(others), np.int64), others)


@pytest.mark.each("channels", [1, 3])
@pytest.mark.each("name", CHANGES)
def test_a_changed_copy_is_alike_and_another_picture_is_not(name: str, channels: int):
    for number in range(4):
        changed = CHANGES[name](shapes(number, channels))
        copy, other = compared(changed, shapes(number, channels), shapes(number + 50, channels))
        assert copy < 0.02
        assert other > 0.3


def test_a_movement_is_taken_back():
    picture = shapes(0, 1)
    small = np.stack([resized(one, SIDE) for one in (picture, turned(picture))])
    relief = reliefs(small)
    plain = 1 - np.corrcoef(relief[0, 2:-2, 2:-2].ravel(), relief[1, 2:-2, 2:-2].ravel())[0, 1]
    moved = differences(small, relief, np.array([0]), np.array([1]))[0]
    assert moved < plain / 2


def test_colours_count():
    picture = np.zeros((LARGE, LARGE, 3), np.uint8)
    picture[40:90, 30:80] = (200, 30, 30)
    same, recoloured = compared(picture, picture, picture[..., ::-1])
    assert same < 1e-6
    assert recoloured == 1.0


def test_pictures_of_one_colour_have_nothing_to_compare():
    plain = np.full((LARGE, LARGE, 1), 90, np.uint8)
    assert compared(plain, plain)[0] == 1.0
    assert compared(plain, shapes(0, 1))[0] == 1.0


def test_coarse_reliefs_of_a_moved_copy_are_nearest_to_it():
    pictures = [shapes(number, 1) for number in range(20)]
    small = np.stack([resized(one, SIDE) for one in [*pictures, *map(turned, pictures)]])
    rows = coarse(reliefs(small))
    assert rows.shape == (40, 256)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    assert (unit[20:] @ unit[:20].T).argmax(axis=1).tolist() == list(range(20))


def test_no_pairs_have_no_differences():
    none = np.zeros(0, np.int64)
    small = np.zeros((2, SIDE, SIDE, 1), np.uint8)
    assert differences(small, reliefs(small), none, none).shape == (0,)
