"""Metrics by name, on log probabilities and labels; whether one set of predictions beats another beyond its noise."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from etude.core import tally
from etude.core.errors import EtudeError, nearest
from etude.core.predictions import Predictions
from etude.core.seeds import rng_for
from etude.core.sign_flips import FEW, sign_flips
from etude.core.tally import FloatArray, IntArray, Tally

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


def accuracy(predicted: ArrayLike, labels: ArrayLike) -> float:
    """Return the share of the N images whose ``predicted`` class, (N,) integers, equals the label, (N,) integers.

    Raises:
        EtudeError: a label is negative (unlabelled), there are none, or the lengths differ.

    >>> accuracy([0, 1, 1, 0], [0, 1, 0, 0])
    0.75
    """
    guesses, truth = _paired(predicted, labels)
    return float((guesses == truth).mean())


def balanced_accuracy(predicted: ArrayLike, labels: ArrayLike) -> float:
    """Return the mean, over the classes that occur in ``labels``, of the share of their images predicted right.

    Raises:
        EtudeError: as :func:`accuracy`.

    >>> balanced_accuracy([0, 0, 0, 0], [0, 0, 0, 1])
    0.5
    """
    guesses, truth = _paired(predicted, labels)
    _, positions, counts = np.unique(truth, return_inverse=True, return_counts=True)
    hits = np.bincount(positions, weights=(guesses == truth).astype(np.float64))
    return float(np.mean(hits / counts))


def log_loss(probabilities: ArrayLike, labels: ArrayLike) -> float:
    """Return the mean of -log of the probability, (N, C), that was given to the label, (N,) integers; in nats.

    A probability below 1e-15 counts as 1e-15, so that one sure mistake does not make the score infinite.

    Raises:
        EtudeError: as :func:`accuracy`; a label has no column; a probability is outside [0, 1].

    >>> round(log_loss([[0.5, 0.5], [0.1, 0.9]], [0, 1]), 4)
    0.3993
    """
    values = np.asarray(probabilities, dtype=np.float64)
    truth = _labelled(labels)
    if values.ndim != 2 or len(values) != len(truth):
        raise EtudeError(f"probabilities must have shape ({len(truth)}, C), one row a label, not {values.shape}")
    if truth.max() >= values.shape[1]:
        raise EtudeError(f"label {truth.max()} has no column in probabilities of {values.shape[1]} classes")
    if not ((values >= 0) & (values <= 1 + 1e-6)).all():
        raise EtudeError("probabilities must lie between 0 and 1; were logits given instead?")
    given = values[np.arange(len(truth)), truth]
    return float(-np.mean(np.log(np.clip(given, 1e-15, 1.0))))


def standard_error(accuracy: float, n: int) -> float:
    """Return the standard error of an accuracy measured on ``n`` images: sqrt(accuracy (1 - accuracy) / n).

    >>> round(standard_error(0.9, 900), 4)
    0.01
    """
    if n < 1 or not 0 <= accuracy <= 1:
        raise EtudeError(f"a standard error needs an accuracy from 0 to 1 and n of at least 1, not {accuracy} and {n}")
    return math.sqrt(accuracy * (1 - accuracy) / n)


def adjusted_error(accuracy: float, n: int) -> float:
    """Return a standard error that stays honest on few images: after two more right and two more wrong ones.

    The plain formula says 0 when all (or none) of a handful are right. Source: Agresti & Coull 1998.

    >>> standard_error(1.0, 6), round(adjusted_error(1.0, 6), 2)
    (0.0, 0.13)
    """
    return standard_error((accuracy * n + 2) / (n + 4), n + 4)


def matched_interval(wins: int, losses: int, n: int, level: float = 0.9) -> tuple[float, float]:
    """Return the interval of a gain in accuracy on ``n`` images of which ``wins`` became right and ``losses`` wrong.

    Half an image is added to each of the four counts, so that its width is not zero where nothing has changed. Source:
    Agresti & Min 2005, Simple improved confidence intervals for comparing matched proportions.

    >>> [round(end, 3) for end in matched_interval(0, 0, 16)], [round(end, 3) for end in matched_interval(2, 12, 192)]
    ([-0.091, 0.091], [-0.084, -0.019])
    """
    gain, changed = (wins - losses) / (n + 2), (wins + losses + 1) / (n + 2)
    reach = NormalDist().inv_cdf((1 + level) / 2) * math.sqrt((changed - gain**2) / (n + 2))
    return gain - reach, gain + reach


def _labelled(labels: ArrayLike) -> NDArray[np.int64]:
    truth = np.asarray(labels)
    if truth.ndim != 1 or not len(truth):
        raise EtudeError(f"a score needs at least one label, (N,) integers, not an array of shape {truth.shape}")
    if truth.dtype.kind not in "iu":
        raise EtudeError(f"labels must be integers, not {truth.dtype}")
    if (unknown := int((truth < 0).sum())) > 0:
        raise EtudeError(f"{unknown:,} of {len(truth):,} images are unlabelled: score only the labelled ones")
    return truth.astype(np.int64)


def _paired(predicted: ArrayLike, labels: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    guesses, truth = np.asarray(predicted), _labelled(labels)
    if guesses.shape != truth.shape or guesses.dtype.kind not in "iu":
        raise EtudeError(
            f"predicted classes must be {len(truth):,} integers, one a label, not {guesses.dtype} of {guesses.shape}"
        )
    return guesses.astype(np.int64), truth


def score_of(predictions: Predictions) -> tuple[float, float]:
    """Return accuracy and negative log loss of labelled predictions; larger is better in both.

    Raises:
        ValueError: the predictions have no labels.
    """
    if predictions.labels is None:
        raise ValueError("these predictions have no labels to be scored against")
    labels = predictions.labels
    return accuracy(predictions.predicted(), labels), -log_loss(predictions.probabilities(), labels)


Scorer = Callable[[FloatArray], float]
"""Takes how often each of N images counts, (N,) float64, and returns the score."""

_SMALLEST = 1e-15  # a probability below it counts as it, as in core.scores.log_loss


@dataclass(frozen=True, slots=True)
class Metric:
    """A score of N labelled images over C classes.

    Args:
        name: by which :func:`metric_named` finds it.
        larger_is_better: False for a loss.
        per_image: maps log probabilities (N, C) and labels (N,) to (N,) values whose mean is the score; None when the
            score is no such mean.
        of_tally: computes the score from counts by class; None when it is not made of decisions.
        prepare: maps log probabilities and labels to a :data:`Scorer`; None when one of the two above gives it.
    """

    name: str
    larger_is_better: bool = True
    per_image: Callable[[FloatArray, IntArray], FloatArray] | None = None
    of_tally: Callable[[Tally], FloatArray] | None = None
    prepare: Callable[[FloatArray, IntArray], Scorer] | None = None

    @property
    def sign(self) -> int:
        """1 when larger is better, else -1."""
        return 1 if self.larger_is_better else -1

    @property
    def needs_thresholds(self) -> bool:
        """Whether predicting the most probable class is not what maximises it, even with true probabilities."""
        return self.of_tally is not None and self.per_image is None

    def value(self, log_probabilities: ArrayLike, labels: ArrayLike, weights: ArrayLike | None = None) -> float:
        """Return the score of log probabilities (N, C) against labels (N,), each image weighted by ``weights`` (N,).

        Raises:
            EtudeError: there is no image, one is unlabelled, or the shapes disagree.

        >>> metric_named("accuracy").value(np.log([[0.9, 0.1], [0.6, 0.4]]), [0, 1])
        0.5
        """
        scorer, labels = self.scorer(log_probabilities, labels), np.asarray(labels)
        return scorer(np.ones(len(labels)) if weights is None else np.asarray(weights, np.float64))

    def scorer(self, log_probabilities: ArrayLike, labels: ArrayLike) -> Scorer:
        """Return a function of how often each image counts, for scores of many resamples of the same images."""
        values, truth = _checked(log_probabilities, labels)
        if self.per_image is not None:
            each = self.per_image(values, truth)
            return lambda counts: float(counts @ each / counts.sum())
        if self.of_tally is not None:
            score, guesses, classes = self.of_tally, np.argmax(values, axis=1).astype(np.int64), values.shape[1]
            return lambda counts: float(score(Tally.of(guesses, truth, classes, counts)))
        assert self.prepare is not None
        return self.prepare(values, truth)


@dataclass(frozen=True, slots=True)
class Gain:
    """How much better one set of predictions is than another, on the same images.

    Args:
        gain: in the metric's own unit; positive is better, also for a loss.
        low: end of its interval.
        high: its other end.
        probability: share of the resamples in which the gain is positive, ties counted half; where few images have
            changed, one minus the exact p.
    """

    gain: float
    low: float
    high: float
    probability: float

    @property
    def beyond_noise(self) -> bool:
        """Whether the whole interval is above zero, rounding aside."""
        return self.low > 1e-9

    @property
    def lost(self) -> bool:
        """Whether the whole interval is below zero, rounding aside."""
        return self.high < -1e-9

    @classmethod
    def of_few(cls, shares: FloatArray, level: float) -> Gain:
        """Return the gain that is the sum of ``shares``, one a changed image, by the exact test."""
        found = sign_flips(shares, level)
        return cls(float(shares.sum()), found.low, found.high, 1.0 - found.p if shares.any() else 0.5)


def paired_bootstrap(
    metric: Metric,
    before: ArrayLike,
    after: ArrayLike,
    labels: ArrayLike,
    draws: int = 2000,
    seed: int = 0,
    *,
    level: float = 0.9,
    weights: ArrayLike | None = None,
) -> Gain:
    """Return the gain from ``before`` to ``after``, log probabilities (N, C), with its percentile interval.

    Each draw resamples images, the same ones on both sides, so what both get wrong adds no noise (Efron & Tibshirani
    1993, An Introduction to the Bootstrap). With ``level`` 0.9 the lower end is a one-sided test at 5%.

    Where fewer than 30 images have changed, :func:`etude.core.sign_flips.sign_flips` takes the bootstrap's place. An
    image has changed where its own score has (accuracy, log loss, map@k), its predicted class (balanced accuracy,
    macro F1, kappa), or its probabilities (AUC). Its share in a score that is no mean over images is the mean of what
    it alone brings to ``before`` and takes from ``after``: exact for balanced accuracy, and up to terms of third
    order for the others.

    Args:
        draws: number of resamples.
        level: share of the resamples that the interval holds.
        weights: (N,) importance of each image; equal when None.

    >>> labels = np.arange(100) % 2
    >>> right = np.log(np.where(np.eye(2)[labels] > 0, 0.8, 0.2))
    >>> paired_bootstrap(metric_named("accuracy"), right[:, ::-1], right, labels)
    Gain(gain=1.0, low=1.0, high=1.0, probability=1.0)
    """
    _, truth = _checked(before, labels)
    importance = np.ones(len(truth)) if weights is None else np.asarray(weights, np.float64)
    old, new = metric.scorer(before, truth), metric.scorer(after, truth)
    gain = metric.sign * (new(importance) - old(importance))
    few = _few_shares(metric, np.asarray(before, np.float64), np.asarray(after, np.float64), truth, importance)
    if few is not None:
        return replace(Gain.of_few(few, level), gain=gain)
    rng = rng_for(seed, "paired bootstrap")
    found = np.empty(draws)
    for draw in range(draws):
        counts = np.bincount(rng.integers(0, len(truth), len(truth)), minlength=len(truth)) * importance
        found[draw] = metric.sign * (new(counts) - old(counts)) if counts.any() else 0.0
    return Gain(gain, *_summed(found, level))


def mean_gain(changes: FloatArray, draws: int = 1000, seed: int = 0, *, level: float = 0.9) -> Gain:
    """Return the mean of ``changes`` (N,), what each image gains, as :func:`paired_bootstrap` has it."""
    if np.count_nonzero(changes) < FEW:
        return Gain.of_few(changes / len(changes), level)
    rng, count = rng_for(seed, "judgement"), len(changes)
    means = np.array([changes[rng.integers(0, count, count)].mean() for _ in range(draws)])
    return Gain(float(changes.mean()), *_summed(means, level))


def _summed(found: FloatArray, level: float) -> tuple[float, float, float]:
    """Return the ends of the percentile interval of resampled gains, and the share of them that is positive."""
    low, high = np.quantile(found, [(1.0 - level) / 2.0, (1.0 + level) / 2.0])
    return float(low), float(high), float((found > 0).mean() + (found == 0).mean() / 2.0)


def _few_shares(
    metric: Metric, before: FloatArray, after: FloatArray, labels: IntArray, weights: FloatArray
) -> FloatArray | None:
    """Return what each changed image adds to the gain, (M,); None where they are not few."""
    if metric.per_image is not None:
        shares = weights * metric.sign * (metric.per_image(after, labels) - metric.per_image(before, labels))
        shares = shares[shares != 0.0] / max(weights.sum(), np.finfo(np.float64).tiny)
        return shares if len(shares) < FEW else None
    moved = before.argmax(1) != after.argmax(1) if metric.of_tally is not None else (before != after).any(1)
    changed = np.flatnonzero(moved & (weights > 0))
    if len(changed) >= FEW:
        return None
    images, scorer = len(labels), metric.scorer(np.concatenate([before, after]), np.tile(labels, 2))
    ends = np.stack([np.append(weights, 0.0 * weights), np.append(0.0 * weights, weights)])
    scores = [scorer(end) for end in ends]
    shares = np.empty(len(changed))
    for place, row in enumerate(changed.tolist()):
        mixed = ends.copy()
        mixed[:, [row, row + images]] = mixed[::-1, [row, row + images]]
        shares[place] = metric.sign * (scorer(mixed[0]) - scores[0] + scores[1] - scorer(mixed[1])) / 2.0
    return shares


def metric_named(name: str) -> Metric:
    """Return the metric ``name``: accuracy, balanced_accuracy, macro_f1, log_loss, auc, kappa, or map@k for any k.

    Raises:
        EtudeError: there is none of that name.

    >>> metric_named("map@5").name, metric_named("log_loss").sign
    ('map@5', -1)
    """
    plain = re.sub(r"[\s-]+", "_", name.strip().lower())
    if plain in METRICS:
        return METRICS[plain]
    if found := re.fullmatch(r"map@([1-9]\d{0,5})", plain):
        return Metric(plain, per_image=_average_precision_at(int(found.group(1))))
    known = (*METRICS, "map@3", "map@5")
    raise EtudeError(
        f"there is no metric {name!r}; the metrics are {', '.join(METRICS)} and map@k with any k."
        f"{nearest(plain, known)}"
    )


def ranks_of(log_probabilities: FloatArray, labels: IntArray) -> IntArray:
    """Return the rank, (N,) from 1, of each label among the classes; the first class comes first on a tie.

    >>> ranks_of(np.log([[0.2, 0.5, 0.3]]), np.array([2])).tolist()
    [2]
    """
    own = log_probabilities[np.arange(len(labels)), labels][:, None]
    places: IntArray = np.arange(log_probabilities.shape[1], dtype=np.int64)
    earlier: NDArray[np.bool_] = places[None, :] < labels[:, None]
    ahead = (log_probabilities > own) | ((log_probabilities == own) & earlier)
    return np.count_nonzero(ahead, axis=1).astype(np.int64) + 1


def _hits(log_probabilities: FloatArray, labels: IntArray) -> FloatArray:
    return (np.argmax(log_probabilities, axis=1) == labels).astype(np.float64)


def _losses(log_probabilities: FloatArray, labels: IntArray) -> FloatArray:
    return -np.maximum(log_probabilities[np.arange(len(labels)), labels], np.log(_SMALLEST))


def _average_precision_at(k: int) -> Callable[[FloatArray, IntArray], FloatArray]:
    """With one label an image, the average precision of its first k guesses is one over the label's rank."""

    def precision(log_probabilities: FloatArray, labels: IntArray) -> FloatArray:
        ranks = ranks_of(log_probabilities, labels)
        return np.where(ranks <= k, 1.0 / ranks, 0.0)

    return precision


def _auc(log_probabilities: FloatArray, labels: IntArray) -> Scorer:
    """Mean over classes of the area under the ROC curve of each against the rest; with two classes one says it all."""
    count, odds = log_probabilities.shape[1], log_odds(log_probabilities)
    curves = [_Curve.of(odds[:, c], labels == c) for c in ([1] if count == 2 else range(count))]

    def scorer(counts: FloatArray) -> float:
        areas = np.array([curve.area(counts) for curve in curves])
        return 0.5 if np.isnan(areas).all() else float(np.nanmean(areas))  # no pair to order: nothing is known

    return scorer


@dataclass(frozen=True, slots=True)
class _Curve:
    """Scores in rising order: ``starts`` are the first places of equal ones."""

    order: NDArray[np.intp]
    starts: NDArray[np.intp]
    positive: NDArray[np.bool_]

    @classmethod
    def of(cls, scores: FloatArray, positive: NDArray[np.bool_]) -> _Curve:
        order, starts = ties(scores)
        return cls(order, starts, positive[order])

    def area(self, counts: FloatArray) -> float:
        """Return P(score of a positive > that of a negative), ties counted half; NaN without a pair."""
        weight = counts[self.order]
        ups = np.add.reduceat(np.where(self.positive, weight, 0.0), self.starts)
        downs = np.add.reduceat(np.where(self.positive, 0.0, weight), self.starts)
        pairs = float(ups.sum() * downs.sum())
        return float(ups @ (np.cumsum(downs) - downs / 2.0)) / pairs if pairs > 0 else float("nan")


def _checked(log_probabilities: ArrayLike, labels: ArrayLike) -> tuple[FloatArray, IntArray]:
    values, truth = np.asarray(log_probabilities, dtype=np.float64), np.asarray(labels)
    if values.ndim != 2 or not values.size or truth.shape != (len(values),) or truth.dtype.kind not in "iu":
        raise EtudeError(
            "a metric needs log probabilities (N, C) and N integer labels, at least one, "
            f"not arrays of shape {values.shape} and {truth.shape}"
        )
    if np.isnan(values).any():
        raise EtudeError("log probabilities hold NaN: the predictions were damaged, so make them again")
    if truth.min() < 0 or truth.max() >= values.shape[1]:
        raise EtudeError(
            f"labels must lie between 0 and {values.shape[1] - 1}, and {int(truth.min())} to {int(truth.max())} came: "
            "score only labelled images, with a column for each class"
        )
    return values, truth.astype(np.int64)


METRICS = {
    metric.name: metric
    for metric in (
        Metric("accuracy", per_image=_hits, of_tally=tally.accuracy),
        Metric("balanced_accuracy", of_tally=tally.balanced_accuracy),
        Metric("macro_f1", of_tally=tally.macro_f1),
        Metric("log_loss", larger_is_better=False, per_image=_losses),
        Metric("auc", prepare=_auc),
        Metric("kappa", of_tally=tally.quadratic_kappa),
    )
}
"""Metrics without a parameter; ``map@k`` is made for its k."""
