"""What each refinement buys on test images, over seeds: TTA, kNN, last layer, a blend of two models, the whole chain.

    make bench-refine-chain                              # ELPV and MNIST-5k, seeds 0-4: about 20 minutes on two cores
    make bench-refine-chain ARGS='--keep chain.json'     # seeds that are in the file are not run again
    make bench-refine-chain ARGS='--data mnist --seeds 1 --set train.epochs=0.2'

For each seed a network is trained by `default`, and a linear head on frozen EfficientNet-Lite0 is fitted by `quick`, on
the same training and validation images. ELPV: fine-tuned at 128 px for 5 epochs, the head at 224 px. MNIST-5k: the
small network at 28 px for 8 epochs, the head at 64 px. The run saves views and features (predict.tta,
predict.train_features), and everything else takes seconds on those.

Everything is fitted on validation predictions and the unlabelled test images; the test labels are read only for this
report, after all is fitted. Gains are in test accuracy (points) and in log loss (nats, positive is better) over the
plain view of the network, but for the blend: over the better of its two models on the validation images, and in a row
of its own over the better one by its test score, which nobody can know before. Intervals are 95% t intervals of the
mean over seeds; the seeds of ELPV split the same cells, so they are a little narrow.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from common import machine
from etude.core.context import Context, Silent
from etude.core.metrics import metric_named
from etude.core.predictions import Predictions
from etude.refine import KNN, Chain, Ensemble, LastLayer, ViewWeights, gain_by_views, standard_steps
from etude.refine.base import without_labels
from refine_common import Kept, with_interval

METRICS = ("accuracy", "log_loss")
UNITS = {"accuracy": ("points", 100.0, "+.2f"), "log_loss": ("nats", 1.0, "+.4f")}


@dataclass(frozen=True)
class Task:
    """Images of one seed.

    Args:
        train: what etude trains on, with the names of its columns if it is a table.
        test: images without labels.
        truth: the class of each test image, for the report alone.
        settings: of the network.
    """

    train: Path
    test: Path
    truth: dict[str, str]
    settings: dict[str, Any]
    columns: dict[str, str]


class Seen(NamedTuple):
    """What one model says about its images; only the first two know labels, and the first may be missing."""

    train: Predictions | None
    valid: Predictions
    test: Predictions


class Arm(NamedTuple):
    """One refinement of test predictions: its name, what it is compared with, the outcome, and what was fitted."""

    name: str
    before: tuple[Predictions, ...]
    after: Predictions
    described: str


def elpv(folder: Path, seed: int) -> Task:
    """Solar cells, defective from a probability of .5, split by seed."""
    from elpv import NAMES, write_split

    train, test, truth = write_split(folder, seed, "half")
    # The symmetries are those that etude measures for these images; they are not measured anew each time.
    settings = {"augment.policy": "symmetric", "timeline.final_size": 128, "model.feature_size": 128, "train.epochs": 5}
    columns = {"label_column": "label", "weight_column": "weight"}
    return Task(train, test, {name: NAMES[label] for name, (label, _) in truth.items()}, settings, columns)


def mnist(folder: Path, seed: int) -> Task:
    """MNIST-5k; the test digits are the same for every seed, the validation digits are not."""
    from etude.data.digits import write_digits

    digits = write_digits(folder / "mnist-5k", Silent())
    settings = {"stages": ["finetune"], "train.epochs": 8}  # the small network needs no stage 1
    return Task(digits.train, digits.test, digits.test_labels, settings, {})


TASKS: dict[str, Callable[[Path, int], Task]] = {"elpv": elpv, "mnist": mnist}


def trained(task: Task, recipe: str, settings: dict[str, Any], seed: int, out: Path, cache: Path) -> Seen:
    """Train by a recipe; return what its run has saved."""
    import etude

    etude.fit(
        task.train, test=task.test, recipe=recipe, settings=settings, seed=seed, out=out, cache=cache, quiet=True,
        **task.columns,
    )  # fmt: skip
    train = out / "train.npz"
    valid, test = (Predictions.load(out / f"{name}.npz") for name in ("valid", "test"))
    return Seen(Predictions.load(train) if train.is_file() else None, valid, test)


def refined(network: Seen, head: Seen, seed: int) -> Iterator[Arm]:
    """Yield every arm, fitted without a test label."""
    assert network.train is not None
    valid, test = first_view(network.valid), first_view(network.test)
    train = (network.train.features, network.train.labels, network.train.ids)
    views = f"mean of {len(network.test.logits)}; {gain_by_views(network.valid).enough} are enough in validation"
    yield Arm("TTA", (test,), network.test, views)
    weighted = ViewWeights(seed=seed).fit(network.valid)
    yield Arm("TTA, averaged as fitted", (test,), weighted.transform(network.test), weighted.described)
    knn = KNN(*train).fit(valid)
    yield Arm("kNN", (test,), knn.transform(test), knn.described)
    last = LastLayer(*train, prior=None, seed=seed).fit(valid, without_labels(test))
    yield Arm("last layer", (test,), last.transform(test), last.described)
    models, tests = (first_view(head.valid), valid), (first_view(head.test), test)
    scores = [score(one, one.labels) for one in models]
    better = int(scores[1] >= scores[0])
    ensemble = Ensemble("auto", "accuracy", seed=seed).fit(models)
    yield Arm("blend of two models", (tests[better], tests[1 - better]), ensemble.transform(tests), ensemble.described)
    for metric in METRICS:
        steps = standard_steps(
            network.valid, None, network.test, metric=metric, train=network.train, context=Context(seed=seed)
        )
        chain = Chain(steps, metric, seed=seed).fit(network.valid, without_labels(network.test))
        after = chain.transform(network.test)
        yield Arm(f"whole chain, by {metric}", (test,), after, chain.described)
    both = Ensemble("mean").fit([models[0], chain.transform(network.valid)])
    yield Arm("whole chain, then blend", (test,), both.transform([tests[0], after]), both.described)


def first_view(predictions: Predictions) -> Predictions:
    """Return the plain view alone."""
    return replace(predictions, logits=predictions.logits[:1])


def score(predictions: Predictions, labels: Any) -> tuple[float, float]:
    """Return accuracy and log loss, signed so that more is better."""
    log_p = predictions.log_probabilities()
    right, sure = (metric_named(name).sign * metric_named(name).value(log_p, labels) for name in METRICS)
    return right, sure


def measure(name: str, seed: int, given: argparse.Namespace, cache: Path) -> dict[str, Any]:
    """Train both models of a seed; return scores of the plain views, and each arm's gains in both metrics."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder_name:
        folder = Path(folder_name)
        task = TASKS[name](folder, seed)
        saved = {"predict.tta": given.views, "predict.train_features": "always"}
        settings = {**task.settings, **saved, **dict(map(setting, given.settings))}
        network = trained(task, "default", settings, seed, folder / "network", cache)
        head = trained(task, "quick", {"predict.tta": 1}, seed, folder / "head", cache)
    if network.valid.ids != head.valid.ids or network.test.ids != head.test.ids:
        raise SystemExit("both models must have the same validation and test images")
    labels = np.array([network.test.classes.index(task.truth[one]) for one in network.test.ids])
    ready = time.perf_counter()
    gains: dict[str, tuple[float, ...]] = {}
    for arm in refined(network, head, seed):
        before, after = [score(one, labels) for one in arm.before], score(arm.after, labels)
        gains[arm.name] = tuple(np.subtract(after, before[0]).tolist())
        if len(before) > 1:
            gains[f"{arm.name}, over the better by test score"] = tuple(np.subtract(after, max(before)).tolist())
        said = f"accuracy {before[0][0]:.2%} -> {after[0]:.2%}, log loss {-before[0][1]:.4f} -> {-after[1]:.4f}"
        print(f"{name} seed {seed} {arm.name:24} {said}; {arm.described}", flush=True)
    seconds = {"trained": ready - start, "refined": time.perf_counter() - ready}
    print(f"{name} seed {seed}: {', '.join(f'{what} in {took:.0f} s' for what, took in seconds.items())}", flush=True)
    plain = {"network": score(first_view(network.test), labels), "head": score(first_view(head.test), labels)}
    return {"plain": plain, "gains": gains, "seconds": seconds}


def setting(text: str) -> tuple[str, Any]:
    """Return key and value of ``train.epochs=2``."""
    key, _, value = text.partition("=")
    try:
        return key, json.loads(value)
    except json.JSONDecodeError:
        return key, value


def summary(name: str, runs: Sequence[dict[str, Any]]) -> None:
    """Print mean and interval of each arm's gains."""
    print(f"\n{name}, n={len(runs)} seeds, {machine()}; gain on test images: mean [95% interval] ± sd over seeds")
    for model in ("network", "head"):
        accuracies, losses = zip(*(run["plain"][model] for run in runs), strict=True)
        print(f"{model} alone: accuracy {np.mean(accuracies):.2%}, log loss {-np.mean(losses):.4f}")
    print("\n| refinement | " + " | ".join(f"{metric}, {UNITS[metric][0]}" for metric in METRICS) + " |\n|---|---|---|")
    for arm in runs[0]["gains"]:
        cells = []
        for column, metric in enumerate(METRICS):
            _, scale, form = UNITS[metric]
            cells.append(with_interval([scale * run["gains"][arm][column] for run in runs], form))
        print(f"| {arm} | {' | '.join(cells)} |")
    seconds = [sum(run["seconds"].values()) for run in runs]
    print(f"\n{np.mean(seconds):.0f} s a seed, {sum(seconds):.0f} s in all", flush=True)


def main() -> None:
    """Print one line an arm and seed, and a table for each data set."""
    # As the command line does, and before torch loads: threads that wait do not take the processor from others.
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--views", type=int, default=10)
    parser.add_argument("--set", action="append", default=[], dest="settings", help="of the network")
    parser.add_argument("--keep", type=Path, help="JSON file of results; seeds that it holds are not run again")
    given = parser.parse_args()
    kept = Kept(given.keep)
    for name in given.data:
        with tempfile.TemporaryDirectory() as cache:
            runs = [
                kept.of(
                    " ".join([name, f"seed {seed}", f"{given.views} views", *given.settings]),
                    lambda seed=seed, cache=cache, name=name: measure(name, seed, given, Path(cache)),
                )
                for seed in range(given.seeds)
            ]
        summary(name, runs)


if __name__ == "__main__":
    main()
