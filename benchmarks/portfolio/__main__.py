"""Every recipe and peer on every task of the portfolio, over seeds, in one table.

    make bench-portfolio ARGS='--keep portfolio.json'          # goes on where it was stopped
    make bench-portfolio ARGS='--tasks clip-art icons --methods quick default --seeds 3'
    make bench-portfolio ARGS='--tasks mnist-few digits-few fashion-few cells-few clip-art-few icons-few --methods quick
                               quick+unlabelled'                # ten labels a class, and images without labels
    make bench-portfolio ARGS='--methods 1m 5m 15m 30m'        # etude fit --budget
    make bench-portfolio ARGS='--methods 1m 5m fastai timm'    # with other tools: see benchmarks/peers
    make bench-portfolio ARGS='--list'                         # tasks, with their numbers of images and classes

Test labels are read after a method has ended, by this file alone. Features and stores are never shared between runs, so
that seconds are those of a first run.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from queue import Queue

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from common import machine, spread
from portfolio.methods import METHODS, PEER_METHODS, Failed, Figures
from portfolio.tasks import FEW, TASKS, TRIAL, write_tables
from refine_common import Kept, with_interval

DATA = Path.home() / ".cache" / "etude-portfolio"
EVERY = TASKS | FEW | TRIAL


def measure(task: str, method: str, seed: int, data: Path, settings: list[str]) -> Figures:
    """Train and predict in a fresh folder."""
    drawn = EVERY[task].draw(data, seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        return METHODS[method](write_tables(drawn, folder), drawn.test, folder, seed, settings)


def table(title: str, results: dict[str, dict[str, list[Figures]]], figure: str, form: str) -> None:
    """Print mean ± standard deviation over seeds, a line for each task and a column for each method."""
    methods = list(dict.fromkeys(method for runs in results.values() for method in runs))
    print(f"\n{title}\n\n| task | n | " + " | ".join(methods) + " |\n" + "|---" * (len(methods) + 2) + "|")
    for task, runs in results.items():
        found = {one: [run[figure] for run in of if figure in run] for one, of in runs.items()}
        cells = [spread(found[one], form) if found.get(one) else "" for one in methods]
        print(f"| {task} | {min(map(len, runs.values()), default=0)} | " + " | ".join(cells) + " |")


def compare(results: dict[str, dict[str, list[Figures]]], methods: Sequence[str]) -> None:
    """Print the points that each method gains over the first, a task and on average, and the ratio of errors."""
    first = methods[0]
    for method in methods[1:]:
        right = {
            task: [np.array([run["accuracy"] for run in runs[one]]) for one in (first, method)]
            for task, runs in results.items()
            if first in runs and method in runs
        }
        if not right:
            continue
        gains = {task: 100 * (after - before) for task, (before, after) in right.items()}
        print(f"\n{method} against {first}, points of accuracy: mean [95% interval] ± standard deviation over seeds\n")
        for task, gain in gains.items():
            ratio = (1 - right[task][1].mean()) / max(1 - right[task][0].mean(), 1e-9)
            print(f"- {task}: {with_interval(gain.tolist(), '+.2f')}, errors × {ratio:.2f}")
        means = {task: float(gain.mean()) for task, gain in gains.items()}
        errors = np.mean([(1 - b.mean()) / max(1 - a.mean(), 1e-9) for a, b in right.values()])
        worst = min(means, key=means.__getitem__)
        print(
            f"- mean of {len(means)} tasks: {np.mean(list(means.values())):+.2f}, worst {means[worst]:+.2f} ({worst}); "
            f"errors × {errors:.2f}"
        )


def plans(results: dict[str, dict[str, list[Figures]]]) -> None:
    """Print how often the plan's time held within a factor of 1.5, and how much time stands in no stage."""
    runs = [run for by_method in results.values() for of in by_method.values() for run in of if "planned" in run]
    if runs:
        ratios = np.array([run["taken"] / run["planned"] for run in runs])
        held = float(((ratios < 1.5) & (ratios > 1 / 1.5)).mean())
        outside = max(run["in no stage"] / run["seconds"] for run in runs)
        print(f"plan within a factor of 1.5 in {held:.0%} of {len(runs)} runs; in no stage at most {outside:.1%}")


def budgets(results: dict[str, dict[str, list[Figures]]]) -> None:
    """Print how many runs with a budget ended in time, and every one that took over 5% and over 30 seconds more."""
    named = [(f"{task} {name}", run) for task, by in results.items() for name, runs in by.items() for run in runs]
    limited = [(name, run["seconds"], run["budget"]) for name, run in named if "budget" in run]
    over = [(name, seconds, budget) for name, seconds, budget in limited if seconds - budget > max(30.0, 0.05 * budget)]
    if limited:
        listed = "".join(f"\n- {name}: {seconds:.0f} of {budget:.0f} s" for name, seconds, budget in over)
        print(f"in time: {len(limited) - len(over)} of {len(limited)} runs with a budget{listed}")


def against_peers(results: dict[str, dict[str, list[Figures]]]) -> None:
    """Print the best peer of each task, how soon etude is as accurate, and how it stands when as much time has passed.

    The peer is chosen by the test images, in its favour; "etude in that time" is its method that ended last by then.
    """
    lines: list[str] = []
    within: list[str] = []
    errors: list[float] = []
    for task, runs in results.items():
        points = {name: (mean(of, "seconds"), mean(of, "accuracy")) for name, of in runs.items()}
        peers = {name: point for name, point in points.items() if name in PEER_METHODS}
        ours = sorted(point for name, point in points.items() if name not in PEER_METHODS)
        if not peers or not ours:
            continue
        best = max(peers, key=lambda name: peers[name][1])
        end, final = peers[best]
        reached = min((seconds for seconds, right in ours if right >= final), default=None)
        cells = [f"{reached:.0f} s", f"× {reached / end:.2f}"] if reached else ["not", ""]
        before = [right for seconds, right in ours if seconds <= end][-1:]
        errors += [(1 - right) / max(1 - final, 1e-9) for right in before]
        cells += [f"{right:.1%} | × {errors[-1]:.2f}" for right in before] or [" | "]
        lines.append(f"| {task} | {best} | {final:.1%} | {end:.0f} s | " + " | ".join(cells) + " |")
        for name in runs:
            limit = runs[name][0].get("budget", 0.0)
            in_time = [peer for peer, (seconds, _) in peers.items() if seconds - limit <= max(30.0, 0.05 * limit)]
            if name not in PEER_METHODS and limit and in_time:
                rival = max(in_time, key=lambda peer: peers[peer][1])
                within.append(f"| {task} | {name} | {points[name][1]:.1%} | {peers[rival][1]:.1%} ({rival}) |")
    if lines:
        print("\n| task | best peer | accuracy | time | etude reaches it in | of that | etude in that time | errors |")
        print("|---" * 8 + "|", *lines, sep="\n")
        if errors:
            print(f"\nmean of {len(errors)} tasks, in the best peer's time: errors × {np.mean(errors):.2f}")
    if within:
        print("\n| task | budget | etude | best peer that ends in it |\n|---|---|---|---|", *within, sep="\n")


def mean(runs: list[Figures], figure: str) -> float:
    """Return the mean over seeds."""
    return float(np.mean([run[figure] for run in runs]))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is asked for and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(EVERY), metavar="TASK")
    parser.add_argument("--methods", nargs="+", default=["quick", "default", "logistic"], choices=list(METHODS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--set", action="append", default=[], dest="settings", help="a setting of etude's recipes")
    parser.add_argument("--keep", type=Path, help="JSON file of results, to go on from")
    parser.add_argument("--data", type=Path, default=DATA, help="folder where data sets are written")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, which share the cores evenly")
    parser.add_argument("--list", action="store_true")
    given = parser.parse_args(arguments)
    if given.list:
        for task in given.tasks:
            drawn = EVERY[task].draw(given.data, 0)
            print(
                f"{task}: {len(drawn.train)} to train on, {len(drawn.unlabelled)} without labels, {len(drawn.test)} to "
                f"test, {len(set(drawn.train.labels))} classes"
            )
        return
    changed = {name: [] if name in PEER_METHODS else given.settings for name in given.methods}
    wanted = [(seed, task, name) for seed in range(given.seeds) for task in given.tasks for name in given.methods]
    kept, cores = Kept(given.keep), sorted(os.sched_getaffinity(0))
    free = Queue[list[int]]()  # cores for each run
    for number in range(given.jobs):
        free.put(cores[number :: given.jobs])

    def of(job: tuple[int, str, str]) -> Figures:
        seed, task, name = job
        own = free.get()
        os.sched_setaffinity(0, own)  # of this thread, and of the processes that it starts
        make = partial(measure, task, name, seed, given.data, changed[name])
        try:
            return kept.of(", ".join([task, name, *changed[name], str(seed)]), make)
        except Failed as error:
            print(f"{task} {name} {seed} failed: {error}", flush=True)
            return {}
        finally:
            free.put(own)

    results: dict[str, dict[str, list[Figures]]] = {task: {name: [] for name in given.methods} for task in given.tasks}
    for task in given.tasks:  # drawn once, before threads ask for it
        EVERY[task].draw(given.data, 0)
    with ThreadPoolExecutor(given.jobs) as pool:
        for (seed, task, name), found in zip(wanted, pool.map(of, wanted), strict=True):
            if not found:
                results[task].pop(name, None)  # without one seed it is in no table
            elif name in results[task]:
                results[task][name].append(found)
                print(task, name, seed, {key: round(value, 4) for key, value in found.items()}, flush=True)
    share = f", {given.jobs} runs at a time, {len(cores) // given.jobs} core(s) each" if given.jobs > 1 else ""
    print(f"\nPortfolio, {given.seeds} seeds, {machine()}{share}")
    for title, figure, form in (
        ("Accuracy", "accuracy", ".1%"),
        ("Log loss", "log loss", ".3f"),
        ("Seconds", "seconds", ".0f"),
        ("Peak memory, GiB", "peak GiB", ".2f"),
    ):
        table(title, results, figure, form)
    compare(results, given.methods)
    against_peers(results)
    print()
    plans(results)
    budgets(results)


if __name__ == "__main__":
    main()
