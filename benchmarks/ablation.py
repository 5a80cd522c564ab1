"""Every timeline and every trick against `default`, one change at a time, on MNIST-5k or ELPV.

    make bench-ablation                                             # MNIST-5k, 5 seeds
    make bench-ablation ARGS='--data elpv --seeds 3'
    make bench-ablation ARGS='--data elpv --arms default,progressive --seeds 3 --epochs 8 --workers 1'

Each arm trains by the recipe `default` with the one change that its line names; all arms of a seed share split, stored
images and frozen features. Epochs are equal; where an arm's epochs are cheaper, "(equal time)" gives it more of them.
Seconds are those of fine-tuning alone. `--workers 2` runs two trainings side by side, one thread each: more in an hour,
and seconds that compare with each other only. Validation decides what becomes a default; test labels are read here, at
the end, and only reported. Finished runs are kept in `--keep` and not run again.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import statistics
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import ablation_arms
import elpv
from common import machine


def write_mnist(folder: Path) -> tuple[Path, Path, dict[str, str]]:
    """Write MNIST-5k; return its training and test images and the test labels."""
    from etude.core.progress import Silent
    from etude.data.digits import write_digits

    digits = write_digits(folder / "mnist", Silent())
    return digits.train, digits.test, digits.test_labels


def write_elpv(folder: Path, seed: int) -> tuple[Path, Path, dict[str, str]]:
    """Write the split of a seed by the rule `half`; return its tables and the test labels."""
    place = folder / f"elpv-{seed}"
    place.mkdir(parents=True, exist_ok=True)
    train, test, truth = elpv.write_split(place, seed, "half")
    return train, test, {name: elpv.NAMES[label] for name, (label, _) in truth.items()}


Inputs = tuple[Path, Path, dict[str, str]]


def run_one(
    folder: Path, data: str, inputs: Inputs, arm: str, seed: int, epochs: float, size: int | None = None
) -> dict[str, float]:
    """Train one arm on (training images, test images, test labels); return its figures. Called in a worker process."""
    import etude

    out = (
        folder
        / "runs"
        / f"{data}-{epochs:g}{f'-{size}px' if size else ''}-{arm}-{seed}".replace(" ", "_").replace("/", "_")
    )
    figures = out.parent / f"{out.name}.json"
    if figures.is_file():
        return json.loads(figures.read_text())
    shutil.rmtree(out, ignore_errors=True)  # what a benchmark that was stopped left
    train, test, truth = inputs
    recipe, settings = ablation_arms.settings_of(data, arm, epochs)
    settings |= {"timeline.final_size": size, "model.feature_size": size} if size else {}
    column = "label" if data == "elpv" else None
    etude.fit(
        train, test=test, recipe=recipe, settings=settings, seed=seed, out=out, cache=folder / f"cache-{data}",
        label_column=column, quiet=True,
    )  # fmt: skip
    figures.write_text(json.dumps(scores(out, truth)))
    return json.loads(figures.read_text())


def scores(out: Path, truth: dict[str, str]) -> dict[str, float]:
    """Return seconds of fine-tuning, validation and test scores of a finished run."""
    from etude.core.predictions import Predictions
    from etude.core.scores import accuracy, log_loss

    record = json.loads((out / "run.json").read_text())
    stage = next(stage for stage in record["stages"] if stage["name"] == "fine-tune")
    test = Predictions.load(out / "test.npz")
    labels = [test.classes.index(truth[name]) for name in test.ids]
    return {
        "seconds": stage["seconds"],
        "valid accuracy": stage["scores"]["accuracy"],
        "valid log loss": stage["scores"]["log_loss"],
        "test accuracy": accuracy(test.predicted(), labels),
        "test log loss": log_loss(test.probabilities(), labels),
    }


def table(results: dict[str, list[dict[str, float]]]) -> str:
    """Return a Markdown table: means, spreads, and the paired difference to `default` with its standard error."""
    rows = ["| arm | validation | val. log loss | against default | test | seconds |", "|---|---|---|---|---|---|"]
    base = results.get("default")
    for arm, runs in results.items():
        cells = [f"{_mean(runs, 'valid accuracy', 100):.2f} ± {_sd(runs, 'valid accuracy', 100):.2f}%"]
        cells.append(f"{_mean(runs, 'valid log loss'):.4f} ± {_sd(runs, 'valid log loss'):.4f}")
        cells.append("" if base is None or arm == "default" else _against(runs, base))
        cells.append(f"{_mean(runs, 'test accuracy', 100):.2f} ± {_sd(runs, 'test accuracy', 100):.2f}%")
        cells.append(f"{_mean(runs, 'seconds'):.0f} ± {_sd(runs, 'seconds'):.0f}")
        rows.append(f"| {arm} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def _against(runs: Sequence[dict[str, float]], base: Sequence[dict[str, float]]) -> str:
    pairs = zip(runs, base, strict=False)
    differences = [one["valid log loss"] - other["valid log loss"] for one, other in pairs]
    error = statistics.stdev(differences) / len(differences) ** 0.5 if len(differences) > 1 else 0.0
    return f"{statistics.mean(differences):+.4f} ± {error:.4f}"


def _mean(runs: Sequence[dict[str, float]], key: str, scale: float = 1.0) -> float:
    return statistics.mean(run[key] for run in runs) * scale


def _sd(runs: Sequence[dict[str, float]], key: str, scale: float = 1.0) -> float:
    return statistics.stdev(run[key] for run in runs) * scale if len(runs) > 1 else 0.0


def main() -> None:
    """Run all arms over all seeds, seed by seed, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=["mnist", "elpv"], default="mnist")
    parser.add_argument("--arms", default="all", help="names, separated by commas")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=float, help="of `default`; 12 for MNIST-5k, 4 for ELPV")
    parser.add_argument("--size", type=int, help="pixels; by default the network's own")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--keep", type=Path, help="folder for the runs; by default a temporary one")
    given = parser.parse_args()
    epochs = given.epochs or {"mnist": 12.0, "elpv": 4.0}[given.data]
    arms = list(ablation_arms.arms_of(given.data)) if given.arms == "all" else given.arms.split(",")
    threads = max(1, (os.cpu_count() or 1) // given.workers)
    os.environ["OMP_NUM_THREADS"] = str(threads)  # of the workers, which start afresh
    workers = ProcessPoolExecutor(given.workers, mp_context=multiprocessing.get_context("spawn"))
    with tempfile.TemporaryDirectory() as nowhere, workers as pool:
        folder = (given.keep or Path(nowhere)).resolve()
        (folder / "runs").mkdir(parents=True, exist_ok=True)
        results: dict[str, list[dict[str, float]]] = {arm: [] for arm in arms}
        for seed in range(given.seeds):
            inputs = write_mnist(folder) if given.data == "mnist" else write_elpv(folder, seed)
            # The first run stores images and features for the others.
            pool.submit(run_one, folder, given.data, inputs, arms[0], seed, epochs, given.size).result()
            waiting = {
                arm: pool.submit(run_one, folder, given.data, inputs, arm, seed, epochs, given.size) for arm in arms
            }
            for arm, future in waiting.items():
                results[arm].append(future.result())
                print(f"seed {seed} {arm}: {results[arm][-1]}", flush=True)
    pixels = f", {given.size} px" if given.size else ""
    print(f"\n{given.data}{pixels}, {epochs:g} epochs, n={given.seeds} seeds, {given.workers} at a time", end=" ")
    print(f"with {threads} threads each")
    print(f"{machine()}\n\n{table(results)}")


if __name__ == "__main__":
    main()
