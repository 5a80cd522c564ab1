"""What each refinement buys on test images, over seeds: TTA, kNN, last layer, a blend of two models, the whole chain.

    make bench-refine-chain                              # ELPV and MNIST-5k, seeds 0-4: fine-tunes ten networks
    make bench-refine-chain ARGS='--data mnist --seeds 1 --set train.epochs=2'

For each seed a network is fine-tuned with `default` and a linear head fitted with `quick`, on the same training and
validation images. Everything is fitted on validation predictions and the unlabelled test images; the test labels are
read only for this report, after all is fitted. Gains are in test accuracy (points) and in log loss (nats, positive is
better) over the plain view of the fine-tuned network, but for the blend: over the better of its two models on the
validation images. Intervals are 95% t intervals of the mean over seeds. Timings of ten views against one are told too.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy import stats

from common import machine, run_etude, spread
from etude.core.metrics import metric_named
from etude.core.predictions import Predictions
from etude.core.progress import Silent
from etude.data.dataset import Dataset, open_dataset
from etude.data.sources import ImageSet, read_labelled, read_unlabelled
from etude.data.survey import survey
from etude.inference.predict import plain_view, predict
from etude.inference.views import IDENTITY, many_views
from etude.models.classifier import load_model
from etude.refine import KNN, Chain, Ensemble, LastLayer, standard_steps
from etude.refine.rows import without_labels

ARMS = ("TTA", "kNN", "last layer", "blend of two models", "whole chain", "chain, then blend")


@dataclass(frozen=True)
class Task:
    """Images of one seed.

    Args:
        train: what ``etude fit`` reads, and its further words.
        test: images without labels.
        truth: the class of each test image, for the report alone.
    """

    train: Path
    words: tuple[str, ...]
    test: Path
    truth: dict[str, str]


@dataclass(frozen=True)
class Seen:
    """What one model says about training, validation and test images; only the first two know labels.

    Args:
        cost: seconds of one of many views over those of a plain pass.
    """

    train: Predictions
    valid: Predictions
    test: Predictions
    cost: float


def elpv(folder: Path, seed: int) -> Task:
    """Solar cells, threshold .5, split by seed."""
    from elpv import NAMES, write_split

    train, test, truth = write_split(folder, seed, "half")
    columns = ("--label-column", "label", "--weight-column", "weight")
    return Task(train, columns, test, {name: NAMES[label] for name, (label, _) in truth.items()})


def mnist(folder: Path, seed: int) -> Task:
    """MNIST-5k; the split is the same for every seed."""
    from etude.data.digits import write_digits

    digits = write_digits(folder / "mnist-5k", Silent())
    return Task(digits.train, (), digits.test, digits.test_labels)


TASKS: dict[str, Callable[[Path, int], Task]] = {"elpv": elpv, "mnist": mnist}


def seen_by(run: Path, task: Task, views: int, larger: float | None, cache: Path) -> Seen:
    """Predict training, validation and test images with the network of a run."""
    model, card = load_model(run)
    held_out = Predictions.load(run / "valid.npz")
    label_column = dict(zip(task.words[::2], task.words[1::2], strict=True)).get("--label-column")
    labelled = opened(read_labelled(task.train, label_column=label_column), card, cache)
    test = opened(read_unlabelled(task.test), card, cache)
    chosen = many_views(card.policy, views, larger=larger)
    held = np.isin(labelled.images.ids, held_out.ids)
    if labelled.images.classes != card.classes or held.sum() != len(held_out):
        raise SystemExit(f"the images of {run} are not those of {task.train}")

    def shown(data: Dataset, rows: np.ndarray, through: Sequence, labels: np.ndarray | None) -> Predictions:
        ids = [data.images.ids[row] for row in rows]
        return predict(model, card, data.build.store.gather, rows, ids, progress=Silent(), views=through, labels=labels)

    rows = np.arange(len(test))
    shown(test, rows, [IDENTITY], None)  # from now on all is warm
    moments = [time.perf_counter()]
    for through in ([IDENTITY], chosen):
        on_test = shown(test, rows, through, None)
        moments.append(time.perf_counter())
    one, many = np.diff(moments)
    valid_rows, train_rows = np.flatnonzero(held), np.flatnonzero(~held)
    return Seen(
        shown(labelled, train_rows, [IDENTITY], labelled.labels[train_rows]),
        shown(labelled, valid_rows, chosen, labelled.labels[valid_rows]),
        on_test,
        float(many / len(on_test.logits) / one),
    )


def opened(images: ImageSet, card, cache: Path) -> Dataset:
    """Store the images as the model wants them."""
    shape = card.preprocessing
    surveyed = replace(survey(images, Silent()), channels=shape.channels)
    return open_dataset(
        images, surveyed, shape.stored_size, fit=shape.fit, cache=cache, progress=Silent(), warn=lambda text: None
    )


def refined(network: Seen, head: Seen, seed: int) -> Iterator[tuple[str, Predictions, Predictions, str]]:
    """Yield arm, test predictions before and after, and what was fitted."""
    valid, test = plain_view(network.valid), plain_view(network.test)
    train = (network.train.features, network.train.labels, network.train.ids)
    yield "TTA", test, network.test, f"mean of {len(network.test.logits)} views"
    knn = KNN(*train).fit(valid)
    yield "kNN", test, knn.transform(test), knn.described
    last = LastLayer(*train, prior=None, seed=seed).fit(valid, test)
    yield "last layer", test, last.transform(test), last.described
    models = plain_view(head.valid), valid
    better = int(np.argmax([metric_named("accuracy").value(one.log_probabilities(), one.labels) for one in models]))
    tests = plain_view(head.test), test
    ensemble = Ensemble("auto", "accuracy", seed=seed).fit(models)
    yield "blend of two models", tests[better], ensemble.transform(tests), ensemble.described
    chain = Chain(standard_steps(network.valid, train=network.train, seed=seed), seed=seed)
    chain.fit(network.valid, without_labels(network.test))
    after = chain.transform(network.test)
    yield "whole chain", test, after, chain.described
    both = Ensemble("mean").fit([models[0], chain.transform(network.valid)])
    yield "chain, then blend", test, both.transform([tests[0], after]), both.described


def measure(name: str, seed: int, given: argparse.Namespace, cache: Path) -> tuple[dict[str, tuple], float]:
    """Train both models of a seed; return (gain in accuracy, in log loss) of each arm and the cost of a view."""
    with tempfile.TemporaryDirectory() as folder_name:
        folder = Path(folder_name)
        task = TASKS[name](folder, seed)
        models = []
        for recipe, changes in (("default", given.settings), ("quick", [])):
            words = ["fit", str(task.train), *task.words, "--recipe", recipe, "--seed", str(seed)]
            done = run_etude([*words, *(f"--set={each}" for each in changes)], folder / recipe, cache)
            models.append(seen_by(done.folder, task, given.views, given.larger, cache))
    network, head = models
    if network.valid.ids != head.valid.ids or network.test.ids != head.test.ids:
        raise SystemExit("both models must have the same validation and test images")
    labels = np.array([network.test.classes.index(task.truth[one]) for one in network.test.ids])
    gains: dict[str, tuple] = {}
    for arm, before, after, described in refined(network, head, seed):
        both = [metric_named(metric) for metric in ("accuracy", "log_loss")]
        values = [[one.value(side.log_probabilities(), labels) for side in (before, after)] for one in both]
        gains[arm] = tuple(one.sign * (new - old) for one, (old, new) in zip(both, values, strict=True))
        print(
            f"{name} seed {seed} {arm:20} accuracy {values[0][0]:.2%} -> {values[0][1]:.2%}, "
            f"log loss {values[1][0]:.4f} -> {values[1][1]:.4f}; {described}",
            flush=True,
        )
    return gains, network.cost


def summary(name: str, gains: Sequence[dict[str, tuple]]) -> None:
    """Print mean and interval of each arm's gains."""
    print(f"\n{name}, n={len(gains)} seeds, gain on test images: mean [95% interval] ± sd over seeds")
    for arm in ARMS:
        cells = []
        for column, form, scale in ((0, "+.2f", 100.0), (1, "+.4f", 1.0)):
            values = np.array([run[arm][column] for run in gains]) * scale
            reach = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values) if len(values) > 1 else np.nan
            interval = f"[{values.mean() - reach:{form}}, {values.mean() + reach:{form}}]"
            cells.append(f"{values.mean():{form}} {interval} ± {values.std(ddof=1) if len(values) > 1 else 0:.4g}")
        print(f"{arm:20} accuracy {cells[0]} points, log loss {cells[1]}")


def main() -> None:
    """Print one line an arm and seed, and a table for each data set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--views", type=int, default=10)
    parser.add_argument("--larger", type=float, help="one of the views has an input larger by this factor")
    parser.add_argument("--set", action="append", default=[], dest="settings", help="of the fine-tuned network")
    given = parser.parse_args()
    for name in given.data:
        with tempfile.TemporaryDirectory() as cache:
            runs = [measure(name, seed, given, Path(cache)) for seed in range(given.seeds)]
        summary(name, [gains for gains, _ in runs])
        print(f"a view of {given.views} costs {spread([cost for _, cost in runs], '.3f')} plain passes; {machine()}")


if __name__ == "__main__":
    main()
