"""What a report says about labelled predictions: scores with intervals, classes, confusions, calibration."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from etude.core.metrics import Metric, metric_named
from etude.core.predictions import Predictions
from etude.core.seeds import rng_for

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]

LEVEL = 0.95
_Z = 1.959964  # of the normal distribution: 95% lie within
_DRAWS = 1000
_BINS = 10
_NAMES = {
    "accuracy": "accuracy",
    "log_loss": "log loss",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro F1",
    "auc": "ROC AUC",
}


@dataclass(frozen=True, slots=True)
class Score:
    """A score with its 95% interval.

    Args:
        name: as people write it.
        value: of the images at hand.
        low: end of the interval.
        high: its other end.
        how: the interval's method.
        is_share: whether it is read as a percentage.
    """

    name: str
    value: float
    low: float
    high: float
    how: str
    is_share: bool = True


@dataclass(frozen=True, slots=True)
class ClassRow:
    """How one class fares; a share without an image to count is None.

    Args:
        name: of the class.
        images: labelled with it.
        predicted: images predicted as it.
        recall: share of its images that were predicted right.
        low: end of the recall's 95% Wilson interval.
        high: its other end.
        precision: share of the images predicted as it that are.
        f1: harmonic mean of precision and recall.
        taken_for: the class its images were wrongly given most often, with how often; or None.
    """

    name: str
    images: int
    predicted: int
    recall: float | None
    low: float
    high: float
    precision: float | None
    f1: float | None
    taken_for: tuple[str, int] | None


@dataclass(frozen=True, slots=True)
class Bin:
    """Images whose predicted class got a probability from ``start`` to ``end``; see :func:`calibration_bins`."""

    start: float
    end: float
    images: int
    confidence: float
    accuracy: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Judged:
    """Labelled predictions in the form that all tables are made of.

    Args:
        ids: N image ids.
        classes: C class names.
        labels: (N,) positions in ``classes``.
        guesses: (N,) the most probable class.
        log_probabilities: (N, C).
    """

    ids: tuple[str, ...]
    classes: tuple[str, ...]
    labels: IntArray
    guesses: IntArray
    log_probabilities: FloatArray

    @classmethod
    def of(cls, predictions: Predictions) -> Judged | None:
        """Return what is labelled of ``predictions``, or None where nothing is."""
        if predictions.labels is None or not (predictions.labels >= 0).any():
            return None
        known = predictions if (predictions.labels >= 0).all() else predictions.take(predictions.labels >= 0)
        assert known.labels is not None
        found = known.log_probabilities()
        guesses = np.argmax(found, axis=1).astype(np.int64)
        return cls(known.ids, known.classes, known.labels, guesses, found)

    @property
    def confidence(self) -> FloatArray:
        """Probability of the predicted class, (N,)."""
        return np.exp(self.log_probabilities[np.arange(len(self.labels)), self.guesses])


def wilson(hits: float, images: float) -> tuple[float, float]:
    """Return the 95% interval of a share of ``hits`` in ``images`` (Wilson 1927); (0, 1) without an image.

    >>> [round(end, 4) for end in wilson(788, 800)]
    [0.974, 0.9914]
    >>> wilson(0, 0)
    (0.0, 1.0)
    """
    if images <= 0:
        return 0.0, 1.0
    share, spread = hits / images, _Z**2 / images
    middle = (share + spread / 2) / (1 + spread)
    half = _Z * math.sqrt(share * (1 - share) / images + spread / (4 * images)) / (1 + spread)
    return max(0.0, middle - half), min(1.0, middle + half)


def scores_of(judged: Judged) -> list[Score]:
    """Return accuracy with its Wilson interval, and the other scores with bootstrap intervals over the images."""
    hits, images = int((judged.guesses == judged.labels).sum()), len(judged.labels)
    accuracy = Score("accuracy", hits / images, *wilson(hits, images), "Wilson")
    two = len(judged.classes) == 2 and len(np.unique(judged.labels)) == 2
    names = ["log_loss", "balanced_accuracy", "macro_f1", *(["auc"] if two else [])]
    return [accuracy, *_bootstrapped([metric_named(name) for name in names], judged)]


def _bootstrapped(metrics: Sequence[Metric], judged: Judged) -> list[Score]:
    """Each draw resamples images, the same ones for all metrics (percentile interval, Efron & Tibshirani 1993)."""
    images = len(judged.labels)
    scorers = [metric.scorer(judged.log_probabilities, judged.labels) for metric in metrics]
    rng, found = rng_for(0, "report bootstrap"), np.empty((_DRAWS, len(metrics)))
    for draw in range(_DRAWS):
        counts = np.bincount(rng.integers(0, images, images), minlength=images).astype(np.float64)
        found[draw] = [scorer(counts) for scorer in scorers]
    low, high = np.quantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    once = np.ones(images)
    return [
        Score(_NAMES[metric.name], scorer(once), float(low[k]), float(high[k]), "bootstrap", metric.name != "log_loss")
        for k, (metric, scorer) in enumerate(zip(metrics, scorers, strict=True))
    ]


def confused_pairs(judged: Judged) -> list[tuple[int, int, int]]:
    """Return (label, prediction, images) of every confusion that happened, the most frequent one first."""
    wrong = judged.labels != judged.guesses
    count = len(judged.classes)
    coded, counts = np.unique(judged.labels[wrong] * count + judged.guesses[wrong], return_counts=True)
    found = [(int(code) // count, int(code) % count, int(often)) for code, often in zip(coded, counts, strict=True)]
    return sorted(found, key=lambda pair: (-pair[2], pair[0], pair[1]))


def confusion_matrix(judged: Judged, chosen: Sequence[int]) -> IntArray:
    """Return how often label ``chosen[i]`` was predicted as ``chosen[j]``, (K, K); others are left out."""
    place = np.full(len(judged.classes), -1, np.int64)
    place[list(chosen)] = np.arange(len(chosen))
    rows, columns = place[judged.labels], place[judged.guesses]
    inside = (rows >= 0) & (columns >= 0)
    matrix = np.zeros((len(chosen), len(chosen)), np.int64)
    np.add.at(matrix, (rows[inside], columns[inside]), 1)
    return matrix


def class_rows(judged: Judged) -> list[ClassRow]:
    """Return a row for each class that is labelled or predicted, the lowest F1 first."""
    count = len(judged.classes)
    images = np.bincount(judged.labels, minlength=count)
    predicted = np.bincount(judged.guesses, minlength=count)
    hits = np.bincount(judged.labels[judged.labels == judged.guesses], minlength=count)
    worst: dict[int, tuple[str, int]] = {}
    for label, guess, often in confused_pairs(judged):
        worst.setdefault(label, (judged.classes[guess], often))
    rows: list[ClassRow] = []
    for k in np.flatnonzero(images + predicted).tolist():
        own, given, right = int(images[k]), int(predicted[k]), int(hits[k])
        recall, precision = (right / own if own else None), (right / given if given else None)
        f1 = 2 * right / (own + given)
        rows.append(ClassRow(judged.classes[k], own, given, recall, *wilson(right, own), precision, f1, worst.get(k)))
    return sorted(rows, key=lambda row: (row.f1, row.name))


def calibration_bins(judged: Judged) -> list[Bin]:
    """Return the images by the probability of their predicted class, in ten steps from 0 to 1; empty ones are left out.

    Each bin holds the mean of that probability, the share that is right, and that share's 95% Wilson interval.
    """
    confidence, right = judged.confidence, judged.guesses == judged.labels
    place = np.minimum((confidence * _BINS).astype(np.int64), _BINS - 1)
    bins: list[Bin] = []
    for k in np.unique(place).tolist():
        inside = place == k
        images, hits = int(inside.sum()), int(right[inside].sum())
        mean = float(confidence[inside].mean())
        bins.append(Bin(k / _BINS, (k + 1) / _BINS, images, mean, hits / images, *wilson(hits, images)))
    return bins


def calibration_error(bins: Sequence[Bin]) -> float:
    """Return the expected calibration error: the mean over images of |share right - confidence| of their bin.

    Source: Naeini, Cooper & Hauskrecht 2015.

    >>> calibration_error([Bin(0.9, 1.0, 10, 0.95, 0.9, 0.6, 1.0), Bin(0.5, 0.6, 10, 0.55, 0.55, 0.3, 0.8)])
    0.025
    """
    images = sum(one.images for one in bins)
    return round(sum(one.images * abs(one.accuracy - one.confidence) for one in bins) / images, 12)
