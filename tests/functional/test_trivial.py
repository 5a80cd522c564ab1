from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from etude.functional.augment import OPERATIONS, POLICIES, Changes, apply_changes, augment, trivial_changes


def drawn(name: str, magnitude: float = 0.8, sign: float = 0.9, strength: float = 1.0) -> Changes:
    which = np.array([(OPERATIONS.index(name) + 0.5) / len(OPERATIONS)])
    return Changes(*trivial_changes(which, np.array([magnitude]), np.array([sign]), strength))


def picture() -> np.ndarray:
    """One image with low contrast, uint8 (1, 32, 32, 3)."""
    return np.random.default_rng(0).integers(60, 190, (1, 32, 32, 3), dtype=np.uint8)


@pytest.mark.each("name", OPERATIONS)
def test_each_operation_changes_the_image_but_the_identity(name: str):
    changed = apply_changes(picture(), drawn(name))
    assert (changed != picture()).any() == (name != "identity")


@pytest.mark.each("name", OPERATIONS)
def test_a_vanishing_magnitude_changes_nothing_but_autocontrast(name: str):
    image = picture()
    changed = apply_changes(image, drawn(name, magnitude=1e-6)).astype(int)
    assert (np.abs(changed - image).max() > 1) == (name == "autocontrast")


@pytest.mark.each(
    "name", ["rotate", "shear_x", "shear_y", "translate_x", "translate_y", "brightness", "hue", "sharpness"]
)
def test_operations_with_a_direction_go_either_way(name: str):
    one, other = (apply_changes(picture(), drawn(name, sign=sign)) for sign in (0.1, 0.9))
    assert (one != other).any()


def test_operations_do_what_their_names_say():
    image = picture()
    moved = apply_changes(image, drawn("translate_x", magnitude=4 / 32 * 7))  # four pixels: a seventh of 32 at most
    np.testing.assert_array_equal(moved[0, :, 4:], image[0, :, :-4])
    moved = apply_changes(image, drawn("translate_y", magnitude=4 / 32 * 7, sign=0.1))
    np.testing.assert_array_equal(moved[0, :-4], image[0, 4:])
    posterized = apply_changes(image, drawn("posterize", magnitude=1.0))
    np.testing.assert_array_equal(posterized, image & 0b11000000)
    solarized = apply_changes(image, drawn("solarize", magnitude=0.5))
    np.testing.assert_array_equal(solarized, np.where(image >= 128, 255 - image, image))
    stretched = apply_changes(image, drawn("autocontrast"))
    assert stretched.min((0, 1, 2)).tolist() == [0, 0, 0]
    assert stretched.max((0, 1, 2)).tolist() == [255, 255, 255]
    assert int(apply_changes(image, drawn("brightness", magnitude=0.5)).mean() - image.mean()) in (62, 63, 64)


def test_operations_are_drawn_alike_and_one_at_a_time():
    rng = np.random.default_rng(0)
    geometry, color, tone, effects = trivial_changes(rng.random(7000), rng.random(7000), rng.random(7000), 1.0)
    touched = np.stack(
        [
            geometry.angle != 0, geometry.shear != 0, geometry.shear_y != 0, geometry.shift_x != 0,
            geometry.shift_y != 0, color.brightness != 0, color.contrast != 1, color.saturation != 1, color.hue != 0,
            tone.solarize < 256, tone.stretch, effects.sharpness != 0,
        ]
    )  # fmt: skip
    np.testing.assert_allclose(touched.mean(1), 1 / 14, atol=0.012)
    assert (tone.bits < 8).mean() == pytest.approx(1 / 14 * 11 / 12, abs=0.012)  # the smallest magnitudes drop no bit
    assert (touched.sum(0) + (tone.bits < 8)).max() == 1


@given(st.floats(0.0, 1.0), st.integers(0, 1000))
def test_magnitudes_stay_within_the_strength(strength: float, seed: int):
    rng = np.random.default_rng(seed)
    geometry, color, tone, effects = trivial_changes(rng.random(50), rng.random(50), rng.random(50), strength)
    assert np.abs(geometry.angle).max() <= 135 * strength
    assert np.abs(geometry.shift_x).max() <= strength / 7 + 1e-12
    assert np.abs(color.contrast - 1).max() <= 0.99 * strength + 1e-12
    assert np.abs(effects.sharpness).max() <= 0.99 * strength
    assert tone.bits.min() >= 2
    assert tone.solarize.min() >= 256 * (1 - strength)


def test_the_policy_leaves_some_images_and_changes_others_in_many_ways():
    images = np.repeat(picture(), 200, axis=0)
    changed = augment(images, POLICIES["trivial"], 1.0, np.random.default_rng(0))
    same = (changed == images).all((1, 2, 3)).mean()
    assert 0.02 < same < 0.2
    assert len({image.tobytes() for image in changed}) > 120
