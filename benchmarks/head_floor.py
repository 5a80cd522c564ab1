"""The least deviation that the linear head divides a feature by, chosen on development images of seven data sets.

    make bench-head-floor                               # 3 seeds, 120 and 360 training images: about 15 minutes
    make bench-head-floor ARGS='--keep /tmp/floor'      # features are computed once
    make bench-head-floor ARGS='--seeds 2 --sets digits,shapes --rows 120'

A feature that hardly varies among few training images can be far from their mean on a fresh one; divided by its tiny
deviation it then outweighs all others. A floor f divides by the deviation, but by no less than f times the median
deviation (`etude.core.standardise`); 0 is no floor.

Features are those of the recipe `quick` (EfficientNet-Lite0 at 224 px, with its levels). Each seed draws training
images, stratified; all other development images judge the head. Its regularisation is chosen by cross-validation, as
in a run. No test image is read: of MNIST-5k and Fashion-MNIST only training images are, and of ELPV only cells that
`bench-elpv` tests on with none of its seeds 0-4.

The chosen floor has the lowest log loss on average over data sets and training sizes.
Fashion-MNIST, clip art and icons come from the Debian packages dataset-fashion-mnist, openclipart-png and
oxygen-icon-theme; ELPV from the Python package elpv-dataset.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import etude.compat  # noqa: F401  (before timm)

import cv2
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from common import machine, spread
from digit_arrays import digit_arrays
from etude.core.context import Context
from etude.core.files import digest_of
from etude.core.metrics import metric_named
from etude.core.seeds import derive_seed, rng_for
from etude.core.standardise import FLOOR
from etude.data.decode import UnreadableImage, decode
from etude.models.backbones import BUNDLED_BACKBONE
from etude.models.classifier import Preprocessing
from etude.models.features import cached, extract_features
from etude.models.head import fit_head
from etude.recipe import load_recipe
from etude.study.run.frozen import build_frozen
from portfolio.sets import CLIP_ART, fashion_arrays, require
from refine_common import Kept

SIZE = 224
MOST = 900  # images of a data set
FLOORS = (0.0, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
ICONS = Path("/usr/share/icons/oxygen/base/64x64")

Images = tuple[np.ndarray, np.ndarray]
"""uint8 (N, 224, 224, 1 or 3), and int labels (N,)."""
Judged = dict[str, list[float]]
"""Accuracy and log loss by floor."""


def resized(pixels: np.ndarray) -> np.ndarray:
    """Return (N, H, W) grey images as uint8 (N, 224, 224, 1)."""
    return np.stack([cv2.resize(one, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC) for one in pixels])[..., None]


def some(labels: np.ndarray, name: str) -> np.ndarray:
    """Return at most MOST positions, drawn by the name of the data set."""
    return np.sort(rng_for(0, name).permutation(len(labels))[:MOST])


def mnist() -> Images:
    """Digits of the demo's training part."""
    digits = digit_arrays()
    rows = some(digits.labels, "mnist")
    return resized(digits.images[rows, :, :, 0]), digits.labels[rows]


def digits() -> Images:
    """The 8 × 8 digits of scikit-learn."""
    held = load_digits()
    rows = some(held.target, "digits")
    return resized(np.round(held.images[rows] * 255 / 16).astype(np.uint8)), held.target[rows]


def fashion() -> Images:
    """Training images of Fashion-MNIST."""
    pixels, labels = fashion_arrays("train")
    rows = some(labels, "fashion")
    return resized(pixels[rows]), labels[rows].astype(np.int64)


def elpv_cells() -> Images:
    """Cells that no seed from 0 to 4 of the ELPV benchmark tests on."""
    import elpv

    paths, probability, kinds = elpv.read_cells()
    strata = [f"{p:.2f} {kind}" for p, kind in zip(probability, kinds, strict=True)]
    free = set(range(len(paths)))
    for seed in range(5):
        free -= set(train_test_split(range(len(paths)), test_size=656, stratify=strata, random_state=seed)[1])
    rows = sorted(free)
    pixels = [decode((elpv.ROOT / paths[row]).read_bytes(), SIZE, "squash", 1) for row in rows]
    return np.stack(pixels), (probability[rows] >= 0.5).astype(np.int64)


def pictures_in(folder: Path, fewest: int, each: int, package: str) -> Images:
    """Colour pictures by folder, from those folders that hold ``fewest`` or more."""
    require(folder, package)
    pixels, labels = [], []
    for place in sorted(folder.iterdir()):
        files = [file for file in sorted(place.rglob("*.png")) if not file.is_symlink()]
        if len(files) < fewest:
            continue
        chosen = rng_for(0, place.name).permutation(len(files))[:each]
        name = len(set(labels))
        for row in np.sort(chosen):
            with contextlib.suppress(UnreadableImage):  # a few of the clip art are too large
                pixels.append(decode(files[row].read_bytes(), SIZE, "letterbox", 3))
                labels.append(name)
    return np.stack(pixels), np.array(labels)


def shapes() -> Images:
    """A bar across, a bar down or a box, faint on noise: made up."""
    rng, pixels, labels = rng_for(0, "shapes"), [], np.arange(600) % 3
    for kind in labels:
        image = rng.normal(120, 3, (48, 48))
        top, left = rng.integers(4, 28, 2)
        down, across = (slice(top, top + 12), slice(left, left + 12))
        image[slice(None) if kind == 1 else down, slice(None) if kind == 0 else across] += 12
        pixels.append(image.clip(0, 255).astype(np.uint8))
    return resized(np.stack(pixels)), labels


SETS: dict[str, Callable[[], Images]] = {
    "mnist": mnist,
    "fashion": fashion,
    "digits": digits,
    "elpv": elpv_cells,
    "clip-art": lambda: pictures_in(CLIP_ART, 130, 110, "openclipart-png"),
    "icons": lambda: pictures_in(ICONS, 45, 120, "oxygen-icon-theme"),
    "shapes": shapes,
}


def features_of(name: str, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return float16 features (N, D) and labels (N,) of a data set, computed once."""
    pixels, labels = SETS[name]()
    recipe = load_recipe("quick", [f"model.backbone={BUNDLED_BACKBONE}"])
    frozen = build_frozen(recipe, pixels.shape[3])
    assert frozen is not None
    backbone = frozen.backbone
    shape = Preprocessing(SIZE, SIZE, "squash", pixels.shape[3], 3, backbone.mean, backbone.std)
    made = lambda: extract_features(  # noqa: E731
        backbone.module, lambda rows, size: pixels[rows], np.arange(len(pixels)), shape, context=Context()
    )
    return cached(folder / f"{name}-{digest_of('floor', pixels.tobytes())}.npz", made, len(pixels))[0], labels


def judged(features: np.ndarray, labels: np.ndarray, rows: int, seed: int) -> Judged:
    """Return accuracy and log loss on the images not drawn for training, by floor."""
    train, rest = train_test_split(
        np.arange(len(labels)), train_size=rows, stratify=labels, random_state=derive_seed(seed, "floor") % 2**32
    )
    settings, classes = load_recipe("quick").head, int(labels.max()) + 1
    found: Judged = {}
    for floor in FLOORS:
        head = fit_head(
            features[train], labels[train], classes,
            candidates=settings.inverse_regularization, folds=settings.folds, context=Context(seed=seed), floor=floor,
        )  # fmt: skip
        logits = head.logits(features[rest]).astype(np.float64)
        log_p = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
        found[f"{floor:g}"] = [metric_named(name).value(log_p, labels[rest]) for name in ("accuracy", "log_loss")]
    return found


def table(title: str, results: dict[str, list[Judged]], which: int, form: str) -> None:
    """Print mean ± standard deviation over seeds, a line for each data set and number of training images."""
    print(f"\n{title}\n\n| data set, training images | n | " + " | ".join(f"{floor:g}" for floor in FLOORS) + " |")
    print("|---" * (len(FLOORS) + 2) + "|")
    for name, runs in results.items():
        cells = [spread([run[f"{floor:g}"][which] for run in runs], form) for floor in FLOORS]
        print(f"| {name} | {len(runs)} | " + " | ".join(cells) + " |")


def summary(results: dict[str, list[Judged]]) -> None:
    """Print the mean and the worst change against no floor, and the floor with the best mean log loss."""

    def means(floor: str, which: int) -> np.ndarray:
        return np.array([np.mean([run[floor][which] for run in runs]) for runs in results.values()])

    print("\n| floor | log loss less that without floor, mean | worst | accuracy gained, points, mean | worst |")
    print("|---|---|---|---|---|")
    names, mean = list(results), {}
    for floor in (f"{floor:g}" for floor in FLOORS):
        change, points = means(floor, 1) - means("0", 1), 100 * (means(floor, 0) - means("0", 0))
        mean[floor] = float(change.mean())
        worst, lowest = int(change.argmax()), int(points.argmin())
        cells = f"{mean[floor]:+.3f} | {change[worst]:+.3f} ({names[worst]}) | {points.mean():+.2f}"
        print(f"| {floor} | {cells} | {points[lowest]:+.2f} ({names[lowest]}) |")
    print(f"\nlowest mean log loss at floor {min(mean, key=mean.__getitem__)}; etude takes {FLOOR:g}")


def main() -> None:
    """Print both tables and the floor that they choose."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", default="120,360", help="training images, separated by commas")
    parser.add_argument("--sets", default=",".join(SETS), help=f"of {', '.join(SETS)}")
    parser.add_argument("--keep", type=Path, help="folder for features and results; by default a temporary one")
    given = parser.parse_args()
    results: dict[str, list[Judged]] = {}
    with tempfile.TemporaryDirectory() as nowhere:
        folder = given.keep or Path(nowhere)
        folder.mkdir(parents=True, exist_ok=True)
        kept = Kept(folder / "results.json")
        for name in given.sets.split(","):
            features, labels = features_of(name, folder)
            for rows in map(int, given.rows.split(",")):
                key = f"{name}, {rows} of {len(labels)}"
                results[key] = [
                    kept.of(f"{key}, {seed}", partial(judged, features, labels, rows, seed))
                    for seed in range(given.seeds)
                ]
                print(key, "done", flush=True)
    print(f"\nLinear head on frozen EfficientNet-Lite0, n={given.seeds} seeds, development images, {machine()}")
    table("Accuracy by floor", results, 0, ".1%")
    table("Log loss by floor", results, 1, ".3f")
    summary(results)


if __name__ == "__main__":
    main()
