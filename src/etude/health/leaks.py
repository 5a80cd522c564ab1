"""Leaks: labels that file facts alone predict, by simple rules that are scored on held-out images."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.model_selection import PredefinedSplit, cross_val_predict
from sklearn.tree import DecisionTreeClassifier

from etude.core.context import Context
from etude.data.scan import FileFacts

_FOLDS = 5
_LEAVES = 32
_ERRORS = 4.0  # standard errors above chance that a rule must reach: there are ten of them
_LIFT = 0.2  # part of the way from chance to certainty from which a rule is worth a word
_LIFT_OF_CONTENT = 0.5  # of facts that what is in the picture decides too: a picture of little takes few bytes


@dataclass(frozen=True, slots=True)
class Leak:
    """A file fact that gives the label away."""

    kind: str
    summary: str
    accuracy: float
    chance: float


@dataclass(frozen=True, slots=True)
class _Rule:
    kind: str
    what: str
    value: Callable[[str, FileFacts], object]
    lift: float = _LIFT
    numeric: bool = False
    of_name: bool = False
    care: str = (
        "the network sees the pixels only, but classes that come from different sources may be recognised by their "
        "source, and new images would not be"
    )


def find_leaks(
    names: Sequence[str], facts: Sequence[FileFacts], labels: np.ndarray, context: Context = Context()
) -> list[Leak]:
    """Return the file facts that predict the label in five-fold cross-validation, the best first, one about names."""
    present, coded = np.unique(labels, return_inverse=True)
    if len(present) < 2 or np.bincount(coded).min() < 2 or len(coded) < 2 * _FOLDS:
        return []
    fold = context.rng("leaks").permutation(len(coded)) % _FOLDS
    found: list[Leak] = []
    for rule in _RULES:
        values = [rule.value(name, fact) for name, fact in zip(names, facts, strict=True)]
        if len(set(values)) < 2:
            continue
        guessed = (_by_tree if rule.numeric else _by_value)(values, coded, fold)
        accuracy, error = _balanced(guessed, coded)
        chance = 1 / len(present)
        if accuracy - chance >= max(rule.lift * (1 - chance), _ERRORS * error):
            scored = f"{accuracy:.0%} of held-out images, where guessing gets {chance:.0%}"
            summary = f"{rule.what} predicts the class of {scored}: {rule.care}"
            found.append(Leak(rule.kind, summary, accuracy, chance))
    found.sort(key=lambda leak: -leak.accuracy)
    of_name = [leak for leak in found if leak.kind in {rule.kind for rule in _RULES if rule.of_name}]
    return [leak for leak in found if leak not in of_name[1:]]


def _by_value(values: Sequence[object], labels: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """Return the most frequent class, by its share, of the other folds' images with the same value; -1 without any."""
    codes = np.unique([repr(value) for value in values], return_inverse=True)[1]
    count, classes = int(codes.max()) + 1, int(labels.max()) + 1
    guessed = np.full(len(labels), -1)
    for number in range(_FOLDS):
        held = fold == number
        table = np.bincount(codes[~held] * classes + labels[~held], minlength=count * classes).reshape(count, classes)
        shares = table / np.maximum(table.sum(axis=0), 1)  # so that a rare class counts as much as a frequent one
        guessed[held] = np.where(table[codes[held]].any(axis=1), shares[codes[held]].argmax(axis=1), -1)
    return guessed


def _by_tree(values: Sequence[object], labels: np.ndarray, fold: np.ndarray) -> np.ndarray:
    numbers = np.array([-1.0 if value is None else value for value in values], dtype=np.float64)[:, None]
    tree = DecisionTreeClassifier(max_leaf_nodes=_LEAVES, min_samples_leaf=3, class_weight="balanced", random_state=0)
    return np.asarray(cross_val_predict(tree, numbers, labels, cv=PredefinedSplit(fold)))


def _balanced(guessed: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Return the mean over classes of the share guessed right, and its standard error, never quite zero."""
    counts = np.bincount(labels)
    shares = np.bincount(labels, guessed == labels) / counts
    padded = (shares * counts + 2) / (counts + 4)
    return float(shares.mean()), float(np.sqrt((padded * (1 - padded) / (counts + 4)).sum()) / len(counts))


def _stem(name: str) -> str:
    return name.rpartition("/")[2]


def _number(name: str, facts: FileFacts) -> float | None:
    runs = re.findall(r"[0-9]{1,15}", _stem(name))
    return float(runs[-1]) if runs else None


_RULES = (
    _Rule(
        "name pattern", "the file name", lambda name, facts: re.sub(r"[0-9]+", "#", _stem(name).lower()), of_name=True
    ),
    _Rule(
        "name beginning", "the file name",
        lambda name, facts: re.split(r"[^a-z]", _stem(name).lower(), maxsplit=1)[0], of_name=True,
    ),
    _Rule("first character", "the file name", lambda name, facts: _stem(name)[:1].lower(), of_name=True),
    _Rule("last character", "the file name", lambda name, facts: _stem(name)[-1:].lower(), of_name=True),
    _Rule("name length", "the length of the file name", lambda name, facts: len(_stem(name)), of_name=True),
    _Rule(
        "file number", "the number in the file name", _number, numeric=True,
        care="files seem to be numbered class by class; check whether images of a class come from one series, "
        "and whether test images are numbered on",
    ),
    _Rule(
        "folder", "the folder below the class", lambda name, facts: name.rpartition("/")[0],
        care="images of one folder (a patient, a place, a day) may stand on both sides of the split",
    ),
    _Rule("image size", "the image's width and height", lambda name, facts: (facts.width, facts.height)),
    _Rule(
        "shape", "the image's width divided by its height",
        lambda name, facts: facts.width / max(1, facts.height), numeric=True,
    ),
    _Rule("format", "the file format", lambda name, facts: facts.kind),
    _Rule("camera", "the camera or program that wrote the file", lambda name, facts: facts.camera),
    _Rule(
        "file size", "the file's size in bytes", lambda name, facts: facts.size, lift=_LIFT_OF_CONTENT, numeric=True
    ),
)  # fmt: skip
