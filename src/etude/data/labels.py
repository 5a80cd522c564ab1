"""Class names and their order."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from decimal import Decimal
from pathlib import Path

import numpy as np

from etude.core.errors import EtudeError, listed, nearest
from etude.core.labels import look_alikes, spellings
from etude.data.wording import counted

Warn = Callable[[str], object]
_SHOWN = 3  # labels named in a warning
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
    source: Path,
    labels: Sequence[str],
    allowed: Sequence[str] | None,
    *,
    rule: str = "tidy",
    warn: Warn = warnings.warn,
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Turn label texts into (N,) int64 class indices; return them with the class names.

    Args:
        source: named in error messages.
        labels: (N,) label texts.
        allowed: the only classes that may occur, in their order; None takes the labels' own.
        rule: ``tidy`` takes labels that differ only by outer white space or Unicode form as one, ``strict`` does not.
        warn: is given a sentence about such labels, and about classes that differ by case only.

    Raises:
        EtudeError: a label is not allowed, or there are fewer than two classes.
    """
    if rule == "tidy":
        labels = _tidied(source, labels, allowed, warn)
    classes = tuple(allowed) if allowed is not None else ordered_classes(labels)
    if len(classes) < 2:
        raise EtudeError(
            f"{source} has only one class ({listed(classes)}, {counted(len(labels), 'image')}); a classifier needs "
            "at least two: check that the path names the folder above the class folders, or the right label column"
        )
    if allowed is None:
        _warn_of_look_alikes(source, labels, classes, warn)
    index = {label: position for position, label in enumerate(classes)}
    unknown = sorted({label for label in labels if label not in index})
    if unknown:
        raise EtudeError(
            f"{source} has {counted(len(unknown), 'label')} that the training images do not have: {listed(unknown, 3)}"
            f"; the known classes are {listed(classes)}.{nearest(unknown[0], classes)}"
        )
    return np.fromiter((index[label] for label in labels), dtype=np.int64, count=len(labels)), classes


def _tidied(source: Path, labels: Sequence[str], allowed: Sequence[str] | None, warn: Warn) -> Sequence[str]:
    renamed = spellings(labels, allowed)
    if not renamed:
        return labels
    count = sum(label in renamed for label in labels)
    pairs = [f"{label!r} as {name!r}" for label, name in renamed.items()]
    more = f" and {len(pairs) - _SHOWN:,} more" if len(pairs) > _SHOWN else ""
    warn(
        f"{counted(count, 'label')} of {source} differ from a class only by outer white space or Unicode form, and are "
        f"read as that class: {', '.join(pairs[:_SHOWN])}{more} (--labels strict makes classes of them)"
    )
    return [renamed.get(label, label) for label in labels]


def _warn_of_look_alikes(source: Path, labels: Sequence[str], classes: Sequence[str], warn: Warn) -> None:
    alike = look_alikes(classes)
    if not alike:
        return
    sizes = Counter(labels)
    groups = [" and ".join(f"{name!r} ({sizes[name]:,})" for name in names) for names in alike]
    more = f"; and {len(groups) - _SHOWN:,} more" if len(groups) > _SHOWN else ""
    warn(
        f"{source} has classes that differ only by case, white space or how a number is written: "
        f"{'; '.join(groups[:_SHOWN])}{more}. They are kept as different classes; where they mean the same, write them "
        "alike"
    )
