"""The input path: does training wait for data, how fast is the store, does memory grow with the images?

    make bench-input                                   # all parts, n=5
    make bench-input ARGS='--parts store --repeats 9'

waits   Training steps with real batches (store, augmentation at full strength): the share of their time that the loop
        waits for the next batch, and steps a second against the same steps on one batch held in memory. EfficientNet-
        Lite0 at 128 and 224 px and the small network at 28 px; ResNet-50 at 224 px where there is a GPU. Blocks of both
        take turns (twice as many as `--repeats`); figures are medians over the blocks.
store   Images a second at 128 px from 1024 × 768 JPEGs: torch's DataLoader with two workers that decode by Pillow,
        resize and augment each image, against etude's store with the same augmentation. First epoch (decoding
        included) and later ones; both take turns.
memory  Peak of the memory that the process itself holds (without the operating system's file cache) while images are
        ingested and 300 steps of batches drawn, with 10,000 and 200,000 images; and that of the whole command
        `etude fit` on the same images, with the small network and as many steps.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "2000")  # as the etude command does, before torch loads OpenMP

import etude.compat  # noqa: F401  (before timm)

import cv2
import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from common import machine
from etude.core.context import Context, Silent
from etude.data.dataset import open_dataset
from etude.data.loader import StepBatches, TrainingRows
from etude.data.scan import scan_images
from etude.data.sources import read_labelled
from etude.functional.augment import augment, policy_named
from etude.models.backbones import build_backbone
from etude.models.classifier import Classifier, Preprocessing
from etude.models.device import best_device, choose_precision, keep_large_blocks
from etude.models.features import autocast
from etude.models.optimize import fold_batchnorm
from etude.timeline import Moment

BATCH = 32
POLICY = "photos"


def draw_images(folder: Path, count: int, width: int, height: int, suffix: str = "jpg") -> Path:
    """Write images of smooth shapes under noise, in two classes; return the folder."""
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)

    def write(number: int) -> None:
        rng = np.random.default_rng(number)
        coarse = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        image = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC).astype(np.int16)
        grain = cv2.resize(rng.integers(-40, 41, (height // 2, width // 2, 3)).astype(np.int16), (width, height))
        cv2.imwrite(
            str(folder / "ab"[number % 2] / f"{number:06d}.{suffix}"), np.clip(image + grain, 0, 255).astype(np.uint8)
        )

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(write, range(count)))
    return folder


def opened(folder: Path, cache: Path, size: int) -> Any:
    """Return the dataset of a folder, decoded at ``size``."""
    images = read_labelled(folder)
    return open_dataset(images, scan_images(images, Silent()), size, Context(Silent(), print, cache), fit="squash")


def batches_of(dataset: Any, size: int, steps: int, strength: float = 1.0, policy: str = POLICY) -> StepBatches:
    """Return the batches of a run at one size and strength."""
    rows = np.arange(len(dataset))
    store, chosen = dataset.build.store, policy_named(policy)
    moment = Moment(0.5, "grow", image_size=size, augment=strength)
    return StepBatches(
        TrainingRows(store.gather, rows, dataset.labels, dataset.weights, store.source_size,
            num_classes=len(dataset.images.classes),
        ),
        steps=steps, batch_size=BATCH, plan=lambda step: moment, context=Context(),
        augment=lambda images, strength, rng, size: augment(images, chosen, strength, rng, size),
    )  # fmt: skip


# Part 1: waiting


def trained(name: str, weights: str, channels: int, stored: Any, size: int) -> Callable[[Any], None]:
    """Return a function that takes one training step on a batch of the loader."""
    device = best_device()
    backbone = build_backbone(name, weights, channels)
    precision = choose_precision("auto", device)
    if name != "tiny":
        fold_batchnorm(backbone.module, backbone.probe())
    model = Classifier(backbone.module, backbone.num_features, 2).train(name == "tiny")
    model.to(device, memory_format=torch.channels_last)
    preprocessing = Preprocessing.of(backbone, stored, size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

    def step(batch: Any) -> None:
        images = batch["image"].to(device, non_blocking=True)
        with autocast(device, precision):
            logits = model(preprocessing.to_input(images))
        loss = torch.nn.functional.cross_entropy(logits.float(), batch["target"].to(device))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


def waits(folder: Path, repeats: int) -> None:
    """Print the share of the bare step's throughput that remains with real data."""
    print("\nTraining on real batches against one batch in memory (batches of 32)")
    print("| network | px | waiting | steps a second, real | in memory | ratio | lowest – highest |")
    print("|---|---|---|---|---|---|---|")
    jpegs = draw_images(folder / "waits", 400, 320, 240)
    cases = [("tiny", "none", 28, 60), ("tf_efficientnet_lite0", "bundled", 128, 6)]
    cases += [("tf_efficientnet_lite0", "bundled", 224, 3)]
    if torch.cuda.is_available():
        cases.append(("resnet50", "none", 224, 100))
    for name, weights, size, steps in cases:
        dataset = opened(jpegs, folder / "cache", 28 if size == 28 else 224)
        step = trained(name, weights, dataset.build.store.channels, dataset.build, size)
        policy = "digits" if name == "tiny" else POLICY
        batches = iter(batches_of(dataset, size, 10**6, policy=policy))
        held = next(batches)
        rates: dict[str, list[float]] = {"real": [], "held": []}
        blocks: dict[str, Iterator[Any]] = {"real": batches, "held": itertools.repeat(held)}
        waited: list[float] = []
        for round_number in range(2 * repeats + 1):
            for kind in ("real", "held") if round_number % 2 else ("held", "real"):
                speed, waiting = rate(blocks[kind], step, steps)
                rates[kind].append(speed)
                waited += [waiting] if kind == "real" else []
        del batches, blocks
        ratios = [real / bare for real, bare in zip(rates["real"][1:], rates["held"][1:], strict=True)]
        speeds = f"{statistics.median(rates['real'][1:]):.2f} | {statistics.median(rates['held'][1:]):.2f}"
        told = f"{statistics.median(ratios):.3f} | {min(ratios):.3f} – {max(ratios):.3f}"
        print(f"| {name} | {size} | {statistics.median(waited[1:]):.2%} | {speeds} | {told} |", flush=True)


def rate(batches: Iterator[Any], step: Callable[[Any], None], steps: int) -> tuple[float, float]:
    """Return steps a second over ``steps`` steps, and the share of the time that went into waiting for batches."""
    start, waited = time.perf_counter(), 0.0
    for _ in range(steps):
        asked = time.perf_counter()
        batch = next(batches)
        waited += time.perf_counter() - asked
        step(batch)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    return steps / seconds, waited / seconds


# Part 2: the store beside a DataLoader


class PillowImages(Dataset[tuple[torch.Tensor, int]]):
    """Images decoded by Pillow, resized and augmented one by one, as most projects do."""

    def __init__(self, folder: Path, size: int) -> None:
        self.paths, self.size = sorted(folder.rglob("*.jpg")), size

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        image = Image.open(self.paths[index]).convert("RGB").resize((self.size, self.size), Image.Resampling.BILINEAR)
        rng = np.random.default_rng((index, time.perf_counter_ns()))
        changed = augment(np.asarray(image)[None], policy_named(POLICY), 1.0, rng)[0]
        return torch.from_numpy(changed), int(self.paths[index].parent.name == "b")


def store_speed(folder: Path, repeats: int, count: int = 600) -> None:
    """Print images a second of both ways, and their ratios."""
    jpegs, size = draw_images(folder / "large", count, 1024, 768), 128
    loader: DataLoader[Any] = DataLoader(PillowImages(jpegs, size), BATCH, shuffle=True, num_workers=2)
    first, later, peer = [], [], []
    for number in range(repeats):
        start = time.perf_counter()
        seen = sum(len(batch[0]) for batch in loader)
        peer.append(seen / (time.perf_counter() - start))
        start = time.perf_counter()
        dataset = opened(jpegs, folder / f"cache-{number}", size)
        seen = drawn(dataset, size, -(-count // BATCH))
        first.append(seen / (time.perf_counter() - start))
        start = time.perf_counter()
        seen = drawn(dataset, size, 20 * count // BATCH)
        later.append(seen / (time.perf_counter() - start))
    print(f"\n{count} JPEGs of 1024 × 768 to {size} px, augmented (n={repeats}, medians of images a second)")
    ratio = [statistics.median(a / b for a, b in zip(ours, peer, strict=True)) for ours in (first, later)]
    print(f"DataLoader, Pillow, 2 workers {statistics.median(peer):,.0f}")
    print(f"store, first epoch            {statistics.median(first):,.0f}  ({ratio[0]:.2f} times)")
    print(f"store, later epochs           {statistics.median(later):,.0f}  ({ratio[1]:.1f} times)", flush=True)


def drawn(dataset: Any, size: int, steps: int) -> int:
    """Draw batches and return how many images they held."""
    return sum(len(batch["image"]) for batch in batches_of(dataset, size, steps))


# Part 3: memory


def peak_anonymous(count: int, folder: Path) -> float:
    """Ingest and draw batches; return the peak of this process's own memory in MiB. Run in a process of its own."""
    peak, done = 0.0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.02):
            peak = max(peak, anonymous("self"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    dataset = opened(folder, folder.parent / f"cache-{count}", 32)
    drawn(dataset, 32, 300)
    done.set()
    watcher.join()
    return peak


def anonymous(process: int | str) -> float:
    """Return the memory that a process itself holds now, in MiB; nothing once it has ended."""
    lines = Path(f"/proc/{process}/status").read_text().split("RssAnon:")
    return int(lines[1].split()[0]) / 1024 if len(lines) > 1 else 0.0


def peak_of_command(images: Path, folder: Path) -> float:
    """Return the peak of the memory that `etude fit` itself holds, in MiB."""
    settings = ["model.backbone=tiny", "model.weights=none", "stages=finetune", "timeline.length=300st"]
    command = [sys.executable, "-m", "etude", "fit", str(images), "--out", str(folder / "run"), "--quiet"]
    command += [f"--set={setting}" for setting in (*settings, "predict.tta=1")]
    peak, run = 0.0, subprocess.Popen(command, env={**os.environ, "ETUDE_CACHE": str(folder / "cache")})
    while run.poll() is None:
        peak = max(peak, anonymous(run.pid))
        time.sleep(0.02)
    if run.returncode:
        sys.exit(f"{' '.join(command)} ended with code {run.returncode}")
    return peak


def memory(folder: Path) -> None:
    """Print the peaks of both sizes, each measured in a process of its own."""
    print("\nPeak memory of ingest and 300 steps, 32 px; of the whole command")
    for count in (10_000, 200_000):
        images = draw_images(folder / f"many-{count}", count, 32, 32, "png")
        words = [sys.executable, __file__, "--peak", str(count), str(images)]
        found = subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip().splitlines()[-1]
        whole = peak_of_command(images, folder / f"command-{count}")
        print(f"{count:,} images: {float(found):.0f} MiB; {whole:.0f} MiB", flush=True)


def main() -> None:
    """Run the parts asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default="waits,store,memory")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    keep_large_blocks()  # as every run of etude does
    if given.peak:
        print(peak_anonymous(int(given.peak[0]), Path(given.peak[1])))
        return
    print(machine())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if "waits" in given.parts:
            waits(folder, given.repeats)
        if "store" in given.parts:
            store_speed(folder, given.repeats)
        if "memory" in given.parts:
            memory(folder)


if __name__ == "__main__":
    main()
