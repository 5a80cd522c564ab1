"""What a report shows of the classes: who is confused with whom, how sure, and how the shares compare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from etude.core.predictions import Predictions
from etude.core.text import percent
from etude.journal.report.charts import Figure, interval_in_cell, matrix_chart, reliability_chart, share_bars
from etude.journal.report.gallery import Picture
from etude.journal.report.scores import (
    ClassRow,
    Judged,
    calibration_bins,
    calibration_error,
    confused_pairs,
    confusion_matrix,
)

_MOST_IN_MATRIX = 30
_MOST_IN_BALANCE = 20
_MOST_TOLD = 5


def matrix_figure(judged: Judged) -> Figure:
    """Return the confusion matrix; of many classes those that take part in the most errors."""
    pairs, count = confused_pairs(judged), len(judged.classes)
    errors = np.zeros(count, np.int64)
    for label, guess, often in pairs:
        errors[label] += often
        errors[guess] += often
    there = np.bincount(judged.labels, minlength=count) + np.bincount(judged.guesses, minlength=count)
    occurring = np.flatnonzero(there)
    chosen = occurring
    if len(occurring) > _MOST_IN_MATRIX:
        chosen = np.sort(occurring[np.argsort(-errors[occurring], kind="stable")[:_MOST_IN_MATRIX]])
    matrix = confusion_matrix(judged, chosen.tolist())
    names = judged.classes
    told = [f"{names[label]} taken for {names[guess]}: {often:,}" for label, guess, often in pairs[:_MOST_TOLD]]
    wrong = sum(often for _, _, often in pairs)
    whole = f"Confusion matrix of {len(judged.labels):,} validation images, {wrong:,} of them wrong"
    rest = len(occurring) - len(chosen)
    caption = f"The {len(chosen)} classes with the most errors; {rest:,} others are in the table only." if rest else ""
    shown = [names[k] for k in chosen.tolist()]
    drawn = matrix_chart(matrix, shown, "; ".join([whole, *told]))
    legend = (("right", "right"), ("wrong", "wrong: the stronger, the larger its share of the row"))
    return Figure("Confusion matrix", drawn, caption, legend)


def calibration_figure(judged: Judged) -> Figure:
    """Return the reliability diagram with the expected calibration error."""
    bins = calibration_bins(judged)
    error, mean = calibration_error(bins), float(judged.confidence.mean())
    right = float((judged.guesses == judged.labels).mean())
    leaning = "surer than it is right" if mean > right else "right more often than it is sure"
    told = f"mean probability {percent(mean)} where {percent(right)} are right: {leaning}"
    caption = (
        f"Expected calibration error {percent(error)} (ten equal bins); {told}. "
        "Dots on the dashed line would be perfect; the lines are 95% Wilson intervals, "
        "and the bars at the foot show how many images there are."
    )
    drawn = reliability_chart(bins, f"Reliability diagram: expected calibration error {percent(error)}; {told}")
    return Figure("Calibration", drawn, caption)


def balance_figure(record: Mapping[str, Any], judged: Judged | None, test: Predictions | None) -> Figure | None:
    """Return each class's share of the labels, of the validation predictions and of the test predictions."""
    counts: Mapping[str, int] = (record.get("data") or {}).get("classes") or {}
    if not counts or sum(counts.values()) == 0:
        return None
    names = list(counts)
    sides = [("labels", "first", _shares(np.array([counts[name] for name in names])))]
    if judged is not None:
        guessed = np.bincount(judged.guesses, minlength=len(judged.classes))
        sides.append(("predicted on validation images", "second", _shares(_in_order(guessed, judged.classes, names))))
    if test is not None:
        guessed = np.bincount(test.predicted(), minlength=len(test.classes))
        sides.append(("predicted on test images", "third", _shares(_in_order(guessed, test.classes, names))))
    labels, last = sides[0][2], sides[-1][2]
    moved = np.abs(last - labels)
    chosen = np.arange(len(names))
    if len(names) > _MOST_IN_BALANCE:
        order = np.argsort(-moved if len(sides) > 1 else -labels, kind="stable")
        chosen = np.sort(order[:_MOST_IN_BALANCE])
    told = f"Shares of {len(names):,} classes among {sum(counts.values()):,} labels, from {percent(labels.min())} to "
    told += percent(labels.max())
    if len(sides) > 1:
        told += f"; {sides[-1][0]} they differ by {percent(float(moved.sum()) / 2)} in all (total variation)"
    rest = len(names) - len(chosen)
    caption = f"{told}.{f' The {len(chosen)} classes that differ most are shown.' if rest else ''}"
    drawn = share_bars([names[k] for k in chosen], [(side, color, s[chosen]) for side, color, s in sides], told)
    return Figure("Class balance", drawn, caption, tuple((color, side) for side, color, _ in sides))


def recall_bar(row: ClassRow) -> str:
    """Return a bar of a class's recall with its interval, for a cell of the table."""
    if row.recall is None:
        return ""
    told = f"recall {percent(row.recall)}, 95% interval {percent(row.low)} to {percent(row.high)}"
    return interval_in_cell(row.recall, row.low, row.high, told)


def confident_errors(judged: Judged, most: int) -> list[Picture]:
    """Return the wrong predictions with the highest probability, without thumbnails."""
    wrong = np.flatnonzero(judged.guesses != judged.labels)
    sure = judged.confidence
    rows = wrong[np.argsort(-sure[wrong], kind="stable")[:most]].tolist()
    classes = judged.classes
    return [
        Picture(
            "", judged.ids[row], classes[judged.labels[row]], classes[judged.guesses[row]], float(sure[row]), "valid"
        )
        for row in rows
    ]


def _shares(counts: NDArray[np.integer[Any]]) -> NDArray[np.float64]:
    return counts / max(1, int(counts.sum()))


def _in_order(counts: NDArray[np.integer[Any]], classes: Sequence[str], names: Sequence[str]) -> NDArray[np.int64]:
    """Return counts (C,) of ``classes`` in the order of ``names``; a class that only the other side has counts 0."""
    # The record writes a byte that is not UTF-8 as its code.
    written = (name.encode("utf-8", "backslashreplace").decode("utf-8") for name in classes)
    found = dict(zip(written, counts.tolist(), strict=True))
    return np.array([found.get(name, 0) for name in names], np.int64)
