"""Exact assignment to known class counts: the most likely labels whose counts are as they must be.

Soft offsets come near the counts, then cheapest moves settle them. scipy's linear_sum_assignment wants a matrix of N
images by N places; ``benchmarks/refine_assignment.py`` assigns 112,000 images to 340 classes in ten seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from etude.core.errors import EtudeError, listed, nearest
from etude.core.metrics import FloatArray, IntArray
from etude.core.predictions import Predictions
from etude.core.seeds import rng_for
from etude.refine.base import BoolArray, Refiner, normalised, require_target
from etude.refine.prior.correction import PriorSpec, parse_prior

Logits = NDArray[np.float32]
Bounds = int | Mapping[str, int]

# Two values that differ by less are the same: it covers what float64 loses on differences of float32 numbers.
TIE = 1e-9


class Flow:
    """N images in C classes, and a last node for the room that classes have between their bounds."""

    def __init__(self, log_p: Logits, labels: IntArray, offsets: FloatArray, low: IntArray, high: IntArray) -> None:
        classes = int(log_p.shape[1])
        self.log_p, self.labels, self.low, self.high = log_p, labels.copy(), low, high
        self.offsets = np.append(offsets, 0.0)
        counts = np.bincount(labels, minlength=classes)
        self._used = _wanted(offsets, counts, low, high).astype(np.int64)  # what each class counts as having
        self._surplus = np.append(counts - self._used, self._used.sum() - len(labels))
        grouped = np.argsort(labels, kind="stable")
        self._members = np.split(grouped, np.cumsum(counts)[:-1])
        # The cheapest move from class to class, before prices, and the image that makes it.
        self._cost = np.full((classes, classes), np.inf)
        self._mover = np.full((classes, classes), -1, np.int64)
        for c in range(classes):
            self._find_movers(c, np.arange(classes, dtype=np.int64))

    def settle(self) -> None:
        """Move images until no class has a surplus or a lack."""
        while (self._surplus > 0).any():
            path = self._cheapest_path()
            steps = list(pairwise(path))
            amount = min(int(self._surplus[path[0]]), -int(self._surplus[path[-1]]))
            moves = [self._movable(a, b) for a, b in steps]
            amount = min(amount, *(len(move) if isinstance(move, np.ndarray) else move for move in moves))
            for (a, b), move in zip(steps, moves, strict=True):
                if isinstance(move, np.ndarray):
                    self._move(a, b, move[:amount])  # members are in order, so ties go by position
                else:
                    node, change = (b, -amount) if a == len(self._used) else (a, amount)
                    self._used[node] += change
            self._surplus[path[0]] -= amount
            self._surplus[path[-1]] += amount

    def _cheapest_path(self) -> list[int]:
        """The nodes from a surplus to the lack that is cheapest to reach; prices are raised by the way so far."""
        distance = np.where(self._surplus > 0, 0.0, np.inf)
        before = np.full(len(distance), -1)
        waiting = distance.copy()  # distance, and infinity once a node is done
        while True:
            node = int(np.argmin(waiting))
            if self._surplus[node] < 0:
                break
            waiting[node] = np.inf
            way = distance[node] + self._reduced(node)
            shorter = way < distance
            distance[shorter], waiting[shorter], before[shorter] = way[shorter], way[shorter], node
        self.offsets += np.minimum(distance, distance[node])
        path = [node]
        while before[path[-1]] >= 0:
            path.append(int(before[path[-1]]))
        return path[::-1]

    def _reduced(self, node: int) -> FloatArray:
        """What moves from ``node`` to all nodes cost on top of the prices: zero or more, infinite without one."""
        room = len(self._used)
        cost = np.full(room + 1, np.inf)
        if node == room:
            cost[:room] = np.where(self._used > self.low, 0.0, np.inf)
        else:
            cost[:room] = self._cost[node]
            cost[room] = 0.0 if self._used[node] < self.high[node] else np.inf
        return np.maximum(cost + self.offsets[node] - self.offsets, 0.0)

    def _movable(self, a: int, b: int) -> IntArray | int:
        """The images that can go from ``a`` to ``b`` at the same least cost, or how much room there is."""
        room = len(self._used)
        if a == room:
            return int(self._used[b] - self.low[b])
        if b == room:
            return int(self.high[a] - self._used[a])
        members = self._members[a]
        cost = self.log_p[members, a].astype(np.float64) - self.log_p[members, b]
        return members[cost <= self._cost[a, b] + TIE / 10]

    def _move(self, a: int, b: int, images: IntArray) -> None:
        self.labels[images] = b
        self._members[a] = np.setdiff1d(self._members[a], images, assume_unique=True)
        self._members[b] = np.union1d(self._members[b], images)
        self._find_movers(a, np.flatnonzero(np.isin(self._mover[a], images)))
        self._offer(b, images, np.arange(len(self._used)))

    def _find_movers(self, c: int, to: IntArray) -> None:
        """Find again the cheapest moves from class ``c`` to the classes ``to``."""
        self._cost[c, to], self._mover[c, to] = np.inf, -1
        if len(self._members[c]) and len(to):
            self._offer(c, self._members[c], to)

    def _offer(self, c: int, images: IntArray, to: IntArray) -> None:
        """Let ``images`` of class ``c``, in order, compete for its cheapest moves to the classes ``to``."""
        cost = self.log_p[images, c].astype(np.float64)[:, None] - self.log_p[np.ix_(images, to)]
        first = cost.argmin(axis=0)
        least, mover = cost[first, np.arange(len(to))], images[first]
        known = self._cost[c, to]
        better = (least < known) | ((least == known) & (mover < self._mover[c, to]))
        better &= to != c
        self._cost[c, to[better]], self._mover[c, to[better]] = least[better], mover[better]


_linalg: Any = np.linalg
_ROWS_IN_CACHE = 1024  # what fits into a processor's cache is several times faster
# Above this many images the first steps see a part of them: they only have to come near.
_ENOUGH = 16_384
_SOFTNESS = (1.0, 0.3, 0.1, 0.03)
_STEPS = 8
_LONGEST = 5.0
# Soft counts that are wrong for so small a share of the images are near enough: cheapest moves take milliseconds each.
_NEAR_ENOUGH = 0.002


def balancing_offsets(log_p: Logits, low: FloatArray, high: FloatArray) -> FloatArray:
    """Return offsets b, (C,), for which the counts of argmax(log_p + b) lie near or between ``low`` and ``high``."""
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


def _minimised(log_p: Logits, offsets: FloatArray, low: FloatArray, high: FloatArray, softness: float) -> FloatArray:
    counts, curvature = _soft_counts(log_p, offsets, softness)
    for _ in range(_STEPS):
        slope = counts - _wanted(offsets, counts, low, high)
        wrong = np.abs(slope).sum()
        if wrong <= _NEAR_ENOUGH * len(log_p):
            break
        tried = _newton(offsets, slope, curvature, low, high, softness)
        found = _soft_counts(log_p, tried, softness)
        if np.abs(found[0] - _wanted(tried, found[0], low, high)).sum() > 0.9 * wrong:
            tried = _sinkhorn(offsets, counts, low, high, softness)
            found = _soft_counts(log_p, tried, softness)
        offsets, (counts, curvature) = tried, found
    return offsets


def _soft_counts(log_p: Logits, offsets: FloatArray, softness: float) -> tuple[FloatArray, FloatArray]:
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


def _wanted(offsets: FloatArray, counts: NDArray[Any], low: NDArray[Any], high: NDArray[Any]) -> NDArray[Any]:
    """The counts that classes with these offsets must have; at b = 0, where f has a kink, those nearest to theirs."""
    return np.where(offsets > 0, low, np.where(offsets < 0, high, np.clip(counts, low, high)))


def _newton(
    offsets: FloatArray, slope: FloatArray, curvature: FloatArray, low: FloatArray, high: FloatArray, softness: float
) -> FloatArray:
    free = (slope != 0) | (offsets != 0)
    matrix = curvature[np.ix_(free, free)]
    # Adding the same to all offsets changes nothing where all counts are fixed: the ridge keeps that direction still.
    matrix += np.eye(len(matrix)) * (1e-6 * np.trace(matrix) / len(matrix) + 1e-9)
    step: FloatArray = _linalg.solve(matrix, slope[free])
    tried = offsets.copy()
    # Where no image is near the edge of a class there is no curvature to trust.
    tried[free] -= np.clip(step, -_LONGEST * softness, _LONGEST * softness)
    crossed = (offsets * tried < 0) & (low < high)
    return np.where(crossed, 0.0, tried)  # no step goes beyond the kink at zero


def _sinkhorn(
    offsets: FloatArray, counts: FloatArray, low: FloatArray, high: FloatArray, softness: float
) -> FloatArray:
    known = np.log(np.maximum(counts, 1e-9))
    up = offsets + softness * (np.log(np.maximum(low, 1e-9)) - known)
    down = offsets + softness * (np.log(np.maximum(high, 1e-9)) - known)
    return np.where(low == high, up, np.clip(0.0, up, down))


_WHO = "BalancedAssignment"
_ROWS_AT_ONCE = 8192
# An image of the target whose assigned class is this near to its best one (float32 rounding, ties) is put on it.
_NEAR = 1e-3


class Assignment(NamedTuple):
    """Labels with given counts."""

    labels: IntArray  # (N,) positions of classes
    offsets: FloatArray  # (C,): labels maximise log_p + offsets; minus infinity for a class that may not occur
    log_likelihood: float  # Σ log_p of the labels, in nats
    gap: float  # the most that other labels with such counts could have more, in nats; zero up to rounding


def assign(log_p: Logits | FloatArray, low: IntArray, high: IntArray, shares: FloatArray | None = None) -> Assignment:
    """Return the most likely labels of N images of which class c gets at least ``low[c]`` and at most ``high[c]``.

    Ties go by position, so sort images and classes first where their order should not matter.
    """
    used: BoolArray = high > 0
    values = np.ascontiguousarray(log_p[:, used], dtype=np.float32)
    low, high = low[used], high[used]
    if shares is None:
        start = balancing_offsets(values, low.astype(np.float64), high.astype(np.float64))
    else:
        start = balancing_offsets(values, shares[used], shares[used])
        # So many classes get the more of their two counts: their prices, the lowest, go below zero.
        lifted = round(float(np.ones(len(low)) @ (shares[used] - low)))
        start = start - np.sort(start)[min(lifted, len(start) - 1)]
    flow = Flow(values, _best_classes(values, start), start, low, high)
    flow.settle()
    offsets = np.full(log_p.shape[1], -np.inf)
    prices = flow.offsets[:-1] - flow.offsets[-1]
    if (low == high).all():
        prices = prices - prices.mean()
    offsets[used] = prices
    best, likelihood = _values(values, prices, flow.labels)
    bound = best - float(np.maximum(prices, 0) @ low + np.minimum(prices, 0) @ high)
    return Assignment(np.flatnonzero(used)[flow.labels], offsets, likelihood, max(bound - likelihood, 0.0))


@dataclass(eq=False, repr=False)
class BalancedAssignment(Refiner):
    """Labels of the greatest likelihood whose class counts are those of a known prior, or lie between bounds.

    Refined predictions are softmax(log p + b), with an offset b for each class so that the most probable classes have
    those counts. Use it only where the counts are known (a balanced test set, or one image of each pair); it needs no
    calibration. Counts of a prior are n · share, rounded down or up as the likelihood prefers.

    Args:
        prior: what :func:`~etude.refine.prior.correction.parse_prior` reads, except ``"estimate"``; None to use bounds.
        at_least, at_most: bounds of the counts in place of a prior: one number for all classes, or class to number for
            some of them.

    Attributes:
        labels_: (N,) assigned classes of the target that ``fit`` saw, in its order.
        offsets_: (C,) b.
        gap_: nats by which better labels could at most exceed these; zero up to rounding.

    >>> target = Predictions.from_probabilities(["a", "b"], ["x", "y"], [[0.9, 0.1], [0.6, 0.4]])
    >>> BalancedAssignment().fit(target=target).transform(target).predicted().tolist()
    [0, 1]
    """

    fits_on = frozenset({"target"})
    prior: PriorSpec | None = "uniform"
    at_least: Bounds | None = None
    at_most: Bounds | None = None

    def fit(self, labelled: Predictions | None = None, target: Predictions | None = None) -> Self:
        """Assign the images of ``target``; ``labelled`` is not used."""
        target = require_target(target, _WHO)
        low, high, shares = self._counts(target)
        rows, columns = np.argsort(np.array(target.ids)), np.argsort(np.array(target.classes))
        # In float32 and by id and class name: what ties decide must not depend on the order given.
        ordered = target.log_probabilities().astype(np.float32)[np.ix_(rows, columns)]
        found = assign(ordered, low[columns], high[columns], None if shares is None else shares[columns])
        self.labels_ = columns[found.labels][np.argsort(rows)]
        self.offsets_ = found.offsets[np.argsort(columns)]
        self.log_likelihood_, self.gap_ = found.log_likelihood, found.gap
        self.ids_, self.classes_ = target.ids, target.classes
        return self

    def _refined(self, predictions: Predictions) -> FloatArray:
        """The most probable class of an image that ``fit`` saw is the assigned one."""
        shifted = normalised(predictions.log_probabilities() + self.offsets_).astype(np.float32)
        assigned = self.labels_
        if predictions.ids != self.ids_:
            known = dict(zip(self.ids_, assigned.tolist(), strict=True))
            assigned = np.array([known.get(name, -1) for name in predictions.ids])
        rows = np.flatnonzero(assigned >= 0)
        wanted, best = shifted[rows, assigned[rows]], shifted[rows].max(axis=1)
        near = ((shifted[rows] >= wanted[:, None]).sum(axis=1) > 1) & (best - wanted < _NEAR)
        shifted[rows[near], assigned[rows[near]]] = np.nextafter(best[near], np.float32(np.inf))
        return shifted.astype(np.float64)

    def _described(self) -> str:
        counts = np.bincount(self.labels_, minlength=len(self.classes_))
        finite = self.offsets_[np.isfinite(self.offsets_)]
        return (
            f"{len(counts):,} classes of {counts.min():,} to {counts.max():,} images, "
            f"offsets from {finite.min():.2f} to {finite.max():.2f}"
        )

    def _counts(self, target: Predictions) -> tuple[IntArray, IntArray, FloatArray | None]:
        """Least and most count of each class, and the expected one where a prior is given."""
        n, classes = len(target), target.classes
        if (self.prior is None) == (self.at_least is None and self.at_most is None):
            raise EtudeError(
                f"{_WHO} takes either a prior or bounds: for bounds give prior=None and at_least or at_most"
            )
        if self.prior is not None:
            shares = parse_prior(self.prior, classes)
            if shares is None:
                raise EtudeError(f"{_WHO} needs counts that are known: to estimate a prior use PriorCorrection")
            exact = n * shares
            return np.floor(exact + 1e-6).astype(np.int64), np.ceil(exact - 1e-6).astype(np.int64), exact
        low, high = _bounds(self.at_least, classes, 0, n), _bounds(self.at_most, classes, n, n)
        if (low > high).any():
            name = classes[int(np.argmax(low > high))]
            raise EtudeError(f"{name!r} must have at least {low.max():,} images and at most fewer: widen its bounds")
        if not low.sum() <= n <= high.sum():
            raise EtudeError(
                f"the bounds add up to {low.sum():,} to {high.sum():,} images, and there are {n:,}: widen them"
            )
        return low, high, None


def _bounds(given: Bounds | None, classes: tuple[str, ...], default: int, most: int) -> IntArray:
    given = dict.fromkeys(classes, given) if isinstance(given, int) else given or {}
    if unknown := [name for name in given if name not in set(classes)]:
        raise EtudeError(f"there are bounds for {listed(unknown)}, which is no class.{nearest(unknown[0], classes)}")
    for name, value in given.items():
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 0:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise EtudeError(f"the bound of {name!r} must be a count, a whole number of zero or more, not {value!r}")
    return np.array([min(given.get(name, default), most + 1) for name in classes], dtype=np.int64)


def _best_classes(log_p: Logits, offsets: FloatArray) -> IntArray:
    """argmax(log_p + offsets), (N,). Classes that tie are shared out evenly by a fixed draw: fewer moves are left."""
    labels = np.empty(len(log_p), np.int64)
    rng = rng_for(0, "ties of an assignment")
    for start in range(0, len(log_p), _ROWS_AT_ONCE):
        block = log_p[start : start + _ROWS_AT_ONCE] + offsets
        best = block >= block.max(axis=1, keepdims=True) - TIE
        chosen = block.argmax(axis=1)
        tied = np.flatnonzero(best.sum(axis=1) > 1)
        chosen[tied] = np.where(best[tied], rng.random((len(tied), block.shape[1])), -1.0).argmax(axis=1)
        labels[start : start + len(block)] = chosen
    return labels


def _values(log_p: Logits, offsets: FloatArray, labels: IntArray) -> tuple[float, float]:
    """Σ max(log_p + offsets), and Σ log_p of the labels."""
    best, own = 0.0, 0.0
    for start in range(0, len(log_p), _ROWS_AT_ONCE):
        block = log_p[start : start + _ROWS_AT_ONCE].astype(np.float64)
        own += float(block[np.arange(len(block)), labels[start : start + len(block)]].sum())
        best += float((block + offsets).max(axis=1).sum())
    return best, own
