"""Weights of the models in a blend: forward selection with replacement, or the mixture of greatest likelihood."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from etude.core.errors import EtudeError
from etude.core.metrics import metric_named
from etude.core.seeds import rng_for
from etude.refine.cross_fit import SMALLEST

Array = NDArray[np.float64]
Score = Callable[[Array], float]
"""Scores the mean of what some models say; larger is better."""


def forward_selection(models: Sequence[Array], score: Score, size: int = 50, sorted_start: bool = True) -> Array:
    """Return the weights (M,) of a bag of up to ``size`` models, drawn greedily with replacement.

    The bag starts with the best models, as many as score best together (``sorted_start``), or empty. Then, again and
    again, the model is added that makes the mean of the bag score best. The weights are the counts in the bag at the
    step where it scored best, divided by their sum. Ties go to the earlier model and to the smaller bag.

    Args:
        models: what each of the M models says, arrays of one shape.
        score: of a mean of such arrays.
        size: of the bag.

    Source: Caruana et al. 2004, Ensemble selection from libraries of models.

    >>> a, b, c = np.array([1.0, 0.0]), np.array([0.0, 1.0]), np.array([0.0, 0.0])
    >>> forward_selection([c, a, b], lambda mean: -abs(mean - [0.6, 0.3]).sum(), size=4).round(2).tolist()
    [0.25, 0.5, 0.25]
    """
    if size < 1 or not len(models):
        raise EtudeError(f"forward selection needs at least one model and a size of at least 1, not {size}")
    bag = _best_together(models, score, size) if sorted_start else []
    total = np.sum([models[number] for number in bag], axis=0) if bag else np.zeros_like(models[0])
    best_bag, best = list(bag), _rounded(score(total / len(bag))) if bag else -np.inf
    while len(bag) < size:
        scores = [_rounded(score((total + model) / (len(bag) + 1))) for model in models]
        chosen = int(np.argmax(scores))
        bag.append(chosen)
        total = total + models[chosen]
        if scores[chosen] > best:
            best_bag, best = list(bag), scores[chosen]
    return np.bincount(best_bag, minlength=len(models)) / len(best_bag)


def select_ensemble(
    probabilities: Sequence[Array],
    labels: NDArray[np.int64],
    *,
    metric: str = "log_loss",
    size: int = 50,
    bags: int = 10,
    share: float = 1.0,
    sorted_start: bool = True,
    seed: int = 0,
) -> Array:
    """Return the mean of the weights (M,) that :func:`forward_selection` finds in ``bags`` resamples.

    Each resample draws N images with replacement and keeps every model with the probability ``share`` (Caruana's bags
    of models: 0.5 suits libraries of dozens; with few models, leaving one out leaves most out). One bag is the plain
    selection, on all images and models.

    Args:
        probabilities: (N, C) of each of the M models, rows and columns in the same order.
        labels: (N,).
        metric: a name that :func:`etude.core.metrics.metric_named` knows.

    Raises:
        EtudeError: an argument is out of range, or the metric is unknown.
    """
    if bags < 1 or not 0 < share <= 1:
        raise EtudeError(
            f"ensemble selection needs at least one bag and a share above 0 up to 1, not {bags} and {share}"
        )
    weights = np.zeros(len(probabilities))
    for bag in range(bags):
        rows, kept = np.arange(len(labels)), np.arange(len(probabilities))
        if bags > 1:
            rng = rng_for(seed, "bag of models", bag)
            rows = rng.integers(len(labels), size=len(labels))
            kept = np.flatnonzero(rng.random(len(probabilities)) < share)
            kept = kept if len(kept) else rng.integers(len(probabilities), size=1)
        some: list[int] = kept.tolist()
        seen, score = scored([probabilities[number][rows] for number in some], labels[rows], metric)
        weights[some] += forward_selection(seen, score, size, sorted_start)
    return weights / weights.sum()


def scored(probabilities: Sequence[Array], labels: NDArray[np.int64], metric: str) -> tuple[list[Array], Score]:
    """Return what of each model's (N, C) the metric depends on, and the score of a mean of such arrays."""
    chosen = metric_named(metric)
    if chosen.name == "log_loss":
        rows = np.arange(len(labels))
        return [one[rows, labels] for one in probabilities], _mean_log
    if chosen.name == "accuracy":
        return list(probabilities), lambda mean: float((mean.argmax(axis=1) == labels).mean())
    return list(probabilities), lambda mean: chosen.sign * chosen.value(np.log(np.maximum(mean, SMALLEST)), labels)


def mixture_weights(given: Array, tolerance: float = 1e-6, most: int = 10_000) -> Array:
    """Return the weights w (M,) on the simplex that maximise Σ_i log Σ_m w_m p_mi: those of the least log loss.

    Expectation maximisation, whose every step raises the likelihood. It ends when no weights at all can lower the
    mean log loss by more than ``tolerance`` (nats): the problem is concave, and max_m mean_i p_mi / Σ w p_i - 1 bounds
    what is left to gain.

    Args:
        given: (M, N) probability that each model gives to each image's label; below 1e-15 it counts as that.
        tolerance: in nats.
        most: steps at most.

    >>> mixture_weights(np.array([[0.9, 0.9, 0.1], [0.1, 0.1, 0.9]])).round(3).tolist()
    [0.708, 0.292]
    """
    given = np.maximum(given, SMALLEST)
    weights = np.full(len(given), 1 / len(given))
    for _ in range(most):
        ratio = mixture_ratio(weights, given)
        if ratio.max() <= 1 + tolerance:
            break
        weights = weights * ratio
        weights /= weights.sum()
    return weights


def mixture_ratio(weights: Array, given: Array) -> Array:
    """Return mean_i p_mi / Σ_k w_k p_ki, (M,): what one step of EM multiplies each weight by.

    >>> mixture_ratio(np.array([0.5, 0.5]), np.array([[0.6, 0.6], [0.2, 0.2]])).round(3).tolist()
    [1.5, 0.5]
    """
    return (given / (weights @ given)).mean(axis=1)


def _mean_log(given: Array) -> float:
    return float(np.log(np.maximum(given, SMALLEST)).mean())


def _best_together(models: Sequence[Array], score: Score, size: int) -> list[int]:
    alone = [_rounded(score(model)) for model in models]
    order = sorted(range(len(models)), key=lambda number: (-alone[number], number))
    total, scores = np.zeros_like(models[0]), list[float]()
    for count, number in enumerate(order[:size], start=1):
        total = total + models[number]
        scores.append(_rounded(score(total / count)))
    return order[: int(np.argmax(scores)) + 1]


def _rounded(score: float) -> float:
    """Scores that differ by rounding only are equal."""
    return round(score, 12)
