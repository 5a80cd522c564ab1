"""Class names and their order."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from decimal import Decimal
from pathlib import Path

import numpy as np

from etude.core.errors import EtudeError, listed, nearest
from etude.data.wording import counted

_NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]+)?")


def ordered_classes(labels: Iterable[str]) -> tuple[str, ...]:
    """Return the distinct labels in order: by value when all are numbers, otherwise by Unicode code point.

    The text of a label is never changed.

    >>> ordered_classes(["10", "2", "1", "2"])
    ('1', '2', '10')
    >>> ordered_classes(["10", "2", "b"])
    ('10', '2', 'b')
    """
    distinct = set(labels)
    if all(_NUMBER.fullmatch(label) for label in distinct):
        return tuple(sorted(distinct, key=lambda label: (Decimal(label), label)))
    return tuple(sorted(distinct))


def encode_labels(
    source: Path, labels: Sequence[str], allowed: Sequence[str] | None
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Turn label texts into (N,) int64 class indices; return them with the class names.

    Args:
        source: named in error messages.
        labels: (N,) label texts.
        allowed: the only classes that may occur, in their order; None takes the labels' own.

    Raises:
        EtudeError: a label is not allowed, or there are fewer than two classes.
    """
    classes = tuple(allowed) if allowed is not None else ordered_classes(labels)
    if len(classes) < 2:
        raise EtudeError(
            f"{source} has only one class ({listed(classes)}, {counted(len(labels), 'image')}); a classifier needs "
            "at least two: check that the path names the folder above the class folders, or the right label column"
        )
    index = {label: position for position, label in enumerate(classes)}
    unknown = sorted({label for label in labels if label not in index})
    if unknown:
        raise EtudeError(
            f"{source} has {counted(len(unknown), 'label')} that the training images do not have: {listed(unknown, 3)}"
            f"; the known classes are {listed(classes)}.{nearest(unknown[0], classes)}"
        )
    return np.fromiter((index[label] for label in labels), dtype=np.int64, count=len(labels)), classes
