"""Scores of decisions, computed from counts by class, so that many decisions are scored at once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Tally:
    """Counts of N images by class, for one decision or, with leading axes, for many.

    Args:
        labelled: (..., C) images whose label is the class.
        predicted: (..., C) images for which the class was predicted.
        hits: (..., C) images for which both are so.
        distance: (...) sum over images of the squared distance between the positions of label and prediction.
    """

    labelled: FloatArray
    predicted: FloatArray
    hits: FloatArray
    distance: FloatArray

    @classmethod
    def of(cls, predicted: IntArray, labels: IntArray, classes: int, counts: FloatArray | None = None) -> Tally:
        """Count (N,) predictions against (N,) labels; image ``i`` counts ``counts[i]`` times.

        >>> Tally.of(np.array([0, 1, 1]), np.array([0, 1, 0]), 2).hits.tolist()
        [1.0, 1.0]
        """
        weight = np.ones(len(labels)) if counts is None else counts
        hit = predicted == labels
        return cls(
            _counted(labels, weight, classes),
            _counted(predicted, weight, classes),
            _counted(labels[hit], weight[hit], classes),
            np.asarray(weight @ squared_distance(predicted, labels)),
        )


def squared_distance(predicted: IntArray, labels: IntArray) -> FloatArray:
    """Return the square of how many positions apart prediction and label are, elementwise."""
    return np.square((predicted - labels).astype(np.float64))


def accuracy(tally: Tally) -> FloatArray:
    """Return the share of images whose prediction is the label, (...)."""
    return _ratio(tally.hits.sum(-1), tally.labelled.sum(-1))


def balanced_accuracy(tally: Tally) -> FloatArray:
    """Return the mean, over the classes that occur, of the share of their images predicted right, (...)."""
    occurs = tally.labelled > 0
    return _ratio(_ratio(tally.hits, tally.labelled).sum(-1), occurs.sum(-1))


def macro_f1(tally: Tally) -> FloatArray:
    """Return the mean of F1 = 2 hits / (labelled + predicted) over the classes that are labelled, (...).

    scikit-learn also counts classes that are only predicted, with an F1 of zero. Then never to predict a class that
    has no labels would leave fewer classes to average over: a gain without an image predicted better.
    """
    each = _ratio(2.0 * tally.hits, tally.labelled + tally.predicted)
    return _ratio(each.sum(-1), (tally.labelled > 0).sum(-1))


def quadratic_kappa(tally: Tally) -> FloatArray:
    """Return Cohen's kappa with quadratic weights over the positions of the classes, (...).

    1 - Σ (i-j)² O_ij / Σ (i-j)² E_ij, where E is what the margins of O give by chance. 1 when both sums are zero.
    """
    place = np.arange(tally.labelled.shape[-1], dtype=np.float64)
    total = tally.labelled.sum(-1)
    first = _ratio(tally.labelled @ place, total), _ratio(tally.predicted @ place, total)
    second = _ratio(tally.labelled @ place**2, total) + _ratio(tally.predicted @ place**2, total)
    expected = second - 2.0 * first[0] * first[1]
    observed = _ratio(tally.distance, total)
    certain = expected <= 1e-12 * np.maximum(second, 1.0)  # one class for all, in both: what is left is rounding
    return np.where(certain, 1.0, 1.0 - observed / np.where(certain, 1.0, expected))


def _counted(positions: IntArray, weight: FloatArray, classes: int) -> FloatArray:
    return np.bincount(positions, weight, classes).astype(np.float64, copy=False)


def _ratio(amount: FloatArray, whole: NDArray[np.generic]) -> FloatArray:
    """Return ``amount / whole``, zero where the whole is."""
    parts = np.asarray(whole, dtype=np.float64)
    return np.divide(amount, parts, out=np.zeros(np.broadcast_shapes(np.shape(amount), parts.shape)), where=parts > 0)
