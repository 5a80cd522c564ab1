"""Cross-fitting of a chain: every fold keeps a chain of its own that never saw the fold's labels."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from etude.core.predictions import Predictions
from etude.core.seeds import rng_for
from etude.core.tally import FloatArray, IntArray
from etude.refine.base import Refiner
from etude.refine.cross_fit import fold_numbers
from etude.refine.rows import labels_of, without_labels

_LARGEST_TARGET = 20_000  # images of a simulated target; more sharpen nothing


@dataclass(frozen=True)
class Part:
    """One fold, as far as the steps that are kept have come.

    Args:
        train: labelled predictions of the other folds, refined by steps fitted on themselves.
        held: labelled predictions of this fold, refined by the same steps.
    """

    train: Predictions
    held: Predictions


@dataclass(frozen=True)
class Folds:
    """All folds of the labelled images, in order.

    Args:
        shares: (C,) of the classes in the target, once a kept step has adapted to them; None as long as the labelled
            images stand for it.
    """

    parts: tuple[Part, ...]
    seed: int
    shares: FloatArray | None = None

    @classmethod
    def of(cls, labelled: Predictions, folds: int, seed: int) -> Folds:
        """Split labelled predictions; each class is spread evenly."""
        numbers = fold_numbers(labelled, folds, seed)
        return cls(
            tuple(
                Part(labelled.take(numbers != fold), labelled.take(numbers == fold))
                for fold in range(int(numbers.max()) + 1)
            ),
            seed,
        )

    @property
    def labels(self) -> IntArray:
        """The labels of all held-out images."""
        return np.concatenate([labels_of(part.held) for part in self.parts])

    def log_probabilities(self) -> FloatArray:
        """Return the held-out log probabilities, in the order of :attr:`labels`."""
        return np.concatenate([part.held.log_probabilities() for part in self.parts])

    def weights(self) -> FloatArray | None:
        """Return the weight of each held-out image that gives its classes the target's shares; None for equal ones."""
        return None if self.shares is None else weights_of(self.labels, self.shares)

    def after(self, step: Refiner, shares: FloatArray | None, target_size: int | None) -> Folds:
        """Return the folds refined by ``step``, fitted anew for each on the others.

        A step that fits on the target gets the held-out images for one, without their labels; drawn again to
        ``shares``, as many as the target has, where these differ from those of the labelled images.

        Args:
            shares: (C,) of the classes in the target, or None where the labelled images stand for it.
            target_size: images of the real target; None when there is none.
        """
        done = [self._refined(part, step, shares, target_size, fold) for fold, part in enumerate(self.parts)]
        return replace(self, parts=tuple(done), shares=shares)

    def _refined(
        self, part: Part, step: Refiner, shares: FloatArray | None, target_size: int | None, fold: int
    ) -> Part:
        target = None
        if "target" in step.fits_on and target_size is not None:
            target = part.held
            if shares is not None:
                target = resampled(target, shares, min(target_size, _LARGEST_TARGET), self.seed, f"target {fold}")
        seen = part.train
        if self.shares is not None:
            seen = resampled(seen, self.shares, len(seen), self.seed, f"train {fold}")
        fitted = step.clone().fit(labelled=seen, target=None if target is None else without_labels(target))
        return Part(fitted.transform(part.train), fitted.transform(part.held))


def weights_of(labels: IntArray, shares: FloatArray) -> FloatArray:
    """Return weights (N,) under which the labelled classes have ``shares`` (C,), as far as they occur.

    >>> weights_of(np.array([0, 0, 0, 1]), np.array([0.5, 0.5])).tolist()
    [0.16666666666666666, 0.16666666666666666, 0.16666666666666666, 0.5]
    """
    counts = np.bincount(labels, minlength=len(shares))
    return (shares / np.maximum(counts, 1))[labels]


def resampled(predictions: Predictions, shares: FloatArray, size: int, seed: int, name: str) -> Predictions:
    """Return ``size`` rows drawn with replacement so that classes have ``shares``; ids tell copies apart.

    The rows as they are come back when ``shares`` gives nothing to any class that occurs.
    """
    weights = weights_of(labels_of(predictions), shares)
    if weights.sum() <= 0:
        return predictions
    rows: NDArray[np.int64] = (
        rng_for(seed, f"chain {name}").choice(len(predictions), size, p=weights / weights.sum()).astype(np.int64)
    )
    features = predictions.features
    return Predictions(
        tuple(f"{number}/{predictions.ids[row]}" for number, row in enumerate(rows.tolist())),
        predictions.classes,
        predictions.logits[:, rows],
        None if features is None else features[rows],
        labels_of(predictions)[rows],
    )
