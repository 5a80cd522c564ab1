from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from etude.data.scan import FileFacts, name_of
from etude.health.leaks import Leak, find_leaks

CLASSES = ("cat", "dog", "owl")
LABELS = np.arange(300) % 3
RNG = np.random.default_rng(0)
SIZES = RNG.integers(1_000, 9_000, 300).tolist()
NAMES = [f"IMG_{number:05d}" for number in RNG.permutation(300)]


def facts(sizes: Sequence[int] = SIZES, side: Sequence[int] = (64,) * 300, **told: str) -> list[FileFacts]:
    return [FileFacts(size, one, 64, told.get("kind", "PNG L")) for size, one in zip(sizes, side, strict=True)]


def kinds(found: list[Leak]) -> list[str]:
    return [leak.kind for leak in found]


def test_files_that_tell_nothing_are_no_leak():
    assert find_leaks(NAMES, facts(), LABELS) == []


@pytest.mark.parametrize(
    ("kind", "make"),
    [
        ("name pattern", lambda row: f"{'axc'[LABELS[row]]}_{row:04d}"),
        ("name pattern", lambda row: f"img_{row:04d}_{'axc'[LABELS[row]]}"),
        ("name beginning", lambda row: f"{CLASSES[LABELS[row]]}-{RNG.integers(16**6):06x}"),
        ("first character", lambda row: f"{LABELS[row]}{RNG.integers(16**6):06x}"),
        ("name length", lambda row: "x7" * (LABELS[row] + 1) + f"{RNG.integers(16**6):06x}"),
        ("file number", lambda row: f"img_{1_000 * LABELS[row] + row}"),
        ("folder", lambda row: f"patient {LABELS[row] + 3 * (row % 5)}/{NAMES[row]}"),
    ],
)
def test_a_class_in_the_file_name_is_found(kind: str, make):
    names = [make(row) for row in range(300)]
    found = find_leaks(names, facts(), LABELS)
    assert kind in kinds(found)
    leak = found[kinds(found).index(kind)]
    assert leak.accuracy > 0.9
    assert leak.chance == pytest.approx(1 / 3)
    assert "33%" in leak.summary
    assert sum(leak.kind.startswith(("name", "first", "last")) for leak in found) <= 1  # one fact, told once


def test_sizes_and_formats_are_found():
    by_class = (LABELS * 4_000 + RNG.integers(0, 3_000, 300)).tolist()
    assert kinds(find_leaks(NAMES, facts(by_class), LABELS)) == ["file size"]
    assert "image size" in kinds(find_leaks(NAMES, facts(side=(64 + LABELS).tolist()), LABELS))
    jpeg = [FileFacts(SIZES[row], 64, 64, "JPEG L" if LABELS[row] else "PNG L") for row in range(300)]
    (leak,) = find_leaks(NAMES, jpeg, LABELS)
    assert (leak.kind, round(leak.accuracy, 2)) == ("format", 0.67)  # it tells one class of three from the others
    camera = [FileFacts(SIZES[row], 64, 64, "JPEG L", f"camera {LABELS[row]}") for row in range(300)]
    assert kinds(find_leaks(NAMES, camera, LABELS)) == ["camera"]


def test_a_size_that_goes_with_what_is_shown_is_no_leak():
    """A one takes fewer bytes than an eight: that is the picture, not the file."""
    overlapping = (LABELS * 1_500 + RNG.integers(0, 5_000, 300)).tolist()
    assert find_leaks(NAMES, facts(overlapping), LABELS) == []


def test_rules_are_judged_on_images_they_have_not_seen():
    """Every name is its own, so learning them by heart would be right about all."""
    rng = np.random.default_rng(1)
    names = ["".join(rng.choice(list("abcdefghij"), 8)) for _ in range(300)]
    labels = rng.integers(0, 3, 300)
    assert find_leaks(names, facts(rng.integers(0, 10**6, 300).tolist()), labels) == []


def test_a_rare_class_counts_as_much_as_a_frequent_one():
    labels = (np.arange(300) % 30 == 0).astype(np.int64)
    names = [f"{'rare' if label else 'usual'}_{row}" for row, label in enumerate(labels)]
    (leak,) = find_leaks(names, facts(), labels)
    assert (leak.accuracy, leak.chance) == (1.0, 0.5)
    # Guessing the frequent class is right about 97% of the images, and yet tells nothing.
    assert find_leaks(NAMES, facts(), labels) == []


def test_class_folders_are_no_leak():
    def leaks_of(pattern: str) -> list[Leak]:
        ids = [pattern.format(label, CLASSES[label], name) for label, name in zip(LABELS, NAMES, strict=True)]
        names = [name_of(one, CLASSES[label]) for one, label in zip(ids, LABELS, strict=True)]
        return find_leaks(names, facts(), LABELS)

    assert leaks_of("{1}/{2}.png") == []
    assert leaks_of("all/{1}/{2}.png") == []  # as a table may name them
    assert kinds(leaks_of("{0}/{2}.png")) == ["folder"]


def test_too_few_images_tell_nothing():
    assert find_leaks(["a", "b"], facts(SIZES[:2], (64, 64)), np.array([0, 1])) == []
    assert find_leaks(NAMES, facts(), np.zeros(300, np.int64)) == []
