"""Thresholds: one offset a class, so that the most probable class is also the one that a metric rewards."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import numpy as np

from etude.core.context import Context
from etude.core.errors import EtudeError
from etude.core.metrics import METRICS, ClassCounts, FloatArray, IntArray, Metric, metric_named, squared_distance
from etude.core.paired import paired_bootstrap
from etude.core.predictions import Predictions
from etude.refine.base import BoolArray, Refiner, known_rows, labels_of, occurring, only_among, require_labelled
from etude.refine.cross_fit import FEWEST_ROWS, fold_numbers, out_of_fold

_WIDEST = 8.0  # a larger offset would be fitted to a handful of images
_NEVER = -1e6  # log probability of a class that may not be predicted
_CANDIDATES = 256  # offsets tried for a class in one sweep
_ROUNDS = 5


@dataclass(eq=False, repr=False)
class Thresholds(Refiner):
    """Adds an offset b_c to the log probability of each class, where that raises a metric of decisions.

    argmax_c (log p_c + b_c) maximises such metrics as macro F1 or balanced accuracy for some b (Lipton, Elkan &
    Narayanaswamy 2014, Optimal Thresholding of Classifiers to Maximize F1 Measure). Coordinate search: as one offset
    grows, images change to its class in a known order, so every useful value of it is scored in one pass. Offsets are
    kept only if, fitted on the other folds, they gain more than noise. What comes out is for deciding, not for reading
    as probabilities: calibrate before, and put this step last.

    Args:
        metric: what to maximise: ``macro_f1``, ``balanced_accuracy``, ``kappa`` or ``accuracy``.
        folds, seed, draws: of the cross-fit and its bootstrap.
        level: of the interval whose lower end must be above zero; None keeps the offsets without a test.

    >>> rng = np.random.default_rng(0)
    >>> labels = (rng.random(2000) < 0.1).astype(np.int64)
    >>> p = 1 / (1 + np.exp(3 - 2 * (labels + rng.normal(size=2000) / 2)))
    >>> rare = Predictions.from_probabilities([str(i) for i in range(2000)], ["no", "yes"], np.c_[1 - p, p], labels)
    >>> step = Thresholds("balanced_accuracy").fit(rare)
    >>> bool(step.offsets_[1] > step.offsets_[0])
    True
    """

    fits_on = frozenset({"labelled"})
    metric: str = "macro_f1"
    folds: int = 5
    seed: int = 0
    draws: int = 1000
    level: float | None = 0.9

    def fit(self, labelled: Predictions | None = None, target: Predictions | None = None) -> Self:
        """Search the offsets on ``labelled``; ``offsets_`` (C,) stays zero where the gain is no more than noise.

        A class without labelled images keeps its probability; the offsets move images among the others.
        """
        metric = metric_named(self.metric)
        if metric.of_counts is None:
            able = ", ".join(name for name, one in METRICS.items() if one.of_counts is not None)
            raise EtudeError(f"thresholds move decisions, and {metric.name} is not made of them: choose one of {able}")
        rows = known_rows(require_labelled(labelled, "Thresholds"))
        log_p, labels = rows.log_probabilities(), labels_of(rows)
        self.classes_ = rows.classes
        self.offsets_, self.learned_ = np.zeros(log_p.shape[1]), occurring(labels, log_p.shape[1])
        self.gain_ = None
        if len(labels) >= FEWEST_ROWS and log_p.shape[1] > 1:
            folds = fold_numbers(rows, self.folds, Context(seed=self.seed))

            def moved(train: BoolArray, held: BoolArray) -> FloatArray:
                offsets = offsets_for(metric, log_p[train], labels[train])
                learned = occurring(labels[train], log_p.shape[1])
                return only_among(learned, log_p[held] + offsets, log_p[held])

            level = 0.9 if self.level is None else self.level
            held_out = out_of_fold(folds, moved)
            self.gain_ = paired_bootstrap(metric, log_p, held_out, labels, self.draws, self.seed, level=level)
            if self.level is None or self.gain_.beyond_noise:
                self.offsets_ = offsets_for(metric, log_p, labels)
        return self

    def _refined(self, predictions: Predictions) -> FloatArray:
        log_p = predictions.log_probabilities()
        return only_among(self.learned_, log_p + self.offsets_, log_p)

    def _described(self) -> str:
        if not self.offsets_.any():
            return f"no offsets: none helps {self.metric} beyond noise"
        return f"offsets {self.offsets_.min():+.2f} to {self.offsets_.max():+.2f} for {self.metric}"


def offsets_for(metric: Metric, log_probabilities: FloatArray, labels: IntArray) -> FloatArray:
    """Return offsets (C,) that maximise a metric of decisions on these (N, C) log probabilities and (N,) labels.

    The search starts at zero and at minus the log of the class shares, the best offsets for balanced accuracy.
    """
    assert metric.of_counts is not None
    learned = occurring(labels, log_probabilities.shape[1])
    log_p = np.where(learned, log_probabilities, _NEVER)
    share = (np.bincount(labels, minlength=len(learned)) + 0.5) / len(labels)
    balanced = np.clip(np.log(share[learned]).mean() - np.log(share), -_WIDEST, _WIDEST) * learned
    # The rarest first: an order that does not depend on the columns.
    rarest: IntArray = np.lexsort((log_p.mean(0).round(9), np.bincount(labels, minlength=len(learned))))
    order = rarest[learned[rarest]].tolist()
    found = [_climbed(metric.of_counts, log_p, labels, start, order) for start in (0.0 * balanced, balanced)]
    offsets, best = max(found, key=lambda one: one[1])
    return offsets if best > metric.value(log_p, labels) + 1e-12 else np.zeros_like(balanced)


def _climbed(
    of_counts: Callable[[ClassCounts], FloatArray], log_p: FloatArray, labels: IntArray,
    start: FloatArray, order: list[int],
) -> tuple[FloatArray, float]:  # fmt: skip
    """Return offsets that no change of a single one improves (or the last after some rounds), and their score."""
    offsets, best, leaders = start.copy(), -np.inf, _Leaders(log_p + start)
    for _ in range(_ROUNDS):
        before = best
        for c in order:
            values, scores = _sweep(of_counts, leaders, labels, c)
            top = scores.max()
            if top > best + 1e-12:
                ties = values[scores >= top - 1e-12]
                # The smallest change of all that score the same; of two equal ones, the larger.
                change = float(ties[np.lexsort((-ties, np.abs(ties).round(12)))[0]])
                moved = np.clip(offsets[c] + change, -_WIDEST, _WIDEST)
                leaders.move(c, float(moved - offsets[c]))
                offsets[c], best = moved, float(top)
        if best <= before:
            break
    return offsets, best


class _Leaders:
    """The two classes of each image with the highest scores, (N, C), kept as scores of one class move."""

    def __init__(self, scores: FloatArray) -> None:
        self.scores = scores
        self.first, self.second = np.zeros(len(scores), np.int64), np.zeros(len(scores), np.int64)
        self._find(np.arange(len(scores)))

    def move(self, c: int, change: float) -> None:
        """Add ``change`` to the scores of class ``c``."""
        self.scores[:, c] += change
        second = self.scores[np.arange(len(self.scores)), self.second]
        self._find(np.flatnonzero((self.first == c) | (self.second == c) | (self.scores[:, c] >= second)))

    def _find(self, rows: IntArray) -> None:
        scores = self.scores[rows]
        self.first[rows] = np.argmax(scores, axis=1)
        scores[np.arange(len(rows)), self.first[rows]] = -np.inf
        self.second[rows] = np.argmax(scores, axis=1)


def _sweep(
    of_counts: Callable[[ClassCounts], FloatArray], leaders: _Leaders, labels: IntArray, c: int
) -> tuple[FloatArray, FloatArray]:
    """Return changes (K,) of the offset of class ``c``, the unchanged one among them, and the scores they make (K,)."""
    classes = leaders.scores.shape[1]
    rival = np.where(leaders.first == c, leaders.second, leaders.first)
    # Image i goes to class c where the change is larger than this.
    turning = leaders.scores[np.arange(len(labels)), rival] - leaders.scores[:, c]
    changes = _between(turning)
    when = np.searchsorted(changes, turning, side="right")  # the first change that takes image i to c
    rows = len(changes) + 1

    def arrived(cells: IntArray, chosen: BoolArray | slice) -> FloatArray:
        moved = np.bincount((when[chosen] * classes + cells[chosen]).astype(np.int64), minlength=rows * classes)
        return np.cumsum(moved.reshape(rows, classes)[:-1], axis=0).astype(np.float64)

    everything, to_c = slice(None), np.full_like(rival, c)
    start = ClassCounts.of(rival, labels, classes)
    lost, won = rival == labels, labels == c
    farther = squared_distance(to_c, labels) - squared_distance(rival, labels)
    counts = ClassCounts(
        np.broadcast_to(start.labelled, (len(changes), classes)),
        start.predicted - arrived(rival, everything) + arrived(to_c, everything),
        start.hits - arrived(rival, lost) + arrived(to_c, won),
        start.distance + np.cumsum(np.bincount(when, farther, rows)[:-1]),
    )
    return changes, of_counts(counts)


def _between(turning: FloatArray) -> FloatArray:
    """Return values between neighbours in ``turning``, beyond both ends and zero: all (or many) distinct decisions."""
    turns = np.unique(np.clip(turning, -_WIDEST, _WIDEST))
    if len(turns) > _CANDIDATES:
        turns = turns[np.linspace(0, len(turns) - 1, _CANDIDATES).round().astype(np.int64)]
    middles = (turns[1:] + turns[:-1]) / 2.0
    return np.unique(np.concatenate([[turns[0] - 0.01], middles, [turns[-1] + 0.01], [0.0]]))
