"""100,000 small images in 100 classes through sources, split, store and `quick`: seconds and peak memory.

    make bench-many-images
    make bench-many-images ARGS='--images 20000'

The images (32 px PNG) are drawn here: each class has a colour gradient and a grating of its own under noise.
"""

from __future__ import annotations

import argparse
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np

from common import machine, run_etude

SIDE = 32


def pattern(kind: int) -> np.ndarray:
    """Return the (SIDE, SIDE, 3) image that all images of a class share."""
    rng = np.random.default_rng(kind)
    y, x = np.mgrid[0:SIDE, 0:SIDE] / SIDE
    angle, waves = rng.uniform(0, np.pi), rng.uniform(2, 6)
    grating = np.sin(2 * np.pi * waves * (x * np.cos(angle) + y * np.sin(angle)))
    colours = rng.uniform(40, 215, (2, 3))
    return colours[0] * x[..., None] + colours[1] * (1 - x[..., None]) + 30 * grating[..., None]


def write_class(folder: Path, kind: int, count: int) -> None:
    """Write ``count`` images of one class."""
    home = folder / f"class-{kind:03d}"
    home.mkdir(parents=True)
    rng = np.random.default_rng(1_000 + kind)
    for number in range(count):
        noisy = pattern(kind) + rng.normal(0, 60, (SIDE, SIDE, 3))
        cv2.imwrite(str(home / f"{number:05d}.png"), np.clip(noisy, 0, 255).astype(np.uint8))


def main() -> None:
    """Write the images, run the command, print its figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--classes", type=int, default=100)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with ThreadPoolExecutor(2) as pool:
            each = given.images // given.classes
            list(pool.map(lambda kind: write_class(folder / "train", kind, each), range(given.classes)))
        done = run_etude(["fit", str(folder / "train"), "--recipe", "quick"], folder / "run", folder / "cache")
        stages = ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in done.stages.items())
    print(f"\n{given.images:,} images of {SIDE} px in {given.classes} classes, recipe quick, {machine()}")
    print(f"{done.seconds:.1f} s in all ({stages}), peak memory {done.peak_bytes / 2**30:.2f} GiB")


if __name__ == "__main__":
    main()
