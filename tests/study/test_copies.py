"""Copies that are found by pixels alone."""

from __future__ import annotations

import cv2
import numpy as np

from data.storing import smooth
from etude.health.duplicates import (
    SIDE,
    Image,
    Images,
    duplicated_images,
    is_across,
    is_contradiction,
    near_duplicate_images,
)

COUNT = 120


def pictures() -> np.ndarray:
    """Unrelated pictures; at the end a changed copy of the third and one of the sixth."""
    found = [smooth(number, 96, 1) for number in range(COUNT)]
    darker = np.clip(found[2] * 0.85 + 5, 0, 255).astype(np.uint8)
    cropped = cv2.resize(found[5][2:-1, 1:-2], (96, 96), interpolation=cv2.INTER_CUBIC)[..., None]
    small = [cv2.resize(one, (SIDE, SIDE), interpolation=cv2.INTER_AREA) for one in (*found, darker, cropped)]
    return np.stack(small)[..., None]


def looked(pixels: np.ndarray, hashes: list[str] | None = None) -> Images:
    rows = [
        Image(
            f"i{row}",
            "valid" if row >= COUNT else "train",
            hashes[row] if hashes else str(row),
            "cat" if row % 2 else "dog",
        )
        for row in range(len(pixels))
    ]
    return Images(tuple(rows), lambda places, size: pixels[places])


def test_changed_copies_are_found_and_nothing_else():
    images = looked(pictures())
    found = near_duplicate_images(images, images)
    assert {(one["a"], one["b"]) for one in found} == {("i2", f"i{COUNT}"), ("i5", f"i{COUNT + 1}")}
    assert all(is_across(one) and one["similarity"] > 0.99 and not one["exact"] for one in found)


def test_a_copy_among_pictures_much_like_it_is_found():
    rng = np.random.default_rng(0)
    base = pictures()[0].astype(float)
    alike = base + 4 * rng.normal(size=(8, *base.shape))
    again = alike[:1] + 2 * rng.normal(size=base.shape)
    pixels = np.clip(np.concatenate([pictures()[:COUNT], alike, again]), 0, 255).astype(np.uint8)
    images = looked(pixels)
    found = {(one["a"], one["b"]) for one in near_duplicate_images(images, images)}
    assert found == {(f"i{COUNT}", f"i{COUNT + 8}")}


def test_what_is_like_its_neighbours_is_no_copy():
    """A series: each picture is as alike to the next as copies are, and so are all of them."""
    rng = np.random.default_rng(0)
    base = pictures()[0].astype(float)
    series = np.stack([np.clip(base + rng.normal(0, 2, base.shape), 0, 255) for _ in range(30)]).astype(np.uint8)
    images = looked(series)
    assert near_duplicate_images(images, images) == []


def test_identical_files_are_told_once_and_as_such():
    pixels = pictures()
    pixels[7] = pixels[1]
    hashes = [str(row) for row in range(len(pixels))]
    hashes[7] = hashes[1]
    images = looked(pixels, hashes)
    found = near_duplicate_images(images, images)
    assert [(one["a"], one["b"]) for one in found if one["exact"]] == [("i1", "i7")]
    assert len(found) == 3


def test_contradictions_come_before_other_copies_within_a_split():
    hashes = [str(row) for row in range(60)]
    hashes[4] = hashes[2]  # both dogs
    hashes[9] = hashes[6]  # a dog and a cat
    images = looked(pictures()[:60], hashes)
    found = near_duplicate_images(images, images)
    assert [(one["a"], one["b"]) for one in found] == [("i6", "i9"), ("i2", "i4")]
    assert [is_contradiction(one) for one in found] == [True, False]


def test_a_handful_of_images_has_no_neighbourhood():
    images = looked(np.repeat(pictures()[:1], 5, axis=0))
    assert near_duplicate_images(images, images) == []


def test_two_sets_keep_their_order_and_pixels():
    pixels = pictures()
    one, two = looked(pixels[:COUNT]), looked(pixels[COUNT:])
    both = one.followed_by(two)
    places = np.array([COUNT + 1, 3, COUNT])
    np.testing.assert_array_equal(both.gather(places, SIDE), pixels[places])
    assert len(both) == COUNT + 2
    assert both.rows[COUNT].id == "i0"


def pair(a: str, b: str, *splits: str) -> dict[str, object]:
    return {"a": a, "b": b, "splits": list(splits)}


def test_copies_of_copies_are_duplicated_images():
    pairs = [pair("v1", "v2", "valid", "valid"), pair("v1", "t", "valid", "train"), pair("v2", "x", "valid", "test")]
    assert duplicated_images(pairs) == {"validation": ["v1", "v2"], "test": ["x"]}


def test_what_nothing_is_trained_on_is_no_copied_image():
    assert duplicated_images([]) == {"validation": [], "test": []}
    pairs = [pair("v", "x", "valid", "test"), pair("t", "u", "train", "train"), pair("x", "y", "test", "test")]
    assert duplicated_images(pairs) == {"validation": [], "test": []}


def test_in_a_cross_validation_the_other_folds_are_trained_on():
    pairs = [pair("a", "b", "fold 1", "fold 2"), pair("c", "d", "fold 1", "fold 1"), pair("d", "a", "fold 1", "test")]
    assert duplicated_images(pairs) == {"validation": ["a", "b"], "test": ["a"]}
