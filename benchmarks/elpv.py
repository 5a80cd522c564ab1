"""ELPV solar cells: accuracy and time of `quick` and `default` over seeds, by two label rules.

    make bench-elpv                                    # both recipes, seeds 0-2, threshold .5
    make bench-elpv ARGS='--rule deitsch'              # unsure cells are defective, weighted .33/.67 in training
    make bench-elpv ARGS='--recipes quick --seeds 5'

Data: PyPI `elpv-dataset` (2624 cells, CC BY-NC-SA 4.0), 75/25 split stratified by probability and cell type, by seed.
The test images are predicted by the command itself; their labels are read here only, after it has ended.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
from pathlib import Path

import elpv_dataset
import numpy as np
from sklearn.model_selection import train_test_split

from common import machine, run_etude, spread
from etude.core.metrics import accuracy, log_loss
from etude.core.predictions import Predictions

ROOT = Path(elpv_dataset.__file__).parent / "data"
NAMES = {0: "functional", 1: "defective"}


def read_cells() -> tuple[list[str], np.ndarray, list[str]]:
    """Return image paths, defect probabilities and cell types."""
    rows = [line.split() for line in (ROOT / "labels.csv").read_text().splitlines() if line.strip()]
    return [row[0] for row in rows], np.array([float(row[1]) for row in rows]), [row[2] for row in rows]


def label(probability: np.ndarray, rule: str) -> tuple[np.ndarray, np.ndarray]:
    """Return labels and training weights by the rule."""
    if rule == "half":
        return (probability >= 0.5).astype(int), np.ones(len(probability))
    unsure = (probability > 0) & (probability < 1)
    return (probability > 0).astype(int), np.where(unsure, np.round(probability, 2), 1.0)


def write_split(folder: Path, seed: int, rule: str) -> tuple[Path, Path, dict[str, tuple[int, float]]]:
    """Write train.csv and test.csv; return them and the truth of the test images."""
    paths, probability, kinds = read_cells()
    strata = [f"{p:.2f} {kind}" for p, kind in zip(probability, kinds, strict=True)]
    train, test = train_test_split(np.arange(len(paths)), test_size=656, stratify=strata, random_state=seed)
    labels, weights = label(probability, rule)
    files = folder / "train.csv", folder / "test.csv"
    for file, rows, header in zip(files, (train, test), (["image", "label", "weight"], ["image"]), strict=True):
        with file.open("w", newline="") as out:
            writer = csv.writer(out)
            writer.writerow(header)
            for row in np.sort(rows):
                full = [ROOT / paths[row], NAMES[labels[row]], f"{weights[row]:.2f}"]
                writer.writerow(full[: len(header)])
    return *files, {str(ROOT / paths[row]): (int(labels[row]), float(probability[row])) for row in test}


def measure(recipe: str, seed: int, rule: str, settings: list[str]) -> dict[str, float]:
    """Train and predict in a fresh folder with a fresh cache; return the figures of this run."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        train, test, truth = write_split(folder, seed, rule)
        arguments = ["fit", str(train), "--test", str(test), "--recipe", recipe, "--seed", str(seed)]
        arguments += ["--label-column", "label", "--weight-column", "weight", *(f"--set={each}" for each in settings)]
        done = run_etude(arguments, folder / "run", folder / "cache")
        predictions = Predictions.load(done.folder / "test.npz")
        held_out = Predictions.load(done.folder / "valid.npz")
    expected = np.array([truth[one][0] for one in predictions.ids])
    certain = np.array([truth[one][1] in (0.0, 1.0) for one in predictions.ids])
    order = [predictions.classes.index(NAMES[k]) for k in (0, 1)]
    plain = predictions.logits[0][:, order].argmax(1) == expected
    averaged = predictions.probabilities()[:, order].argmax(1) == expected
    assert held_out.labels is not None
    return {
        "validation": accuracy(held_out.predicted(), held_out.labels),
        "validation log loss": log_loss(held_out.probabilities(), held_out.labels),
        "accuracy": averaged.mean(),
        "plain view": plain.mean(),
        "certain cells": averaged[certain].mean(),
        "seconds": done.seconds,
        "peak GiB": done.peak_bytes / 2**30,
    }


def main() -> None:
    """Print one line a run and one a recipe."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", default=["quick", "default"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--rule", choices=["half", "deitsch"], default="half")
    parser.add_argument("--set", action="append", default=[], dest="settings")
    given = parser.parse_args()
    summary: list[str] = []
    for recipe in given.recipes:
        seeds = range(given.first_seed, given.first_seed + given.seeds)
        runs = [measure(recipe, seed, given.rule, given.settings) for seed in seeds]
        for seed, run in zip(seeds, runs, strict=True):
            print(recipe, "seed", seed, {key: round(float(value), 4) for key, value in run.items()}, flush=True)
        parts = [f"{key} {spread([run[key] for run in runs])}" for key in ("accuracy", "plain view", "certain cells")]
        slowest = max(run["seconds"] for run in runs)
        times = f"{spread([run['seconds'] for run in runs], '.1f')} s (slowest {slowest:.1f})"
        summary.append(f"{recipe:8} rule {given.rule}, n={len(runs)} seeds: {', '.join(parts)}, {times}")
    print(f"\nELPV, 656 test cells, {machine()}")
    print("\n".join(summary))


if __name__ == "__main__":
    main()
