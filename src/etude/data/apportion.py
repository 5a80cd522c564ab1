"""Dividing a number of images over classes in whole numbers."""

from __future__ import annotations

import numpy as np


def apportion(shares: np.ndarray, total: int, lower: np.ndarray, upper: np.ndarray) -> np.ndarray:
    """Round ``shares`` to whole numbers between the bounds that add up to ``total`` (largest remainders).

    When the bounds forbid the total, the result is the nearest sum that they allow.

    Args:
        shares: (C,) the exact share of each class.
        total: what the result adds up to.
        lower: (C,) int64 least of each class.
        upper: (C,) int64 most of each class, not below ``lower``.

    Returns:
        (C,) int64.

    >>> apportion(np.array([2.4, 1.6, 1.0]), 5, np.array([1, 1, 1]), np.array([9, 9, 9]))
    array([2, 2, 1])
    """
    counts = np.clip(np.floor(shares).astype(np.int64), lower, upper)
    while (missing := total - int(counts.sum())) > 0 and (counts < upper).any():
        _step(counts, np.where(counts < upper, counts - shares, np.inf), missing, 1)
    while (surplus := int(counts.sum()) - total) > 0 and (counts > lower).any():
        _step(counts, np.where(counts > lower, shares - counts, np.inf), surplus, -1)
    return counts


def shares_with_least(sizes: np.ndarray, total: int, least: np.ndarray) -> np.ndarray:
    """Divide ``total`` in proportion to ``sizes``, where no class gets less than ``least``.

    Args:
        sizes: (C,) int64.
        total: not below the sum of ``least``.
        least: (C,) int64, not above ``sizes``.

    Returns:
        (C,) float64 that adds up to ``total``.

    >>> shares_with_least(np.array([80, 20, 2]), 22, np.array([2, 2, 2]))
    array([16.,  4.,  2.])
    """
    held = np.zeros(len(sizes), dtype=bool)
    while True:  # each class that is raised to its least leaves less for the others, which may fall below theirs
        free = sizes[~held].sum()
        scale = (total - least[held].sum()) / free if free else 0.0
        shares = np.where(held, least, sizes * scale)
        below = ~held & (shares < least)
        if not below.any():
            return shares
        held |= below


def _step(counts: np.ndarray, order: np.ndarray, wanted: int, change: int) -> None:
    """Change the count of the first ``wanted`` finite classes in ``order`` by one, in place."""
    ranked = np.argsort(order, kind="stable")[:wanted]
    counts[ranked[np.isfinite(order[ranked])]] += change
