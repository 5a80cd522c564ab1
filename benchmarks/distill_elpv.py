"""Distillation on ELPV: how much of what a blend of three models gains a single student keeps.

    make bench-distill-elpv ARGS='--keep distill_elpv.json'      # goes on where it was stopped
    make bench-distill-elpv ARGS='--seeds 1 --epochs 1'

Three models are fine-tuned alike on the training cells, each from its own seed and with its own hold-out; their blend
is the mean of their probabilities. Students are the same network once more, trained as long, by the recipe `distill`:

- student: learns from the three at the labelled images alone;
- student, test images too: also learns what the three say about the test images, without their labels.

Kept is (student - members) / (blend - members), of means over the seeds; members is the mean of the three. No choice
was made on these cells: temperature and weight are the recipe's.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from common import machine, spread
from elpv import NAMES, write_split
from etude.api import fit
from etude.core.metrics import log_loss
from etude.core.predictions import Predictions
from etude.core.processor import usable_cores
from refine_common import Kept, with_interval

MEMBERS = 3
STUDENTS = {"student": False, "student, test images too": True}  # whether test images are learned from
METRICS = ("accuracy", "log loss")

Scores = dict[str, float]


def scores(probabilities: np.ndarray, truth: np.ndarray) -> Scores:
    """Return accuracy and log loss of (N, C) probabilities."""
    return {
        "accuracy": float((probabilities.argmax(1) == truth).mean()),
        "log loss": log_loss(probabilities, truth),
    }


def measure(seed: int, given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Train the members and the students of one split; return their scores on its test images."""
    train, test, truth_of = write_split(folder, seed, "half")
    settings = {
        "stages": ["finetune"],
        "timeline.length": f"{given.epochs:g}ep",
        "timeline.start_size": given.size,
        "timeline.final_size": given.size,
        # The same mode everywhere, or a busy machine may choose another one for one of the models.
        "train.precision": "fp32",
        "train.memory_format": "channels_last",
        "train.threads": usable_cores(),
    }

    def predicted(name: str, model_seed: int, recipe: str, teachers: list[Path], **more: Any) -> np.ndarray:
        run = fit(
            train, test=test, recipe=recipe, settings={**settings, **more}, seed=model_seed, teachers=teachers,
            out=folder / name, cache=folder.parent / "cache", label_column="label", quiet=True,
        )  # fmt: skip
        predictions = Predictions.load(run.folder / "test.npz")
        assert predictions.classes == tuple(NAMES[label] for label in (1, 0))
        order.append(list(predictions.ids))
        return predictions.probabilities()

    order: list[list[str]] = []
    members = [predicted(f"member {k}", 100 * seed + k, "default", []) for k in range(MEMBERS)]
    teachers = [folder / f"member {k}" for k in range(MEMBERS)]
    students = {
        name: predicted(name, 100 * seed + MEMBERS, "distill", teachers, **{"unlabeled.use_test": use_test})
        for name, use_test in STUDENTS.items()
    }
    assert all(one == order[0] for one in order)
    truth = np.array([1 - truth_of[name][0] for name in order[0]])  # classes are in alphabetical order
    each = [scores(one, truth) for one in members]
    found = {"members": {metric: float(np.mean([one[metric] for one in each])) for metric in METRICS}}
    found["blend"] = scores(np.mean(members, axis=0), truth)
    return found | {name: scores(one, truth) for name, one in students.items()}


def tell(runs: list[Mapping[str, Scores]]) -> None:
    """Print scores, gains over the members and the share of the blend's gain that each student keeps."""
    gains: dict[tuple[str, str], np.ndarray] = {}
    print("\n| | test accuracy | gain in points | kept | log loss | gain in nats | kept |")
    print("|---|---|---|---|---|---|---|")
    for name in runs[0]:
        cells = []
        for metric, scale, sign, form in (("accuracy", 100, 1, "+.2f"), ("log loss", 1, -1, "+.3f")):
            values = np.array([run[name][metric] for run in runs])
            gain = sign * scale * (values - np.array([run["members"][metric] for run in runs]))
            gains[name, metric] = gain
            kept = f"{gain.mean() / gains['blend', metric].mean():.0%}" if name in STUDENTS else ""
            told = spread(values.tolist(), ".2%" if metric == "accuracy" else ".3f")
            cells += [told, "" if name == "members" else with_interval(gain.tolist(), form), kept]
        print(f"| {name} | {' | '.join(cells)} |")


def main() -> None:
    """Print one line a seed, and the table at the end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=float, default=2)
    parser.add_argument("--size", type=int, default=96, help="side of the images in pixels")
    parser.add_argument("--keep", type=Path, help="JSON file of results; what it holds is not measured again")
    given = parser.parse_args()
    kept, runs = Kept(given.keep), []
    with tempfile.TemporaryDirectory() as name:
        for seed in range(given.seeds):
            folder = Path(name) / f"{seed}"
            folder.mkdir()
            runs.append(
                kept.of(
                    f"seed {seed}, {given.epochs:g} epochs, {given.size} px",
                    lambda s=seed, f=folder: measure(s, given, f),
                )
            )
            print(f"seed {seed}:", {one: f"{found['accuracy']:.2%}" for one, found in runs[-1].items()}, flush=True)
    print(f"\nELPV, {given.size} px, {given.epochs:g} epochs, n={given.seeds} seeds, {machine()}")
    tell(runs)


if __name__ == "__main__":
    main()
