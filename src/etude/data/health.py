"""The health of image files before any network looks at them: damaged, tiny, copied, and how many of each class."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from etude.core.errors import listed
from etude.data.bad_files import BadFile
from etude.data.facts import FileFacts
from etude.data.wording import counted

SMALLEST = 16  # pixels: less than that shows hardly anything
_SMALL = 64
_PART = 4  # of the median side, below which a small image is one that something went wrong with
_SKEWED = 10.0  # images of the largest class for one of the smallest, from which it is worth a word
_FEW = 10  # images of a class, likewise


def corrupt_files(bad: Iterable[BadFile]) -> list[dict[str, str]]:
    """Return ``{"id", "reason"}`` of every file that cannot be used."""
    return [{"id": file.id, "reason": file.reason} for file in bad]


def tiny_images(ids: Sequence[str], facts: Sequence[FileFacts]) -> list[dict[str, Any]]:
    """Return ``{"id", "width", "height"}`` of images that show hardly anything, the smallest first.

    Their shorter side is below 16 pixels, or below 64 and a quarter of the median.

    >>> tiny_images(["a", "b", "c"], [FileFacts(9, side, 300, "PNG L") for side in (300, 300, 40)])
    [{'id': 'c', 'width': 40, 'height': 300}]
    """
    sides = np.array([min(fact.width, fact.height) for fact in facts if fact.readable])
    if not len(sides):
        return []
    least = max(SMALLEST, min(_SMALL, float(np.median(sides)) / _PART))
    small = [
        (min(fact.width, fact.height), name, fact)
        for name, fact in zip(ids, facts, strict=True)
        if fact.readable and min(fact.width, fact.height) < least
    ]
    small.sort(key=lambda entry: entry[:2])
    return [{"id": name, "width": fact.width, "height": fact.height} for _, name, fact in small]


def same_files(hashes: Sequence[str]) -> list[tuple[int, int]]:
    """Return (first, other) of the files that are identical to an earlier one, in order.

    >>> same_files(["x", "y", "x", "x"])
    [(0, 2), (0, 3)]
    """
    places: dict[str, list[int]] = defaultdict(list)
    for row, content in enumerate(hashes):
        places[content].append(row)
    return sorted((rows[0], other) for rows in places.values() for other in rows[1:])


def imbalance(labels: np.ndarray, classes: Sequence[str]) -> dict[str, Any]:
    """Return how many images each class has, and what is to be said of it.

    Returns:
        ``classes`` (name to count), ``largest`` and ``smallest`` (names), ``effective`` (the number of equal classes
        with the same entropy); ``ratio`` of the largest to the smallest, where that has an image; and ``told``, a
        sentence, where there is something to say.

    >>> imbalance(np.array([0, 0, 0, 1]), ("cat", "dog"))["ratio"]
    3.0
    """
    counts = np.bincount(labels, minlength=len(classes))
    largest, smallest = int(counts.argmax()), int(counts.argmin())
    shares = counts[counts > 0] / max(1, counts.sum())
    found: dict[str, Any] = {
        "classes": {name: int(count) for name, count in zip(classes, counts, strict=True)},
        "largest": classes[largest],
        "smallest": classes[smallest],
        "effective": round(float(np.exp(-(shares * np.log(shares)).sum())), 2),
    }
    if counts[smallest]:
        found["ratio"] = round(float(counts[largest] / counts[smallest]), 2)
    told = _told_of(counts, classes)
    return found if told is None else {**found, "told": told}


def _told_of(counts: np.ndarray, classes: Sequence[str]) -> str | None:
    empty = [name for name, count in zip(classes, counts, strict=True) if not count]
    if empty:
        return f"there is no image of {listed(empty)}"
    largest, smallest = int(counts.argmax()), int(counts.argmin())
    ratio = counts[largest] / counts[smallest]
    few = [name for name, count in zip(classes, counts, strict=True) if count < _FEW]
    if few:
        return f"{counted(len(few), 'class', 'classes')} with fewer than {_FEW} images: {listed(few, 3)}"
    if ratio >= _SKEWED:
        return (
            f"{classes[largest]!r} has {ratio:.0f} times as many images as {classes[smallest]!r}: look at the scores "
            "of each class, accuracy says little of the rare ones"
        )
    return None
