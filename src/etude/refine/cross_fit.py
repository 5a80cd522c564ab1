"""Cross-fitting inside a refiner: folds that depend on ids only, and whether a gain is more than noise."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from etude.core.context import Context
from etude.core.metrics import FloatArray, IntArray
from etude.core.paired import FEW, sign_flips
from etude.core.predictions import Predictions
from etude.core.seeds import derive_seed
from etude.refine.base import BoolArray

FEWEST_ROWS = 10  # on fewer labelled images no gain is believed
NOISE = 2.0  # standard errors that a gain must exceed


class Choice(NamedTuple):
    """What :func:`choose` found: the best candidate (None: keep things as they are) and its cross-fitted gain."""

    best: int | None
    gain: float
    error: float


def fold_numbers(predictions: Predictions, folds: int, context: Context = Context()) -> IntArray:
    """Return the fold of each image, (N,) int64 below ``min(folds, N)``; each class is spread evenly over the folds.

    Images are dealt out in the order of a hash of their id within their class, so that no other order matters.
    """
    labels: list[int] = [-1] * len(predictions) if predictions.labels is None else predictions.labels.tolist()
    keys = [
        ("" if label < 0 else predictions.classes[label], derive_seed(context.seed, f"fold of {image_id}"))
        for label, image_id in zip(labels, predictions.ids, strict=True)
    ]
    order = sorted(range(len(keys)), key=keys.__getitem__)
    numbers = np.empty(len(keys), np.int64)
    numbers[order] = np.arange(len(keys)) % min(max(folds, 1), len(keys))
    return numbers


def fold_sums(rows: FloatArray, numbers: IntArray) -> FloatArray:
    """Return the sums of ``rows``, (..., N), over the images of each fold: (..., folds)."""
    return rows @ np.eye(int(numbers.max()) + 1)[numbers]


def out_of_fold(numbers: IntArray, rows_of: Callable[[BoolArray, BoolArray], FloatArray]) -> FloatArray:
    """Return ``rows_of(train, held)``, rows of each fold's held-out images fitted on the others, for all images."""
    masks = [numbers == fold for fold in range(int(numbers.max()) + 1)]
    parts = [rows_of(~held, held) for held in masks]
    found = np.empty((len(numbers), *parts[0].shape[1:]))
    for held, part in zip(masks, parts, strict=True):
        found[held] = part
    return found


def choose(
    sums: FloatArray, row_gains: Callable[[int], FloatArray], numbers: IntArray, noise: float | None = NOISE
) -> Choice:
    """Return the candidate with the largest gain, if its cross-fitted gain exceeds its noise; ties go to the earlier.

    For each fold the candidate that gains most on the other folds (none, where nothing gains) is scored on that fold:
    the mean of these scores is what choosing gains on images that had no part in the choice.
    """
    sums = np.round(sums, 9)  # the order of summation may not decide between equals
    gains = np.zeros(len(numbers))
    for fold in range(sums.shape[1]):
        elsewhere = sums.sum(axis=1) - sums[:, fold]
        best = int(np.argmax(elsewhere))
        if elsewhere[best] > 0:
            held_out = numbers == fold
            gains[held_out] = row_gains(best)[held_out]
    total = sums.sum(axis=1)
    best = int(np.argmax(total))
    useful = noise is None or (total[best] > 0 and exceeds_noise(gains, noise))
    return Choice(best if useful else None, float(gains.mean()), standard_error_of(gains))


def standard_error_of(gains: Sequence[float] | FloatArray) -> float:
    """Return the standard error of the mean of ``gains``, one an image; infinite for fewer than two."""
    values = np.asarray(gains, dtype=np.float64)
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("inf")


def exceeds_noise(gains: Sequence[float] | FloatArray, noise: float = NOISE) -> bool:
    """Whether the mean of the gains, one an image, is above ``noise`` standard errors; never on fewer than ten images.

    Where few images gain or lose anything, the exact test decides at the same level, 2.3% one-sided for 2 errors.
    """
    if len(gains) < FEWEST_ROWS:
        return False
    if np.count_nonzero(gains) < FEW:
        return sign_flips(gains, math.erf(noise / math.sqrt(2.0))).low > 0.0
    return float(np.mean(gains)) > noise * standard_error_of(gains)
