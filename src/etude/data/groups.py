"""Images that must stay on one side of a split, such as identical files."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from etude.data.compact import Digests

Groups = Sequence[Hashable] | np.ndarray


@dataclass(frozen=True)
class Grouped:
    """Labels arranged for splitting.

    Attributes:
        labels: (N,) int64.
        class_sizes: (C,) int64 images of each class.
        lone: for each class, the indices of its images that are alone in their group.
        together: the groups of two or more images, as index arrays; the largest first.
        group_counts: (C,) int64 number of groups that hold images of each class.
    """

    labels: np.ndarray
    class_sizes: np.ndarray
    lone: list[np.ndarray]
    together: list[np.ndarray]
    group_counts: np.ndarray

    def counts_in(self, members: np.ndarray) -> np.ndarray:
        """(C,) int64 images of each class among ``members``."""
        return np.bincount(self.labels[members], minlength=len(self.class_sizes))


def by_class(indices: np.ndarray, labels: np.ndarray) -> list[np.ndarray]:
    """Return, for each class, those of ``indices`` that belong to it, in their order.

    >>> by_class(np.array([3, 0, 1]), np.array([0, 1, 1, 0]))
    [array([3, 0]), array([1])]
    """
    chosen = labels[indices]
    ends = np.cumsum(np.bincount(chosen, minlength=int(labels.max()) + 1))
    return np.split(indices[np.argsort(chosen, kind="stable")], ends[:-1])


def group_labels(labels: np.ndarray, groups: Groups, rng: np.random.Generator) -> Grouped:
    """Arrange labels by group, shuffled by ``rng``.

    Args:
        labels: (N,) class indices.
        groups: (N,) equal values stay together.
        rng: shuffles the images of each class, and groups of the same size.
    """
    labels = np.asarray(labels, dtype=np.int64)
    if len(groups) != len(labels):
        raise ValueError(f"{len(labels)} labels need as many groups, not {len(groups)}")
    codes = _numbered(groups)
    sizes = np.bincount(codes)
    alone = sizes[codes] == 1
    classes = int(labels.max()) + 1
    lone = by_class(rng.permutation(np.flatnonzero(alone)), labels)
    shared = np.flatnonzero(~alone)
    shared = shared[np.argsort(codes[shared], kind="stable")]
    together = np.split(shared, np.flatnonzero(np.diff(codes[shared])) + 1) if len(shared) else []
    together = [together[index] for index in rng.permutation(len(together))]
    together.sort(key=len, reverse=True)
    group_counts = np.array([len(members) for members in lone], dtype=np.int64)
    for members in together:
        group_counts[np.unique(labels[members])] += 1
    return Grouped(labels, np.bincount(labels, minlength=classes), lone, together, group_counts)


def _numbered(groups: Groups) -> np.ndarray:
    """Return a number for each image's group, int64 (N,), counted up in the order in which groups come first."""
    values = groups.keys() if isinstance(groups, Digests) else groups
    if not isinstance(values, np.ndarray):
        number: dict[Hashable, int] = {}
        return np.array([number.setdefault(group, len(number)) for group in values], dtype=np.int64)
    _, firsts, codes = np.unique(values, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(firsts))[codes]
