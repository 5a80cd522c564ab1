from __future__ import annotations

import dataclasses

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from etude.core.images import resized
from etude.functional.warp import Geometry, reduction_factors, warp, warp_matrices


def noise(count: int, size: int, channels: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, channels), dtype=np.uint8)


def warped(images: np.ndarray, border: str = "reflect", size: int | None = None, **changes: object) -> np.ndarray:
    """``images`` warped by the same parameters each."""
    count = len(images)
    fields = {name: np.full(count, value) for name, value in changes.items()}
    geometry = dataclasses.replace(Geometry.identity(count), **fields)
    return warp(images, warp_matrices(geometry, images.shape[1], size), border, size)


SIZES = pytest.mark.each(("size", "channels"), [(8, 3), (9, 1), (28, 1), (33, 3), (224, 3)])


@SIZES
@pytest.mark.each("border", ["reflect", "replicate"])
def test_the_identity_is_exact(size: int, channels: int, border: str):
    images = noise(2, size, channels)
    np.testing.assert_array_equal(warped(images, border), images)


@SIZES
def test_a_flip_is_exactly_numpys(size: int, channels: int):
    images = noise(2, size, channels)
    np.testing.assert_array_equal(warped(images, flip=True), images[:, :, ::-1])


@SIZES
@pytest.mark.each("turns", range(8))
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
    result = warp(images, warp_matrices(geometry, 12))
    np.testing.assert_array_equal(result[1], images[1])
    np.testing.assert_array_equal(result[[0, 2]], images[[0, 2], :, ::-1])


@given(st.floats(-180, 180), st.floats(-0.5, 0.5), st.floats(-0.3, 0.3), st.booleans(), st.integers(0, 3))
def test_matrices_keep_shape_and_area(angle: float, log_scale: float, shift: float, flip: bool, turns: int):
    geometry = dataclasses.replace(
        Geometry.identity(1),
        flip=np.array([flip]),
        quarter_turns=np.array([turns]),
        angle=np.array([angle]),
        log_scale=np.array([log_scale]),
        shear=np.array([12.0]),
        shift_x=np.array([shift]),
        shift_y=np.array([-shift]),
        log_aspect=np.array([0.3]),
    )
    matrix = warp_matrices(geometry, 64)[0]
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


def test_vertical_shear_moves_the_right_half_down():
    image = np.zeros((1, 41, 41, 1), np.uint8)
    image[0, 20, 30] = 255  # ten pixels right of the centre
    sheared = warped(image, shear_y=45.0)
    assert np.unravel_index(sheared.argmax(), image.shape)[1:3] == (30, 30)


def test_aspect_stretches_the_width_and_squeezes_the_height():
    image = np.zeros((1, 41, 41, 1), np.uint8)
    image[0, 20, 25] = image[0, 28, 20] = 255  # five pixels right of the centre, eight below
    stretched = warped(image, log_aspect=2 * np.log(2.0))[0, :, :, 0]
    assert stretched[20].argmax() == 30
    assert stretched[22:, 20].argmax() + 22 == 24


# Sizes in and out, of exact and of broken ratios.
RATIOS = pytest.mark.each(("side", "size"), [(32, 16), (33, 11), (64, 16), (50, 23), (40, 33), (16, 32), (17, 40)])


@RATIOS
@pytest.mark.each("channels", [1, 3])
def test_a_change_of_size_is_centred(side: int, size: int, channels: int):
    """A ramp in, the ramp out: any shift of the pixel centres would show as an offset of all its levels."""
    level = 250.0 * (np.arange(side) + 0.5) / side
    image = np.empty((1, side, side, channels), np.uint8)
    image[:] = np.rint((level[:, None] + level[None]) / 2)[None, :, :, None]
    expected = 250.0 * (np.arange(size) + 0.5) / size
    difference = warped(image, "replicate", size)[0].astype(float) - ((expected[:, None] + expected) / 2)[:, :, None]
    edge = 2
    assert abs(difference[edge:-edge, edge:-edge].mean()) < 0.3
    assert np.abs(difference[edge:-edge, edge:-edge]).max() < 2.5


@RATIOS
@pytest.mark.each("turns", range(4))
@pytest.mark.each("flip", [False, True])
def test_symmetries_and_changes_of_size_can_change_places(side: int, size: int, turns: int, flip: bool):
    if side % size and side > 1.8 * size:
        side -= side % int(reduction_factors(warp_matrices(Geometry.identity(1), side, size), side)[0])
    images = noise(2, side, 3)
    straight = warped(images, size=size)
    seen = straight[:, :, ::-1] if flip else straight
    expected = np.rot90(seen, -turns, axes=(1, 2)).astype(int)
    assert np.abs(warped(images, size=size, flip=flip, quarter_turns=turns) - expected).max() <= 16


def test_halving_is_an_area_average():
    images = noise(2, 32, 3)
    np.testing.assert_array_equal(warped(images, size=16), resized(images, 16))


def test_fine_stripes_turn_to_grey_instead_of_moire():
    image = np.zeros((1, 240, 240, 1), np.uint8)
    image[:, :, ::2] = 200
    geometry = dataclasses.replace(Geometry.identity(1), angle=np.array([5.0]))
    matrix = warp_matrices(geometry, 240, 50)[0]
    bare = cv2.warpAffine(image[0], matrix, (50, 50), flags=cv2.INTER_LINEAR)[5:-5, 5:-5]
    inner = warped(image, size=50, angle=5.0)[0, 5:-5, 5:-5]
    assert inner.std() < 0.4 * bare.std()
    assert inner.mean() == pytest.approx(100.0, abs=2.0)


def sampled_finely(image: np.ndarray, size: int, angle: float) -> np.ndarray:
    """Averages over each output pixel's footprint: 12 × 12 bilinear samples of float (S, S)."""
    fine, side = size * 12, image.shape[0]
    geometry = dataclasses.replace(Geometry.identity(1), angle=np.array([angle]))
    matrix = warp_matrices(geometry, side, fine)[0]
    picture = cv2.warpAffine(image, matrix, (fine, fine), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
    return picture.reshape(size, 12, size, 12).mean((1, 3))


@pytest.mark.parametrize(("step", "best"), [(1.4, 1), (2.2, 2), (3.0, 2), (4.4, 3), (6.2, 4)])
def test_the_reduction_is_the_one_of_least_error(step: float, best: int):
    """On 1/f noise, whose spectrum is that of photographs, against averages over the footprint."""
    side, angle = 240, 11.0
    frequency = np.fft.fftfreq(side)
    radius = np.maximum(np.hypot(frequency[:, None], frequency), 1.0 / side)
    field = np.fft.ifft2(np.fft.fft2(np.random.default_rng(0).normal(size=(side, side))) / radius).real
    image = np.clip(field / field.std() * 50 + 127, 0, 255).astype(np.float32)
    size = round(side / step)
    geometry = dataclasses.replace(Geometry.identity(1), angle=np.array([angle]))
    matrices = warp_matrices(geometry, side, size)
    assert reduction_factors(matrices, side).tolist() == [best]
    truth = sampled_finely(image, size, angle)[3:-3, 3:-3]

    def error(factor: int) -> float:
        small = cv2.resize(image, (side // factor,) * 2, interpolation=cv2.INTER_AREA)
        matrix = warp_matrices(geometry, small.shape[0], size)[0]
        seen = cv2.warpAffine(small, matrix, (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
        return float(np.square(seen[3:-3, 3:-3] - truth).mean())

    assert min((1, 2, 3, 4, 5), key=error) == best


def test_a_zoom_in_needs_less_reduction():
    geometry = dataclasses.replace(Geometry.identity(3), log_scale=np.log([1.0, 2.0, 0.5]))
    assert reduction_factors(warp_matrices(geometry, 300, 100), 300).tolist() == [2, 1, 4]
    tilted = dataclasses.replace(geometry, perspective_x=np.array([0.2, 0.2, 0.2]), angle=np.array([30.0, 30.0, 30.0]))
    assert reduction_factors(warp_matrices(tilted, 300, 100), 300).tolist() == [2, 1, 4]


def test_perspective_shows_one_edge_larger_and_keeps_the_centre():
    image = np.zeros((1, 81, 81, 1), np.uint8)
    image[0, 30:51, 40] = 255  # bars of 21 pixels: at the centre, and 20 pixels to either side
    image[0, 30:51, 20] = image[0, 30:51, 60] = 255
    tilted = warped(image, perspective_x=0.4)[0, :, :, 0].astype(int)
    bars = [int((tilted[:, part] > 60).any(1).sum()) for part in (slice(0, 33), slice(36, 45), slice(48, 81))]
    assert bars[0] > bars[1] + 1 > bars[2] + 2
    assert tilted[40, 40] == 255


def test_perspective_of_nothing_is_the_affine_warp():
    images = noise(2, 30, 3)
    geometry = dataclasses.replace(Geometry.identity(2), angle=np.full(2, 10.0), log_scale=np.full(2, -0.2))
    affine = warp_matrices(geometry, 30, 20)
    tiny = warp_matrices(dataclasses.replace(geometry, perspective_x=np.full(2, 1e-9)), 30, 20)
    assert tiny.shape == (2, 3, 3)
    np.testing.assert_allclose(tiny[:, :2], affine, atol=1e-6)
    assert np.abs(warp(images, tiny, size=20).astype(int) - warp(images, affine, size=20)).mean() < 1.0


@pytest.mark.parametrize("channels", [1, 3])
def test_enlarging_is_cubic_and_reducing_an_area_average(channels: int):
    images = noise(2, 20, channels)
    averages = images.reshape(2, 10, 2, 10, 2, channels).mean((2, 4))
    assert np.abs(resized(images, 10) - averages).max() <= 0.5
    assert resized(images, 41).shape == (2, 41, 41, channels)
    assert resized(images, 20) is images
