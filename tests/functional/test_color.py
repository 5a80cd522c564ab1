from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from etude.functional.color import LUMA, Color, Tone, chroma_matrices, color_map, tone_map


def same_color(count: int) -> Color:
    zeros, ones = np.zeros(count), np.ones(count)
    return Color(ones, zeros, ones, zeros, zeros.astype(bool))


def mapped(images: np.ndarray, **fields: Any) -> np.ndarray:
    changed = images.copy()
    color_map(changed, dataclasses.replace(same_color(len(images)), **{k: np.array(v) for k, v in fields.items()}))
    return changed


def toned(image: np.ndarray, **fields: Any) -> np.ndarray:
    changed, count = image.copy(), len(image)
    same = Tone(np.zeros(count, bool), np.full(count, 8), np.full(count, 256.0))
    tone_map(changed, dataclasses.replace(same, **{k: np.array(v) for k, v in fields.items()}))
    return changed


def noise(count: int, size: int = 20, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, size, size, channels), dtype=np.uint8)


IMAGES = st.sampled_from([1, 3]).flatmap(lambda channels: hnp.arrays(np.uint8, (2, 3, 3, channels)))


@given(IMAGES)
def test_neutral_parameters_are_the_identity(images: np.ndarray):
    np.testing.assert_array_equal(mapped(images), images)
    np.testing.assert_array_equal(toned(images), images)


def test_colour_scales_about_the_mean_then_shifts_and_clips():
    image = np.array([50, 150], np.uint8).reshape(1, 1, 2, 1)  # mean 100

    def changed(gain: float, offset: float) -> list[int]:
        return mapped(image, contrast=[gain], brightness=[offset]).ravel().tolist()

    assert changed(0.5, 0.0) == [75, 125]
    assert changed(2.0, 0.0) == [0, 200]
    assert changed(0.0, 0.0) == [100, 100]
    assert changed(1.0, 0.2) == [101, 201]  # 0.2 of 255 is 51
    assert changed(1.0, -1.0) == [0, 0]
    assert changed(4.0, 0.0) == [0, 255]


@given(
    st.floats(0, 2), st.floats(-1, 1), st.floats(0, 2), st.floats(-180, 180), st.booleans(),
    hnp.arrays(np.uint8, (1, 4, 4, 3)),
)  # fmt: skip
def test_the_map_is_within_a_level_of_its_formula(
    contrast: float, brightness: float, saturation: float, hue: float, grey: bool, image: np.ndarray
):
    matrix = chroma_matrices(Color(np.ones(1), np.ones(1), np.array([saturation]), np.array([hue]), np.array([grey])))
    chroma = image[0] @ matrix[0].T
    expected = np.clip(contrast * (chroma - chroma.mean()) + chroma.mean() + 255 * brightness, 0, 255)
    given_ = {"contrast": contrast, "brightness": brightness, "saturation": saturation, "hue": hue, "grey": grey}
    changed = mapped(image, **{name: [value] for name, value in given_.items()})
    assert np.abs(changed[0] - expected).max() <= 1.0 + 1e-6


@given(st.floats(0, 3), st.floats(-180, 180), st.booleans())
def test_saturation_and_hue_keep_luma_and_greys(saturation: float, hue: float, grey: bool):
    color = Color(np.ones(1), np.zeros(1), np.array([saturation]), np.array([hue]), np.array([grey]))
    matrix = chroma_matrices(color)[0]
    np.testing.assert_allclose(matrix @ np.ones(3), np.ones(3), atol=1e-9)
    np.testing.assert_allclose(LUMA @ matrix, LUMA, atol=1e-9)


def test_saturation_blends_with_luma_and_grey_is_luma():
    pixel = np.array([200, 100, 50], np.uint8).reshape(1, 1, 1, 3)
    luma = float(pixel.ravel() @ LUMA)
    assert mapped(pixel, grey=[True]).ravel().tolist() == [round(luma)] * 3
    assert mapped(pixel, saturation=[0.0]).ravel().tolist() == [round(luma)] * 3
    half = mapped(pixel, saturation=[0.5]).ravel()
    assert np.abs(half - (0.5 * pixel.ravel() + 0.5 * luma)).max() <= 1.0


def test_hue_turns_all_the_way_round():
    def turned(degrees: float) -> np.ndarray:
        color = dataclasses.replace(same_color(1), hue=np.array([degrees]))
        return chroma_matrices(color)[0]

    np.testing.assert_allclose(turned(360.0), np.eye(3), atol=1e-9)
    np.testing.assert_allclose(turned(40.0) @ turned(80.0), turned(120.0), atol=1e-9)
    assert turned(120.0)[1, 0] > turned(120.0)[0, 0]  # red turns to another primary


def test_images_without_colours_ignore_them():
    images = noise(2, channels=1)
    np.testing.assert_array_equal(mapped(images, saturation=[0.0, 2.0], hue=[90.0, 0.0], grey=[True, False]), images)


@pytest.mark.parametrize("colored", [False, True])
def test_each_image_has_its_own_colour(colored: bool):
    images = noise(4)
    changed = mapped(
        images, contrast=[1.0, 0.5, 1.0, 1.0], brightness=[0.0, 0.0, 0.2, 0.0], hue=[0.0, 0.0, 0.0, 60.0 * colored]
    )
    np.testing.assert_array_equal(changed[0], images[0])
    assert (changed[1] != images[1]).any()
    np.testing.assert_array_equal(changed[2], np.minimum(images[2].astype(int) + 51, 255))
    assert (changed[3] != images[3]).any() == colored


def test_posterize_keeps_the_highest_bits():
    image = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    np.testing.assert_array_equal(toned(image, bits=[3]), image & 0b11100000)


def test_solarize_inverts_from_the_threshold_on():
    image = np.array([0, 99, 100, 255], np.uint8).reshape(1, 2, 2, 1)
    assert toned(image, solarize=[100.0]).ravel().tolist() == [0, 99, 155, 0]


def test_autocontrast_stretches_each_channel_and_leaves_flat_ones():
    image = np.zeros((1, 1, 3, 3), np.uint8)
    image[0, 0, :, 0], image[0, 0, :, 1], image[0, 0, :, 2] = [100, 110, 120], [0, 0, 255], 77
    changed = toned(image, stretch=[True])
    assert changed[0, 0, :, 0].tolist() == [0, 127, 255] or changed[0, 0, :, 0].tolist() == [0, 128, 255]
    assert changed[0, 0, :, 1].tolist() == [0, 0, 255]
    assert changed[0, 0, :, 2].tolist() == [77, 77, 77]


def test_each_image_has_its_own_tones():
    images = noise(3)
    changed = toned(images, bits=[8, 4, 8], solarize=[256.0, 256.0, 128.0])
    np.testing.assert_array_equal(changed[0], images[0])
    np.testing.assert_array_equal(changed[1], images[1] & 0xF0)
    np.testing.assert_array_equal(changed[2], np.where(images[2] >= 128, 255 - images[2], images[2]))
