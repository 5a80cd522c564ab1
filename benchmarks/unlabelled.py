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
- fine-tuned, fine-tuned online: of solar cells, whose other arms train a linear head alone.
Skewed and poisoned rounds take part only where `--arms` names them.

Their yardstick is `supervised` with the same labels ("poisoned supervised" for the poisoned). Lengths and settings were
chosen with `--tuning`: other seeds, and 1,000 of the 4,000 training digits in the place of the test digits.
"""

from __future__ import annotations

import argparse
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
from etude.core.metrics import log_loss
from etude.core.predictions import Predictions
from etude.core.processor import usable_cores
from label_draws import TASKS, TUNING_SEED
from refine_common import Kept, with_interval

Settings = dict[str, Any]
SAME_MODE: Settings = {  # a busy machine might choose another one for one of the arms
    "train.precision": "fp32",
    "train.memory_format": "channels_last",
    "train.threads": usable_cores(),
}
FINE_TUNED: Settings = {  # of cells, at a size at which two cores can do it for five seeds
    "stages": ["finetune"],
    "predict.tta": 1,
    "timeline.length": "150st",
    "timeline.start_size": 128,
    "timeline.final_size": 128,
    **SAME_MODE,
    "train.precision": "bf16",
}


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
    "fine-tuned": Arm("plain", "default", FINE_TUNED, against="fine-tuned"),
    "fine-tuned online": Arm("plain", "consistency", FINE_TUNED, against="fine-tuned"),
}
OF_DATA = {  # without --arms; the others only when they are asked for
    "mnist": ("supervised", "rounds", "online", "poisoned supervised", "poisoned online", "wrong prior online"),
    "elpv": ("supervised", "rounds", "fine-tuned", "fine-tuned online"),
}
SETTINGS: dict[str, dict[str, Settings]] = {  # by data and recipe
    "mnist": {
        "default": {
            "stages": ["finetune"],
            "predict.tta": 1,
            "timeline.length": "300st",
            "train.batch_size": 32,
            **SAME_MODE,
        },
        "pseudo-label": {"unlabeled.length": "200st", "unlabeled.batch_size": 64, "unlabeled.start": "warm"},
        "consistency": {"unlabeled.length": "400st", "unlabeled.batch_size": 96},
    },
    "elpv": {
        "default": {"stages": ["head"], "model.feature_size": 128},
        "pseudo-label": {},
        "consistency": {"unlabeled.length": "150st"},
    },
}


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
    """Print a table: error and log loss, both against the yardstick with the same labels, and the worst seed."""
    print("\n| labels | arm | test error | fewer errors | change in points | worst seed | ", end="")
    print("log loss | change in nats | kept | seconds |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for (labels, name), runs in results.items():
        base = results.get((labels, ARMS[name].against)) if name != ARMS[name].against else None
        errors, losses = (np.array([run[metric] for run in runs]) for metric in ("error", "log loss"))
        less, changed, worst, saved = "", "", "", ""
        if base is not None:
            plain = np.array([run["error"] for run in base])
            change = 100 * (errors - plain)
            less = f"{1 - errors.mean() / plain.mean() if plain.mean() > 0 else 0.0:.0%}"
            changed, worst = with_interval(change.tolist(), "+.2f"), f"{change.max():+.1f}"
            saved = with_interval((losses - [run["log loss"] for run in base]).tolist(), "+.3f")
        kept = f"{sum(run['kept'] > 0 for run in runs)} of {len(runs)}" if ARMS[name].recipe != "default" else ""
        seconds = spread([run["seconds"] for run in runs], ".0f")
        cells = (spread(errors.tolist()), less, changed, worst, spread(losses.tolist(), ".3f"), saved, kept, seconds)
        print(f"| {labels:g} | {name} | {' | '.join(cells)} |")


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
