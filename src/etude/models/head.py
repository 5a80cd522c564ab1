"""The linear head on frozen features, its regularisation chosen by cross-validation."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold

from etude.core.context import Context
from etude.core.processor import blas_threads_for
from etude.core.seeds import derive_seed
from etude.core.standardise import FLOOR, Standardised

_ITERATIONS = 200


@dataclass(frozen=True, slots=True)
class LinearHead:
    """Logits ``features @ weight.T + bias``, with the C that was chosen and its mean cross-validated cross-entropy."""

    weight: np.ndarray
    bias: np.ndarray
    inverse_regularization: float
    cross_entropy: float

    def logits(self, features: np.ndarray) -> np.ndarray:
        """Return float32 (N, C) logits of (N, D) features."""
        return np.asarray(features, np.float32) @ self.weight.T + self.bias


def fit_head(
    features: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    *,
    candidates: Sequence[float],
    folds: int = 3,
    search_rows: int = 5_000,
    weights: np.ndarray | None = None,
    floor: float = FLOOR,
    context: Context = Context(),
) -> LinearHead:
    """Fit multinomial logistic regression on standardised features; the standardisation is folded into the head.

    C is the candidate with the lowest cross-validated cross-entropy on at most ``search_rows`` images. Of features
    (V, N, D) of V views, the plain one first, each view counts for 1/V of its image.
    """
    views = features if features.ndim == 3 else features[None]
    scaling = Standardised.of(views.reshape(-1, views.shape[2]), floor)
    sample_weight = np.ones(len(labels)) if weights is None else np.asarray(weights, np.float64)
    rows = np.arange(len(labels))
    if len(rows) > search_rows:
        rows = np.sort(context.rng("head search").choice(rows, search_rows, replace=False))
    splitter = StratifiedKFold(folds, shuffle=True, random_state=derive_seed(context.seed, "head folds") % 2**32)
    with blas_threads_for(views.size * num_classes):
        x = scaling.apply(views, np.float32)
        chosen, loss = _search(x[:, rows], labels[rows], sample_weight[rows], candidates, splitter)
        weight, bias = _fit(*_rows_of_views(x, labels, sample_weight), chosen, num_classes)
    weight = weight / scaling.deviation
    return LinearHead(weight.astype(np.float32), (bias - weight @ scaling.mean).astype(np.float32), chosen, loss)


def _rows_of_views(x: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return views (V, N, D) as rows (V * N, D), with the label of each and its share of the image's weight."""
    views = len(x)
    return x.reshape(-1, x.shape[2]), np.tile(labels, views), np.tile(weights / views, views)


def _search(
    x: np.ndarray, labels: np.ndarray, weights: np.ndarray, candidates: Sequence[float], splitter: StratifiedKFold
) -> tuple[float, float]:
    """Return the candidate with the lowest cross-validated cross-entropy, and that cross-entropy."""
    present, counts = np.unique(labels, return_counts=True)
    enough = np.isin(labels, present[counts >= splitter.get_n_splits()])  # rarer classes cannot stand in every fold
    x, labels, weights = x[:, enough], labels[enough], weights[enough]
    if len(candidates) == 1 or len(np.unique(labels)) < 2:
        return float(sorted(candidates)[len(candidates) // 2]), float("nan")
    classes = np.unique(labels)
    losses = np.zeros(len(candidates))
    for train, held in splitter.split(labels, labels):  # of images, so no view of a held-out one is learned from
        rows = _rows_of_views(x[:, train], labels[train], weights[train])
        model = _regression(candidates[0])
        for position, candidate in enumerate(sorted(candidates)):
            model.set_params(C=candidate)  # from strong to weak: each fit starts at the one before
            _quietly_fit(model, *rows)
            probability = model.predict_proba(x[0, held])[np.arange(len(held)), np.searchsorted(classes, labels[held])]
            # One sure mistake must not make the loss infinite.
            losses[position] -= np.sum(np.log(np.maximum(probability, 1e-15)) * weights[held])
    best = int(np.argmin(losses))
    return float(sorted(candidates)[best]), float(losses[best] / weights.sum())


def _regression(c: float) -> LogisticRegression:
    return LogisticRegression(C=c, solver="lbfgs", max_iter=_ITERATIONS, tol=1e-3, warm_start=True)


def _quietly_fit(model: LogisticRegression, x: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> None:
    with warnings.catch_warnings():
        # An unfinished weakly regularised fit is a candidate like another: cross-validation judges it.
        warnings.simplefilter("ignore", ConvergenceWarning)
        warnings.filterwarnings("ignore", message="The number of unique classes is greater than 50%")
        model.fit(x, labels, sample_weight=weights)


def _fit(
    x: np.ndarray, labels: np.ndarray, weights: np.ndarray, c: float, num_classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return float64 weight (C, D) and bias (C,); classes without images get a bias that never wins."""
    model = _regression(c)
    _quietly_fit(model, x, labels, weights)
    weight = np.zeros((num_classes, x.shape[1]))
    bias = np.full(num_classes, -30.0)
    if len(model.classes_) == 2:  # scikit-learn keeps one row for two classes: the log odds of the second
        weight[model.classes_] = np.concatenate([-model.coef_, model.coef_]) / 2
        bias[model.classes_] = np.concatenate([-model.intercept_, model.intercept_]) / 2
    else:
        weight[model.classes_] = model.coef_
        bias[model.classes_] = model.intercept_
    return weight, bias
