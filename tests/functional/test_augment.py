from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from etude.core.errors import EtudeError
from etude.core.seeds import rng_for
from etude.functional.augment import POLICIES, Policy, augment, draw_geometry, policy_named
from etude.functional.color import color_map

ALL = pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
TOUCHING = pytest.mark.parametrize("policy", [p for p in POLICIES.values() if p.name != "none"], ids=lambda p: p.name)


def noise(count: int = 6, size: int = 20, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, channels), dtype=np.uint8)


@ALL
def test_strength_zero_is_the_identity(policy: Policy):
    images = noise()
    np.testing.assert_array_equal(augment(images, policy, 0.0, rng_for(0, "x")), images)


def test_policy_none_is_the_identity_at_any_strength():
    images = noise()
    np.testing.assert_array_equal(augment(images, POLICIES["none"], 1.0, rng_for(0, "x")), images)


@TOUCHING
@pytest.mark.parametrize("channels", [1, 3])
def test_the_same_draw_gives_the_same_images_and_leaves_the_input(policy: Policy, channels: int):
    images = noise(channels=channels)
    before = images.copy()
    once = augment(images, policy, 0.8, rng_for(0, "augment", 3))
    np.testing.assert_array_equal(once, augment(images, policy, 0.8, rng_for(0, "augment", 3)))
    assert (once != augment(images, policy, 0.8, rng_for(0, "augment", 4))).any()
    assert (once.shape, once.dtype) == (images.shape, np.uint8)
    assert (once != images).any()
    np.testing.assert_array_equal(images, before)


@pytest.mark.parametrize(("name", "count"), [("symmetric", 8), ("flips", 4), ("photos", 2), ("digits", 1)])
def test_a_policy_shows_just_its_symmetries(name: str, count: int):
    """At a strength too small to bend anything, what remains are exact symmetries; each must occur."""
    image = noise(1, 9, 1)
    images = np.repeat(image, 200, axis=0)
    seen = {changed.tobytes() for changed in augment(images, POLICIES[name], 1e-6, rng_for(0, "symmetry"))}
    square = {np.rot90(side, turns).tobytes() for side in (image[0], image[0, :, ::-1]) for turns in range(4)}
    assert len(square) == 8
    assert seen <= square
    assert len(seen) == count


@given(st.floats(0.01, 1), st.integers(0, 1000))
def test_draws_stay_within_the_policy_at_its_strength(strength: float, seed: int):
    policy = POLICIES["photos"]
    drawn = draw_geometry(policy, strength, np.random.default_rng(seed), 50)
    for values, limit in (
        (drawn.angle, policy.angle),
        (drawn.log_scale, policy.log_scale),
        (drawn.shear, policy.shear),
        (drawn.shift_x, policy.shift),
        (drawn.shift_y, policy.shift),
    ):
        assert values.shape == (50,)
        assert np.abs(values).max() <= strength * limit
        assert np.abs(values).max() > 0.5 * strength * limit
    assert not drawn.quarter_turns.any()


def test_half_of_the_images_are_mirrored():
    drawn = draw_geometry(POLICIES["photos"], 1.0, np.random.default_rng(0), 2000)
    assert drawn.flip.mean() == pytest.approx(0.5, abs=0.05)
    assert not draw_geometry(POLICIES["digits"], 1.0, np.random.default_rng(0), 2000).flip.any()


def test_policies_draw_the_same_numbers():
    photos, digits = (draw_geometry(POLICIES[name], 1.0, np.random.default_rng(0), 5) for name in ("photos", "digits"))
    np.testing.assert_allclose(photos.angle / POLICIES["photos"].angle, digits.angle / POLICIES["digits"].angle)


def test_an_unknown_policy_is_answered_with_the_nearest():
    assert policy_named("photos") is POLICIES["photos"]
    with pytest.raises(EtudeError, match=r"no augmentation policy 'foto'; .*digits and auto\. Did you mean 'photos'"):
        policy_named("foto")


@given(hnp.arrays(np.uint8, (2, 3, 3, 1)))
def test_colour_at_gain_one_and_offset_zero_is_the_identity(images: np.ndarray):
    np.testing.assert_array_equal(color_map(images, np.ones(2), np.zeros(2)), images)


def test_colour_scales_about_the_mean_then_shifts_and_clips():
    image = np.array([50, 150], np.uint8).reshape(1, 1, 2, 1)  # mean 100

    def changed(gain: float, offset: float) -> list[int]:
        return color_map(image, np.array([gain]), np.array([offset])).ravel().tolist()

    assert changed(0.5, 0.0) == [75, 125]
    assert changed(2.0, 0.0) == [0, 200]
    assert changed(0.0, 0.0) == [100, 100]
    assert changed(1.0, 0.2) == [101, 201]  # 0.2 of 255 is 51
    assert changed(1.0, -1.0) == [0, 0]
    assert changed(4.0, 0.0) == [0, 255]
    assert image.ravel().tolist() == [50, 150]


def test_each_image_has_its_own_colour():
    images = noise(3)
    changed = color_map(images, np.array([1.0, 0.5, 1.0]), np.array([0.0, 0.0, 0.2]))
    np.testing.assert_array_equal(changed[0], images[0])
    assert (changed[1] != images[1]).any()
    np.testing.assert_array_equal(changed[2], np.minimum(images[2].astype(int) + 51, 255))
