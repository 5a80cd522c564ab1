"""What is compared: etude's recipes and two peers, each in a process of its own on the same tables."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from common import run_etude
from etude.core.metrics import accuracy, log_loss
from etude.core.predictions import Predictions
from portfolio.sets import DataSet
from train import write_weights

Figures = dict[str, float]
Tables = dict[str, Path]
Method = Callable[[Tables, DataSet, Path, int, list[str]], Figures]


def recipe(name: str, unlabelled: bool = False, budget: str = "") -> Method:
    """``etude fit`` with a recipe; ``unlabelled`` adds the images without labels, and ``budget`` limits its time."""

    def run(tables: Tables, test: DataSet, folder: Path, seed: int, settings: list[str]) -> Figures:
        arguments = ["fit", str(tables["train"]), "--test", str(tables["test"]), "--recipe", name, "--seed", str(seed)]
        if unlabelled:
            arguments += ["--unlabeled", str(tables["unlabelled"])]
        if budget:
            arguments += ["--budget", budget]
        done = run_etude([*arguments, *(f"--set={one}" for one in settings)], folder / "run", folder / "cache")
        predictions = Predictions.load(done.folder / "test.npz")
        held_out = Predictions.load(done.folder / "valid.npz")
        assert held_out.labels is not None
        record = json.loads((done.folder / "run.json").read_text(encoding="utf-8"))
        return {
            **judged(predictions.probabilities(), predictions.classes, predictions.ids, test),
            "validation": accuracy(held_out.predicted(), held_out.labels),
            "seconds": done.seconds,
            "planned": sum(record["plan"]["expected_seconds"].values()),
            "taken": record["seconds"] - record["plan"]["after_seconds"],
            "in no stage": record["seconds_in_no_stage"],
            "peak GiB": done.peak_bytes / 2**30,
            **({"budget": record["budget"]["seconds"]} if budget else {}),
        }

    return run


def peer(script: str) -> Method:
    """A script that is given train.csv, test.csv, weights, the seed, and the .npz file for its probabilities."""

    def run(tables: Tables, test: DataSet, folder: Path, seed: int, settings: list[str]) -> Figures:
        out = folder / "probabilities.npz"
        place = Path(__file__).with_name(script)
        weights = folder / "lite0.safetensors"
        write_weights(weights)
        start = time.perf_counter()
        words = [str(tables["train"]), str(tables["test"]), str(weights), str(seed), str(out)]
        subprocess.run([sys.executable, str(place), *words], check=True, stdout=sys.stderr)
        seconds = time.perf_counter() - start
        with np.load(out, allow_pickle=False) as held:
            found = judged(held["probabilities"], held["classes"], held["ids"], test)
        return {**found, "seconds": seconds}

    return run


METHODS: dict[str, Method] = {
    "quick": recipe("quick"),
    "default": recipe("default"),
    "best": recipe("best"),
    "quick+unlabelled": recipe("quick", unlabelled=True),
    "default+unlabelled": recipe("default", unlabelled=True),
    **{time: recipe("default", budget=time) for time in ("1m", "5m", "15m", "30m")},
    "logistic": peer("peer_logistic.py"),
    "fastai": peer("peer_fastai.py"),
}


def judged(probabilities: np.ndarray, classes: object, ids: object, test: DataSet) -> Figures:
    """Compare with the labels of the test images, which nothing has read before.

    A test image of a class that was not trained on counts as wrong, and is left out of the log loss.
    """
    names = [str(one) for one in np.asarray(classes)]
    truth = dict(zip(test.paths, test.labels, strict=True))
    labels = np.array([names.index(truth[str(one)]) if truth[str(one)] in names else -1 for one in np.asarray(ids)])
    known = labels >= 0
    return {
        "accuracy": float((probabilities.argmax(1) == labels).mean()),
        "log loss": log_loss(probabilities[known], labels[known]),
        "images": float(len(labels)),
    }
