from __future__ import annotations

import numpy as np
import pytest

from etude.core.errors import EtudeError
from etude.functional.augment import POLICIES
from etude.inference.views import IDENTITY, SYMMETRIES, View, seen_through, views_of

IMAGES = np.random.default_rng(0).integers(0, 256, (2, 5, 5, 3), dtype=np.uint8)
EACH = pytest.mark.parametrize("view", SYMMETRIES, ids=lambda view: view.name)


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


@pytest.mark.parametrize(
    ("policy", "names"),
    [
        ("none", ["plain"]),
        ("digits", ["plain"]),
        ("photos", ["plain", "flip"]),
        ("flips", ["plain", "flip", "turn 180", "flip and turn 180"]),
        ("symmetric", [view.name for view in SYMMETRIES]),
    ],
)
def test_a_policy_allows_the_views_that_training_showed(policy: str, names: list[str]):
    assert [view.name for view in views_of(policy, 100)] == names
    assert [view.name for view in views_of(policy, 1)] == ["plain"]
    assert [view.name for view in views_of(policy, 2)] == names[:2]


def test_every_policy_has_its_views_above():
    assert set(POLICIES) == {"none", "digits", "photos", "flips", "symmetric"}


def test_an_unknown_policy_is_refused():
    with pytest.raises(EtudeError, match="no augmentation policy 'auto'"):
        views_of("auto", 8)


def test_a_gather_seen_through_a_view():
    def gather(rows: np.ndarray, size: int) -> np.ndarray:
        return IMAGES[rows, :size, :size]

    assert seen_through(IDENTITY, gather) is gather
    flipped = seen_through(View("flip", flip=True), gather)
    np.testing.assert_array_equal(flipped(np.array([1, 0]), 4), IMAGES[[1, 0], :4, :4][:, :, ::-1])
