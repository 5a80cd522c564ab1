"""Exact assignment to known class counts: the most likely labels whose counts are as they must be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from etude.core.errors import EtudeError, listed, nearest
from etude.core.predictions import Predictions
from etude.core.seeds import rng_for
from etude.refine.assignment_exact import TIE, Flow
from etude.refine.assignment_offsets import balancing_offsets
from etude.refine.base import Refiner, normalised, require_classes, require_target, with_log_probabilities
from etude.refine.priors import PriorSpec, parse_prior

Array = NDArray[np.float64]
Indices = NDArray[np.int64]
Bounds = int | Mapping[str, int]

_WHO = "BalancedAssignment"
_ROWS_AT_ONCE = 8192
# An image of the target whose assigned class is this near to its best one (float32 rounding, ties) is put on it.
_NEAR = 1e-3


@dataclass(frozen=True)
class Assignment:
    """Labels with given counts.

    Args:
        labels: (N,) positions of classes.
        offsets: (C,) such that labels maximise log_p + offsets; minus infinity for a class that may not occur.
        log_likelihood: Σ log_p of the labels, in nats.
        gap: an upper bound of what any other labels with such counts could have more, in nats; zero up to rounding.
    """

    labels: Indices
    offsets: Array
    log_likelihood: float
    gap: float


def assign(log_p: NDArray[np.float32] | Array, low: Indices, high: Indices, shares: Array | None = None) -> Assignment:
    """Return the most likely labels of N images of which class c gets at least ``low[c]`` and at most ``high[c]``.

    Exact: soft offsets first (:mod:`.assignment_offsets`), then cheapest moves (:mod:`.assignment_exact`). Ties go by
    position, so sort images and classes first where their order should not matter.

    Args:
        log_p: (N, C) log probabilities, finite; used as float32.
        low, high: (C,) integers, with sum(low) <= N <= sum(high).
        shares: (C,) expected counts between both, where they are known; it saves time.

    >>> found = assign(np.log([[0.9, 0.1], [0.8, 0.2], [0.6, 0.4]]), np.array([0, 2]), np.array([3, 3]))
    >>> found.labels.tolist(), round(found.log_likelihood, 3)
    ([0, 1, 1], -2.631)
    """
    used: NDArray[np.bool_] = high > 0
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


class BalancedAssignment(Refiner):
    """Labels of the greatest likelihood whose class counts are those of a known prior, or lie between bounds.

    One offset a class, b, is added to log p so that the most probable classes have those counts. Use it where the
    counts are known (a balanced test set, or one image of each pair): it needs no calibration, and it can only hurt
    where they are not. Counts of a prior are n · share, rounded down or up as the likelihood prefers.

    Args:
        prior: whatever :func:`~etude.refine.priors.parse_prior` reads but ``"estimate"``; None to use bounds.
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

    fits_on: ClassVar[frozenset[str]] = frozenset({"target"})

    def __init__(
        self, prior: PriorSpec | None = "uniform", at_least: Bounds | None = None, at_most: Bounds | None = None
    ) -> None:
        self.prior = prior
        self.at_least = at_least
        self.at_most = at_most

    def fit(self, labelled: Predictions | None = None, target: Predictions | None = None) -> Self:
        """Assign the images of ``target``; ``labelled`` is not used.

        Raises:
            EtudeError: prior and bounds are missing, both given, or cannot be met by so many images.
        """
        log_p = require_target(target, _WHO)
        assert target is not None
        low, high, shares = self._counts(target)
        rows, columns = np.argsort(np.array(target.ids)), np.argsort(np.array(target.classes))
        # In float32 and by id and class name: what ties decide must not depend on the order given.
        ordered = log_p.astype(np.float32)[np.ix_(rows, columns)]
        del log_p
        found = assign(ordered, low[columns], high[columns], None if shares is None else shares[columns])
        self.labels_ = np.empty(len(rows), np.int64)
        self.labels_[rows] = columns[found.labels]
        self.offsets_ = np.empty(len(columns))
        self.offsets_[columns] = found.offsets
        self.log_likelihood_, self.gap_ = found.log_likelihood, found.gap
        self.ids_, self.classes_ = target.ids, target.classes
        return self

    def transform(self, predictions: Predictions) -> Predictions:
        """Return softmax(log p + b). The most probable class of an image that ``fit`` saw is the assigned one."""
        self.require_fitted()
        require_classes(self.classes_, predictions, _WHO)
        shifted = normalised(predictions.log_probabilities() + self.offsets_).astype(np.float32)
        assigned = self.labels_
        if predictions.ids != self.ids_:
            known = dict(zip(self.ids_, assigned.tolist(), strict=True))
            assigned = np.array([known.get(name, -1) for name in predictions.ids])
        rows = np.flatnonzero(assigned >= 0)
        wanted, best = shifted[rows, assigned[rows]], shifted[rows].max(axis=1)
        beaten = (shifted[rows] >= wanted[:, None]).sum(axis=1) > 1
        rows, best = rows[beaten & (best - wanted < _NEAR)], best[beaten & (best - wanted < _NEAR)]
        shifted[rows, assigned[rows]] = np.nextafter(best, np.float32(np.inf))
        return with_log_probabilities(predictions, shifted.astype(np.float64))

    @property
    def described(self) -> str:
        """Such as ``"340 classes of 329 to 330 images, offsets from -1.20 to 0.84"``."""
        self.require_fitted()
        counts = np.bincount(self.labels_, minlength=len(self.classes_))
        finite = self.offsets_[np.isfinite(self.offsets_)]
        return (
            f"{len(counts):,} classes of {counts.min():,} to {counts.max():,} images, "
            f"offsets from {finite.min():.2f} to {finite.max():.2f}"
        )

    def _counts(self, target: Predictions) -> tuple[Indices, Indices, Array | None]:
        """Least and most count of each class, and the expected one where a prior tells it."""
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


def _bounds(given: Bounds | None, classes: tuple[str, ...], default: int, most: int) -> Indices:
    if given is None:
        given = {}
    if isinstance(given, int):
        given = dict.fromkeys(classes, given)
    if unknown := [name for name in given if name not in set(classes)]:
        raise EtudeError(f"there are bounds for {listed(unknown)}, which is no class.{nearest(unknown[0], classes)}")
    for name, value in given.items():
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 0:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise EtudeError(f"the bound of {name!r} must be a count, a whole number of zero or more, not {value!r}")
    return np.array([min(given.get(name, default), most + 1) for name in classes], dtype=np.int64)


def _best_classes(log_p: NDArray[np.float32], offsets: Array) -> Indices:
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


def _values(log_p: NDArray[np.float32], offsets: Array, labels: Indices) -> tuple[float, float]:
    """Σ max(log_p + offsets), and Σ log_p of the labels."""
    best, own = 0.0, 0.0
    for start in range(0, len(log_p), _ROWS_AT_ONCE):
        block = log_p[start : start + _ROWS_AT_ONCE].astype(np.float64)
        own += float(block[np.arange(len(block)), labels[start : start + len(block)]].sum())
        best += float((block + offsets).max(axis=1).sum())
    return best, own
