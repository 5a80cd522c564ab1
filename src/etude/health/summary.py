"""The health of a run's images: what is damaged, copied, mislabelled, uneven, shifted or given away by its file."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

import numpy as np

from etude.core.context import Progress, Silent
from etude.core.errors import EtudeError
from etude.core.seeds import rng_for
from etude.data.dataset import Dataset
from etude.data.scan import read_facts
from etude.data.split import Fold
from etude.health.duplicates import Looked, copied_images, corrupt_files, find_copies, imbalance, is_across, tiny_images
from etude.health.label_errors import LabelSuspects, suspect_labels
from etude.health.leaks import leaks_of
from etude.health.shift import tell_apart

MOST = 5_000
"""Images looked at by default: a few seconds on two cores."""

_LISTED = 200  # of each kind of finding; more would be a file that nobody reads
_TEST_SHARE = 3  # of what is looked at, one part may be test images
_MILD = 0.65  # AUC below which sets that differ still look alike


def examine_health(
    data: Dataset,
    features: np.ndarray | None,
    folds: Sequence[Fold],
    *,
    test: Dataset | None = None,
    test_features: np.ndarray | None = None,
    most: int = MOST,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Examine labelled images, and test images beside them.

    Args:
        data: the labelled images.
        features: (N, D) floats of a frozen network, row by row of ``data``; None leaves out what needs them, and says
            so.
        folds: the splits.
        test: images to predict.
        test_features: (M, D) of the same network.
        most: images looked at; of more a sample is drawn, validation images first, and ``notes`` says how many. Only
            identical files are looked for among all.
        seed: of what is drawn.
        progress: shows a bar while file headers are read.

    Returns:
        JSON values: ``images`` and ``looked_at`` (counts), ``notes`` (what was left out or sampled), ``corrupt``,
        ``tiny``, ``near_duplicates`` (see :func:`~etude.health.duplicates.find_copies`), ``label_errors`` (``id``,
        ``label``, ``suggested``, ``score``), ``labels`` (how they were judged: ``agreement``, ``doubted``, ``most``,
        ``told``, or None), ``imbalance``, ``shift`` (``auc``, ``interval``, ``images``, ``told``, or None), ``leaks``
        (``kind``, ``told``, ``accuracy``, ``chance``), ``copied`` (ids; see
        :func:`~etude.health.duplicates.copied_images`) and ``counts``: how many of each were found, where at most 200
        are listed; of ``copied`` all are.
    """
    shared = 0 if test is None else min(len(test), most // _TEST_SHARE)
    rows = _drawn(len(data), folds, most - shared, seed)
    splits = split_names(len(data), folds)
    everything = Looked.of(data, np.arange(len(data)), splits)
    drawn = Looked.of(data, rows, splits)
    if test is not None:
        tests = ["test"] * len(test)
        everything = everything.beside(Looked.of(test, np.arange(len(test)), tests))
        drawn = drawn.beside(Looked.of(test, _drawn(len(test), (), shared, seed), tests))
    notes = _notes(data, test, len(rows), len(drawn) - len(rows))
    notes += _lacking(features, test, test_features)
    facts = read_facts([data.images.paths[row] for row in rows], progress or Silent())
    ids, labels, classes = [data.images.ids[row] for row in rows], data.labels[rows], data.images.classes
    named = [classes[label] for label in labels]
    with ThreadPoolExecutor(1, thread_name_prefix="etude-labels") as beside:  # the two that take longest, at once
        judging = beside.submit(_judged_labels, features, rows, labels, len(classes), notes, seed)
        copies = find_copies(everything, drawn)
        judged = judging.result()
    found: dict[str, list[Any]] = {
        "corrupt": corrupt_files([*data.build.bad, *(test.build.bad if test is not None else ())]),
        "tiny": tiny_images(ids, facts),
        "near_duplicates": copies,
        "label_errors": [] if judged is None else _label_errors(judged, ids, named, classes),
        "leaks": [asdict(leak) for leak in leaks_of(ids, facts, labels, classes, seed=seed)],
    }
    counts = {name: len(entries) for name, entries in found.items()}
    counts["across_splits"] = sum(map(is_across, found["near_duplicates"]))
    return {
        "images": len(data),
        "looked_at": len(rows),
        "notes": notes,
        **{name: entries[:_LISTED] for name, entries in found.items()},
        "labels": None if judged is None else _about_labels(judged),
        "imbalance": imbalance(data.labels, classes),
        "shift": _shift(features, test_features, notes, seed),
        "copied": copied_images(found["near_duplicates"]),
        "counts": counts,
    }


def split_names(count: int, folds: Sequence[Fold]) -> tuple[str, ...]:
    """Return where each of the labelled images stands: ``train`` or ``valid``; ``fold 1`` and so on with several."""
    names = ["train"] * count
    for number, fold in enumerate(folds, 1):
        for row in fold.valid.tolist():
            names[row] = "valid" if len(folds) == 1 else f"fold {number}"
    return tuple(names)


def _drawn(count: int, folds: Sequence[Fold], most: int, seed: int) -> np.ndarray:
    """Return the rows that are looked at, ascending: all, or validation images first and at least as many others."""
    if count <= most:
        return np.arange(count)
    order = rng_for(seed, "health").permutation(count)
    held = np.zeros(count, bool)
    if len(folds) == 1:
        held[folds[0].valid] = True
    first = order[held[order]][: most // 2]
    return np.sort(np.concatenate([first, order[~held[order]][: most - len(first)]]))


def _notes(data: Dataset, test: Dataset | None, rows: int, test_rows: int) -> list[str]:
    notes: list[str] = []
    if rows < len(data):
        notes.append(f"{rows:,} of {len(data):,} labelled images were looked at")
    if test is not None and test_rows < len(test):
        notes.append(f"{test_rows:,} of {len(test):,} test images were looked at for copies")
    return notes


def _lacking(features: np.ndarray | None, test: Dataset | None, test_features: np.ndarray | None) -> list[str]:
    if features is None:
        return ["label errors and a shift need features of a pretrained network, and this run has none"]
    if test is not None and test_features is None:
        return ["a shift of the test images was not looked for: this run has no features of them"]
    return []


def _judged_labels(
    features: np.ndarray | None, rows: np.ndarray, labels: np.ndarray, classes: int, notes: list[str], seed: int
) -> LabelSuspects | None:
    if features is None:
        return None
    try:
        return suspect_labels(features[rows], labels, classes, seed=seed)
    except EtudeError as problem:  # too few images of a class: a fact about the data, not a reason to stop
        notes.append(f"label errors were not looked for: {problem}")
        return None


def _label_errors(
    found: LabelSuspects, ids: Sequence[str], labels: Sequence[str], classes: Sequence[str]
) -> list[dict[str, Any]]:
    return [
        {
            "id": ids[place],
            "label": labels[place],
            "suggested": classes[int(found.suggested[place])],
            "score": round(float(found.scores[place]), 4),
        }
        for place in found.rows.tolist()
    ]


def _about_labels(found: LabelSuspects) -> dict[str, Any]:
    return {
        "agreement": round(found.agreement, 4),
        "doubted": found.doubted,
        "most": round(found.most, 1),
        "told": told_labels(found.agreement, found.doubted, len(found.rows)),
    }


def told_labels(agreement: float, doubted: int, listed: int) -> str:
    """Return how far suspected label errors are to be believed.

    >>> told_labels(0.961, 48, 12)
    'images like them agree with 96.1% of the labels; of the 48 that they doubt, not more than about 12 can be wrong, \
and the others are hard to tell'
    >>> told_labels(1.0, 0, 0)
    'images like them agree with 100.0% of the labels; no label is doubted'
    """
    told = f"images like them agree with {agreement:.1%} of the labels; "
    if not doubted:
        return f"{told}no label is doubted"
    if listed == doubted:
        return f"{told}all of the {doubted:,} that they doubt may be wrong, or hard to tell"
    return (
        f"{told}of the {doubted:,} that they doubt, not more than about {listed:,} can be wrong, and the others are "
        "hard to tell"
    )


def _shift(
    features: np.ndarray | None, test_features: np.ndarray | None, notes: list[str], seed: int
) -> dict[str, Any] | None:
    if features is None or test_features is None:
        return None
    try:
        found = tell_apart(features, test_features, seed=seed)
    except EtudeError as problem:  # a handful of test images
        notes.append(f"a shift was not looked for: {problem}")
        return None
    return {
        "auc": round(found.auc, 4),
        "interval": [round(found.low, 4), round(found.high, 4)],
        "images": list(found.images),
        "told": told_shift(found.auc, found.low, found.beyond_noise),
    }


def told_shift(auc: float, low: float, beyond_noise: bool) -> str:
    """Return what an AUC between training and test images means.

    >>> told_shift(0.51, 0.47, False)
    'nothing tells test images from training images'
    """
    if not beyond_noise:
        return "nothing tells test images from training images"
    if low < _MILD:
        return "test images differ slightly from training images"
    return (
        f"test images differ from training images: a classifier tells them apart (AUC {auc:.2f}), so the validation "
        "score says less about them; find out where both come from"
    )
