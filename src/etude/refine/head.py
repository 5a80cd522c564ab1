"""Multinomial logistic regression as scikit-learn defines it, with a start and an offset besides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.optimize  # pyright: ignore[reportMissingTypeStubs]
from numpy.typing import NDArray

from etude.core.processor import blas_threads_for
from etude.core.standardise import Standardised as Standardised  # saved refiners name it by this module
from etude.refine.base import normalised

_optimize: Any = scipy.optimize
Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Head:
    """A linear layer: log p = x W + b, normalised.

    Args:
        weights: W, (D, C).
        bias: b, (C,).
    """

    weights: Array
    bias: Array

    def log_probabilities(self, rows: Array, offset: Array | None = None) -> Array:
        """Return log p of (N, D) standardised rows, (N, C); ``offset`` (N, C) is added to the logits."""
        logits = rows @ self.weights + self.bias
        return normalised(logits if offset is None else logits + offset)


def fit_head(
    rows: Array,
    labels: NDArray[np.int64],
    classes: int,
    strength: float,
    *,
    importance: Array | None = None,
    offset: Array | None = None,
    start: Head | None = None,
    most: int = 200,
) -> Head:
    """Return the W and b that minimise Σ_i w_i (-log p_i(label)) / Σ w + |W|² / (2 strength Σ w), by L-BFGS.

    ``strength`` is scikit-learn's ``C`` (half of it with two classes, where scikit-learn has one column of W only).
    The bias is free, unless there is an ``offset``: then the head is a correction to it, and b is drawn to zero as W
    is, so that no strength at all means no correction. Without an offset every class must occur.

    Args:
        rows: (N, D) standardised.
        labels: (N,) below ``classes``.
        importance: w, (N,); equal when None.
        offset: (N, C) logits to start from.
        start: where the search begins; zero when None.
        most: steps at most.

    >>> x, y = np.array([[-1.0], [-1.0], [1.0], [1.0]]), np.array([0, 0, 1, 1])
    >>> np.exp(fit_head(x, y, 2, strength=1.0).log_probabilities(x))[0].round(2).tolist()
    [0.81, 0.19]
    """
    count, columns = rows.shape
    weight = np.ones(count) if importance is None else importance
    ridge = np.full((columns + 1, classes), 1 / (strength * weight.sum()))
    ridge[-1] *= offset is not None
    share: Array = weight / weight.sum()
    picked = np.arange(len(labels))

    def loss(flat: Array) -> tuple[float, Array]:
        table = flat.reshape(ridge.shape)
        log_p = Head(table[:-1], table[-1]).log_probabilities(rows, offset)
        value = -(share @ log_p[picked, labels]) + (ridge * table**2).sum() / 2
        slope = np.exp(log_p) * share[:, None]
        slope[picked, labels] -= share
        gradient = np.concatenate([rows.T @ slope, slope.sum(axis=0)[None]]) + ridge * table
        return float(value), gradient.ravel()

    first = np.zeros(ridge.shape) if start is None else np.concatenate([start.weights, start.bias[None]])
    options = {"maxiter": most, "ftol": 1e-11, "gtol": 1e-7}
    with blas_threads_for(rows.size * classes):
        found: Array = _optimize.minimize(loss, first.ravel(), jac=True, method="L-BFGS-B", options=options).x
    table = found.reshape(ridge.shape)
    return Head(table[:-1], table[-1])
