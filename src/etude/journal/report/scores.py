"""What a report shows of labelled predictions: scores with intervals, classes, confusions, calibration, balance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray
from scipy.sparse import coo_array

from etude.core.metrics import Metric, metric_named, wilson
from etude.core.predictions import Predictions
from etude.core.seeds import rng_for
from etude.core.text import percent, plain_name
from etude.journal.report.charts import Bin, Figure, chart, matrix_chart, share_bars
from etude.journal.report.gallery import Picture

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]

LEVEL = 0.95
_DRAWS = 1000
_BINS = 10
MOST_ERRORS = 24
"""Pictures of the most confident errors."""
_MOST_CLASSES = 500  # in the table
_MOST_PAIRS = 12
_MOST_IN_MATRIX = 30
_MOST_IN_BALANCE = 20
_MOST_DESCRIBED = 5  # confusions named to a screen reader


@dataclass(frozen=True, slots=True)
class Score:
    name: str
    value: float
    low: float
    high: float
    how: str  # the method of the interval
    is_share: bool = True  # read as a percentage


@dataclass(frozen=True, slots=True)
class ClassRow:
    """How one class fares; a share without an image to count is None."""

    name: str
    images: int  # labelled with it
    predicted: int  # images predicted as it
    recall: float | None
    low: float  # of the 95% Wilson interval of the recall
    high: float
    precision: float | None
    f1: float | None
    confused: tuple[str, int] | None  # the most frequent wrong prediction, with how often


@dataclass(frozen=True, slots=True)
class Evaluated:
    """Labelled predictions in the form that all tables are made of."""

    ids: tuple[str, ...]
    classes: tuple[str, ...]
    labels: IntArray  # (N,) positions in classes
    guesses: IntArray  # (N,) the most probable class
    log_probabilities: FloatArray  # (N, C)

    @classmethod
    def of(cls, predictions: Predictions) -> Evaluated | None:
        if predictions.labels is None or not (predictions.labels >= 0).any():
            return None
        known = predictions if (predictions.labels >= 0).all() else predictions.take(predictions.labels >= 0)
        assert known.labels is not None
        found = known.log_probabilities()
        guesses = np.argmax(found, axis=1).astype(np.int64)
        return cls(known.ids, known.classes, known.labels, guesses, found)

    @property
    def confidence(self) -> FloatArray:
        return np.exp(self.log_probabilities[np.arange(len(self.labels)), self.guesses])


def scores_of(valid: Evaluated) -> list[Score]:
    hits, images = int((valid.guesses == valid.labels).sum()), len(valid.labels)
    accuracy = Score("accuracy", hits / images, *wilson(hits, images), "Wilson")
    two = len(valid.classes) == 2 and len(np.unique(valid.labels)) == 2
    names = ["log_loss", "balanced_accuracy", "macro_f1", *(["auc"] if two else [])]
    return [accuracy, *_bootstrapped([metric_named(name) for name in names], valid)]


def _bootstrapped(metrics: Sequence[Metric], valid: Evaluated) -> list[Score]:
    """Each draw resamples images, the same ones for all metrics (percentile interval, Efron & Tibshirani 1993)."""
    images = len(valid.labels)
    scorers = [metric.scorer(valid.log_probabilities, valid.labels) for metric in metrics]
    rng, found = rng_for(0, "report bootstrap"), np.empty((_DRAWS, len(metrics)))
    for some in np.array_split(np.arange(_DRAWS), 20):  # not all at once: they would fill the memory
        drawn = rng.integers(0, images, (len(some), images)) + images * np.arange(len(some))[:, None]
        counts = np.bincount(drawn.ravel(), minlength=drawn.size).reshape(drawn.shape).astype(np.float64)
        found[some] = np.stack([scorer(counts) for scorer in scorers], axis=1)
    low, high = np.quantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    once = np.ones(images)
    return [
        Score(plain_name(metric.name), float(scorer(once)), *ends, "bootstrap", metric.name != "log_loss")
        for metric, scorer, ends in zip(metrics, scorers, zip(low.tolist(), high.tolist(), strict=True), strict=True)
    ]


def confused_pairs(valid: Evaluated) -> list[tuple[int, int, int]]:
    """Return (label, prediction, images) of every confusion that happened, the most frequent one first."""
    wrong = valid.labels != valid.guesses
    count = len(valid.classes)
    coded, counts = np.unique(valid.labels[wrong] * count + valid.guesses[wrong], return_counts=True)
    found = [(int(code) // count, int(code) % count, int(often)) for code, often in zip(coded, counts, strict=True)]
    return sorted(found, key=lambda pair: (-pair[2], pair[0], pair[1]))


def class_rows(valid: Evaluated) -> list[ClassRow]:
    """Return a row for each class that is labelled or predicted, the lowest F1 first."""
    count = len(valid.classes)
    images = np.bincount(valid.labels, minlength=count)
    predicted = np.bincount(valid.guesses, minlength=count)
    hits = np.bincount(valid.labels[valid.labels == valid.guesses], minlength=count)
    worst: dict[int, tuple[str, int]] = {}
    for label, guess, often in confused_pairs(valid):
        worst.setdefault(label, (valid.classes[guess], often))
    rows: list[ClassRow] = []
    for k in np.flatnonzero(images + predicted).tolist():
        own, given, right = int(images[k]), int(predicted[k]), int(hits[k])
        recall, precision = (right / own if own else None), (right / given if given else None)
        f1 = 2 * right / (own + given)
        rows.append(ClassRow(valid.classes[k], own, given, recall, *wilson(right, own), precision, f1, worst.get(k)))
    return sorted(rows, key=lambda row: (row.f1, row.name))


def of_classes(evaluated: Evaluated, kind: str = "validation") -> dict[str, Any]:
    """Return what ``report_classes.html.j2`` shows of classes; ``kind`` is what the images are called there."""
    rows, names = class_rows(evaluated), evaluated.classes
    return {
        "matrix": matrix_figure(evaluated, kind),
        "pairs": [
            (names[label], names[guess], often) for label, guess, often in confused_pairs(evaluated)[:_MOST_PAIRS]
        ],
        "rows": [(row, recall_bar(row)) for row in rows[:_MOST_CLASSES]],
        "more_rows": max(0, len(rows) - _MOST_CLASSES),
        "calibration": calibration_figure(evaluated),
    }


def calibration_bins(valid: Evaluated) -> list[Bin]:
    """Return the images by the probability of their predicted class, in ten steps; empty ones are left out."""
    confidence, right = valid.confidence, valid.guesses == valid.labels
    place = np.minimum((confidence * _BINS).astype(np.int64), _BINS - 1)
    bins: list[Bin] = []
    for k in np.unique(place).tolist():
        inside = place == k
        images, hits = int(inside.sum()), int(right[inside].sum())
        mean = float(confidence[inside].mean())
        bins.append(Bin(k / _BINS, (k + 1) / _BINS, images, mean, hits / images, *wilson(hits, images)))
    return bins


def calibration_error(bins: Sequence[Bin]) -> float:
    """Return the expected calibration error (Naeini, Cooper & Hauskrecht 2015)."""
    images = sum(one.images for one in bins)
    return round(sum(one.images * abs(one.accuracy - one.confidence) for one in bins) / images, 12)


def matrix_figure(valid: Evaluated, kind: str = "validation") -> Figure:
    pairs, count = confused_pairs(valid), len(valid.classes)
    errors = np.zeros(count, np.int64)
    for label, guess, often in pairs:
        errors[label] += often
        errors[guess] += often
    there = np.bincount(valid.labels, minlength=count) + np.bincount(valid.guesses, minlength=count)
    occurring = np.flatnonzero(there)
    chosen = occurring
    if len(occurring) > _MOST_IN_MATRIX:
        chosen = np.sort(occurring[np.argsort(-errors[occurring], kind="stable")[:_MOST_IN_MATRIX]])
    names, wrong = valid.classes, sum(often for _, _, often in pairs)
    once = np.ones(len(valid.labels), np.int64)
    matrix = coo_array((once, (valid.labels, valid.guesses)), shape=(count, count)).tocsr()[chosen][:, chosen].toarray()
    worst = [
        f"{names[label]} predicted as {names[guess]}: {often:,}" for label, guess, often in pairs[:_MOST_DESCRIBED]
    ]
    whole = f"Confusion matrix of {len(valid.labels):,} {kind} images, {wrong:,} of them wrong"
    rest = len(occurring) - len(chosen)
    caption = f"The {len(chosen)} classes with the most errors; {rest:,} others are in the table only." if rest else ""
    drawn = matrix_chart(matrix, [names[k] for k in chosen.tolist()], "; ".join([whole, *worst]))
    legend = (("right", "right"), ("wrong", "wrong: the stronger, the larger its share of the row"))
    return Figure("Confusion matrix", drawn, caption, legend)


def calibration_figure(valid: Evaluated) -> Figure:
    bins = calibration_bins(valid)
    error, mean = calibration_error(bins), float(valid.confidence.mean())
    right = float((valid.guesses == valid.labels).mean())
    leaning = "overconfident" if mean > right else "underconfident"
    described = f"mean probability {percent(mean)} where {percent(right)} are right: {leaning}"
    caption = (
        f"Expected calibration error {percent(error)} (ten equal bins); {described}. "
        "Dots on the dashed line would be perfect; the lines are 95% Wilson intervals, "
        "and the bars at the foot show how many images there are."
    )
    drawn = chart("reliability", bins, f"Reliability diagram: expected calibration error {percent(error)}; {described}")
    return Figure("Calibration", drawn, caption)


def balance_figure(record: Mapping[str, Any], valid: Evaluated | None, test: Predictions | None) -> Figure | None:
    counts: Mapping[str, int] = (record.get("data") or {}).get("classes") or {}
    if not counts or sum(counts.values()) == 0:
        return None
    names = list(counts)
    sides = [("labels", "first", _shares(np.array([*counts.values()])))]
    guesses = {
        "validation": None if valid is None else (valid.guesses, valid.classes),
        "test": None if test is None else (test.predicted(), test.classes),
    }
    for (kind, found), color in zip(guesses.items(), ("second", "third"), strict=True):
        if found is not None:
            counted = np.bincount(found[0], minlength=len(found[1]))
            sides.append((f"predicted on {kind} images", color, _shares(_in_order(counted, found[1], names))))
    labels, last = sides[0][2], sides[-1][2]
    moved = np.abs(last - labels)
    chosen = np.arange(len(names))
    if len(names) > _MOST_IN_BALANCE:
        order = np.argsort(-moved if len(sides) > 1 else -labels, kind="stable")
        chosen = np.sort(order[:_MOST_IN_BALANCE])
    described = f"Shares of {len(names):,} classes among {sum(counts.values()):,} labels, "
    described += f"from {percent(labels.min())} to {percent(labels.max())}"
    if len(sides) > 1:
        described += f"; {sides[-1][0]} they differ by {percent(float(moved.sum()) / 2)} in all (total variation)"
    rest = len(names) - len(chosen)
    caption = f"{described}.{f' The {len(chosen)} classes that differ most are shown.' if rest else ''}"
    drawn = share_bars([names[k] for k in chosen], [(side, color, s[chosen]) for side, color, s in sides], described)
    return Figure("Class balance", drawn, caption, tuple((color, side) for side, color, _ in sides))


def recall_bar(row: ClassRow) -> Markup:
    if row.recall is None:
        return Markup("")
    described = f"recall {percent(row.recall)}, 95% interval {percent(row.low)} to {percent(row.high)}"
    return chart("interval", row.recall, row.low, row.high, described)


def confident_errors(valid: Evaluated, most: int) -> list[Picture]:
    """Return the wrong predictions with the highest probability, without thumbnails."""
    wrong = np.flatnonzero(valid.guesses != valid.labels)
    sure = valid.confidence
    rows = wrong[np.argsort(-sure[wrong], kind="stable")[:most]].tolist()
    names = [(valid.classes[valid.labels[row]], valid.classes[valid.guesses[row]]) for row in rows]
    return [
        Picture("", valid.ids[row], *name, float(sure[row]), "valid") for row, name in zip(rows, names, strict=True)
    ]


def _shares(counts: NDArray[np.integer[Any]]) -> NDArray[np.float64]:
    return counts / max(1, int(counts.sum()))


def _in_order(counts: NDArray[np.integer[Any]], classes: Sequence[str], names: Sequence[str]) -> NDArray[np.int64]:
    """Return counts (C,) of ``classes`` in the order of ``names``; a class that only the other side has counts 0."""
    # The record writes a byte that is not UTF-8 as its code.
    written = (name.encode("utf-8", "backslashreplace").decode("utf-8") for name in classes)
    found = dict(zip(written, counts.tolist(), strict=True))
    return np.array([found.get(name, 0) for name in names], np.int64)
