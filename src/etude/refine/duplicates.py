"""Near-duplicates by features: pairs that lie much closer together than what lies around them."""

from __future__ import annotations

from typing import NamedTuple, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from etude.core.errors import EtudeError
from etude.refine.distances import Floats, UnitRows, pair_distances, squared_distances
from etude.refine.neighbours import NeighbourIndex, Neighbours, checked_features

_AROUND = 24  # neighbours that say how far apart unrelated images lie here
_LARGEST_GROUP = 12  # copies of one image beside itself that are told from a crowded place
_WIDEST = 0.8  # copies lie within this part of the distance to the next image, whatever chance would allow
_EQUAL = 1e-3  # distances that rounding to float16 makes of equal features
_BLOCK = 2**24  # distances held at once: 64 MiB

Pairs = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]
"""First rows, second rows, similarities."""


class NearDuplicate(NamedTuple):
    """Two rows that look like copies, and the cosine of their centred features."""

    first: int
    second: int
    similarity: float


def near_duplicates(
    features_a: ArrayLike,
    features_b: ArrayLike | None = None,
    threshold: float | None = None,
    *,
    false_pairs: float = 1.0,
    most: int = 10_000,
) -> list[NearDuplicate]:
    """Return pairs of near-duplicates, the most similar first; of more than ``most``, the most similar.

    Without ``threshold`` the data decide, by each row's own neighbourhood. Let r_1 ≤ r_2 ≤ ... be its distances to the
    others. Where rows are spread evenly around it in d dimensions, (r_m / r_(m+1))^d is the largest of m uniform
    numbers, so the gap behind the m nearest rows has the probability

        P(r_m / r_(m+1) ≤ c) = c^(d m)

    d is estimated at each row from the distances behind the gap, and lowered by its standard error. The m that is
    least likely is taken; its rows are copies where the probability is at most ``false_pairs`` / N, and the gap at
    least a fifth. A pair must be each other's copies. So crowded places (ones among digits) ask for closer copies than
    empty ones. Rows that are equal up to rounding always count.

    A network's features move much with an image's light and frame: of copies that were cropped or re-encoded they find
    some, of pictures :func:`etude.study.copies.find_copies` finds nearly all.

    Source: the spacing of nearest neighbours and the estimate of d are those of Levina & Bickel 2004, "Maximum
    likelihood estimation of intrinsic dimension", and Facco et al. 2017 (https://arxiv.org/abs/1803.06992).

    Args:
        features_a: (A, D) floats.
        features_b: (B, D) floats: the pairs are then rows of ``a`` with rows of ``b``; None: rows of ``a`` among
            themselves, the smaller row first.
        threshold: the least similarity from -1 to 1, when it is known: every pair that reaches it is returned.
        false_pairs: unrelated pairs that may be expected to slip in.

    Raises:
        EtudeError: the features, the threshold or ``false_pairs`` cannot be used.

    >>> rows = np.random.default_rng(0).normal(size=(60, 8))
    >>> [(pair.first, pair.second) for pair in near_duplicates(rows, rows[[7, 40]] + 0.01)]
    [(7, 0), (40, 1)]
    >>> near_duplicates(rows)
    []
    """
    table, size_a = _stacked(features_a, features_b)
    if threshold is None:
        first, second, similarity = _by_neighbourhood(table, false_pairs)
    elif -1 <= threshold <= 1:
        first, second, similarity = _alike(table, threshold, size_a, most)
    else:
        raise EtudeError(f"the similarity of near-duplicates must be from -1 to 1, not {threshold}")
    if features_b is not None:
        across = (first < size_a) & (second >= size_a)
        first, second, similarity = first[across], second[across] - size_a, similarity[across]
    order = np.lexsort((second, first, -similarity))[:most]
    return [
        NearDuplicate(int(a), int(b), round(float(cosine), 6))
        for a, b, cosine in zip(first[order], second[order], similarity[order], strict=True)
    ]


def _by_neighbourhood(table: Floats, false_pairs: float) -> Pairs:
    if not false_pairs > 0:
        raise EtudeError(f"false_pairs must be above 0, not {false_pairs}")
    if len(table) < 2:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0)
    found = NeighbourIndex(table).among_themselves(min(_AROUND, len(table) - 1))
    return _mutual(found, _groups(found, np.log(false_pairs / len(table))))


def _groups(found: Neighbours, most: float) -> NDArray[np.int64]:
    """Return how many of the nearest rows are copies of each row, (N,), where log P of the gap is at most ``most``."""
    logs = np.log(np.maximum(found.distances, _EQUAL))
    count, around = logs.shape
    copies, chance = np.zeros(count, np.int64), np.zeros(count)
    for m in range(1, min(_LARGEST_GROUP, around - 3) + 1):
        behind = around - m - 1  # ratios r_K / r_j that the dimension is estimated from
        spread = (logs[:, -1:] - logs[:, m:-1]).sum(axis=1)
        dimension = behind / np.maximum(spread, 1e-9) * (1 - 1 / np.sqrt(behind))
        gap = logs[:, m] - logs[:, m - 1]
        probability = -np.minimum(dimension, 1e3) * m * gap
        better = (probability < chance) & (probability <= most) & (gap >= -np.log(_WIDEST))
        copies[better], chance[better] = m, probability[better]
    return np.maximum(copies, (found.distances <= _EQUAL).sum(axis=1))


def _mutual(found: Neighbours, copies: NDArray[np.int64]) -> Pairs:
    """Return the pairs of rows that are each other's copies."""
    count, around = found.positions.shape
    near = cast("NDArray[np.bool_]", np.arange(around) < copies[:, None])
    rows, others = np.nonzero(near)[0], found.positions[near]
    back = np.isin(others * count + rows, rows * count + others) & (rows < others)
    return rows[back], others[back], 1 - found.distances[near][back] ** 2 / 2


def _alike(table: Floats, threshold: float, size_a: int, most: int) -> Pairs:
    """Return the pairs (first, second, similarity) that reach the threshold, at most about ``most`` of them.

    With fewer than N rows in ``a``, its rows are compared with the rest, otherwise all with all.
    """
    rows = UnitRows.of(table, table.mean(axis=0, dtype=np.float64))
    start_of_others = size_a if size_a < len(table) else 0
    others = rows.take(slice(start_of_others, None))
    radius = float(np.sqrt(max(0.0, 2 - 2 * threshold)))
    kept = (np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))
    step = max(1, _BLOCK // len(table))
    for start in range(0, size_a, step):
        squared = squared_distances(rows.take(slice(start, min(start + step, size_a))), others)
        own = np.arange(start, start + len(squared))
        squared[np.arange(start_of_others, len(table)) <= own[:, None]] = np.inf  # each pair once, none with itself
        close = np.flatnonzero(squared <= radius**2 + 1e-4)
        if len(close) > most:
            close = np.sort(close[np.argpartition(squared.ravel()[close], most)[:most]])
        first, second = np.divmod(close, len(others.values))
        first, second = first + start, second + start_of_others
        far = pair_distances(rows.values, rows.values, first, second)
        near = far <= radius
        first, second = np.concatenate((kept[0], first[near])), np.concatenate((kept[1], second[near]))
        similarity = np.concatenate((kept[2], 1 - far[near] ** 2 / 2))
        order = np.lexsort((second, first, -similarity))[:most]
        kept = first[order], second[order], similarity[order]
    return kept


def _stacked(features_a: ArrayLike, features_b: ArrayLike | None) -> tuple[Floats, int]:
    """Return both tables below each other, and the rows of the first."""
    first = checked_features(features_a, "the first images")
    if features_b is None:
        return first, len(first)
    second = checked_features(features_b, "the second images")
    if first.shape[1] != second.shape[1]:
        raise EtudeError(
            f"features of the first images have {first.shape[1]:,} columns and those of the second "
            f"{second.shape[1]:,}: take both from the same network"
        )
    return np.concatenate([first, second]), len(first)
