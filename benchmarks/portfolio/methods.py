"""What is compared: etude's recipes and its peers, each in a process of its own on the same tables."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np

from common import measured, run_etude
from etude.core.metrics import accuracy, log_loss
from etude.core.predictions import Predictions
from peers.environments import PEERS, TIMED, VARIABLES, environment
from portfolio.sets import DataSet
from train import write_weights

Figures = dict[str, float]
Tables = dict[str, Path]
Method = Callable[[Tables, DataSet, Path, int, list[str]], Figures]
BUDGETS = {"1m": 60, "5m": 300, "15m": 900, "30m": 1800}  # seconds


class Failed(Exception):
    """A peer that cannot be installed, or ended with an error; the message is the line that names the error."""


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


def peer(name: str, seconds: int = 0) -> Method:
    """A script of benchmarks/peers in its own environment; ``seconds`` limits its time."""

    def run(tables: Tables, test: DataSet, folder: Path, seed: int, settings: list[str]) -> Figures:
        made = environment(name)
        if made.error:
            raise Failed(made.error)
        out, weights, log = (folder / file for file in ("probabilities.npz", "lite0.safetensors", "log.txt"))
        write_weights(weights)
        words = [tables["train"], tables["test"], weights, seed, out, *([seconds] if seconds else [])]
        command = [str(made.python), "-m", f"peers.peer_{name}", *map(str, words)]
        try:
            with log.open("wb") as lines:
                done = measured(command, folder, VARIABLES, cwd=folder, stdout=lines, stderr=subprocess.STDOUT)
        except SystemExit as error:
            written = log.read_text(errors="replace").strip().splitlines() or [str(error)]
            named = [line for line in written if re.match(r"[\w.]*(Error|Exception)\b", line)]
            raise Failed(f"{(named or written)[-1]} (code {str(error).split()[-1]})") from error
        with np.load(out, allow_pickle=False) as held:
            found = judged(held["probabilities"], held["classes"], held["ids"], test)
        limit = {"budget": float(seconds)} if seconds else {}
        return {**found, "seconds": done.seconds, "peak GiB": done.peak_bytes / 2**30, **limit}

    return run


PEER_METHODS: dict[str, Method] = {
    **{name: peer(name) for name in PEERS if name not in TIMED},
    **{f"{name}-{time}": peer(name, seconds) for name in TIMED for time, seconds in BUDGETS.items()},
}
METHODS: dict[str, Method] = {
    "quick": recipe("quick"),
    "default": recipe("default"),
    "best": recipe("best"),
    "quick+unlabelled": recipe("quick", unlabelled=True),
    "default+unlabelled": recipe("default", unlabelled=True),
    **{time: recipe("default", budget=time) for time in BUDGETS},
    **PEER_METHODS,
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
