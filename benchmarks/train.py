"""Test accuracy against wall time on ELPV: etude beside fastai and a plain Lightning loop, same weights, same machine.

    make bench-train                                         # 3 seeds of each; about 30 minutes a seed on two cores
    make bench-train ARGS='--seeds 1 --peers etude,fastai'

All start from the same EfficientNet-Lite0 weights and the same 1968 labelled cells (label: probability >= .5), 224 px,
and predict the same 656 test cells. Each run is a process of its own.

- etude: whole commands, the start of Python and the predictions included: `quick`, then `default` at 3 and 8 epochs.
- fastai: `vision_learner(...).fine_tune(5)` as its docs' vision tutorial has it: 20% validation, `Resize(224)`,
  `aug_transforms()`, batches of 64, its timm path with the weights above.
- lightning: a DataLoader with two workers (Pillow decode, resize, flips, affine and colour jitter by torchvision),
  AdamW 1e-3, one cycle, 5 epochs, the whole network, 20% validation.

For the peers the clock runs from before the imports to the end of an epoch and stands still while test images are
predicted, so a point is what they would have had if they had stopped there. Test labels are read here only.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import elpv
from common import machine, run_etude, spread
from etude.core.predictions import Predictions
from peers.environments import VARIABLES, environment

PEERS = ("etude", "fastai", "lightning")
Point = tuple[float, float]  # (seconds, test accuracy)


def etude_points(folder: Path, seed: int) -> list[Point]:
    """Return a point for each whole command, each with an empty cache."""
    train, test, truth = elpv.write_split(folder, seed, "half")
    points: list[Point] = []
    for number, settings in enumerate(([], ["train.epochs=3"], ["train.epochs=8"])):
        recipe = "default" if settings else "quick"
        arguments = ["fit", str(train), "--test", str(test), "--recipe", recipe, "--seed", str(seed)]
        arguments += ["--label-column", "label", *(f"--set={each}" for each in settings)]
        done = run_etude(arguments, folder / f"run-{number}", folder / f"cache-{number}")
        predicted = Predictions.load(done.folder / "test.npz")
        names = [predicted.classes[row] for row in predicted.predicted()]
        right = [name == elpv.NAMES[truth[id][0]] for id, name in zip(predicted.ids, names, strict=True)]
        points.append((done.seconds, float(np.mean(right))))
    return points


def peer_points(peer: str, folder: Path, seed: int) -> list[Point]:
    """Train a peer in a process of its own; return a point for each epoch."""
    train, _, truth = elpv.write_split(folder, seed, "half")
    (folder / "truth.json").write_text(json.dumps({name: label for name, (label, _) in truth.items()}))
    script = Path(__file__).with_name(f"train_{peer}.py")
    weights = folder / "lite0.safetensors"
    write_weights(weights)
    points = folder / "points.json"
    words = [str(train), str(folder / "truth.json"), str(weights), str(seed), str(points)]
    python = environment(peer).python if peer == "fastai" else sys.executable  # its pins are not etude's
    subprocess.run([str(python), str(script), *words], check=True, env={**os.environ, **VARIABLES})
    return [(seconds, accuracy) for seconds, accuracy in json.loads(points.read_text())]


def write_weights(path: Path) -> None:
    """Write the bundled weights under timm's names."""
    import etude.compat  # noqa: F401

    from safetensors.torch import save_file

    from etude.models.backbones import bundled_lite

    save_file({name: tensor.contiguous() for name, tensor in bundled_lite().items()}, path)


def tell(results: dict[str, list[list[Point]]]) -> None:
    """Print every point's mean over the seeds, and the two ratios that compare etude with each peer."""
    print("\n| tool | point | seconds | test accuracy |\n|---|---|---|---|")
    mean: dict[str, list[Point]] = {}
    for tool, runs in results.items():
        mean[tool] = []
        for number, points in enumerate(zip(*runs, strict=True), 1):
            seconds, right = [point[0] for point in points], [point[1] for point in points]
            mean[tool].append((statistics.mean(seconds), statistics.mean(right)))
            print(f"| {tool} | {number} | {spread(seconds, '.0f')} | {spread(right)} |")
    for peer in set(mean) - {"etude"} if "etude" in mean else ():
        end, final = mean[peer][-1]
        reached = min((seconds for seconds, right in mean["etude"] if right >= final), default=float("nan"))
        best = max((right for seconds, right in mean["etude"] if seconds <= end), default=float("nan"))
        print(f"{peer}: {final:.2%} after {end:.0f} s; etude reaches that in {reached:.0f} s (1/{end / reached:.1f}),")
        print(f"  and has {(best - final) * 100:+.1f} points at equal time")


def draw(results: dict[str, list[list[Point]]], path: Path) -> None:
    """Draw all runs: test accuracy against seconds, on a logarithmic axis."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7.5, 4.2), layout="constrained")
    colours = dict(zip(PEERS, ("#0072b2", "#d55e00", "#777777"), strict=True))
    for tool, runs in results.items():
        for number, points in enumerate(runs):
            seconds, right = zip(*points, strict=True)
            label = f"{tool} (n={len(runs)})" if number == 0 else None
            axes.plot(seconds, [100 * one for one in right], "o-", color=colours[tool], alpha=0.75, ms=4, label=label)
    axes.set(xscale="log", xlabel="seconds of wall time", ylabel="test accuracy in %")
    axes.set_title("ELPV, EfficientNet-Lite0 at 224 px: one line a seed", loc="left", fontsize=10)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, loc="lower right")
    figure.savefig(path, dpi=150)
    print(f"drawn: {path}")


def main() -> None:
    """Run all peers over all seeds and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--peers", default=",".join(PEERS))
    parser.add_argument("--keep", type=Path, help="a JSON file of points: those in it are not measured again")
    parser.add_argument("--plot", type=Path, help="where to draw the curves, .png")
    given = parser.parse_args()
    known: dict[str, Any] = json.loads(given.keep.read_text()) if given.keep and given.keep.exists() else {}
    for seed in range(given.seeds):
        for tool in given.peers.split(","):
            if f"{tool}-{seed}" in known:
                continue
            with tempfile.TemporaryDirectory() as name:
                folder = Path(name)
                points = etude_points(folder, seed) if tool == "etude" else peer_points(tool, folder, seed)
            known[f"{tool}-{seed}"] = points
            told = ", ".join(f"{seconds:.0f} s {right:.2%}" for seconds, right in points)
            print(f"seed {seed} {tool}: {told}", flush=True)
            if given.keep:
                given.keep.write_text(json.dumps(known))
    results = {tool: [known[f"{tool}-{seed}"] for seed in range(given.seeds)] for tool in given.peers.split(",")}
    print(f"\nELPV, 656 test cells, n={given.seeds} seeds, {machine()}")
    tell(results)
    if given.plot:
        draw(results, given.plot)


if __name__ == "__main__":
    main()
