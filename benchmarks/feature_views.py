"""Epochs on frozen features against full forward epochs, and what a head gains from augmented views of its images.

    make bench-feature-views                                    # ELPV, seeds 0-4, views 1, 2, 4, 8; then the epochs
    make bench-feature-views ARGS='--seeds 2 --views 1,8 --keep /tmp/views'
    make bench-feature-views ARGS='--seeds 0'                   # the epochs alone

Views: the recipe `quick` (a linear head on frozen EfficientNet-Lite0 at 224 px) is fitted on V views of each training
image, the first as it is, the others augmented in full by the policy that the images allow. All runs of a seed share
stored images and cached views, so V views cost what the runs up to V have computed together. Validation decides what
becomes a default; test labels are read here, at the end, and only reported.

Epochs: an epoch on features is one shuffled pass of forward and backward of the linear head over the cached float16
features, turned into float32 once, in batches of 256. A full forward epoch is EfficientNet-Lite0 (batch norm folded,
in the numeric mode that etude takes here) over the same images at 224 px, from `--images` of them. Both are timed in
turns.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import etude.compat  # noqa: F401  (before timm)

import numpy as np
import torch
from torch import nn

import elpv
from common import machine, spread

SIZE = 224
BATCH = 256


def measure(folder: Path, seed: int, views: int, tables: tuple[Path, Path, dict[str, tuple[int, float]]]) -> dict:
    """Fit the head on that many views; return scores, and the seconds of the stages."""
    import etude
    from etude.core.predictions import Predictions

    out = folder / f"run-{seed}-{views}"
    figures = folder / f"run-{seed}-{views}.json"
    if figures.is_file():
        return json.loads(figures.read_text())
    train, test, truth = tables
    etude.fit(
        train, test=test, recipe="quick", settings={"head.views": views}, seed=seed, out=out, cache=folder / "cache",
        label_column="label", weight_column="weight", quiet=True,
    )  # fmt: skip
    record = json.loads((out / "run.json").read_text())
    seconds = {stage["name"]: stage["seconds"] for stage in record["stages"]}
    scores = next(stage["scores"] for stage in record["stages"] if stage["name"] == "head")
    predicted = Predictions.load(out / "test.npz")
    labels = np.array([predicted.classes.index(elpv.NAMES[truth[name][0]]) for name in predicted.ids])
    found = {
        "validation": scores["accuracy"],
        "validation log loss": scores["log_loss"],
        "test, plain view": float((predicted.logits[0].argmax(1) == labels).mean()),
        "test, averaged": float((predicted.predicted() == labels).mean()),
        "views seconds": seconds.get("views", 0.0),
        "head seconds": seconds["head"],
        "policy": record["augmentation"]["policy"],
    }
    figures.write_text(json.dumps(found))
    return found


def compare_views(folder: Path, seeds: int, counts: list[int]) -> None:
    """Print a line a run, and a table of means, spreads and the paired difference of the first count."""
    results: dict[int, list[dict]] = {views: [] for views in counts}
    for seed in range(seeds):
        place = folder / f"elpv-{seed}"
        place.mkdir(parents=True, exist_ok=True)
        tables = elpv.write_split(place, seed, "half")
        for views in counts:
            results[views].append(measure(folder, seed, views, tables))
            print(f"seed {seed}, {views} views: {results[views][-1]}", flush=True)
    print(f"\nELPV, head on frozen EfficientNet-Lite0 at {SIZE} px, n={seeds} seeds, {machine()}\n")
    print(
        "| views | validation | val. log loss | against the first | test, plain | test, averaged | views s | head s |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for place, (views, runs) in enumerate(results.items()):
        upto = [sum(results[count][seed]["views seconds"] for count in counts[: place + 1]) for seed in range(seeds)]
        cells = [
            spread([run["validation"] for run in runs]),
            spread([run["validation log loss"] for run in runs], ".4f"),
        ]
        cells.append(against(runs, results[counts[0]]) if place else "")
        cells += [spread([run[key] for run in runs]) for key in ("test, plain view", "test, averaged")]
        cells += [spread(upto, ".1f"), spread([run["head seconds"] for run in runs], ".1f")]
        print(f"| {views} | " + " | ".join(cells) + " |")


def against(runs: list[dict], base: list[dict]) -> str:
    """Return the mean paired difference of the validation log loss, with its standard error."""
    differences = [
        one["validation log loss"] - other["validation log loss"] for one, other in zip(runs, base, strict=True)
    ]
    error = statistics.stdev(differences) / len(differences) ** 0.5 if len(differences) > 1 else 0.0
    return f"{statistics.mean(differences):+.4f} ± {error:.4f}"


def read_images(count: int) -> np.ndarray:
    """Return the first cells, uint8 (count, 224, 224, 1)."""
    from etude.data.decode import decode

    paths, _, _ = elpv.read_cells()
    return np.stack([decode((elpv.ROOT / path).read_bytes(), SIZE, "squash", 1) for path in paths[:count]])


def features_epoch(features: np.ndarray, labels: torch.Tensor) -> float:
    """Return the seconds of one shuffled pass of forward and backward of a linear head, the median of nine."""
    values = torch.from_numpy(features).float()
    head = nn.Linear(values.shape[1], 2)
    seconds: list[float] = []
    for _ in range(9):  # one takes a few hundredths of a second
        start = time.perf_counter()
        order = torch.randperm(len(values))
        for begin in range(0, len(order), BATCH):
            chosen = order[begin : begin + BATCH]
            loss = nn.functional.cross_entropy(head(values[chosen]), labels[chosen])
            head.zero_grad(set_to_none=True)
            loss.backward()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def compare_epochs(images: int, repeats: int) -> None:
    """Print the seconds of both kinds of epoch over all cells, and their ratio."""
    from etude.models.backbones import build_backbone, with_levels
    from etude.models.classifier import Preprocessing
    from etude.models.device import best_device, choose_precision, keep_large_blocks
    from etude.models.features import extract_features
    from etude.models.optimize import fold_batchnorm
    from etude.recipe import load_recipe

    keep_large_blocks()
    pixels, total = read_images(images), len(elpv.read_cells()[0])
    backbone = build_backbone("tf_efficientnet_lite0", "bundled")
    fold_batchnorm(backbone.module, backbone.probe())
    pooled, precision = (
        with_levels(backbone, load_recipe("quick").model.levels),
        choose_precision("auto", best_device()),
    )
    shape = Preprocessing(SIZE, SIZE, "squash", 1, 3, backbone.mean, backbone.std)

    def forward(module: nn.Module) -> tuple[np.ndarray, float]:
        start = time.perf_counter()
        rows = np.arange(len(pixels))
        found = extract_features(
            module.to(best_device()), lambda rows, size: pixels[rows], rows, shape,
            precision=precision,
        )  # fmt: skip
        return found, (time.perf_counter() - start) / len(pixels) * total

    features = np.resize(
        forward(pooled.module)[0], (total, pooled.num_features)
    )  # repeated: time does not depend on it
    labels = torch.randint(0, 2, (total,))
    features_epoch(features, labels)
    pairs = [(forward(backbone.module)[1], features_epoch(features, labels)) for _ in range(repeats)]
    ratios = sorted(full / short for full, short in pairs)
    full, short = (statistics.median(seconds) for seconds in zip(*pairs, strict=True))
    print(f"\nEpoch over {total:,} images, n={repeats}, medians, {machine()}")
    print(f"full forward, EfficientNet-Lite0, {SIZE} px, {precision}, from {len(pixels)} images: {full:.2f} s")
    print(f"linear head on {features.shape[1]:,} cached features, forward and backward: {short * 1e3:.2f} ms")
    verdict = "holds" if statistics.median(ratios) >= 500 else "MISSED"
    print(f"ratio {statistics.median(ratios):,.0f} ({ratios[0]:,.0f}-{ratios[-1]:,.0f}); at least 500: {verdict}")


def main() -> None:
    """Compare the views, then the epochs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="0 leaves the comparison of views out")
    parser.add_argument("--views", default="1,2,4,8", help="numbers of views, separated by commas, rising")
    parser.add_argument("--images", type=int, default=256, help="images that a full forward epoch is timed over")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--keep", type=Path, help="folder for runs and caches; by default a temporary one")
    given = parser.parse_args()
    if given.seeds:
        with tempfile.TemporaryDirectory() as nowhere:
            compare_views(
                (given.keep or Path(nowhere)).resolve(), given.seeds, sorted(map(int, given.views.split(",")))
            )
    compare_epochs(given.images, given.repeats)


if __name__ == "__main__":
    main()
