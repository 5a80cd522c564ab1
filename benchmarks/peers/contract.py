"""What every peer is given, and what it writes: TRAIN.csv TEST.csv WEIGHTS SEED OUT.npz [SECONDS].

Read in each peer's own environment, so it needs NumPy alone.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Given:
    """A task as a peer is given it.

    Args:
        train: files of the images to train on.
        labels: their classes.
        test: files of the images to predict.
        weights: EfficientNet-Lite0 under timm's names, safetensors.
        out: where probabilities go.
        seconds: the limit of time, where there is one.
    """

    train: list[str]
    labels: list[str]
    test: list[str]
    weights: str
    seed: int
    out: str
    seconds: float | None

    @property
    def classes(self) -> list[str]:
        """The classes, sorted."""
        return sorted(set(self.labels))

    @property
    def targets(self) -> list[int]:
        """The number of each training image's class."""
        return [self.classes.index(label) for label in self.labels]

    def write(self, probabilities: np.ndarray, classes: Iterable[object] = ()) -> None:
        """Write probabilities (N, C) of the test images, in the order of the sorted classes unless others are given."""
        names = [str(one) for one in classes] or self.classes
        np.savez(self.out, probabilities=probabilities, classes=np.array(names), ids=np.array(self.test))


def given() -> Given:
    """Return what the command line gives."""
    train, test, weights, seed, out, *seconds = sys.argv[1:]
    rows = table(train)
    return Given(
        [row["image"] for row in rows], [row["label"] for row in rows], [row["image"] for row in table(test)],
        weights, int(seed), out, float(seconds[0]) if seconds else None,
    )  # fmt: skip


def table(file: str) -> list[dict[str, str]]:
    """Return the rows of a CSV file."""
    with open(file, newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))
