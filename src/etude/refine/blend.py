"""Blending: one set of predictions from those of several models."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from etude.core.errors import EtudeError, listed
from etude.core.predictions import Predictions


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
    if not predictions:
        raise EtudeError("there is nothing to blend: give the predictions of at least one model")
    shares = _shares(weights, len(predictions))
    first = predictions[0]
    aligned = [first, *(_aligned(other, first, number) for number, other in enumerate(predictions[1:], start=2))]
    mean = np.zeros((len(first.ids), len(first.classes)))
    for share, one in zip(shares, aligned, strict=True):
        mean += share * one.probabilities()
    return Predictions.from_probabilities(first.ids, first.classes, mean, labels=_common_labels(aligned))


def _shares(weights: Sequence[float] | None, count: int) -> NDArray[np.float64]:
    given = np.asarray([1.0] * count if weights is None else weights, dtype=np.float64)
    if given.shape != (count,):
        raise EtudeError(f"a blend of {count} models needs {count} weights, and got {given.size}")
    if not np.isfinite(given).all() or (given < 0).any() or not given.any():
        raise EtudeError(f"blend weights must be zero or more and not all zero, not {given.tolist()}")
    return given / given.sum()


def _aligned(other: Predictions, first: Predictions, number: int) -> Predictions:
    """Return ``other`` with the rows and columns of ``first``; ``number`` counts the models from 1, for messages."""
    rows = _positions("ids", other.ids, first.ids, number)
    columns = _positions("classes", other.classes, first.classes, number)
    logits = other.logits[:, rows][:, :, columns]
    labels = None
    if other.labels is not None:
        new_position = np.append(np.argsort(columns), -1)  # the last entry keeps -1, unknown, as it is
        labels = new_position[other.labels[rows]]
    return Predictions(first.ids, first.classes, logits, labels=labels)


def _positions(what: str, names: tuple[str, ...], wanted: tuple[str, ...], number: int) -> list[int]:
    position = {name: index for index, name in enumerate(names)}
    missing = [name for name in wanted if name not in position]
    extra = sorted(set(names) - set(wanted))
    if missing or extra:
        parts = [f"lacks {len(missing):,} of them ({listed(missing)})"] if missing else []
        parts += [f"has {len(extra):,} others ({listed(extra)})"] if extra else []
        raise EtudeError(
            f"only predictions with the same {what} can be blended, and model {number} {' and '.join(parts)} "
            "against the first: predict the same images with models of the same classes"
        )
    return [position[name] for name in wanted]


def _common_labels(aligned: Sequence[Predictions]) -> NDArray[np.int64] | None:
    known = [one.labels for one in aligned if one.labels is not None]
    for labels in known[1:]:
        if (differ := labels != known[0]).any():
            where = aligned[0].ids[int(np.argmax(differ))]
            raise EtudeError(
                f"the predictions to blend carry different labels for {int(differ.sum()):,} images (the first is "
                f"{where!r}): they were made from different label files, so predict again from one of them"
            )
    return known[0] if known else None
