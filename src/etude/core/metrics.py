"""Metrics by name, on log probabilities and labels.

Scores of decisions are computed from counts by class, because :class:`~etude.refine.thresholds.Thresholds` scores
hundreds of decisions at once, and the AUC from an order found once, because a bootstrap scores one order a thousand
times: scikit-learn's functions, with which the tests compare all of them, take one set of predictions at a time.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from etude.core.errors import EtudeError, nearest
from etude.core.predictions import Predictions

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
Scorer = Callable[[FloatArray], FloatArray]
"""Takes how often each of N images counts, (..., N) float64, and returns the scores, (...)."""

SMALLEST = 1e-15
"""A probability below it counts as this much, so that one sure mistake does not make a log loss infinite."""

_SAME = 1e-6  # relative; float32 logits and the sum over classes leave less than that between equal probabilities
_CERTAIN = 700.0  # log odds beyond it are those of 0 and 1: Predictions keep the log of zero as -708
_NEAR_ONE = 1e-6  # closer to one than this, 1 - p is better had from the other classes


def accuracy(predicted: ArrayLike, labels: ArrayLike) -> float:
    """Return the share of the N images whose ``predicted`` class, (N,) integers, equals the label, (N,) integers."""
    guesses, truth = np.asarray(predicted), _known(labels)
    if guesses.shape != truth.shape or guesses.dtype.kind not in "iu":
        raise EtudeError(
            f"predicted classes must be {len(truth):,} integers, one a label, not {guesses.dtype} of {guesses.shape}"
        )
    return float((guesses == truth).mean())


def log_loss(probabilities: ArrayLike, labels: ArrayLike) -> float:
    """Return the mean of -log of the probability, (N, C), that was given to the label, (N,) integers; in nats."""
    values, truth = np.asarray(probabilities, dtype=np.float64), _known(labels)
    if values.ndim != 2 or len(values) != len(truth):
        raise EtudeError(f"probabilities must have shape ({len(truth)}, C), one row a label, not {values.shape}")
    if truth.max() >= values.shape[1]:
        raise EtudeError(f"label {truth.max()} has no column in probabilities of {values.shape[1]} classes")
    if not ((values >= 0) & (values <= 1 + 1e-6)).all():
        raise EtudeError("probabilities must lie between 0 and 1; were logits given instead?")
    given = values[np.arange(len(truth)), truth]
    return float(-np.mean(np.log(np.clip(given, SMALLEST, 1.0))))


def _known(labels: ArrayLike) -> IntArray:
    truth = np.asarray(labels)
    if truth.ndim != 1 or not len(truth):
        raise EtudeError(f"a score needs at least one label, (N,) integers, not an array of shape {truth.shape}")
    if truth.dtype.kind not in "iu":
        raise EtudeError(f"labels must be integers, not {truth.dtype}")
    if (unknown := int((truth < 0).sum())) > 0:
        raise EtudeError(f"{unknown:,} of {len(truth):,} images are unlabelled: score only the labelled ones")
    return truth.astype(np.int64)


def score_of(predictions: Predictions) -> tuple[float, float]:
    """Return accuracy and negative log loss of labelled predictions; larger is better in both."""
    if predictions.labels is None:
        raise ValueError("these predictions have no labels to be scored against")
    labels = predictions.labels
    return accuracy(predictions.predicted(), labels), -log_loss(predictions.probabilities(), labels)


def standard_error(accuracy: float, n: int) -> float:
    """Return the standard error of an accuracy measured on ``n`` images: sqrt(accuracy (1 - accuracy) / n)."""
    if n < 1 or not 0 <= accuracy <= 1:
        raise EtudeError(f"a standard error needs an accuracy from 0 to 1 and n of at least 1, not {accuracy} and {n}")
    return math.sqrt(accuracy * (1 - accuracy) / n)


def adjusted_error(accuracy: float, n: int) -> float:
    """Return a standard error that stays honest on few images: after two more right and two more wrong ones.

    The plain formula says 0 when all (or none) of a handful are right. Source: Agresti & Coull 1998.
    """
    return standard_error((accuracy * n + 2) / (n + 4), n + 4)


_NORMAL = 1.959964  # 95% of the normal distribution lie within


def wilson(hits: float, images: float) -> tuple[float, float]:
    """Return the 95% interval of a share of ``hits`` in ``images`` (Wilson 1927); (0, 1) without an image."""
    if images <= 0:
        return 0.0, 1.0
    share, spread = hits / images, _NORMAL**2 / images
    middle = (share + spread / 2) / (1 + spread)
    half = _NORMAL * math.sqrt(share * (1 - share) / images + spread / (4 * images)) / (1 + spread)
    return max(0.0, min(middle - half, share)), min(1.0, max(middle + half, share))


@dataclass(frozen=True, slots=True)
class ClassCounts:
    """Counts of N images by class, for one decision or, with leading axes, for many."""

    labelled: FloatArray  # (..., C) images whose label is the class
    predicted: FloatArray  # (..., C) images for which the class was predicted
    hits: FloatArray  # (..., C) images for which both are so
    distance: FloatArray  # (...) sum of the squared distances between the positions of label and prediction

    @classmethod
    def of(cls, predicted: IntArray, labels: IntArray, classes: int, counts: FloatArray | None = None) -> ClassCounts:
        """Count (N,) predictions against (N,) labels; image ``i`` counts ``counts[..., i]`` times."""
        weight = np.ones(len(labels)) if counts is None else counts
        hit = predicted == labels

        def counted(positions: IntArray, weight: FloatArray) -> FloatArray:
            rows = weight.reshape(math.prod(weight.shape[:-1]), -1)
            places = positions + classes * np.arange(len(rows))[:, None]
            found = np.bincount(places.ravel(), rows.ravel(), classes * len(rows)).astype(np.float64, copy=False)
            return found.reshape(*weight.shape[:-1], classes)

        return cls(
            counted(labels, weight),
            counted(predicted, weight),
            counted(labels[hit], weight[..., hit]),
            np.asarray(weight @ squared_distance(predicted, labels)),
        )


def squared_distance(predicted: IntArray, labels: IntArray) -> FloatArray:
    """Return the squared difference of the positions of prediction and label, elementwise."""
    return np.square((predicted - labels).astype(np.float64))


def _accuracy(counts: ClassCounts) -> FloatArray:
    return _ratio(counts.hits.sum(-1), counts.labelled.sum(-1))


def _balanced_accuracy(counts: ClassCounts) -> FloatArray:
    """Mean, over the classes that occur, of the share of their images predicted right, (...)."""
    return _ratio(_ratio(counts.hits, counts.labelled).sum(-1), (counts.labelled > 0).sum(-1))


def _macro_f1(counts: ClassCounts) -> FloatArray:
    """Mean of F1 = 2 hits / (labelled + predicted) over the classes that are labelled, (...).

    scikit-learn also counts classes that are only predicted, with an F1 of zero. Then never to predict a class that
    has no labels would leave fewer classes to average over: a gain without an image predicted better.
    """
    each = _ratio(2.0 * counts.hits, counts.labelled + counts.predicted)
    return _ratio(each.sum(-1), (counts.labelled > 0).sum(-1))


def _quadratic_kappa(counts: ClassCounts) -> FloatArray:
    """Cohen's kappa with quadratic weights over the positions of the classes, (...).

    1 - Σ (i-j)² O_ij / Σ (i-j)² E_ij, where E is what the margins of O give by chance. 1 when both sums are zero.
    """
    place = np.arange(counts.labelled.shape[-1], dtype=np.float64)
    total = counts.labelled.sum(-1)
    first = _ratio(counts.labelled @ place, total), _ratio(counts.predicted @ place, total)
    second = _ratio(counts.labelled @ place**2, total) + _ratio(counts.predicted @ place**2, total)
    expected = second - 2.0 * first[0] * first[1]
    observed = _ratio(counts.distance, total)
    certain = expected <= 1e-12 * np.maximum(second, 1.0)  # one class for all, in both: what is left is rounding
    return np.where(certain, 1.0, 1.0 - observed / np.where(certain, 1.0, expected))


def _ratio(amount: FloatArray, whole: NDArray[np.generic]) -> FloatArray:
    """Return ``amount / whole``, zero where the whole is."""
    parts = np.asarray(whole, dtype=np.float64)
    return np.divide(amount, parts, out=np.zeros(np.broadcast_shapes(np.shape(amount), parts.shape)), where=parts > 0)


@dataclass(frozen=True, slots=True)
class Metric:
    """A score of N labelled images over C classes.

    ``per_image`` maps log probabilities (N, C) and labels (N,) to (N,) values whose mean is the score, if it is such a
    mean; ``of_counts`` computes a score that is made of decisions; ``prepare`` gives the :data:`Scorer` of any other.
    """

    name: str
    larger_is_better: bool = True
    per_image: Callable[[FloatArray, IntArray], FloatArray] | None = None
    of_counts: Callable[[ClassCounts], FloatArray] | None = None
    prepare: Callable[[FloatArray, IntArray], Scorer] | None = None

    @property
    def sign(self) -> int:
        """1 when larger is better, else -1."""
        return 1 if self.larger_is_better else -1

    @property
    def needs_thresholds(self) -> bool:
        """Whether predicting the most probable class is not what maximises it, even with true probabilities."""
        return self.of_counts is not None and self.per_image is None

    def value(self, log_probabilities: ArrayLike, labels: ArrayLike, weights: ArrayLike | None = None) -> float:
        """Return the score of log probabilities (N, C) against labels (N,), each image weighted by ``weights`` (N,)."""
        scorer, labels = self.scorer(log_probabilities, labels), np.asarray(labels)
        return float(scorer(np.ones(len(labels)) if weights is None else np.asarray(weights, np.float64)))

    def scorer(self, log_probabilities: ArrayLike, labels: ArrayLike) -> Scorer:
        """Return a function of how often each image counts, for scores of many resamples of the same images."""
        values, truth = checked(log_probabilities, labels)
        if self.per_image is not None:
            each = self.per_image(values, truth)
            return lambda counts: np.asarray(counts @ each / counts.sum(-1))
        if self.of_counts is not None:
            score, guesses, classes = self.of_counts, np.argmax(values, axis=1).astype(np.int64), values.shape[1]
            return lambda counts: score(ClassCounts.of(guesses, truth, classes, counts))
        assert self.prepare is not None
        return self.prepare(values, truth)


def checked(log_probabilities: ArrayLike, labels: ArrayLike) -> tuple[FloatArray, IntArray]:
    """Return log probabilities (N, C) and labels (N,) as arrays that a metric can score."""
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


def metric_named(name: str) -> Metric:
    """Return the metric ``name``: accuracy, balanced_accuracy, macro_f1, log_loss, auc, kappa, or map@k for any k."""
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
    """Return the rank, (N,) from 1, of each label among the classes; the first class comes first on a tie."""
    own = log_probabilities[np.arange(len(labels)), labels][:, None]
    places: IntArray = np.arange(log_probabilities.shape[1], dtype=np.int64)
    earlier: NDArray[np.bool_] = places[None, :] < labels[:, None]
    ahead = (log_probabilities > own) | ((log_probabilities == own) & earlier)
    return np.count_nonzero(ahead, axis=1).astype(np.int64) + 1


def _hits(log_probabilities: FloatArray, labels: IntArray) -> FloatArray:
    return (np.argmax(log_probabilities, axis=1) == labels).astype(np.float64)


def _losses(log_probabilities: FloatArray, labels: IntArray) -> FloatArray:
    return -np.maximum(log_probabilities[np.arange(len(labels)), labels], np.log(SMALLEST))


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

    def scorer(counts: FloatArray) -> FloatArray:
        areas = np.stack([curve.area(counts) for curve in curves])
        known = ~np.isnan(areas)
        # Without a pair to order nothing is known.
        return np.where(known.any(0), np.where(known, areas, 0.0).sum(0) / np.maximum(known.sum(0), 1), 0.5)

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

    def area(self, counts: FloatArray) -> FloatArray:
        """Return P(score of a positive > that of a negative), (...), ties counted half; NaN without a pair."""
        weight = counts[..., self.order]
        ups = np.add.reduceat(np.where(self.positive, weight, 0.0), self.starts, axis=-1)
        downs = np.add.reduceat(np.where(self.positive, 0.0, weight), self.starts, axis=-1)
        pairs = ups.sum(-1) * downs.sum(-1)
        won = (ups * (np.cumsum(downs, axis=-1) - downs / 2.0)).sum(-1)
        return np.where(pairs > 0, won / np.where(pairs > 0, pairs, 1.0), np.nan)


def log_odds(log_probabilities: FloatArray) -> FloatArray:
    """Return log p - log(1 - p), (N, C), finite: it orders images within a class as p does, also close to 0 and 1."""
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
    """
    order = np.argsort(scores, kind="stable")
    ordered = scores[order]
    close = _SAME * np.maximum(1.0, np.abs(ordered))
    rises = np.diff(ordered, prepend=-np.inf) > close
    first = ordered[np.maximum.accumulate(np.where(rises, np.arange(len(ordered)), 0))]
    rises[1:] |= np.diff(np.floor((ordered - first) / close)) > 0
    return order, np.flatnonzero(rises)


METRICS = {
    metric.name: metric
    for metric in (
        Metric("accuracy", per_image=_hits, of_counts=_accuracy),
        Metric("balanced_accuracy", of_counts=_balanced_accuracy),
        Metric("macro_f1", of_counts=_macro_f1),
        Metric("log_loss", larger_is_better=False, per_image=_losses),
        Metric("auc", prepare=_auc),
        Metric("kappa", of_counts=_quadratic_kappa),
    )
}
"""Metrics without a parameter; ``map@k`` is made for its k."""
