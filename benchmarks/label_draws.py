"""Draws of labels: which images of a data set are labelled, which are not, and which are predicted.

Not a benchmark itself; ``unlabelled`` trains on these draws.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from etude.core.context import Silent
from etude.core.seeds import rng_for
from etude.data.digits import write_digits

TUNING_SEED = 1_000
KNOWN = tuple("01234")  # the classes of the poisoned case
SKEW = 0.75  # share of each class among the skewed images, as a multiple of the one before


@dataclass(frozen=True, slots=True)
class Task:
    """One draw of labels.

    Args:
        train: table of labelled images.
        unlabelled: table of images without labels, or None.
        test: table of test images.
        truth: their classes by id, for the report alone.
        columns: further options of the table.
    """

    train: Path
    unlabelled: Path | None
    test: Path
    truth: Mapping[str, str]
    columns: Mapping[str, str] = field(default_factory=dict)


def mnist(folder: Path, images: str, labels: float, seed: int, tuning: bool) -> Task:
    """Write the tables of a draw of ``labels`` labelled digits over all ten classes."""
    digits = write_digits(folder.parent / "mnist-5k", Silent())
    known = {str(path): path.parent.name for path in sorted(digits.train.glob("*/*.png"))}
    test = {str(digits.test / name): label for name, label in sorted(digits.test_labels.items())}
    if tuning:
        test = drawn(known, 100, "stand-in", TUNING_SEED)
        known = {path: label for path, label in known.items() if path not in test}
    labelled = drawn(known, round(labels / 10), f"labelled {labels:g}", seed)
    pool = {path: label for path, label in known.items() if path not in labelled}
    if images == "poisoned":
        own, others = ({p: k for p, k in pool.items() if (k in KNOWN) is inside} for inside in (True, False))
        labelled, test = ({p: k for p, k in part.items() if k in KNOWN} for part in (labelled, test))
        count = min(len(own), len(others)) // 5
        pool = drawn(own, count, "own", seed) | drawn(others, count, "others", seed)
    elif images == "skewed":
        sizes = [int(min(list(pool.values()).count(k) for k in set(pool.values())) * SKEW**k) for k in range(10)]
        pool = {
            p: k for digit, size in enumerate(sizes) for p, k in drawn(pool, size, "skew", seed, str(digit)).items()
        }
    folder.mkdir(parents=True, exist_ok=True)
    train = table(folder / "train.csv", labelled, labels=True)
    return Task(train, table(folder / "unlabelled.csv", pool), table(folder / "test.csv", test), test)


def elpv(folder: Path, images: str, share: float, seed: int, tuning: bool) -> Task:
    """Write the tables of a draw of solar cells; with all labels the test images alone are unlabelled."""
    from elpv import NAMES, write_split

    folder.mkdir(parents=True, exist_ok=True)
    train, test, truth = write_split(folder, seed + TUNING_SEED * tuning, "half")
    with train.open(newline="") as file:
        known = {row["image"]: row["label"] for row in csv.DictReader(file)}
    classes = {name: NAMES[label] for name, (label, _) in truth.items()}
    if share >= 1:
        return Task(train, None, test, classes, {"label_column": "label"})
    counts = {name: round(share * list(known.values()).count(name)) for name in set(known.values())}
    labelled: dict[str, str] = {}
    for name, count in sorted(counts.items()):
        labelled |= drawn(known, count, f"labelled {share}", seed, name)
    pool = {path: label for path, label in known.items() if path not in labelled}
    few = table(folder / "few.csv", labelled, labels=True)
    return Task(few, table(folder / "unlabelled.csv", pool), test, classes)


TASKS = {"mnist": mnist, "elpv": elpv}


def drawn(images: Mapping[str, str], count: int, name: str, seed: int, only: str | None = None) -> dict[str, str]:
    """Return ``count`` images of every class, or of the class ``only``."""
    chosen: dict[str, str] = {}
    for label in sorted(set(images.values())) if only is None else [only]:
        own = [path for path, other in images.items() if other == label]
        order = rng_for(seed, f"{name}/{label}").permutation(len(own))
        chosen |= {own[position]: label for position in np.sort(order[:count])}
    return chosen


def table(path: Path, images: Mapping[str, str], *, labels: bool = False) -> Path:
    """Write a table of images, with their labels where asked for."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "label"] if labels else ["image"])
        writer.writerows(list(pair) if labels else [pair[0]] for pair in images.items())
    return path
