"""Blending: one set of predictions from those of several models."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from etude.core.errors import EtudeError, listed
from etude.core.ids import match_ids
from etude.core.labels import spelled_as
from etude.core.predictions import Predictions
from etude.core.ranks import log_odds, ties
from etude.refine.base import LOG_ZERO, normalised


def average(predictions: Sequence[Predictions], weights: Sequence[float] | None = None) -> Predictions:
    """Return the (weighted) mean of the probabilities of M models over the same images and classes.

    Rows and columns are brought into the order of the first. The result has one view and no features; its labels are
    those that any of the models' predictions carry.

    Args:
        predictions: those of each model, at least one.
        weights: M weights of zero or more, not all zero; equal ones when None. Only their ratios count.

    Raises:
        EtudeError: there are none, the ids, classes or labels differ, or the weights are not usable.

    >>> sure = Predictions.from_probabilities(["a"], ["cat", "dog"], [[1.0, 0.0]])
    >>> unsure = Predictions.from_probabilities(["a"], ["cat", "dog"], [[0.4, 0.6]])
    >>> average([sure, unsure]).probabilities().round(3).tolist()
    [[0.7, 0.3]]
    """
    together, shares = aligned(predictions), shares_of(weights, len(predictions))
    mean = np.zeros((len(together[0].ids), len(together[0].classes)))
    for share, one in zip(shares, together, strict=True):
        mean += share * one.probabilities()
    return _made(mean, together)


def geometric_mean(predictions: Sequence[Predictions], weights: Sequence[float] | None = None) -> Predictions:
    """Return the (weighted) mean of the log probabilities of M models, normalised: p = Π_m p_m^w_m / Z.

    A class needs every model's consent: one model that is sure of the opposite counts for more than in
    :func:`average`. The rest is as there.

    >>> sure = Predictions.from_probabilities(["a"], ["cat", "dog"], [[0.9, 0.1]])
    >>> unsure = Predictions.from_probabilities(["a"], ["cat", "dog"], [[0.5, 0.5]])
    >>> geometric_mean([sure, unsure]).probabilities().round(3).tolist()
    [[0.75, 0.25]]
    """
    together, shares = aligned(predictions), shares_of(weights, len(predictions))
    mean = np.zeros((len(together[0].ids), len(together[0].classes)))
    for share, one in zip(shares, together, strict=True):
        mean += share * np.maximum(one.log_probabilities(), LOG_ZERO)
    return _made(np.exp(normalised(mean)), together)


def rank_mean(predictions: Sequence[Predictions], weights: Sequence[float] | None = None) -> Predictions:
    """Return the (weighted) mean of the ranks that M models give to the images within each class.

    The image with the k-th smallest probability of a class has rank (k - 1/2) / N there, equal ones the mean of their
    ranks; the mean ranks of each image are divided by their sum. Only the order of a model's probabilities counts, so
    badly calibrated models can be blended for a score of orders, such as AUC with two classes. The result is no
    probability, and one model alone does not stay as it is. The rest is as in :func:`average`.

    >>> one = Predictions.from_probabilities(["a", "b"], ["cat", "dog"], [[0.9, 0.1], [0.99, 0.01]])
    >>> rank_mean([one]).probabilities().round(3).tolist()
    [[0.25, 0.75], [0.75, 0.25]]
    """
    together, shares = aligned(predictions), shares_of(weights, len(predictions))
    mean = np.zeros((len(together[0].ids), len(together[0].classes)))
    for share, one in zip(shares, together, strict=True):
        mean += share * np.apply_along_axis(_ranks, 0, log_odds(one.log_probabilities()))
    return _made(mean, together)


def majority_vote(predictions: Sequence[Predictions], weights: Sequence[float] | None = None) -> Predictions:
    """Return the class that most of M models predict, each with its weight; on a tie the first model in it decides.

    The result's probabilities are the shares of the votes; that of a class which wins a tie is larger by a millionth.
    The rest is as in :func:`average`.

    >>> votes = [Predictions.from_probabilities(["a"], ["cat", "dog"], [p]) for p in ([1, 0], [0, 1], [0.4, 0.6])]
    >>> majority_vote(votes).probabilities().round(2).tolist()
    [[0.33, 0.67]]
    >>> majority_vote(votes[:2]).predicted().tolist(), majority_vote(votes[1::-1]).predicted().tolist()
    ([0], [1])
    """
    together, shares = aligned(predictions), shares_of(weights, len(predictions))
    rows, chosen = np.arange(len(together[0].ids)), [one.predicted() for one in together]
    votes = np.zeros((len(rows), len(together[0].classes)))
    for share, classes in zip(shares, chosen, strict=True):
        votes[rows, classes] += share
    tied = votes > votes.max(axis=1, keepdims=True) - 1e-9
    first = np.argmax(
        [tied[rows, classes] & (share > 0) for share, classes in zip(shares, chosen, strict=True)], axis=0
    )
    votes[rows, np.stack(chosen)[first, rows]] += 1e-6
    return _made(votes, together)


def aligned(predictions: Sequence[Predictions]) -> list[Predictions]:
    """Return the predictions of M models with rows and columns in the order of the first, without features.

    Raises:
        EtudeError: there are none, or the ids or classes differ.
    """
    if not predictions:
        raise EtudeError("there is nothing to blend: give the predictions of at least one model")
    first = predictions[0]
    return [first, *(_aligned(other, first, number) for number, other in enumerate(predictions[1:], start=2))]


def shares_of(weights: Sequence[float] | None, count: int) -> NDArray[np.float64]:
    """Return ``count`` weights divided by their sum; equal ones when None.

    Raises:
        EtudeError: their number is another, one is negative or not finite, or all are zero.
    """
    given = np.asarray([1.0] * count if weights is None else weights, dtype=np.float64)
    if given.shape != (count,):
        raise EtudeError(f"a blend of {count} models needs {count} weights, and got {given.size}")
    if not np.isfinite(given).all() or (given < 0).any() or not given.any():
        raise EtudeError(f"blend weights must be zero or more and not all zero, not {given.tolist()}")
    return given / given.sum()


def _aligned(other: Predictions, first: Predictions, number: int) -> Predictions:
    """Return ``other`` with the rows and columns of ``first``; ``number`` counts the models from 1, for messages."""
    ids = match_ids(other.ids, first.ids)
    _refuse_others("ids", ids.missing, ids.extra, number)
    rows, names = ids.rows, spelled_as(other.classes, first.classes)
    position = {name: place for place, name in enumerate(names)}
    missing = [name for name in first.classes if name not in position]
    _refuse_others("classes", missing, sorted(set(names) - set(first.classes)), number)
    columns = [position[name] for name in first.classes]
    logits = other.logits[:, rows][:, :, columns]
    labels = None
    if other.labels is not None:
        new_position = np.append(np.argsort(columns), -1)  # the last entry keeps -1, unknown, as it is
        labels = new_position[other.labels[rows]]
    return Predictions(first.ids, first.classes, logits, labels=labels)


def _refuse_others(what: str, missing: list[str], extra: list[str], number: int) -> None:
    if missing or extra:
        parts = [f"lacks {len(missing):,} of them ({listed(missing)})"] if missing else []
        parts += [f"has {len(extra):,} others ({listed(extra)})"] if extra else []
        raise EtudeError(
            f"only predictions with the same {what} can be blended, and model {number} {' and '.join(parts)} "
            "against the first: predict the same images with models of the same classes"
        )


def common_labels(together: Sequence[Predictions]) -> NDArray[np.int64] | None:
    """Return the labels that any of the aligned predictions carry, or None.

    Raises:
        EtudeError: two of them carry different ones.
    """
    merged: NDArray[np.int64] | None = None
    for labels in (one.labels for one in together if one.labels is not None):
        if merged is None:
            merged = labels
        if (differ := (labels >= 0) & (merged >= 0) & (labels != merged)).any():
            where = together[0].ids[int(np.argmax(differ))]
            raise EtudeError(
                f"the predictions to blend carry different labels for {int(differ.sum()):,} images (the first is "
                f"{where!r}): they were made from different label files, so predict again from one of them"
            )
        merged = np.where(merged >= 0, merged, labels)
    return merged


def _made(values: NDArray[np.float64], together: Sequence[Predictions]) -> Predictions:
    first = together[0]
    return Predictions.from_probabilities(first.ids, first.classes, values, labels=common_labels(together))


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return (rank - 1/2) / N of each value, (N,), equal ones sharing the mean of their ranks."""
    order, starts = ties(values)
    counts = np.diff(starts, append=len(values))
    ranks = np.empty(len(values))
    ranks[order] = np.repeat(starts + counts / 2, counts) / len(values)
    return ranks
