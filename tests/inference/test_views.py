from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from etude.core.errors import EtudeError
from etude.functional.augment import POLICIES, apply_changes
from etude.functional.warp import BORDERS, Geometry, warp, warp_matrices
from etude.inference.views import (
    IDENTITY,
    SYMMETRIES,
    Drawn,
    Larger,
    Moved,
    View,
    input_size,
    many_views,
    views_of,
)

IMAGES = np.random.default_rng(0).integers(0, 256, (2, 5, 5, 3), dtype=np.uint8)
EACH = pytest.mark.each("view", SYMMETRIES, ids=lambda view: view.name)


def test_there_are_eight_distinct_symmetries():
    assert len({view(IMAGES).tobytes() for view in SYMMETRIES}) == 8
    assert len({view.name for view in SYMMETRIES}) == 8
    np.testing.assert_array_equal(IDENTITY(IMAGES), IMAGES)


@EACH
def test_each_view_is_undone_by_exactly_one_other(view: View):
    undoing = [other for other in SYMMETRIES if (other(view(IMAGES)) == IMAGES).all()]
    assert len(undoing) == 1
    np.testing.assert_array_equal(view(undoing[0](IMAGES)), IMAGES)


@EACH
def test_two_views_in_a_row_are_a_view(view: View):
    seen = {each(IMAGES).tobytes() for each in SYMMETRIES}
    assert {view(other(IMAGES)).tobytes() for other in SYMMETRIES} == seen


@EACH
def test_a_view_is_contiguous_and_leaves_the_images(view: View):
    before = IMAGES.copy()
    seen = view(IMAGES)
    assert seen.flags.c_contiguous
    assert (seen.shape, seen.dtype) == (IMAGES.shape, np.uint8)
    np.testing.assert_array_equal(IMAGES, before)


def test_views_do_what_their_names_say():
    named = {view.name: view(IMAGES) for view in SYMMETRIES}
    np.testing.assert_array_equal(named["flip"], IMAGES[:, :, ::-1])
    np.testing.assert_array_equal(named["turn 180"], IMAGES[:, ::-1, ::-1])
    np.testing.assert_array_equal(named["flip and turn 180"], IMAGES[:, ::-1])
    np.testing.assert_array_equal(named["turn 90"], np.rot90(IMAGES, 1, axes=(1, 2)))
    np.testing.assert_array_equal(named["turn 270"], np.rot90(IMAGES, 3, axes=(1, 2)))
    np.testing.assert_array_equal(named["flip and turn 90"], np.rot90(IMAGES, 1, axes=(1, 2))[:, :, ::-1])
    np.testing.assert_array_equal(named["flip and turn 270"], np.rot90(IMAGES, 3, axes=(1, 2))[:, :, ::-1])


ALL = [view.name for view in SYMMETRIES]
NAMES = {
    "none": ["plain"],
    "digits": ["plain"],
    "documents": ["plain"],
    "trivial": ["plain"],
    "photos": ["plain", "flip"],
    "flips": ["plain", "flip", "turn 180", "flip and turn 180"],
    **dict.fromkeys(("symmetric", "aerial", "microscopy", "cells"), ALL),
}


@pytest.mark.each(("policy", "names"), NAMES.items())
def test_a_policy_allows_the_views_that_training_showed(policy: str, names: list[str]):
    assert [view.name for view in views_of(policy, 100)] == names
    assert [view.name for view in views_of(policy, 1)] == ["plain"]
    assert [view.name for view in views_of(policy, 2)] == names[:2]


def test_every_policy_has_its_views_above():
    assert set(POLICIES) == set(NAMES)


def test_an_unknown_policy_is_refused():
    with pytest.raises(EtudeError, match="no augmentation policy 'auto'"):
        views_of("auto", 8)


SMOOTH = np.tile(np.linspace(0, 250, 24).astype(np.uint8)[None, None, :, None], (3, 24, 1, 3))


@pytest.mark.each("policy", [name for name in POLICIES if name != "none"])
def test_as_many_views_as_are_asked_for(policy: str):
    views = many_views(policy, 128)
    assert len(views) == 128
    assert len({view.name for view in views}) == 128
    assert [view.name for view in views[: len(NAMES[policy])]] == NAMES[policy]
    assert [view.name for view in many_views(policy, 20)] == [view.name for view in views[:20]]
    for view in many_views(policy, 16):
        seen = view(SMOOTH)
        assert (seen.shape, seen.dtype) == (SMOOTH.shape, np.uint8)


def test_without_augmentation_the_plain_view_is_all():
    assert many_views("none", 100) == (IDENTITY,)
    assert [view.name for view in many_views("none", 3, larger=1.5)] == ["plain", "larger 1.50"]


def test_symmetries_come_first_then_shifts_zooms_and_draws():
    kinds = [type(view) for view in many_views("photos", 12, larger=1.25)]
    assert kinds == [View, View, Larger, *[Moved] * 6, *[Drawn] * 3]


@pytest.mark.each("channels", [1, 3])
@pytest.mark.each("view", many_views("cells", 30), ids=lambda view: view.name)
def test_a_view_is_the_same_whatever_the_batch(view, channels: int):
    images = np.random.default_rng(1).integers(0, 256, (5, 16, 16, channels), dtype=np.uint8)
    before = images.copy()
    whole = view(images)
    np.testing.assert_array_equal(view(images[[3, 1]]), whole[[3, 1]])
    np.testing.assert_array_equal(images, before)


@pytest.mark.parametrize("policy", ["digits", "cells"])
def test_draws_are_those_of_the_training_augmentation(policy: str):
    images = np.random.default_rng(2).integers(0, 256, (6, 20, 20, 1), dtype=np.uint8)
    for view in many_views(policy, 24)[-8:]:
        assert isinstance(view, Drawn)
        expected = apply_changes(images, view.change.rows(np.zeros(6, np.int64))).astype(int)
        assert np.abs(view(images).astype(int) - expected).max() <= 2


def test_shifts_move_whole_pixels_where_their_names_say():
    image = np.zeros((1, 32, 32, 1), np.uint8)
    image[0, 16, 16] = 200
    for view in many_views("digits", 5)[1:]:
        down, right = {"right": (0, 2), "left": (0, -2), "down": (2, 0), "up": (-2, 0)}[view.name.split()[0]]
        assert view(image).sum() == view(image)[0, 16 + down, 16 + right, 0] == 200


@pytest.mark.each("border", BORDERS)
@pytest.mark.each(("right", "down"), [(3, 0), (-3, 0), (0, 5), (2, -7)])
def test_whole_pixels_are_moved_as_a_warp_moves_them(border: str, right: int, down: int):
    images, side = np.random.default_rng(0).integers(0, 256, (1, 12, 12, 3), dtype=np.uint8), 12
    shares = {"shift_x": np.array([right / side]), "shift_y": np.array([down / side])}
    geometry = replace(Geometry.identity(1), **shares)
    moved = Moved("moved", right / side, down / side, border=border)(images)
    np.testing.assert_array_equal(moved, warp(images, warp_matrices(geometry, side), border))


def test_a_shift_by_less_than_a_pixel_moves_one():
    image = np.arange(16, dtype=np.uint8).reshape(1, 4, 4, 1)
    np.testing.assert_array_equal(Moved("left", -0.05, border="replicate")(image)[0, 0, :, 0], [1, 2, 3, 3])
    np.testing.assert_array_equal(Moved("down", 0.0, 0.05, border="reflect")(image)[0, :, 0, 0], [4, 0, 4, 8])


def test_zooms_enlarge_and_reduce():
    image = np.zeros((1, 41, 41, 1), np.uint8)
    image[0, 10:31, 10:31] = 255
    bigger, smaller = many_views("photos", 8)[6:]
    assert bigger(image).sum() > image.sum() > smaller(image).sum()


def test_draws_depend_on_their_number():
    one, again = (many_views("photos", 12)[-4:] for _ in range(2))
    looks = {view(IMAGES).tobytes() for view in one}
    assert len(looks) == 4
    np.testing.assert_array_equal(one[0](IMAGES), again[0](IMAGES))


def test_draws_leave_out_rectangles_and_noise():
    flat = np.full((2, 16, 16, 3), 128, np.uint8)
    for view in many_views("microscopy", 40)[-20:]:
        assert view(flat).std((1, 2)).max() < 1e-6


def test_a_larger_input_has_a_side_that_networks_like():
    view = many_views("photos", 3, larger=1.25)[2]
    assert [input_size(view, size) for size in (224, 128, 96, 32, 28)] == [288, 160, 128, 40, 36]
    assert input_size(IDENTITY, 225) == 225
    np.testing.assert_array_equal(view(IMAGES), IMAGES)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ({"policy_name": "auto", "count": 3}, "no augmentation policy 'auto'"),
        ({"policy_name": "photos", "count": 0}, "1 to 128 views, not 0"),
        ({"policy_name": "photos", "count": 129}, "1 to 128 views, not 129"),
        ({"policy_name": "photos", "count": 3, "larger": 1.0}, "above 1 and up to 2, not 1.0"),
    ],
)
def test_views_that_cannot_be_are_refused(words: dict, told: str):
    with pytest.raises(EtudeError, match=told):
        many_views(**words)
