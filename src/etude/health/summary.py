"""The health of a run's images: what is damaged, copied, mislabelled, uneven, shifted or given away by its file."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

import numpy as np

from etude.core.context import Context
from etude.core.errors import EtudeError, listed
from etude.core.text import counted
from etude.data.dataset import Dataset
from etude.data.scan import FileFacts, name_of, read_facts
from etude.data.split import Fold
from etude.health.duplicates import Images, duplicated_images, is_across, near_duplicate_images
from etude.health.label_errors import suspect_labels
from etude.health.leaks import find_leaks
from etude.health.shift import dataset_shift

MOST = 5_000
"""Images examined by default: a few seconds on two cores."""

_LISTED = 200  # of each kind of finding; more would be a file that nobody reads
SMALLEST = 16  # pixels: less than that shows hardly anything
_SMALL = 64
_PART = 4  # of the median side, below which a small image is one that something went wrong with
_SKEWED = 10.0  # images of the largest class for one of the smallest, from which it is worth a word
_FEW = 10  # images of a class, likewise
_TEST_SHARE = 3  # of what is examined, one part may be test images
_MILD = 0.65  # AUC below which sets that differ are still similar


def examine_health(
    data: Dataset,
    features: np.ndarray | None,
    folds: Sequence[Fold],
    *,
    test: Dataset | None = None,
    test_features: np.ndarray | None = None,
    most: int = MOST,
    context: Context = Context(),
) -> dict[str, Any]:
    """Return, as JSON values, what is wrong with up to ``most`` labelled images and with test images."""
    shared = 0 if test is None else min(len(test), most // _TEST_SHARE)
    rows = _drawn(len(data), folds, most - shared, context)
    splits = split_names(len(data), folds)
    everything = Images.of(data, np.arange(len(data)), splits)
    drawn = Images.of(data, rows, splits)
    if test is not None:
        tests = ["test"] * len(test)
        everything = everything.followed_by(Images.of(test, np.arange(len(test)), tests))
        drawn = drawn.followed_by(Images.of(test, _drawn(len(test), (), shared, context), tests))
    notes: list[str] = []
    if len(rows) < len(data):
        notes.append(f"{len(rows):,} of {len(data):,} labelled images were examined")
    if test is not None and shared < len(test):
        notes.append(f"{shared:,} of {len(test):,} test images were searched for near-duplicates")
    if features is None:
        notes.append("label errors and a shift need features of a pretrained network, and this run has none")
    elif test is not None and test_features is None:
        notes.append("a shift of the test images was not searched for: this run has no features of them")
    bad = [*data.build.bad, *(test.build.bad if test is not None else ())]
    facts = read_facts([data.images.paths[row] for row in rows], context)
    ids, labels, classes = [data.images.ids[row] for row in rows], data.labels[rows], data.images.classes
    names = [name_of(one, classes[label]) for one, label in zip(ids, labels.tolist(), strict=True)]
    drawn_features = None if features is None else features[rows]
    with ThreadPoolExecutor(1, thread_name_prefix="etude-labels") as second:  # the two that take longest, at once
        checking = second.submit(_label_errors, drawn_features, ids, labels, classes, notes, context)
        pairs = near_duplicate_images(everything, drawn)
        errors, agreement = checking.result()
    found: dict[str, list[Any]] = {
        "corrupt": [{"id": file.id, "reason": file.reason} for file in bad],
        "tiny": tiny_images(ids, facts),
        "near_duplicates": pairs,
        "label_errors": errors,
        "leaks": [asdict(leak) for leak in find_leaks(names, facts, labels, context)],
    }
    counts = {name: len(entries) for name, entries in found.items()}
    counts["across_splits"] = sum(map(is_across, found["near_duplicates"]))
    return {
        "images": len(data),
        "looked_at": len(rows),
        "notes": notes,
        **{name: entries[:_LISTED] for name, entries in found.items()},
        "labels": agreement,
        "imbalance": imbalance(data.labels, classes),
        "shift": _shift(features, test_features, notes, context),
        "copied": duplicated_images(found["near_duplicates"]),
        "counts": counts,
    }


def tiny_images(ids: Sequence[str], facts: Sequence[FileFacts]) -> list[dict[str, Any]]:
    """Return images whose shorter side is below 16 pixels, or 64 and a quarter of the median, the smallest first."""
    sides = [(min(fact.width, fact.height), name, fact) for name, fact in zip(ids, facts, strict=True) if fact.readable]
    if not sides:
        return []
    least = max(SMALLEST, min(_SMALL, float(np.median([side for side, *_ in sides])) / _PART))
    small = sorted((entry for entry in sides if entry[0] < least), key=lambda entry: entry[:2])
    return [{"id": name, "width": fact.width, "height": fact.height} for _, name, fact in small]


def imbalance(labels: np.ndarray, classes: Sequence[str]) -> dict[str, Any]:
    """Return how many images each class has, and what is worth a sentence about it as ``summary``."""
    counts: list[int] = np.bincount(labels, minlength=len(classes)).tolist()
    largest, smallest = (int(place(counts)) for place in (np.argmax, np.argmin))
    shares = np.array([count for count in counts if count]) / max(1, sum(counts))
    found: dict[str, Any] = {
        "classes": dict(zip(classes, counts, strict=True)),
        "largest": classes[largest],
        "smallest": classes[smallest],
        "effective": round(float(np.exp(-(shares * np.log(shares)).sum())), 2),
    }
    if empty := [name for name, count in zip(classes, counts, strict=True) if not count]:
        return found | {"summary": f"there is no image of {listed(empty)}"}
    ratio = counts[largest] / counts[smallest]
    found["ratio"] = round(ratio, 2)
    if few := [name for name, count in zip(classes, counts, strict=True) if count < _FEW]:
        with_few = counted(len(few), "class", "classes")
        found["summary"] = f"{with_few} with fewer than {_FEW} images: {listed(few, 3)}"
    elif ratio >= _SKEWED:
        found["summary"] = (
            f"{classes[largest]!r} has {ratio:.0f} times as many images as {classes[smallest]!r}: look at the scores "
            "of each class, accuracy hides the rare ones"
        )
    return found


def split_names(count: int, folds: Sequence[Fold]) -> tuple[str, ...]:
    names = ["train"] * count
    for number, fold in enumerate(folds, 1):
        for row in fold.valid.tolist():
            names[row] = "valid" if len(folds) == 1 else f"fold {number}"
    return tuple(names)


def _drawn(count: int, folds: Sequence[Fold], most: int, context: Context) -> np.ndarray:
    """Return the rows that are examined, ascending: all, or validation images first and at least as many others."""
    if count <= most:
        return np.arange(count)
    order = context.rng("health").permutation(count)
    held = np.zeros(count, bool)
    if len(folds) == 1:
        held[folds[0].valid] = True
    first = order[held[order]][: most // 2]
    return np.sort(np.concatenate([first, order[~held[order]][: most - len(first)]]))


def _label_errors(
    features: np.ndarray | None,
    ids: Sequence[str],
    labels: np.ndarray,
    classes: Sequence[str],
    notes: list[str],
    context: Context,
) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
    """Return suspected label errors and how far they are to be believed; nothing and None where that is not known."""
    if features is None:
        return [], None
    try:
        found = suspect_labels(features, labels, len(classes), context=context)
    except EtudeError as problem:  # too few images of a class: a fact about the data, not a reason to stop
        notes.append(f"label errors were not searched for: {problem}")
        return [], None
    places: list[int] = found.rows.tolist()
    named = [(ids[k], classes[int(labels[k])], classes[int(found.suggested[k])]) for k in places]
    scores = [round(float(found.scores[k]), 4) for k in places]
    keys = ("id", "label", "suggested", "score")
    errors: list[dict[str, Any]] = [
        dict(zip(keys, (*names, score), strict=True)) for names, score in zip(named, scores, strict=True)
    ]
    summary = labels_text(found.agreement, found.doubted, len(places))
    shares = {"agreement": round(found.agreement, 4), "doubted": found.doubted, "most": round(found.most, 1)}
    return errors, {**shares, "summary": summary}


def labels_text(agreement: float, doubted: int, listed: int) -> str:
    text = f"images like them agree with {agreement:.1%} of the labels; "
    if not doubted:
        return f"{text}no label is doubted"
    if listed == doubted:
        return f"{text}all of the {doubted:,} that they doubt may be wrong, or hard to recognise"
    return (
        f"{text}of the {doubted:,} that they doubt, not more than about {listed:,} can be wrong, and the others are "
        "hard to recognise"
    )


def _shift(
    features: np.ndarray | None, test_features: np.ndarray | None, notes: list[str], context: Context
) -> dict[str, Any] | None:
    if features is None or test_features is None:
        return None
    try:
        found = dataset_shift(features, test_features, context=context)
    except EtudeError as problem:  # a handful of test images
        notes.append(f"a shift was not searched for: {problem}")
        return None
    interval = [round(found.low, 4), round(found.high, 4)]
    summary = shift_text(found.auc, found.low, found.beyond_noise)
    return {"auc": round(found.auc, 4), "interval": interval, "images": list(found.images), "summary": summary}


def shift_text(auc: float, low: float, beyond_noise: bool) -> str:
    if not beyond_noise:
        return "test images and training images do not differ measurably"
    if low < _MILD:
        return "test images differ slightly from training images"
    return (
        f"test images differ from training images: a classifier recognises them (AUC {auc:.2f}), so the validation "
        "score means less for them; find out where both come from"
    )
