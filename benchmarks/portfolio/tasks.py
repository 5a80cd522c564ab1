"""The tasks of the portfolio: what is trained on, what has no labels, and what tests, drawn by a seed."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedGroupKFold

from etude.core.seeds import derive_seed, rng_for
from portfolio.sets import DataSet, cells, clip_art, digits_of_mnist, digits_of_sklearn, fashion, icons

Rows = NDArray[np.int64]
Made = TypeVar("Made")
CELLS = 800  # to train on, of about 1,970: more would take most of the portfolio's hours
FASHION_TESTS = 2_000  # of its 10,000 test images, always the same


@dataclass(frozen=True, slots=True, eq=False)
class Drawn:
    """One draw of a task.

    Args:
        train: labelled images.
        test: test images.
        unlabelled: paths without labels; empty where a task has none.
    """

    train: DataSet
    test: DataSet
    unlabelled: list[str]


@dataclass(frozen=True, slots=True)
class Task:
    """A task by name.

    Args:
        draw: returns a draw, given the folder where data sets are kept and the seed.
        shifted: whether the test images come from elsewhere.
    """

    draw: Callable[[Path, int], Drawn]
    shifted: bool = False


def mnist(labels: int) -> Callable[[Path, int], Drawn]:
    """As many digits of each class as ``labels`` allow; the other training digits have no label."""

    def draw(folder: Path, seed: int) -> Drawn:
        train, test = kept(digits_of_mnist, folder)
        chosen = balanced(train.labels, labels // 10, seed)
        rest = np.setdiff1d(np.arange(len(train)), chosen)
        return Drawn(part(train, chosen), test, [train.paths[row] for row in rest])

    return draw


def fashion_mnist(images: int) -> Callable[[Path, int], Drawn]:
    """``images`` training images of Fashion-MNIST, as many of each class."""

    def draw(folder: Path, seed: int) -> Drawn:
        train, test = kept(fashion, folder)
        test = part(test, balanced(test.labels, FASHION_TESTS // 10, 0))
        return Drawn(part(train, balanced(train.labels, images // 10, seed)), test, [])

    return draw


def split(make: Callable[[Path], DataSet], folds: int = 4, most: int | None = None) -> Callable[[Path, int], Drawn]:
    """One fold tests, the others train, ``most`` of their images; near-identical images are on one side."""

    def draw(folder: Path, seed: int) -> Drawn:
        data = kept(make, folder)
        train, test = halves(data, folds, seed)
        chosen = np.sort(rng_for(seed, "training images").permutation(train)[:most])
        return Drawn(part(data, chosen), part(data, test), [])

    return draw


def from_one_to_another(
    make: Callable[[Path], DataSet], other: Callable[[Path], DataSet]
) -> Callable[[Path, int], Drawn]:
    """Trained as `split` does on one data set, tested on the whole of another."""

    def draw(folder: Path, seed: int) -> Drawn:
        data = kept(make, folder)
        return Drawn(part(data, halves(data, 4, seed)[0]), kept(other, folder), [])

    return draw


def few(draw: Callable[[Path, int], Drawn], each: int = 10) -> Callable[[Path, int], Drawn]:
    """Labels of ``each`` training images of every class; the other training images have none."""

    def drawn(folder: Path, seed: int) -> Drawn:
        whole = draw(folder, seed)
        chosen = balanced(whole.train.labels, each, seed)
        rest = np.setdiff1d(np.arange(len(whole.train)), chosen)
        return Drawn(part(whole.train, chosen), whole.test, [whole.train.paths[row] for row in rest])

    return drawn


def trial(folder: Path, seed: int) -> Drawn:
    """Thirty digits to train on and thirty to test: whether a method runs at all."""
    whole = mnist(30)(folder, seed)
    return Drawn(whole.train, part(whole.test, balanced(whole.test.labels, 3, seed)), [])


def defective(data: DataSet) -> DataSet:
    """Cells by the rule `half`: a probability of a defect of .5 or more is one."""
    labels = np.where(data.labels.astype(float) >= 0.5, "defective", "functional")
    return DataSet(data.paths, labels, data.groups, data.kind)


def cells_by_half(folder: Path) -> DataSet:
    """Cells, defective or functional."""
    return defective(kept(cells, folder))


def cells_of(kind: str) -> Callable[[Path], DataSet]:
    """Cells of one kind, defective or functional."""

    def make(folder: Path) -> DataSet:
        data = cells_by_half(folder)
        return part(data, np.flatnonzero(data.kind == kind))

    return make


MONO, POLY, OXYGEN, GNOME = cells_of("mono"), cells_of("poly"), icons("oxygen"), icons("gnome")

TASKS: dict[str, Task] = {
    "mnist-4000": Task(mnist(4_000)),
    "mnist-1000": Task(mnist(1_000)),
    "mnist-100": Task(mnist(100)),
    "digits-8x8": Task(split(digits_of_sklearn)),
    "fashion-5000": Task(fashion_mnist(5_000)),
    "fashion-60000": Task(fashion_mnist(60_000)),
    "cells": Task(split(cells_by_half, most=CELLS)),
    "cells-levels": Task(split(cells, most=CELLS)),
    "cells-mono-poly": Task(from_one_to_another(MONO, POLY), shifted=True),
    "clip-art": Task(split(clip_art)),
    "icons": Task(split(OXYGEN)),
    "icons-other-theme": Task(from_one_to_another(OXYGEN, GNOME), shifted=True),
}
FEW: dict[str, Task] = {
    "mnist-few": Task(mnist(100)),
    "digits-few": Task(few(split(digits_of_sklearn))),
    "fashion-few": Task(few(fashion_mnist(5_000))),
    "cells-few": Task(few(split(cells_by_half))),
    "clip-art-few": Task(few(split(clip_art))),
    "icons-few": Task(few(split(OXYGEN))),
}
"""The tasks at ten labels a class, with the other images of their training sets unlabelled."""
TRIAL: dict[str, Task] = {"trial": Task(trial)}


@cache
def kept(make: Callable[[Path], Made], folder: Path) -> Made:
    """The data set, made once in a process."""
    return make(folder)


def halves(data: DataSet, folds: int, seed: int) -> tuple[Rows, Rows]:
    """Return the rows to train on and to test on, classes in proportion, groups whole."""
    cut = StratifiedGroupKFold(folds, shuffle=True, random_state=derive_seed(seed, "portfolio") % 2**32)
    train, test = next(iter(cut.split(data.paths, data.labels, data.groups)))
    return train, test


def balanced(labels: NDArray[np.str_], each: int, seed: int) -> Rows:
    """Return the rows of ``each`` images of every class, ascending."""
    rng = rng_for(seed, "labelled")
    return np.sort(np.concatenate([rng.permutation(np.flatnonzero(labels == k))[:each] for k in np.unique(labels)]))


def part(data: DataSet, rows: Rows) -> DataSet:
    """The images of ``rows``."""
    return DataSet([data.paths[row] for row in rows], data.labels[rows], data.groups[rows], data.kind[rows])


def write_tables(drawn: Drawn, folder: Path) -> dict[str, Path]:
    """Write train.csv, test.csv without its labels and, where there are images without labels, unlabelled.csv."""
    rows = {
        "train": [("image", "label"), *zip(drawn.train.paths, drawn.train.labels, strict=True)],
        "test": [("image",), *((path,) for path in drawn.test.paths)],
    }
    if drawn.unlabelled:
        rows["unlabelled"] = [("image",), *((path,) for path in drawn.unlabelled)]
    files = {name: folder / f"{name}.csv" for name in rows}
    for name, file in files.items():
        with file.open("w", newline="", encoding="utf-8") as out:
            csv.writer(out).writerows(rows[name])
    return files
