"""The arithmetic of ``KNN``: votes of neighbours, their blend with a network, and two ways to choose neighbours."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from etude.refine.cross_fit import SMALLEST
from etude.refine.distances import UnitRows
from etude.refine.neighbours import NeighbourIndex, Neighbours

Metric = Literal["log_loss", "accuracy"]
SCALE_OF = 10  # neighbours whose mean distance is a row's scale
_SMALLEST_SCALE = 1e-6  # a row among copies of itself lies at distance zero from them
_TIE = 1e-9  # how much log loss counts beside a hit: it only decides between equal accuracies


def votes(
    found: Neighbours, labels: NDArray[np.int64], classes: int, temperature: float, ks: Sequence[int]
) -> Iterator[NDArray[np.float64]]:
    """Yield p_knn, (Q, C), for each k in the ascending ``ks``: Σ exp(-d / T) over neighbours of a class, over all k.

    Args:
        found: at least ``max(ks)`` neighbours of Q queries, or as many as there are.
        labels: (N,) class of each row of the index.
        classes: C.
        temperature: T.
        ks: ascending.

    >>> found = Neighbours(np.array([[0, 1, 2]]), np.array([[0.0, 0.0, np.log(2)]]))
    >>> [vote.round(2).tolist() for vote in votes(found, np.array([1, 1, 0]), 2, 1.0, [2, 3])]
    [[[0.0, 1.0]], [[0.2, 0.8]]]
    """
    present = found.positions >= 0
    # Only ratios count, so the nearest one gets weight 1: at a small T all would vanish otherwise.
    nearest = np.where(present.any(axis=1), found.distances.min(axis=1), 0.0)[:, None]
    weights = np.where(present, np.exp(-(np.where(present, found.distances, nearest) - nearest) / temperature), 0.0)
    cells = np.arange(len(weights))[:, None] * classes + labels[found.positions]
    total, start = np.zeros(len(weights) * classes), 0
    for k in ks:
        part = slice(start, k)
        total += np.bincount(cells[:, part].ravel(), weights[:, part].ravel(), minlength=len(total))
        start = k
        table = total.reshape(-1, classes)
        yield table / np.maximum(table.sum(axis=1, keepdims=True), np.finfo(np.float64).tiny)


def mixed(vote: NDArray[np.float64], network: NDArray[np.float64], weight: float) -> NDArray[np.float64]:
    """Return log(λ p_knn + (1 - λ) p_net), (N, C), from log p_net; the network alone where nobody voted.

    >>> np.exp(mixed(np.array([[1.0, 0.0], [0.0, 0.0]]), np.log([[0.5, 0.5], [0.2, 0.8]]), 0.5)).round(2).tolist()
    [[0.75, 0.25], [0.2, 0.8]]
    """
    with np.errstate(divide="ignore"):  # the log of zero is minus infinity, as it should be
        blend = np.logaddexp(np.log(weight) + np.log(vote), np.log1p(-weight) + network)
    return np.where(vote.any(axis=1, keepdims=True), blend, network)


def row_gains(
    vote: NDArray[np.float64],
    network: NDArray[np.float64],
    labels: NDArray[np.int64],
    weights: Sequence[float],
    metric: Metric,
) -> NDArray[np.float64]:
    """Return what each λ in ``weights`` gains over the network alone, (weights, N): in log loss, or in hits."""
    rows, lam = np.arange(len(labels)), np.asarray(weights)[:, None]
    lam = np.where(vote.any(axis=1), lam, 0.0)
    before = np.maximum(network[rows, labels], SMALLEST)
    after = np.maximum(lam * vote[rows, labels] + (1 - lam) * network[rows, labels], SMALLEST)
    gains = np.log(after) - np.log(before)
    if metric == "log_loss":
        return gains
    hit_before = network.argmax(axis=1) == labels
    hits = np.array([(one[:, None] * vote + (1 - one[:, None]) * network).argmax(axis=1) == labels for one in lam])
    return hits.astype(np.float64) - hit_before + _TIE * gains


def expanded(index: NeighbourIndex, queries: UnitRows, own: NDArray[np.int64] | None, count: int) -> UnitRows:
    """Return each query's mean with its ``count`` nearest rows, scaled to length one again (query expansion)."""
    found = index.nearest(queries, count, own)
    total = queries.values.astype(np.float64)
    for positions in found.positions.T:
        total += np.where(positions[:, None] >= 0, index.rows.values[positions], 0)
    return UnitRows.of(total, np.zeros_like(index.centre))


def own_scales(index: NeighbourIndex) -> NDArray[np.float64]:
    """Return the mean distance of each row of the index to its ten nearest others, (N,)."""
    return _mean_distance(index.among_themselves(SCALE_OF))


def locally_scaled(found: Neighbours, scales: NDArray[np.float64], k: int) -> Neighbours:
    """Return the nearest ``k`` of ``found`` with d / sqrt(s_q s_x) as their distance, nearest first.

    s_q is the mean distance of the query to its first ten, s_x that of each row to its own. The neighbours are those
    that are nearest by d; scaling changes their order and weights.
    """
    own = _mean_distance(Neighbours(found.positions[:, :SCALE_OF], found.distances[:, :SCALE_OF]))
    positions = found.positions[:, :k]
    distances = found.distances[:, :k] / np.sqrt(own[:, None] * scales[positions])
    order = np.lexsort((positions, distances), axis=1)
    return Neighbours(np.take_along_axis(positions, order, axis=1), np.take_along_axis(distances, order, axis=1))


def _mean_distance(found: Neighbours) -> NDArray[np.float64]:
    present = found.positions >= 0
    total = np.where(present, found.distances, 0).sum(axis=1)
    return np.maximum(total / np.maximum(present.sum(axis=1), 1), _SMALLEST_SCALE)
