"""Whether two sets of images differ: how well a classifier on features recognises which set an image is from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.linear_model import Ridge

from etude.core.context import Context
from etude.core.errors import EtudeError
from etude.core.processor import blas_threads_for
from etude.health.label_errors import principal
from etude.refine.neighbours.index import checked_features

_AXES = 64
_ROWS_AN_AXIS = 10
_FOLDS = 5
_FEWEST = 2 * _FOLDS
_PENALTY = 0.1  # as a part of the mean eigenvalue

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Shift:
    """How well a classifier recognises which of two sets an image is from."""

    auc: float  # area under the ROC curve on held-out images: 0.5 where nothing differs, 1 where all are recognised
    low: float  # ends of its 95% interval
    high: float
    images: tuple[int, int]  # how many of each set were used

    @property
    def beyond_noise(self) -> bool:
        return self.low > 0.5


def dataset_shift(first: ArrayLike, second: ArrayLike, *, most: int = 2_500, context: Context = Context()) -> Shift:
    """Return how well a linear classifier on features recognises which of two sets an image is from.

    Ridge regression on the principal axes of both sets together predicts the set of held-out images, in five folds; the
    AUC is the mean over folds, its variance DeLong's, over folds too.

    Args:
        first: (A, D) floats, ten rows or more.
        second: (B, D) floats, ten rows or more.
        most: rows of each set that are used, drawn by the seed of ``context``.

    Source: Lopez-Paz & Oquab 2017, "Revisiting Classifier Two-Sample Tests" (https://arxiv.org/abs/1610.06545);
    DeLong, DeLong & Clarke-Pearson 1988 for the variance.

    Raises:
        EtudeError: the features cannot be used, or a set has too few rows.

    >>> rng = np.random.default_rng(0)
    >>> found = dataset_shift(rng.normal(size=(200, 5)), rng.normal(size=(200, 5)) + 2)
    >>> found.auc > 0.98, found.beyond_noise
    (True, True)
    """
    tables = [checked_features(first, "the first set")]
    tables.append(checked_features(second, "the second set", tables[0].shape[1], "the first"))
    if min(len(table) for table in tables) < _FEWEST:
        raise EtudeError(
            f"a shift between two sets needs {_FEWEST} images of each, not {len(tables[0]):,} and {len(tables[1]):,}"
        )
    chosen = [context.rng("shift", side).permutation(len(table))[:most] for side, table in enumerate(tables)]
    drawn = [table[rows] for table, rows in zip(tables, chosen, strict=True)]
    count = len(drawn[0]) + len(drawn[1])
    z = principal(np.concatenate(drawn), min(_AXES, max(2, count // _ROWS_AN_AXIS)), context)
    is_second = np.repeat([0.0, 1.0], [len(drawn[0]), len(drawn[1])])
    fold = np.concatenate([np.arange(len(part)) % _FOLDS for part in drawn])  # the rows stand in random order
    areas, variances = zip(*(_of_fold(z, is_second, fold == number) for number in range(_FOLDS)), strict=True)
    auc, error = float(np.mean(areas)), float(np.sqrt(np.sum(variances))) / _FOLDS
    low, high = max(0.0, auc - 1.96 * error), min(1.0, auc + 1.96 * error)
    return Shift(auc, low, high, (len(drawn[0]), len(drawn[1])))


def _of_fold(z: NDArray[np.float32], is_second: Array, held: NDArray[np.bool_]) -> tuple[float, float]:
    rows = z.astype(np.float64)
    penalty = _PENALTY * max(float(rows[~held].var(axis=0).sum()) * int((~held).sum()) / z.shape[1], 1e-12)
    with blas_threads_for(rows.size * rows.shape[1]):
        model: Any = Ridge(alpha=penalty).fit(rows[~held], is_second[~held])
    scores: Array = model.predict(rows[held])
    return area_and_variance(scores[is_second[held] == 1], scores[is_second[held] == 0])


def area_and_variance(positive: Array, negative: Array) -> tuple[float, float]:
    """Return the area under the ROC curve and DeLong's variance of it, from the share of others below each score."""
    above, below = _share_below(positive, negative), 1 - _share_below(negative, positive)
    variance = sum(float(part.var(ddof=1)) / len(part) for part in (above, below) if len(part) > 1)
    return float(above.mean()), variance


def _share_below(scores: Array, others: Array) -> Array:
    """Return for each score the share of ``others`` that are smaller, ties counted half."""
    ordered = np.sort(others)
    left, right = np.searchsorted(ordered, scores, "left"), np.searchsorted(ordered, scores, "right")
    return (left + right) / (2 * len(ordered))
