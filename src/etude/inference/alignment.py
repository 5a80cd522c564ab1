"""Images of another kind than the training images: their features are moved to where the head expects them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from etude.core.arrays import load_arrays, save_arrays
from etude.core.context import Context
from etude.core.predictions import Predictions
from etude.models.classifier import Classifier

FILE_NAME = "reference.npz"  # next to a model
FEWEST = 50  # images to predict, of which fewer have no mean worth knowing
LIMIT = 0.35  # of a shift: up to 0.15 on images of the same kind with any class shares, 0.5 and more on another kind
_LEAST = 0.05  # of a reference deviation, which the images' own is taken to be at least
_ROWS = 4096  # at a time

Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True, slots=True, eq=False)
class Reference:
    """Where the features of labelled images lie, all float32.

    Args:
        mean: (D,) of each feature.
        deviation: (D,) its standard deviation.
        classes: (K, D) means of the classes that have images.
    """

    mean: Floats
    deviation: Floats
    classes: Floats

    @classmethod
    def of(cls, features: Floats, labels: NDArray[np.integer[Any]]) -> Self:
        """Return the reference of features (N, D) with their labels (N,)."""
        x = features.astype(np.float32)
        classes = np.stack([x[labels == label].mean(axis=0) for label in np.unique(labels)])
        return cls(x.mean(axis=0), x.std(axis=0), classes)

    def shift_of(self, features: Floats) -> float:
        """Return how far features (N, D) lie from the reference: median of their means' distances, in deviations.

        What other class shares would explain is left out: differences between the class means.
        """
        scale = np.where(self.deviation > 0, self.deviation, 1.0)
        between, moved = (
            (self.classes - self.mean) / scale,
            (features.mean(axis=0, dtype=np.float64) - self.mean) / scale,
        )
        explained, *_ = np.linalg.lstsq(between.T, moved, rcond=None)
        return float(np.median(np.abs(moved - explained @ between)[self.deviation > 0]))

    def aligned(self, features: Floats) -> NDArray[np.float32]:
        """Return features (N, D) with the reference's mean and deviation."""
        x = features.astype(np.float32)
        return (x - x.mean(axis=0)) * (
            self.deviation / np.maximum(x.std(axis=0), _LEAST * self.deviation + 1e-12)
        ) + self.mean

    def save(self, folder: Path) -> Path:
        path = folder / FILE_NAME
        save_arrays(path, {"mean": self.mean, "deviation": self.deviation, "classes": self.classes})
        return path

    @classmethod
    def load(cls, folder: Path) -> Self | None:
        """Return what a run kept with a model; None where it kept none."""
        path = folder / FILE_NAME
        return (
            cls(**load_arrays(path, "a model's features", ["mean", "deviation", "classes"])) if path.is_file() else None
        )


def aligned(
    parts: Sequence[Predictions],
    models: Sequence[Classifier],
    references: Sequence[Reference | None],
    context: Context,
) -> list[Predictions]:
    """Return models' predictions of the same images, from aligned features where these show another kind of images.

    The mean and deviation of each feature over the images to predict become those of the labelled images, as adaptive
    batch norm does inside a network (Li et al. 2016, https://arxiv.org/abs/1603.04779). That holds for images of
    similar class shares, and needs many of them: fewer than ``FEWEST`` stay as they are, and so do images whose
    features are not far off. Every view then predicts as the plain one.

    Args:
        parts: of each model, with the plain view's features.
        models: whose heads predict anew.
        references: of each model; None leaves all as they are.
        context: gets a warning where features are aligned.
    """
    first, reference = parts[0], references[0]
    if reference is None or any(
        part.features is None or ref is None for part, ref in zip(parts, references, strict=True)
    ):
        return list(parts)
    assert first.features is not None
    if len(first) < FEWEST or (shift := reference.shift_of(first.features)) <= LIMIT:
        return list(parts)
    context.warn(
        f"the {len(first):,} images to predict are unlike the training images (features {shift:.2f} deviations away; "
        f"{LIMIT} is the limit), so their features are aligned to those of the training images, as if "
        "their class shares were similar"
    )
    found: list[Predictions] = []
    for part, model, ref in zip(parts, models, references, strict=True):
        assert part.features is not None
        assert ref is not None
        weight, bias = (tensor.detach().float().cpu().numpy() for tensor in (model.head.weight, model.head.bias))
        logits = ref.aligned(part.features) @ weight.T + bias
        found.append(replace(part, logits=np.repeat(logits[None], len(part.logits), axis=0)))
    return found
