"""Offsets that balance soft class counts: the fast, approximate half of an exact assignment.

The dual of "assign N images to C classes with counts n_c at the greatest likelihood" is to minimise, over offsets b,

    f(b) = ε Σ_i log Σ_c exp((l_ic + b_c) / ε) - Σ_c b_c n_c    as ε falls to zero.

Its gradient is soft counts minus n_c. A step is Newton's, or Sinkhorn's (b_c += ε log(n_c / soft count); Cuturi 2013,
"Sinkhorn Distances"), which always lowers f, where Newton's brings the counts no nearer.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Logits = NDArray[np.float32]

_linalg: Any = np.linalg
_ROWS_IN_CACHE = 1024  # what fits into a processor's cache is several times faster
# Above this many images the first steps see a part of them: they only have to come near.
_ENOUGH = 16_384
_SOFTNESS = (1.0, 0.3, 0.1, 0.03)
_STEPS = 8
_LONGEST = 5.0
# Soft counts that are wrong for so small a share of the images are near enough: cheapest moves take milliseconds each.
_NEAR_ENOUGH = 0.002


def balancing_offsets(log_p: Logits, low: Array, high: Array) -> Array:
    """Return offsets b, (C,), for which the counts of argmax(log_p + b) lie near or between ``low`` and ``high``.

    A class between its bounds has b = 0; b > 0 lifts one to its lower bound and b < 0 holds one at its upper bound.

    Args:
        log_p: (N, C).
        low, high: (C,) bounds of the counts, which may be fractions; they sum to at most N and at least N.
    """
    scale = _scale(log_p)
    offsets = np.zeros(log_p.shape[1])
    part = log_p[:: -(-len(log_p) // _ENOUGH)]
    share = len(part) / len(log_p)
    whole = len(part) == len(log_p)
    for softness in _SOFTNESS if whole else _SOFTNESS[:-1]:
        offsets = _minimised(part, offsets, low * share, high * share, softness * scale)
    for softness in () if whole else _SOFTNESS[1:-1]:
        offsets = _minimised(log_p, offsets, low, high, softness * scale)
    return offsets


def _scale(log_p: Logits) -> float:
    """How far sure predictions are ahead of the runner-up, in nats / 5: the unit of softness."""
    if log_p.shape[1] < 2:
        return 1.0
    top = np.partition(log_p[:: -(-len(log_p) // 4096)], -2, axis=1)[:, -2:]
    return float(np.clip(np.quantile(top[:, 1] - top[:, 0], 0.75) / 5, 0.2, 50.0))


def _minimised(log_p: Logits, offsets: Array, low: Array, high: Array, softness: float) -> Array:
    counts, curvature = _soft_counts(log_p, offsets, softness)
    for _ in range(_STEPS):
        slope = _slope(offsets, counts, low, high)
        wrong = np.abs(slope).sum()
        if wrong <= _NEAR_ENOUGH * len(log_p):
            break
        tried = _newton(offsets, slope, curvature, low, high, softness)
        found = _soft_counts(log_p, tried, softness)
        if np.abs(_slope(tried, found[0], low, high)).sum() > 0.9 * wrong:
            tried = _sinkhorn(offsets, counts, low, high, softness)
            found = _soft_counts(log_p, tried, softness)
        offsets, (counts, curvature) = tried, found
    return offsets


def _soft_counts(log_p: Logits, offsets: Array, softness: float) -> tuple[Array, Array]:
    """The soft counts (C,) and their derivatives by the offsets (C, C)."""
    classes = log_p.shape[1]
    counts, overlap = np.zeros(classes), np.zeros((classes, classes))
    for start in range(0, len(log_p), _ROWS_IN_CACHE):
        p = log_p[start : start + _ROWS_IN_CACHE] + offsets.astype(np.float32)
        p -= p.max(axis=1, keepdims=True)
        p *= np.float32(1 / softness)
        np.exp(p, out=p)
        p /= p.sum(axis=1, keepdims=True)
        counts += p.sum(axis=0, dtype=np.float64)
        overlap += p.T @ p
    return counts, (np.diag(counts) - overlap) / softness


def _slope(offsets: Array, counts: Array, low: Array, high: Array) -> Array:
    """The gradient of f; at b = 0, where f has a kink, its part nearest to zero."""
    return np.where(
        offsets > 0, counts - low, np.where(offsets < 0, counts - high, counts - np.clip(counts, low, high))
    )


def _newton(offsets: Array, slope: Array, curvature: Array, low: Array, high: Array, softness: float) -> Array:
    free = (slope != 0) | (offsets != 0)
    matrix = curvature[np.ix_(free, free)]
    # Adding the same to all offsets changes nothing where all counts are fixed: the ridge keeps that direction still.
    matrix += np.eye(len(matrix)) * (1e-6 * np.trace(matrix) / len(matrix) + 1e-9)
    tried = offsets.copy()
    step: Array = _linalg.solve(matrix, slope[free])
    # Where no image is near the edge of a class there is no curvature to trust.
    tried[free] -= np.clip(step, -_LONGEST * softness, _LONGEST * softness)
    return _stopped_at_kinks(offsets, tried, low, high)


def _sinkhorn(offsets: Array, counts: Array, low: Array, high: Array, softness: float) -> Array:
    known = np.log(np.maximum(counts, 1e-9))
    up = offsets + softness * (np.log(np.maximum(low, 1e-9)) - known)
    down = offsets + softness * (np.log(np.maximum(high, 1e-9)) - known)
    return np.where(low == high, up, np.clip(0.0, up, down))


def _stopped_at_kinks(offsets: Array, tried: Array, low: Array, high: Array) -> Array:
    crossed = (offsets * tried < 0) & (low < high)
    return np.where(crossed, 0.0, tried)
