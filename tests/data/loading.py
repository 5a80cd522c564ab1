"""Batches of small images that tell their row, for the tests of the loader."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from etude.core.context import Context
from etude.data.loader import StepBatches, TrainingRows


@dataclass(frozen=True)
class Step:
    image_size: int | None = 8
    augment: float | None = 0.0
    batch_size: int | None = None


class Images:
    """A store's ``gather`` that writes down what was asked; image r has the value r + 1 everywhere."""

    def __init__(self) -> None:
        self.asked: list[tuple[list[int], int]] = []

    def __call__(self, rows: np.ndarray, size: int) -> np.ndarray:
        self.asked.append((rows.tolist(), size))
        return np.broadcast_to(
            (rows % 255 + 1).astype(np.uint8)[:, None, None, None], (len(rows), size, size, 3)
        ).copy()


def training_rows(count: int, gather: Callable[[np.ndarray, int], np.ndarray] | None = None) -> TrainingRows:
    """Rows 10, 12, 14, ... of a store, in an order of their own; targets and weights tell the row."""
    rows = np.random.default_rng(0).permutation(10 + 2 * np.arange(count))
    targets = np.stack([rows, -rows], axis=1).astype(np.float32)
    return TrainingRows(gather or Images(), rows, targets, rows.astype(np.float32) / 2)


def mixed_rows(labelled: int, unlabelled: int, images: Images | None = None) -> TrainingRows:
    """Rows of which some have no label, the others classes 0, 1, 1, 1, 0, 1, 1, 1, ...; their order tells nothing."""
    known = np.random.default_rng(1).permutation(np.arange(labelled + unlabelled) < labelled)
    classes = np.where(known, (np.cumsum(known) % 4 > 0).astype(int), -1)
    data = training_rows(labelled + unlabelled, images)
    return replace(data, targets=classes, num_classes=2, labelled=known)


def unchanged(images: np.ndarray, strength: float, rng: np.random.Generator, size: int) -> np.ndarray:
    return images


def batches(data: TrainingRows, batch_size: int = 4, steps: int = 5, seed: int = 0, **options: Any) -> StepBatches:
    options = {"plan": lambda step: Step(), "augment": unchanged, **options}
    return StepBatches(data, steps=steps, batch_size=batch_size, context=Context(seed=seed), **options)


def parts(loader: StepBatches) -> list[list[int]]:
    return [batch["id"].tolist() for batch in loader]


def ids(loader: StepBatches) -> list[int]:
    return [number for part in parts(loader) for number in part]
