"""Scores to rank images by, and which of them are equal but for rounding."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from etude.core.tally import FloatArray

_SAME = 1e-6  # relative; float32 logits and the sum over classes leave less than that between equal probabilities
_CERTAIN = 700.0  # log odds beyond it are those of 0 and 1: Predictions keep the log of zero as -708
_NEAR_ONE = 1e-6  # closer to one than this, 1 - p is better had from the other classes


def log_odds(log_probabilities: FloatArray) -> FloatArray:
    """Return log p - log(1 - p), (N, C), finite: it orders images within a class as p does, also close to 0 and 1.

    >>> log_odds(np.log([[0.2, 0.8], [0.5, 0.5]])).round(2).tolist()
    [[-1.39, 1.39], [0.0, 0.0]]
    """
    rows, top = np.arange(len(log_probabilities)), log_probabilities.argmax(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        odds = log_probabilities - np.log1p(-np.exp(np.minimum(log_probabilities, 0.0)))
        sure = log_probabilities[rows, top] > -_NEAR_ONE
        others = log_probabilities[sure].copy()
        others[np.arange(len(others)), top[sure]] = -np.inf
        odds[rows[sure], top[sure]] = -np.logaddexp.reduce(others, axis=1)
    return np.clip(odds, -_CERTAIN, _CERTAIN)


def ties(scores: FloatArray) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the order (N,) in which finite ``scores`` rise, and the first places of equal ones in it.

    Scores that differ by no more than rounding does are equal; many close ones do not become equal one by one, since a
    tie is never wider than that.

    >>> [found.tolist() for found in ties(np.array([0.3, 0.1, 0.3 + 1e-9]))]
    [[1, 0, 2], [0, 1]]
    """
    order = np.argsort(scores, kind="stable")
    ordered = scores[order]
    close = _SAME * np.maximum(1.0, np.abs(ordered))
    rises = np.diff(ordered, prepend=-np.inf) > close
    first = ordered[np.maximum.accumulate(np.where(rises, np.arange(len(ordered)), 0))]
    rises[1:] |= np.diff(np.floor((ordered - first) / close)) > 0
    return order, np.flatnonzero(rises)
