from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from etude.functional.warp import Geometry, affine_matrices, warp


def noise(count: int, size: int, channels: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, channels), dtype=np.uint8)


def warped(images: np.ndarray, border: str = "reflect", **changes: object) -> np.ndarray:
    """``images`` warped by the same parameters each."""
    count = len(images)
    fields = {name: np.full(count, value) for name, value in changes.items()}
    geometry = dataclasses.replace(Geometry.identity(count), **fields)
    return warp(images, affine_matrices(geometry, images.shape[1]), border)


SIZES = pytest.mark.parametrize(("size", "channels"), [(8, 3), (9, 1), (28, 1), (33, 3), (224, 3)])


@SIZES
@pytest.mark.parametrize("border", ["reflect", "replicate"])
def test_the_identity_is_exact(size: int, channels: int, border: str):
    images = noise(2, size, channels)
    np.testing.assert_array_equal(warped(images, border), images)


@SIZES
def test_a_flip_is_exactly_numpys(size: int, channels: int):
    images = noise(2, size, channels)
    np.testing.assert_array_equal(warped(images, flip=True), images[:, :, ::-1])


@SIZES
@pytest.mark.parametrize("turns", range(8))
def test_quarter_turns_are_exactly_numpys(size: int, channels: int, turns: int):
    images = noise(2, size, channels)
    clockwise = np.rot90(images, -turns, axes=(1, 2))
    np.testing.assert_array_equal(warped(images, quarter_turns=turns), clockwise)
    mirrored = np.rot90(images[:, :, ::-1], -turns, axes=(1, 2))
    np.testing.assert_array_equal(warped(images, quarter_turns=turns, flip=True), mirrored)


@given(st.integers(-7, 7), st.integers(-7, 7), st.sampled_from([16, 17]), st.sampled_from([1, 3]))
def test_a_shift_moves_by_the_stated_pixels(right: int, down: int, size: int, channels: int):
    images = noise(1, size, channels)
    moved = warped(images, "replicate", shift_x=right / size, shift_y=down / size)
    rows, columns = (np.clip(np.arange(size) - by, 0, size - 1) for by in (down, right))
    np.testing.assert_array_equal(moved, images[:, rows][:, :, columns])


def test_reflect_mirrors_about_the_edge_pixel():
    row = np.arange(10, 90, 10, dtype=np.uint8)
    image = np.broadcast_to(row[None, None, :, None], (1, 8, 8, 1)).copy()
    moved = warped(image, shift_x=3 / 8)
    assert moved[0, 4, :, 0].tolist() == [40, 30, 20, 10, 20, 30, 40, 50]


def test_zoom_keeps_the_centre_and_scales_distances():
    image = np.zeros((1, 41, 41, 1), np.uint8)
    image[0, 20, 25] = 255  # five pixels right of the centre
    zoomed = warped(image, log_scale=np.log(2.0))
    assert np.unravel_index(zoomed.argmax(), zoomed.shape)[1:3] == (20, 30)


def test_rotation_is_clockwise_on_screen_like_the_quarter_turns():
    image = np.zeros((1, 41, 41, 1), np.uint8)
    image[0, 20, 30] = 255  # ten pixels right of the centre
    right_to_below = warped(image, angle=90.0)
    assert np.unravel_index(right_to_below.argmax(), image.shape)[1:3] == (30, 20)
    np.testing.assert_array_equal(right_to_below, warped(image, quarter_turns=1))


def test_shear_moves_the_lower_half_right():
    image = np.zeros((1, 41, 41, 1), np.uint8)
    image[0, 30, 20] = 255  # ten pixels below the centre
    sheared = warped(image, shear=45.0)
    assert np.unravel_index(sheared.argmax(), image.shape)[1:3] == (30, 30)


def test_each_image_has_its_own_warp():
    images = noise(3, 12, 3)
    geometry = dataclasses.replace(Geometry.identity(3), flip=np.array([True, False, True]))
    result = warp(images, affine_matrices(geometry, 12))
    np.testing.assert_array_equal(result[1], images[1])
    np.testing.assert_array_equal(result[[0, 2]], images[[0, 2], :, ::-1])


@given(st.floats(-180, 180), st.floats(-0.5, 0.5), st.floats(-0.3, 0.3), st.booleans(), st.integers(0, 3))
def test_matrices_keep_shape_and_area(angle: float, log_scale: float, shift: float, flip: bool, turns: int):
    geometry = Geometry(
        np.array([flip]),
        np.array([turns]),
        np.array([angle]),
        np.array([log_scale]),
        np.array([12.0]),
        np.array([shift]),
        np.array([-shift]),
    )
    matrix = affine_matrices(geometry, 64)[0]
    assert np.linalg.det(matrix[:, :2]) == pytest.approx((-1 if flip else 1) * np.exp(2 * log_scale))
    centre = np.array([31.5, 31.5, 1.0])
    assert matrix @ centre == pytest.approx([31.5 + 64 * shift, 31.5 - 64 * shift])


@pytest.mark.parametrize("channels", [1, 3])
def test_shape_and_type_are_kept_and_the_input_too(channels: int):
    images = noise(2, 15, channels)
    before = images.copy()
    result = warped(images, angle=20.0, log_scale=0.2, shift_x=0.1)
    assert (result.shape, result.dtype) == (images.shape, np.uint8)
    assert (result != images).any()
    np.testing.assert_array_equal(images, before)
