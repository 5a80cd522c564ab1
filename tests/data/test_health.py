from __future__ import annotations

import numpy as np
import pytest

from etude.data.scan import FileFacts
from etude.health.duplicates import same_files
from etude.health.summary import imbalance, tiny_images


def sized(*sides: tuple[int, int]) -> list[FileFacts]:
    return [FileFacts(1, width, height, "PNG L") for width, height in sides]


@pytest.mark.parametrize(
    ("sides", "tiny"),
    [
        ([(400, 300), (500, 400), (10, 900)], [2]),
        ([(400, 300), (500, 400), (63, 80), (70, 70), (300, 300)], [2]),  # 63 is below 64 and below a quarter of 300
        ([(28, 28)] * 5, []),  # digits are small, but all of them are
        ([(28, 28)] * 5 + [(15, 28)], [5]),
        ([(8, 8)] * 3, [0, 1, 2]),
        ([(5000, 4000)] * 3 + [(200, 200)], []),  # small beside the others, but there is something to see
    ],
)
def test_tiny_images_are_those_that_show_hardly_anything(sides: list[tuple[int, int]], tiny: list[int]):
    ids = [f"i{number}" for number in range(len(sides))]
    assert {entry["id"] for entry in tiny_images(ids, sized(*sides))} == {f"i{number}" for number in tiny}


def test_the_smallest_come_first_and_unreadable_ones_not_at_all():
    ids, facts = ["a", "b", "c", "d"], [*sized((9, 9), (400, 400), (4, 400)), FileFacts(7)]
    assert tiny_images(ids, facts) == [{"id": "c", "width": 4, "height": 400}, {"id": "a", "width": 9, "height": 9}]
    assert tiny_images(["d"], [FileFacts()]) == []


def test_identical_files_are_paired_with_the_first():
    assert same_files(["p", "q", "r", "q", "p", "q"]) == [(0, 4), (1, 3), (1, 5)]
    assert same_files(["p", "q"]) == []


def test_even_classes_need_no_word():
    found = imbalance(np.repeat([0, 1, 2], 50), ("a", "b", "c"))
    assert found["classes"] == {"a": 50, "b": 50, "c": 50}
    assert (found["ratio"], found["effective"]) == (1.0, 3.0)
    assert "summary" not in found


@pytest.mark.parametrize(
    ("counts", "told"),
    [
        ([500, 20], "'a' has 25 times as many images as 'b'"),
        ([50, 9], "1 class with fewer than 10 images: 'b'"),
        ([50, 0], "no image of 'b'"),
    ],
)
def test_uneven_classes_are_told(counts: list[int], told: str):
    found = imbalance(np.repeat([0, 1], counts), ("a", "b"))
    assert told in found["summary"]
    assert (found["largest"], found["smallest"]) == ("a", "b")
    assert ("ratio" in found) == (counts[1] > 0)
    assert 1 <= found["effective"] < 2
