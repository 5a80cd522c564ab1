"""Stratified hold-out, folds and samples.

scikit-learn's ``StratifiedGroupKFold`` keeps groups together but only comes near to the class shares; here nearly
every group is a single image, so exact shares can be had: the few larger groups are placed first, single images fill
up to the exact count.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from etude.core.context import Context
from etude.core.errors import EtudeError, listed
from etude.core.text import counted
from etude.data.compact import Digests


def allocate(shares: np.ndarray, total: int, lower: np.ndarray, upper: np.ndarray) -> np.ndarray:
    """Round ``shares`` to whole numbers between the bounds that add up to ``total`` (largest remainders).

    When the bounds (C,) forbid the total, the result is the nearest sum that they allow.
    """
    counts = np.clip(np.floor(shares).astype(np.int64), lower, upper)
    while (missing := total - int(counts.sum())) > 0 and (counts < upper).any():
        _step(counts, np.where(counts < upper, counts - shares, np.inf), missing, 1)
    while (surplus := int(counts.sum()) - total) > 0 and (counts > lower).any():
        _step(counts, np.where(counts > lower, shares - counts, np.inf), surplus, -1)
    return counts


def shares_with_least(sizes: np.ndarray, total: int, least: np.ndarray) -> np.ndarray:
    """Divide ``total`` in proportion to ``sizes`` (C,), where no class gets less than ``least`` (C,)."""
    held = np.zeros(len(sizes), dtype=bool)
    while True:  # each class that is raised to its least leaves less for the others, which may fall below theirs
        free = sizes[~held].sum()
        scale = (total - least[held].sum()) / free if free else 0.0
        shares = np.where(held, least, sizes * scale)
        below = ~held & (shares < least)
        if not below.any():
            return shares
        held |= below


def _step(counts: np.ndarray, order: np.ndarray, wanted: int, change: int) -> None:
    """Change the count of the first ``wanted`` finite classes in ``order`` by one, in place."""
    ranked = np.argsort(order, kind="stable")[:wanted]
    counts[ranked[np.isfinite(order[ranked])]] += change


Groups = Sequence[Hashable] | np.ndarray


@dataclass(frozen=True)
class Grouped:
    """Labels arranged for splitting."""

    labels: np.ndarray  # (N,) int64
    class_sizes: np.ndarray  # (C,) images of each class
    lone: list[np.ndarray]  # for each class, the indices of its images that are alone in their group
    together: list[np.ndarray]  # the groups of two or more images, as index arrays; the largest first
    group_counts: np.ndarray  # (C,) number of groups that hold images of each class

    def counts_in(self, members: np.ndarray) -> np.ndarray:
        """(C,) int64 images of each class among ``members``."""
        return np.bincount(self.labels[members], minlength=len(self.class_sizes))


def by_class(indices: np.ndarray, labels: np.ndarray) -> list[np.ndarray]:
    """Return, for each class, those of ``indices`` that belong to it, in their order."""
    chosen = labels[indices]
    ends = np.cumsum(np.bincount(chosen, minlength=int(labels.max()) + 1))
    return np.split(indices[np.argsort(chosen, kind="stable")], ends[:-1])


def group_labels(labels: np.ndarray, groups: Groups, rng: np.random.Generator) -> Grouped:
    """Arrange labels by group; ``rng`` shuffles the images of each class, and groups of the same size."""
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


Split = tuple[np.ndarray, np.ndarray]


def hold_out(
    labels: np.ndarray,
    groups: Groups,
    fraction: float,
    context: Context,
    *,
    classes: Sequence[str] | None = None,
) -> Split:
    """Split into training and validation indices, stratified, with equal groups on one side.

    Each class gives its share rounded up or down, at least one image, and keeps at least one; in all
    ``round(fraction * N)`` where that is possible. A class with one image (or one group) trains only, with a warning.

    ``groups`` (N,) are such as content hashes; equal ones stay together.
    """
    if not 0 < fraction < 1:
        raise EtudeError(
            f"the validation share is {fraction:g}; it must be above 0 and below 1, such as 0.2 for a fifth"
        )
    rng = context.rng("split.hold_out")
    grouped = group_labels(labels, groups, rng)
    splittable = grouped.group_counts >= 2
    shares = fraction * grouped.class_sizes
    lower = np.where(splittable, np.maximum(1, np.floor(shares)), 0).astype(np.int64)
    upper = np.where(splittable, np.maximum(1, np.ceil(shares)), 0).astype(np.int64)
    upper = np.minimum(upper, np.maximum(grouped.class_sizes - 1, 0))
    lower = np.minimum(lower, upper)
    wanted = allocate(shares, round(fraction * len(grouped.labels)), lower, upper)
    valid = _fill(grouped, wanted, splittable, fraction, rng)
    _warn_of_unvalidated(grouped, valid, context, classes)
    return np.setdiff1d(np.arange(len(grouped.labels)), valid), valid


def k_folds(
    labels: np.ndarray,
    groups: Groups,
    k: int,
    context: Context,
    *,
    classes: Sequence[str] | None = None,
) -> list[Split]:
    """Split into ``k`` pairs of training and validation indices, stratified, with equal groups in one fold.

    Without larger groups, the folds' sizes differ by at most one, in all and for each class. A class with one image
    (or one group) is in training in every fold and in validation in none; one with fewer than ``k`` is missing from
    some folds' validation; both with a warning.
    """
    if k < 2:
        raise EtudeError(f"--folds is {k}; it must be 2 or more")
    rng = context.rng("split.k_folds")
    grouped = group_labels(labels, groups, rng)
    splittable = grouped.group_counts >= 2
    available = int(grouped.group_counts[splittable].sum())
    if 0 < available < k:
        raise EtudeError(
            f"--folds is {k}, but only {counted(available, 'distinct image')} can be validated; ask for fewer"
        )
    few = np.flatnonzero(splittable & (grouped.group_counts < k))
    if len(few):
        context.warn(
            f"{counted(len(few), 'class', 'classes')} with fewer than {k} distinct images "
            f"({listed(_names(few, classes), 3)}) cannot be in the validation part of every fold"
        )
    fold_of = _deal(grouped, splittable, k)
    _warn_of_unvalidated(grouped, np.flatnonzero(fold_of >= 0), context, classes)
    return [(np.flatnonzero(fold_of != fold), np.flatnonzero(fold_of == fold)) for fold in range(k)]


def sample(labels: np.ndarray, amount: str, context: Context) -> np.ndarray:
    """Choose a stratified sample, such as ``"10%"`` or ``"500"`` images.

    Each class gives its share rounded up or down, but at least two images where it has them and the sample has room
    (one to train on, one to validate), and at least one otherwise. Returns exactly the amount, rounded, ascending.
    """
    labels = np.asarray(labels, dtype=np.int64)
    total = parse_amount(amount, len(labels))
    if total >= len(labels):
        if total > len(labels):
            context.warn(
                f"--sample asks for {total:,} images, but there are only {len(labels):,}: all of them are used"
            )
        return np.arange(len(labels))
    sizes = np.bincount(labels)
    present = int((sizes > 0).sum())
    if total < present:
        raise EtudeError(
            f"--sample {amount} is {counted(total, 'image')}, too few for {counted(present, 'class', 'classes')}; "
            f"ask for at least {present} images"
        )
    least = np.minimum(sizes, 2)
    if least.sum() > total:
        least = np.minimum(sizes, 1)
    counts = allocate(shares_with_least(sizes, total, least), total, least, sizes)
    rng = context.rng("split.sample")
    members = by_class(rng.permutation(len(labels)), labels)
    return np.sort(np.concatenate([indices[:count] for indices, count in zip(members, counts, strict=True)]))


def parse_amount(amount: str, available: int) -> int:
    """Return the number of images that ``"10%"`` or ``"500"`` means."""
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*(%?)\s*", amount)
    problem = f"--sample is {amount!r}; give a percentage such as 10% or a number of images such as 500"
    if not match:
        raise EtudeError(problem)
    value = float(match[1])
    if match[2]:
        if not 0 < value <= 100:
            raise EtudeError(f"--sample is {amount!r}; a percentage is above 0 and at most 100")
        return max(1, round(value / 100 * available))
    if value < 1 or value != int(value):
        raise EtudeError(problem)
    return int(value)


def _warn_of_unvalidated(grouped: Grouped, valid: np.ndarray, context: Context, classes: Sequence[str] | None) -> None:
    if not len(valid):
        raise EtudeError(
            "no class has two distinct images, so nothing can be validated; add images, or give validation images "
            "with --valid"
        )
    missing = np.flatnonzero((grouped.counts_in(valid) == 0) & (grouped.class_sizes > 0))
    if len(missing):
        context.warn(
            f"{counted(len(missing), 'class', 'classes')} with only one distinct image "
            f"({listed(_names(missing, classes), 3)}) can be trained on, but not validated"
        )


def _names(indices: np.ndarray, classes: Sequence[str] | None) -> list[str]:
    return [str(index) if classes is None else str(classes[index]) for index in indices]


def _fill(
    grouped: Grouped, wanted: np.ndarray, splittable: np.ndarray, fraction: float, rng: np.random.Generator
) -> np.ndarray:
    """Choose validation indices that hold ``wanted`` (C,) images of each class, as nearly as the groups allow."""
    left = wanted.copy()
    chosen: list[np.ndarray] = []
    waiting: list[np.ndarray] = []
    draws = rng.random(len(grouped.together))
    for members, draw in zip(grouped.together, draws, strict=True):
        counts = grouped.counts_in(members)
        if draw < fraction and (counts <= left).all():  # by chance, so that groups are as likely here as others
            chosen.append(members)
            left -= counts
        else:
            waiting.append(members)
    for label, members in enumerate(grouped.lone):
        taken = members[: left[label]]
        chosen.append(taken)
        left[label] -= len(taken)
    for members in waiting:  # only classes with too few single images still want some
        counts = grouped.counts_in(members)
        if (left > 0).any() and (counts <= left).all():
            chosen.append(members)
            left -= counts
    _give_each_class_one(grouped, splittable, wanted - left, chosen, waiting)
    return np.sort(np.concatenate(chosen))


def _give_each_class_one(
    grouped: Grouped, splittable: np.ndarray, held: np.ndarray, chosen: list[np.ndarray], waiting: list[np.ndarray]
) -> None:
    """Add the smallest group of each class that is still without validation images, if training keeps some of all."""
    added: set[int] = set()
    for label in np.flatnonzero(splittable & (held == 0)):
        for position in reversed(range(len(waiting))):
            counts = grouped.counts_in(waiting[position])
            if held[label] or not counts[label] or position in added:
                continue
            if (held + counts < grouped.class_sizes)[counts > 0].all():
                chosen.append(waiting[position])
                held += counts
                added.add(position)


def _deal(grouped: Grouped, splittable: np.ndarray, k: int) -> np.ndarray:
    """Return (N,) int64 fold of each image, -1 for those that only train; groups first, then single images level."""
    fold_of = np.full(len(grouped.labels), -1, dtype=np.int64)
    held = np.zeros((k, len(grouped.class_sizes)), dtype=np.int64)
    totals = np.zeros(k, dtype=np.int64)
    for members in grouped.together:
        counts = grouped.counts_in(members)
        if not splittable[counts > 0].all():
            continue
        fold = np.lexsort((totals, (held * counts).sum(axis=1)))[0]
        fold_of[members] = fold
        held[fold] += counts
        totals[fold] += len(members)
    for label in np.flatnonzero(splittable):
        for member in grouped.lone[label]:
            fold = np.lexsort((totals, held[:, label]))[0]
            fold_of[member] = fold
            held[fold, label] += 1
            totals[fold] += 1
    return fold_of


@dataclass(frozen=True, slots=True)
class Fold:
    """Rows of the store to train on and rows to validate on, and the seed of what is trained on them."""

    train: np.ndarray
    valid: np.ndarray
    seed: int

    @property
    def held_out(self) -> bool:
        """Whether no image is both trained and validated on."""
        return not np.isin(self.valid, self.train).any()
