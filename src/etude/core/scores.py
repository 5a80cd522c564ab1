"""Scores of predictions against labels. Every label must be known: an unlabelled image has no score."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from etude.core.errors import EtudeError
from etude.core.predictions import Predictions


def accuracy(predicted: ArrayLike, labels: ArrayLike) -> float:
    """Return the share of the N images whose ``predicted`` class, (N,) integers, equals the label, (N,) integers.

    Raises:
        EtudeError: a label is negative (unlabelled), there are none, or the lengths differ.

    >>> accuracy([0, 1, 1, 0], [0, 1, 0, 0])
    0.75
    """
    guesses, truth = _paired(predicted, labels)
    return float((guesses == truth).mean())


def balanced_accuracy(predicted: ArrayLike, labels: ArrayLike) -> float:
    """Return the mean, over the classes that occur in ``labels``, of the share of their images predicted right.

    Raises:
        EtudeError: as :func:`accuracy`.

    >>> balanced_accuracy([0, 0, 0, 0], [0, 0, 0, 1])
    0.5
    """
    guesses, truth = _paired(predicted, labels)
    _, positions, counts = np.unique(truth, return_inverse=True, return_counts=True)
    hits = np.bincount(positions, weights=(guesses == truth).astype(np.float64))
    return float(np.mean(hits / counts))


def log_loss(probabilities: ArrayLike, labels: ArrayLike) -> float:
    """Return the mean of -log of the probability, (N, C), that was given to the label, (N,) integers; in nats.

    A probability below 1e-15 counts as 1e-15, so that one sure mistake does not make the score infinite.

    Raises:
        EtudeError: as :func:`accuracy`; a label has no column; a probability is outside [0, 1].

    >>> round(log_loss([[0.5, 0.5], [0.1, 0.9]], [0, 1]), 4)
    0.3993
    """
    values = np.asarray(probabilities, dtype=np.float64)
    truth = _labelled(labels)
    if values.ndim != 2 or len(values) != len(truth):
        raise EtudeError(f"probabilities must have shape ({len(truth)}, C), one row a label, not {values.shape}")
    if truth.max() >= values.shape[1]:
        raise EtudeError(f"label {truth.max()} has no column in probabilities of {values.shape[1]} classes")
    if not ((values >= 0) & (values <= 1 + 1e-6)).all():
        raise EtudeError("probabilities must lie between 0 and 1; were logits given instead?")
    given = values[np.arange(len(truth)), truth]
    return float(-np.mean(np.log(np.clip(given, 1e-15, 1.0))))


def standard_error(accuracy: float, n: int) -> float:
    """Return the standard error of an accuracy measured on ``n`` images: sqrt(accuracy (1 - accuracy) / n).

    >>> round(standard_error(0.9, 900), 4)
    0.01
    """
    if n < 1 or not 0 <= accuracy <= 1:
        raise EtudeError(f"a standard error needs an accuracy from 0 to 1 and n of at least 1, not {accuracy} and {n}")
    return math.sqrt(accuracy * (1 - accuracy) / n)


def adjusted_error(accuracy: float, n: int) -> float:
    """Return a standard error that stays honest on few images: after two more right and two more wrong ones.

    The plain formula says 0 when all (or none) of a handful are right. Source: Agresti & Coull 1998.

    >>> standard_error(1.0, 6), round(adjusted_error(1.0, 6), 2)
    (0.0, 0.13)
    """
    return standard_error((accuracy * n + 2) / (n + 4), n + 4)


def matched_interval(wins: int, losses: int, n: int, level: float = 0.9) -> tuple[float, float]:
    """Return the interval of a gain in accuracy on ``n`` images of which ``wins`` became right and ``losses`` wrong.

    Half an image is added to each of the four counts, so that its width is not zero where nothing has changed. Source:
    Agresti & Min 2005, Simple improved confidence intervals for comparing matched proportions.

    >>> [round(end, 3) for end in matched_interval(0, 0, 16)], [round(end, 3) for end in matched_interval(2, 12, 192)]
    ([-0.091, 0.091], [-0.084, -0.019])
    """
    gain, changed = (wins - losses) / (n + 2), (wins + losses + 1) / (n + 2)
    reach = NormalDist().inv_cdf((1 + level) / 2) * math.sqrt((changed - gain**2) / (n + 2))
    return gain - reach, gain + reach


def _labelled(labels: ArrayLike) -> NDArray[np.int64]:
    truth = np.asarray(labels)
    if truth.ndim != 1 or not len(truth):
        raise EtudeError(f"a score needs at least one label, (N,) integers, not an array of shape {truth.shape}")
    if truth.dtype.kind not in "iu":
        raise EtudeError(f"labels must be integers, not {truth.dtype}")
    if (unknown := int((truth < 0).sum())) > 0:
        raise EtudeError(f"{unknown:,} of {len(truth):,} images are unlabelled: score only the labelled ones")
    return truth.astype(np.int64)


def _paired(predicted: ArrayLike, labels: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    guesses, truth = np.asarray(predicted), _labelled(labels)
    if guesses.shape != truth.shape or guesses.dtype.kind not in "iu":
        raise EtudeError(
            f"predicted classes must be {len(truth):,} integers, one a label, not {guesses.dtype} of {guesses.shape}"
        )
    return guesses.astype(np.int64), truth


def score_of(predictions: Predictions) -> tuple[float, float]:
    """Return accuracy and negative log loss of labelled predictions; larger is better in both.

    Raises:
        ValueError: the predictions have no labels.
    """
    if predictions.labels is None:
        raise ValueError("these predictions have no labels to be scored against")
    labels = predictions.labels
    return accuracy(predictions.predicted(), labels), -log_loss(predictions.probabilities(), labels)
