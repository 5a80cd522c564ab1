"""What unlabelled images buy: test error over seeds, supervised against pseudo-label rounds and online pseudo-labels.

    make bench-unlabelled                                               # MNIST-5k, 100/300/600/1000 labels, seeds 0-4
    make bench-unlabelled ARGS='--keep unlabelled.json'                 # goes on where it was stopped
    make bench-unlabelled ARGS='--labels 100 --arms supervised online --seeds 10'
    make bench-unlabelled ARGS='--data elpv --labels 0.1 0.25 1'        # solar cells, shares of the training labels

MNIST-5k: of the 4,000 training digits, as many of each class are labelled, drawn by the seed, and the rest are not. The
1,000 test digits are always the same; no run sees them before its end, labelled or not. All arms have the same labels,
of which a fifth validates, the same small network from random weights, the same augmentation and optimiser.

Arms:
- supervised: the labels alone, for as many steps as help it.
- rounds, online: the recipes `pseudo-label` and `consistency`.
- poisoned ...: labels of the digits 0 to 4 only, and unlabelled digits of which half are 5 to 9; test digits 0 to 4.
- skewed ...: unlabelled digits whose classes have other shares than the labels: from 2% to 27%.
- wrong prior online: the same, told to expect the labels' shares.
Skewed and poisoned rounds take part only where `--arms` names them.

Their yardstick is `supervised` with the same labels ("poisoned supervised" for the poisoned). Lengths and settings were
chosen with `--tuning`: other seeds, and 1,000 of the 4,000 training digits in the place of the test digits.
"""

from __future__ import annotations

import argparse
import csv
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "2000")  # as the command sets it; read when torch is imported

import numpy as np

from common import machine, spread
from etude.api import fit
from etude.core.predictions import Predictions
from etude.core.processor import usable_cores
from etude.core.progress import Silent
from etude.core.scores import log_loss
from etude.core.seeds import rng_for
from etude.data.digits import write_digits
from refine_common import Kept, with_interval

TUNING_SEED = 1_000
KNOWN = tuple("01234")  # the classes of the poisoned case
SKEW = 0.75  # share of each class among the skewed images, as a multiple of the one before

Settings = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Arm:
    """What an arm trains on, and how.

    Args:
        images: ``plain``, ``poisoned`` or ``skewed``.
        settings: changes of the data's own.
        against: the arm that it is compared with.
    """

    images: str
    recipe: str
    settings: Settings = field(default_factory=dict)
    against: str = "supervised"


ARMS = {
    "supervised": Arm("plain", "default"),
    "rounds": Arm("plain", "pseudo-label"),
    "online": Arm("plain", "consistency"),
    "poisoned supervised": Arm("poisoned", "default", against="poisoned supervised"),
    "poisoned rounds": Arm("poisoned", "pseudo-label", against="poisoned supervised"),
    "poisoned online": Arm("poisoned", "consistency", against="poisoned supervised"),
    "skewed rounds": Arm("skewed", "pseudo-label"),
    "skewed online": Arm("skewed", "consistency"),
    "wrong prior online": Arm("skewed", "consistency", {"unlabeled.prior": "labeled"}),
}
OF_DATA = {  # without --arms; the others only when they are asked for
    "mnist": ("supervised", "rounds", "online", "poisoned supervised", "poisoned online", "wrong prior online"),
    "elpv": ("supervised", "rounds"),
}
SETTINGS: dict[str, dict[str, Settings]] = {  # by data and recipe
    "mnist": {
        "default": {
            "stages": ["finetune"],
            "predict.tta": 1,
            "timeline.length": "300st",
            "train.batch_size": 32,
            # The same mode everywhere, or a busy machine may choose another one for one of the arms.
            "train.precision": "fp32",
            "train.memory_format": "channels_last",
            "train.threads": usable_cores(),
        },
        "pseudo-label": {"unlabeled.length": "200st", "unlabeled.batch_size": 64, "unlabeled.start": "warm"},
        "consistency": {"unlabeled.length": "400st", "unlabeled.batch_size": 96},
    },
    "elpv": {"default": {"stages": ["head"]}, "pseudo-label": {}},
}


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


def measure(given: argparse.Namespace, arm: Arm, labels: float, seed: int, folder: Path) -> dict[str, Any]:
    """Train and predict; return error, log loss, seconds, and what the run decided about unlabelled images."""
    draw = seed + TUNING_SEED * given.tuning
    task = TASKS[given.data](folder / f"{arm.images}-{labels:g}-{seed}", arm.images, labels, draw, given.tuning)
    of_data = SETTINGS[given.data]
    settings = {**of_data["default"], **of_data[arm.recipe], **arm.settings, **own_settings(given, arm)}
    settings["unlabeled.use_test"] = task.unlabelled is None  # test images are learned from where there are no others
    unlabelled = None if arm.recipe == "default" else task.unlabelled
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=folder) as out:
        run = fit(
            task.train, unlabeled=unlabelled, test=task.test, recipe=arm.recipe, settings=settings, seed=draw,
            out=Path(out) / "run", cache=folder.parent / "cache", quiet=True, **task.columns,
        )  # fmt: skip
        seconds = time.perf_counter() - start
        predictions = Predictions.load(run.folder / "test.npz")
        rounds = run.record.get("rounds") or []
    truth = np.array([predictions.classes.index(task.truth[name]) for name in predictions.ids])
    return {
        "error": float((predictions.predicted() != truth).mean()),
        "log loss": log_loss(predictions.probabilities(), truth),
        "seconds": seconds,
        "kept": sum(bool(one["kept"]) for one in rounds),
        "rounds": [f"{one['name']} {one['told']}" for one in rounds],
        "validation": run.accuracy,
    }


def own_settings(given: argparse.Namespace, arm: Arm) -> Settings:
    """Return the settings of ``--set``: ``train.lr=1e-3`` for all arms, ``consistency:train.lr=1e-3`` for a recipe."""
    found: Settings = {}
    for each in given.settings:
        key, _, value = each.partition("=")
        recipe, _, name = key.rpartition(":")
        if recipe in ("", arm.recipe):
            found[name] = value_of(value)
    return found


def value_of(text: str) -> Any:
    """Return a number or a boolean where the text is one."""
    if text in ("true", "false"):
        return text == "true"
    try:
        return float(text) if "." in text or "e" in text else int(text)
    except ValueError:
        return text


def tell(results: Mapping[tuple[float, str], Sequence[Mapping[str, Any]]]) -> None:
    """Print a table: error, reduction against the yardstick with the same labels, and the worst seed."""
    print("\n| labels | arm | test error | relative reduction | change in points | worst seed | kept | seconds |")
    print("|---|---|---|---|---|---|---|---|")
    for (labels, name), runs in results.items():
        base = results.get((labels, ARMS[name].against))
        errors = np.array([run["error"] for run in runs])
        cells = ["", "", ""]
        if base is not None and name != ARMS[name].against:
            plain = np.array([run["error"] for run in base])
            change = 100 * (errors - plain)
            less = 1 - errors.mean() / plain.mean() if plain.mean() > 0 else 0.0
            cells = [f"{less:.0%}", with_interval(change.tolist(), "+.2f"), f"{change.max():+.1f}"]
        kept = f"{sum(run['kept'] > 0 for run in runs)} of {len(runs)}" if ARMS[name].recipe != "default" else ""
        seconds = spread([run["seconds"] for run in runs], ".0f")
        print(f"| {labels:g} | {name} | {spread(errors.tolist())} | {' | '.join(cells)} | {kept} | {seconds} |")


def main() -> None:
    """Print one line a run, and the table at the end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=list(TASKS), default="mnist")
    parser.add_argument("--labels", nargs="+", type=float, help="numbers of labelled digits, or shares of the cells")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--set", action="append", default=[], dest="settings")
    parser.add_argument("--tuning", action="store_true", help="other seeds, and training images in place of the test's")
    parser.add_argument("--keep", type=Path, help="JSON file of results; what it holds is not measured again")
    parser.add_argument("--folder", type=Path, help="of digits and decoded images; by default a temporary one")
    given = parser.parse_args()
    labels = given.labels or ([100, 300, 600, 1000] if given.data == "mnist" else [0.1, 0.25, 1])
    arms, kept = given.arms or OF_DATA[given.data], Kept(given.keep)
    results: dict[tuple[float, str], list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = (given.folder or Path(name)) / "runs"
        folder.mkdir(parents=True, exist_ok=True)
        for seed in range(given.first_seed, given.first_seed + given.seeds):
            for count in labels:
                for arm in arms:
                    told = f"{given.data} {count:g} {arm} seed {seed} {'tuning ' * given.tuning}{given.settings}"
                    run = kept.of(told, lambda a=arm, c=count, s=seed: measure(given, ARMS[a], c, s, folder))
                    results.setdefault((count, arm), []).append(run)
                    print(told, f"error {run['error']:.2%}", *run["rounds"], sep="; ", flush=True)
    print(f"\n{given.data}, n={given.seeds} seeds, {machine()}{', tuning' * given.tuning}")
    tell(dict(sorted(results.items(), key=lambda item: item[0][0])))


if __name__ == "__main__":
    main()
