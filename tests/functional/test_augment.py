from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from etude.core.errors import EtudeError
from etude.core.images import resized
from etude.core.seeds import rng_for
from etude.functional.augment import POLICIES, Changes, Policy, apply_changes, augment, draw_changes, policy_named

ALL = pytest.mark.each("policy", POLICIES.values(), ids=POLICIES)
TOUCHING = pytest.mark.each("policy", [p for p in POLICIES.values() if p.name != "none"], ids=lambda p: p.name)

EVERYTHING = Policy(
    "everything", flip=True, quarter_turns=True, angle=20, log_scale=0.3, shear=10, shear_y=10, shift=0.1, crop=0.6,
    log_aspect=0.3, perspective=0.2, contrast=0.4, brightness=0.2, saturation=0.5, hue=40, grey=0.2, erase=0.5,
    erase_fill="noise", noise=0.5, noise_level=0.1, blur=0.5, blur_width=0.03,
)  # fmt: skip


def noise(count: int = 6, size: int = 20, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, channels), dtype=np.uint8)


def numbers(record: Any) -> dict[str, np.ndarray]:
    """All arrays of the changes, by part and name."""
    found: dict[str, np.ndarray] = {}
    for part in ("geometry", "color", "tone", "effects"):
        inner = getattr(record, part)
        for field in dataclasses.fields(inner) if inner is not None else ():
            if isinstance(value := getattr(inner, field.name), np.ndarray):
                found[f"{part}.{field.name}"] = value
    return found


@ALL
def test_strength_zero_is_the_identity(policy: Policy):
    images = noise()
    np.testing.assert_array_equal(augment(images, policy, 0.0, rng_for(0, "x")), images)


@ALL
@pytest.mark.each("size", [10, 13, 31])
def test_strength_zero_only_resizes(policy: Policy, size: int):
    images = noise()
    np.testing.assert_array_equal(augment(images, policy, 0.0, rng_for(0, "x"), size), resized(images, size))


def test_policy_none_is_the_identity_at_any_strength():
    images = noise()
    np.testing.assert_array_equal(augment(images, POLICIES["none"], 1.0, rng_for(0, "x")), images)
    assert augment(images, POLICIES["none"], 1.0, rng_for(0, "x"), 5).shape == (6, 5, 5, 3)


@TOUCHING
@pytest.mark.each("channels", [1, 3])
@pytest.mark.each("size", [None, 12, 50])
def test_the_same_draw_gives_the_same_images_and_leaves_the_input(policy: Policy, channels: int, size: int | None):
    images = noise(30, channels=channels)
    before = images.copy()
    once = augment(images, policy, 0.8, rng_for(0, "augment", 3), size)
    np.testing.assert_array_equal(once, augment(images, policy, 0.8, rng_for(0, "augment", 3), size))
    assert (once != augment(images, policy, 0.8, rng_for(0, "augment", 4), size)).any()
    assert (once.shape, once.dtype) == ((30, size or 20, size or 20, channels), np.uint8)
    assert once.flags.c_contiguous
    assert (once != resized(images, size or 20)).any()
    np.testing.assert_array_equal(images, before)


@pytest.mark.parametrize(
    ("name", "count"), [("symmetric", 8), ("cells", 8), ("flips", 4), ("photos", 2), ("digits", 1), ("documents", 1)]
)
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
    policy = dataclasses.replace(EVERYTHING, crop=0.0, log_aspect=0.0)
    drawn = numbers(draw_changes(policy, strength, np.random.default_rng(seed), 50))
    for name, limit in (
        ("angle", policy.angle),
        ("log_scale", policy.log_scale),
        ("shear", policy.shear),
        ("shear_y", policy.shear_y),
        ("shift_x", policy.shift),
        ("shift_y", policy.shift),
        ("perspective_x", policy.perspective),
        ("perspective_y", policy.perspective),
    ):
        values = drawn[f"geometry.{name}"]
        assert values.shape == (50,)
        assert 0.5 * strength * limit < np.abs(values).max() <= strength * limit
    for name, limit, neutral in (
        ("contrast", policy.contrast, 1.0),
        ("brightness", policy.brightness, 0.0),
        ("saturation", policy.saturation, 1.0),
        ("hue", policy.hue, 0.0),
    ):
        values = drawn[f"color.{name}"] - neutral
        assert 0.5 * strength * limit < np.abs(values).max() <= strength * limit + 1e-12
    assert 0 <= drawn["effects.noise"].min() <= drawn["effects.noise"].max() <= strength * policy.noise_level
    assert 0 <= drawn["effects.blur"].min() <= drawn["effects.blur"].max() <= strength * policy.blur_width
    assert 0 <= drawn["effects.erase"].min() <= drawn["effects.erase"].max() <= 1


@given(st.floats(0.01, 1), st.integers(0, 1000))
def test_a_crop_is_a_window_of_the_image(strength: float, seed: int):
    """Without any other change, no result pixel may come from beyond the edge."""
    policy = Policy("crop", crop=0.9, log_aspect=0.4)
    drawn = draw_changes(policy, strength, np.random.default_rng(seed), 50).geometry
    assert drawn is not None
    width = np.exp(-drawn.log_scale - drawn.log_aspect / 2)
    height = np.exp(-drawn.log_scale + drawn.log_aspect / 2)
    assert max(width.max(), height.max()) <= 1 + 1e-9
    assert (width * height).min() >= (1 - 0.9 * strength) * np.exp(-0.4) - 1e-9
    for window, shift in ((width, drawn.shift_x), (height, drawn.shift_y)):
        centre = -shift * window  # off the image's centre, in shares of its side
        assert np.abs(centre).max() <= ((1 - window) / 2 + 1e-9).max()
        assert (np.abs(centre) + window / 2 <= 0.5 + 1e-9).all()


def test_shares_of_images_follow_the_strength():
    for strength in (1.0, 0.5):
        drawn = numbers(draw_changes(EVERYTHING, strength, np.random.default_rng(0), 4000))
        assert drawn["color.grey"].mean() == pytest.approx(0.2 * strength, abs=0.02)
        assert (drawn["effects.noise"] > 0).mean() == pytest.approx(0.5 * strength, abs=0.03)
        assert (drawn["effects.blur"] > 0).mean() == pytest.approx(0.5 * strength, abs=0.03)
        erased = drawn["effects.erase"][:, 2] > drawn["effects.erase"][:, 0]
        assert erased.mean() == pytest.approx(0.5 * strength, abs=0.03)


def test_half_of_the_images_are_mirrored():
    photos = draw_changes(POLICIES["photos"], 1.0, np.random.default_rng(0), 2000).geometry
    digits = draw_changes(POLICIES["digits"], 1.0, np.random.default_rng(0), 2000).geometry
    assert photos is not None
    assert digits is not None
    assert photos.flip.mean() == pytest.approx(0.5, abs=0.05)
    assert not photos.quarter_turns.any()
    assert not digits.flip.any()


@ALL
def test_every_policy_and_strength_takes_the_same_numbers(policy: Policy):
    def after(policy: Policy, strength: float) -> float:
        rng = np.random.default_rng(0)
        draw_changes(policy, strength, rng, 5)
        return rng.random()

    assert after(policy, 0.3) == after(EVERYTHING, 1.0)


def test_policies_turn_images_the_same_way():
    photos, digits = (
        numbers(draw_changes(POLICIES[name], 1.0, np.random.default_rng(0), 5))["geometry.angle"]
        for name in ("photos", "digits")
    )
    np.testing.assert_allclose(photos / POLICIES["photos"].angle, digits / POLICIES["digits"].angle)


@settings(max_examples=25)
@given(
    st.sampled_from([*POLICIES.values(), EVERYTHING]), st.sampled_from([1, 3]),
    st.sampled_from([(20, 20), (33, 16), (60, 50), (16, 24)]), st.integers(0, 10**6),
)  # fmt: skip
def test_each_image_is_changed_by_its_own_draw_alone(policy: Policy, channels: int, sizes: tuple[int, int], seed: int):
    images = noise(7, sizes[0], channels, seed)
    changes = draw_changes(policy, 0.9, np.random.default_rng(seed), 7)
    together = apply_changes(images, changes, sizes[1])
    for row in range(7):
        alone = apply_changes(images[row : row + 1], changes.rows(slice(row, row + 1)), sizes[1])
        np.testing.assert_array_equal(together[row], alone[0])


def test_the_same_draw_means_the_same_at_other_sizes():
    """A large image changed then made smaller resembles the small one changed."""
    coarse = np.random.default_rng(0).integers(0, 256, (20, 4, 4, 3), dtype=np.uint8)
    large = resized(coarse, 120)
    changes = draw_changes(dataclasses.replace(EVERYTHING, noise=0.0, erase_fill="mean"), 0.7, rng_for(0, "x"), 20)
    one, other = resized(apply_changes(large, changes), 40), apply_changes(large, changes, 40)
    assert np.abs(one.astype(float) - other).mean() < 3.0
    assert np.abs(resized(large, 40).astype(float) - other).mean() > 20.0


def test_no_changes_give_a_copy():
    images = noise()
    changed = apply_changes(images, Changes())
    np.testing.assert_array_equal(changed, images)
    assert not np.shares_memory(changed, images)


def test_an_unknown_policy_is_answered_with_the_nearest():
    assert policy_named("photos") is POLICIES["photos"]
    with pytest.raises(EtudeError, match=r"no augmentation policy 'foto'; .*trivial and auto\. Did you mean 'photos'"):
        policy_named("foto")


def test_what_is_no_square_image_of_levels_is_refused():
    with pytest.raises(EtudeError, match="images to augment are 8 × 6 pixels; crop or resize them to squares first"):
        augment(np.zeros((1, 8, 6, 3), np.uint8), POLICIES["photos"], 1.0, rng_for(0, "x"))
    with pytest.raises(EtudeError, match="images to augment are float32; as arrays they are uint8"):
        augment(np.zeros((1, 8, 8, 3), np.float32), POLICIES["photos"], 1.0, rng_for(0, "x"))


def test_policies_are_found_under_their_own_names():
    assert {name: policy.name for name, policy in POLICIES.items()} == {name: name for name in POLICIES}
    assert [name for name, policy in POLICIES.items() if policy.changes_nothing] == ["none"]
