"""Views: how those of test-time augmentation are averaged, and how many of them pay."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import numpy as np
import scipy.optimize  # pyright: ignore[reportMissingTypeStubs]

from etude.core.context import Context
from etude.core.errors import EtudeError, listed, nearest
from etude.core.metrics import METRICS, FloatArray, IntArray, metric_named
from etude.core.paired import mean_gain, paired_bootstrap
from etude.core.predictions import Predictions
from etude.refine.base import (
    LOG_ZERO,
    BoolArray,
    Refiner,
    known_rows,
    labels_of,
    minimised,
    mixture_by_em,
    normalised,
    require_labelled,
)
from etude.refine.cross_fit import FEWEST_ROWS, fold_numbers, out_of_fold

PLAIN = "mean of probabilities"
WAYS = (PLAIN, "mean of logits", "weighted probabilities", "weighted logits", "first view")
"""How V views may become one. The first is what ``Predictions.log_probabilities`` does."""

_optimize: Any = scipy.optimize
_SHARPEST = float(np.log(4.0))


@dataclass(eq=False, repr=False)
class ViewWeights(Refiner):
    """Averages the views of each image in the way that, cross-fitted, gains beyond noise; else by the plain mean.

    Mean of probabilities: p = Σ_v w_v p_v. Mean of logits: log p = Σ_v w_v log p_v - log Z. Weights are on the simplex
    and maximise the likelihood of the labels as if each view had already explained one image, which pulls them to 1/V
    (Shanmugam et al. 2021, Better Aggregation in Test-Time Augmentation).

    Args:
        metric: by which a way must beat the plain mean.
        ways: of :data:`WAYS`, those to try; the plain mean is always among them.
        folds, seed, draws: of the cross-fit and its bootstrap.
        level: of the interval whose lower end must be above zero; None takes the best other way without a test.

    >>> rng = np.random.default_rng(0)
    >>> labels = rng.integers(0, 2, 400)
    >>> good, useless = 4.0 * np.eye(2)[labels] + rng.normal(size=(400, 2)), 3.0 * rng.normal(size=(400, 2))
    >>> two = Predictions([str(i) for i in range(400)], ["x", "y"], np.stack([useless, good]), labels=labels)
    >>> step = ViewWeights().fit(two)
    >>> step.way_.startswith("weighted"), bool(step.weights_[1] > 0.8)
    (True, True)
    """

    fits_on = frozenset({"labelled"})
    metric: str = "log_loss"
    ways: Sequence[str] = WAYS
    folds: int = 5
    seed: int = 0
    draws: int = 1000
    level: float | None = 0.9

    def fit(self, labelled: Predictions | None = None, target: Predictions | None = None) -> Self:
        """Choose the way and its weights, ``way_`` and ``weights_`` (V,), on ``labelled``."""
        for way in self.ways:
            if way not in WAYS:
                raise EtudeError(
                    f"views cannot be averaged by {way!r}; give some of {listed(WAYS)}.{nearest(way, WAYS)}"
                )
        metric = metric_named(self.metric)
        rows = known_rows(require_labelled(labelled, "ViewWeights"))
        views, labels = _log_probabilities_of_views(rows), labels_of(rows)
        self.classes_, self.way_, self.gain_ = rows.classes, PLAIN, None
        others = [way for way in self.ways if way != PLAIN]
        if len(views) > 1 and len(self.classes_) > 1 and len(labels) >= FEWEST_ROWS and others:
            folds = fold_numbers(rows, self.folds, Context(seed=self.seed))
            held_out = {way: out_of_fold(folds, partial(_averaged, way, views, labels)) for way in others}
            best = max(others, key=lambda way: metric.sign * metric.value(held_out[way], labels))
            plain = _mixed(PLAIN, views, _equal(views))
            level = 0.9 if self.level is None else self.level
            self.gain_ = paired_bootstrap(metric, plain, held_out[best], labels, self.draws, self.seed, level=level)
            self.way_ = best if self.level is None or self.gain_.beyond_noise else PLAIN
        self.weights_ = _fitted_weights(self.way_, views, labels)
        return self

    def _refined(self, predictions: Predictions) -> FloatArray:
        views = len(predictions.logits)
        if self.way_.startswith("weighted") and views != len(self.weights_):
            raise EtudeError(
                f"the weights were fitted for {len(self.weights_)} views, and these predictions have {views}: "
                "predict both sets of images with the same views"
            )
        if self.way_ == PLAIN:
            return predictions.log_probabilities()
        log_p = _log_probabilities_of_views(predictions)
        weights = self.weights_ if self.way_.startswith("weighted") else _equal(log_p)
        return _mixed(self.way_, log_p, weights)

    def _described(self) -> str:
        if self.way_ == "first view":
            return "first view alone"
        if not self.way_.startswith("weighted"):
            return f"{self.way_} over {len(self.weights_)} views"
        return f"{self.way_}, largest weight {self.weights_.max():.2f} of {len(self.weights_)} views"


@dataclass(frozen=True, slots=True)
class ViewGains:
    """Scores of the mean over the first 1 to V views, (V,) each."""

    accuracy: FloatArray
    log_loss: FloatArray
    enough: dict[str, int]  # smallest count of each metric that is within one standard error, paired, of the best count
    # The metrics in which all views together are worse than the first view alone: log loss by more than one standard
    # error, paired, or accuracy beyond noise (one-sided at 5%).
    harm: tuple[str, ...]

    @property
    def described(self) -> str:
        """The accuracy by views and how many of them are enough, as text."""
        enough, views = self.enough["accuracy"], len(self.accuracy)
        return (
            f"accuracy {self.accuracy[0]:.2%} with the first alone, {self.accuracy[-1]:.2%} with all {views}; {enough} "
            f"{'is' if enough == 1 else 'are'} enough ({self.accuracy[enough - 1]:.2%}), for log loss "
            f"{self.enough['log_loss']}"
        )


def sharpness_of_views(labelled: Predictions, prior: float = 4.0) -> float:
    """Return the factor s of all logits with which the mean of the views' probabilities has the least log loss.

    A mean over views is less sure than each view, so s is above 1 for views that are calibrated one by one. ``prior``
    (log s)² nats are added to the loss of all images together: few images leave s near 1. From 1/4 to 4.

    >>> rng, labels = np.random.default_rng(0), np.arange(600) % 3
    >>> views = 2.0 * np.eye(3)[labels] + 2.0 * rng.normal(size=(8, 600, 3))
    >>> ids, classes = [str(i) for i in range(600)], ["x", "y", "z"]
    >>> many, one = (Predictions(ids, classes, views[:count], labels=labels) for count in (8, 1))
    >>> bool(sharpness_of_views(many) > sharpness_of_views(one))
    True
    """
    rows = known_rows(require_labelled(labelled, "the sharpness of views"))
    labels, logits = labels_of(rows), rows.logits.astype(np.float64)

    def loss(power: float) -> float:
        mixed = _mixed(PLAIN, _normalised_views(logits * np.exp(power)), _equal(logits))
        return prior * power**2 - float(np.maximum(mixed[np.arange(len(labels)), labels], LOG_ZERO).sum())

    found = _optimize.minimize_scalar(loss, bounds=(-_SHARPEST, _SHARPEST), method="bounded", options={"xatol": 1e-3})
    return float(np.exp(found.x))


def gain_by_views(predictions: Predictions, alone: Predictions | None = None) -> ViewGains:
    """Return what each further view gains on labelled images, and the count at which the gain ends.

    Harm is against the first view of ``alone``, where that is calibrated otherwise than the mean.
    """
    rows = known_rows(require_labelled(predictions, "the table of views"))
    labels = labels_of(rows)
    total = np.full((len(labels), len(predictions.classes)), -np.inf)
    each: dict[str, list[FloatArray]] = {"accuracy": [], "log_loss": []}
    for count, view in enumerate(rows.logits, start=1):
        np.logaddexp(total, normalised(view.astype(np.float64)), out=total)
        for name, values in each.items():
            values.append(_per_image(name)(total - np.log(count), labels))
    scores = {name: np.mean(values, axis=1) for name, values in each.items()}
    enough = {name: _enough(np.stack(values) * METRICS[name].sign) for name, values in each.items()}
    first = rows if alone is None else known_rows(alone)
    by_first = normalised(first.logits[0].astype(np.float64))
    won, lost = (values[-1] - _per_image(name)(by_first, labels) for name, values in each.items())
    worse = {"log_loss": lost.mean() > lost.std() / np.sqrt(len(lost)) + 1e-9, "accuracy": mean_gain(won).lost}
    return ViewGains(scores["accuracy"], scores["log_loss"], enough, tuple(name for name in worse if worse[name]))


def _per_image(metric: str) -> Callable[[FloatArray, IntArray], FloatArray]:
    per_image = METRICS[metric].per_image
    assert per_image is not None
    return per_image


def _enough(values: FloatArray) -> int:
    """Return the smallest count whose (V, N) values, larger being better, are within one standard error of the best."""
    lost = values[int(np.argmax(values.mean(1)))] - values
    error = lost.std(1) / np.sqrt(values.shape[1])
    return 1 + int(np.argmax(lost.mean(1) <= error + 1e-9))  # what rounding leaves of nothing is nothing


def _log_probabilities_of_views(predictions: Predictions) -> FloatArray:
    return _normalised_views(predictions.logits.astype(np.float64))


def _normalised_views(logits: FloatArray) -> FloatArray:
    return np.stack([normalised(view) for view in logits])


def _equal(views: FloatArray) -> FloatArray:
    return np.full(len(views), 1.0 / len(views))


def _mixed(way: str, views: FloatArray, weights: FloatArray) -> FloatArray:
    """Return log probabilities (N, C) of log probabilities (V, N, C) averaged by ``way``."""
    if way == "first view":
        return views[0]
    if way.endswith("logits"):
        return normalised(np.tensordot(weights, views, axes=1).astype(np.float64, copy=False))
    total = np.full(views.shape[1:], -np.inf)
    for weight, view in zip(weights, views, strict=True):
        if weight > 0:
            np.logaddexp(total, np.log(weight) + view, out=total)
    return total


def _averaged(way: str, views: FloatArray, labels: IntArray, train: BoolArray, held: BoolArray) -> FloatArray:
    return _mixed(way, views[:, held], _fitted_weights(way, views[:, train], labels[train]))


def _fitted_weights(way: str, views: FloatArray, labels: IntArray) -> FloatArray:
    if not way.startswith("weighted") or len(views) == 1:
        return _equal(views)
    return _geometric_weights(views, labels) if way.endswith("logits") else _mixture_weights(views, labels)


def _mixture_weights(views: FloatArray, labels: IntArray) -> FloatArray:
    """Return w that maximises Σ_i log Σ_v w_v p_iv + Σ_v log w_v by EM, p_iv the probability of the label."""
    given = views[:, np.arange(len(labels)), labels].T
    return mixture_by_em(np.exp(given - given.max(1, keepdims=True)), _equal(views), 1e-7, extra=1.0)


def _geometric_weights(views: FloatArray, labels: IntArray) -> FloatArray:
    """Return w that maximises Σ_i log softmax(Σ_v w_v log p_v)_i + Σ_v log w_v, by L-BFGS on u with w = softmax(u)."""
    rows, count = np.arange(len(labels)), len(labels) + len(views)

    def loss(u: FloatArray) -> tuple[float, FloatArray]:
        weights = np.exp(u - u.max())
        weights /= weights.sum()
        log_p = normalised(np.tensordot(weights, views, axes=1).astype(np.float64, copy=False))
        value = -log_p[rows, labels].sum() - np.log(np.maximum(weights, 1e-300)).sum()
        expected: FloatArray = np.einsum("nc,vnc->v", np.exp(log_p), views, optimize=True)
        slope = expected - views[:, rows, labels].sum(1)  # d loss / d w, without the prior
        # Through the softmax; the prior's gradient is then V w - 1.
        gradient = weights * (slope - weights @ slope) + len(weights) * weights - 1.0
        return float(value) / count, gradient / count

    found = minimised(loss, np.zeros(len(views)), views.size, maxiter=200)
    weights = np.exp(found - found.max())
    return weights / weights.sum()
