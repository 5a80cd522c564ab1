"""Images of another kind than the training images: their features are moved to where the head expects them."""

from __future__ import annotations

import math
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
FEWEST = 50  # images, labelled ones and those to predict, of which fewer have no mean worth knowing
LIMIT = 0.35  # of a shift: up to 0.15 on images of the same kind with any class shares, 0.5 and more on another kind
_FAR = 3.0  # deviations
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

        What other class shares would explain is left out: differences between the class means. Distances are cut at
        ``_FAR``, so that features that hardly vary have no more say than others. NaN where features are not numbers.
        """
        varies = self.deviation > 0
        scale, mean = self.deviation[varies], self.mean[varies]
        moved = (features.mean(axis=0, dtype=np.float64)[varies] - mean) / scale
        if not len(moved) or not np.isfinite(moved).all():
            return math.nan
        moved, between = (np.clip(x, -_FAR, _FAR) for x in (moved, (self.classes[:, varies] - mean) / scale))
        explained, *_ = np.linalg.lstsq(between.T, moved, rcond=None)
        return float(np.median(np.abs(moved - explained @ between)))

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
        references: of each model; None leaves its predictions as they are.
        context: gets a warning where features are aligned.
    """
    found: list[Predictions] = []
    most = 0.0
    for part, model, reference in zip(parts, models, references, strict=True):
        shift = 0.0
        if reference is not None and part.features is not None and len(part) >= FEWEST:
            shift = reference.shift_of(part.features)
            if LIMIT < shift < math.inf:
                weight, bias = (
                    tensor.detach().float().cpu().numpy() for tensor in (model.head.weight, model.head.bias)
                )
                logits = reference.aligned(part.features) @ weight.T + bias
                part = replace(part, logits=np.repeat(logits[None], len(part.logits), axis=0))
                most = max(most, shift)
        found.append(part)
    if most:
        context.warn(
            f"the {len(parts[0]):,} images to predict are unlike the training images (features {most:.2f} deviations "
            f"away; {LIMIT} is the limit), so their features are aligned to those of the training images, as if their "
            "class shares were similar"
        )
    return found
