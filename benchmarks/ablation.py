"""Every timeline and every trick against `default`, one change at a time, on MNIST-5k or ELPV, with test scores.

    make bench-ablation                                             # MNIST-5k, 5 seeds
    make bench-ablation ARGS='--data elpv --seeds 3'
    make bench-ablation ARGS='--data elpv --arms default,progressive --seeds 3 --epochs 8'

For the tricks of a recipe on any images there is `etude ablate`, by whose machinery these runs are made. Here are more
arms (every preset, several lengths), and the test labels are read at the end, and only reported: validation decides
what becomes a default. All arms of a seed share split, stored images and frozen features. Epochs are equal; where an
arm's epochs are cheaper, "(equal time)" gives it more of them. Seconds are those of fine-tuning alone. Finished runs
are kept in `--keep` and not run again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import ablation_arms
import elpv
from common import machine, spread
from etude.core.context import Silent
from etude.core.metrics import accuracy
from etude.core.paired import compare, paired_metric
from etude.core.predictions import Predictions
from etude.data.digits import write_digits
from etude.journal.record import RunRecord
from etude.journal.screen import Screen
from etude.recipe import load_recipe
from etude.study.ablation.design import Design
from etude.study.ablation.runs import AblationPlan, ArmRun, Division, Runs
from etude.study.run.request import Request
from etude.study.run.session import Session

DECIDES = paired_metric("log_loss")


class Inputs(NamedTuple):
    """Images of one seed, and the test labels for the report alone."""

    train: Path
    test: Path
    truth: dict[str, str]


class Scores(NamedTuple):
    """One run: validation, test accuracy, and seconds of fine-tuning."""

    run: ArmRun
    test: float
    seconds: float


def inputs_of(data: str, folder: Path, seed: int) -> Inputs:
    """Write the images of a seed: the split of MNIST-5k is fixed, that of ELPV is by the rule `half` and the seed."""
    if data == "mnist":
        digits = write_digits(folder / "mnist", Silent())
        return Inputs(digits.train, digits.test, digits.test_labels)
    place = folder / f"elpv-{seed}"
    place.mkdir(parents=True, exist_ok=True)
    train, test, truth = elpv.write_split(place, seed, "half")
    return Inputs(train, test, {name: elpv.NAMES[label] for name, (label, _) in truth.items()})


def run_seed(given: argparse.Namespace, folder: Path, design: Design, seed: int) -> dict[str, Scores]:
    """Run every arm on one seed, in a folder of its own."""
    inputs = inputs_of(given.data, folder, seed)
    common = {**ablation_arms.COMMON[given.data], "train.epochs": given.epochs}
    common |= {"timeline.final_size": given.size, "model.feature_size": given.size} if given.size else {}
    out = folder / f"{given.data}-{given.epochs:g}{f'-{given.size}px' if given.size else ''}-seed-{seed}"
    record = RunRecord.open(
        out, command=["benchmarks/ablation.py"], recipe="default", settings=common, changed={}, seed=seed,
        resume=out.is_dir(), kind="ablate",
    )  # fmt: skip
    columns = {"label_column": "label"} if given.data == "elpv" else {}
    request = Request(
        inputs.train, test=inputs.test, settings=common, cache=folder / f"cache-{given.data}",
        **columns,
    )  # fmt: skip
    plan = AblationPlan(load_recipe("default"), (), "leave-one-out", DECIDES, design, Division(1), {})
    done = Runs(Session(request, record, Screen()), plan).over([seed])
    record.close("finished")
    return {name: scores(out / "arms" / name / f"seed-{seed}", runs[0], inputs.truth) for name, runs in done.items()}


def scores(run: Path, read: ArmRun, truth: dict[str, str]) -> Scores:
    """Return the scores of a finished run."""
    test = Predictions.load(run / "test.npz")
    labels = [test.classes.index(truth[name]) for name in test.ids]
    stages = json.loads((run / "run.json").read_text(encoding="utf-8"))["stages"]
    seconds = next(stage["seconds"] for stage in stages if stage["name"] == "fine-tune")
    return Scores(read, accuracy(test.predicted(), labels), seconds)


def table(results: dict[str, list[Scores]]) -> str:
    """Return a Markdown table: means, spreads, and the paired gain in log loss over `default` with its 95% interval."""
    rows = ["| arm | validation | val. log loss | gain over default | test | seconds |", "|---|---|---|---|---|---|"]
    base = [one.run.scored for one in results.get("default", [])]
    for arm, runs in results.items():
        against = ""
        if arm != "default" and len(base) == len(runs) > 1:
            found = compare(base, [one.run.scored for one in runs])
            against = f"{found.gain:+.4f} ({' to '.join(f'{end:+.4f}' for end in found.interval() or ())})"
        cells = [spread([one.run.accuracy for one in runs]), spread([one.run.log_loss for one in runs], ".4f"), against]
        cells += [spread([one.test for one in runs]), f"{statistics.mean(one.seconds for one in runs):.0f}"]
        rows.append(f"| {arm} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def collected(by_seed: Sequence[dict[str, Scores]]) -> dict[str, list[Scores]]:
    """Return the runs of each arm over the seeds."""
    return {arm: [scored[arm] for scored in by_seed if arm in scored] for arm in by_seed[0]}


def main() -> None:
    """Run all arms over all seeds, seed by seed, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=["mnist", "elpv"], default="mnist")
    parser.add_argument("--arms", help="names, separated by commas; by default all")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=float, help="of `default`; 8 for MNIST-5k, 4 for ELPV")
    parser.add_argument("--size", type=int, help="pixels; by default the network's own")
    parser.add_argument("--keep", type=Path, help="folder for the runs; by default a temporary one")
    given = parser.parse_args()
    given.epochs = given.epochs or {"mnist": 8.0, "elpv": 4.0}[given.data]
    design = ablation_arms.design_of(given.data, given.epochs, given.arms.split(",") if given.arms else None)
    with tempfile.TemporaryDirectory() as nowhere:
        folder = (given.keep or Path(nowhere)).resolve()
        by_seed = [run_seed(given, folder, design, seed) for seed in range(given.seeds)]
    pixels = f", {given.size} px" if given.size else ""
    print(f"\n{given.data}{pixels}, {given.epochs:g} epochs, n={given.seeds} seeds, {machine()}\n")
    print(table(collected(by_seed)))


if __name__ == "__main__":
    main()
