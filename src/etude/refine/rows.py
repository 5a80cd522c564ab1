"""Rows of predictions: those whose labels are known, and all of them with nothing to cheat with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from etude.core.predictions import Predictions
from etude.core.tally import IntArray


def labels_of(predictions: Predictions) -> IntArray:
    """Return the labels of labelled predictions."""
    assert predictions.labels is not None
    return predictions.labels


def without_labels(predictions: Predictions) -> Predictions:
    """Return the predictions with nothing to cheat with."""
    return Predictions(predictions.ids, predictions.classes, predictions.logits, predictions.features)


def unlabelled_classes(predictions: Predictions) -> tuple[str, ...]:
    """Return the names of the classes that no labelled image has.

    >>> one = Predictions(("a", "b"), ("x", "y", "z"), np.zeros((1, 2, 3)), labels=np.array([1, -1]))
    >>> unlabelled_classes(one)
    ('x', 'z')
    """
    known = set(labels_of(predictions).tolist())
    return tuple(name for place, name in enumerate(predictions.classes) if place not in known)


def known_rows(predictions: Predictions) -> Predictions:
    """Return the labelled rows in the order of their ids, so that no draw depends on the order they came in."""
    labels = labels_of(predictions)
    order: Sequence[int] = sorted(np.flatnonzero(labels >= 0).tolist(), key=predictions.ids.__getitem__)
    return predictions.take(np.array(order, dtype=np.int64))
