"""MNIST-5k: test accuracy and seconds of `etude demo` over seeds (4000 digits to train on, 1000 to test).

make bench-mnist
make bench-mnist ARGS='--seeds 5'
"""

from __future__ import annotations

import argparse
import csv
import tempfile
from pathlib import Path

import numpy as np

from common import machine, run_etude, spread
from etude.core.predictions import Predictions


def main() -> None:
    """Print one line a seed and a summary."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--recipe", default="default")
    given = parser.parse_args()
    accuracies, seconds, trained = [], [], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for seed in range(given.seeds):
            cache = folder / f"cache-{seed}"  # a fresh one each time: nothing is reused between the seeds
            done = run_etude(["demo", "--recipe", given.recipe, "--seed", str(seed)], folder / f"run-{seed}", cache)
            predictions = Predictions.load(done.folder / "test.npz")
            with (cache / "demo" / "mnist-5k" / "test_labels.csv").open(newline="") as file:
                truth = {row["id"]: row["label"] for row in csv.DictReader(file)}
            expected = np.array([predictions.classes.index(truth[one]) for one in predictions.ids])
            accuracies.append(float((predictions.predicted() == expected).mean()))
            seconds.append(done.seconds)
            trained.append(sum(s for stage, s in done.stages.items() if stage != "predict test"))
            print(
                f"seed {seed}: {accuracies[-1]:.2%}, {seconds[-1]:.1f} s in all, {trained[-1]:.1f} s training",
                flush=True,
            )
    print(f"\nMNIST-5k, 1000 test digits, recipe {given.recipe}, n={given.seeds} seeds, {machine()}")
    print(f"test accuracy {spread(accuracies)}, training {spread(trained, '.1f')} s, all {spread(seconds, '.1f')} s")


if __name__ == "__main__":
    main()
