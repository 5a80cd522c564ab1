"""Small image folders that tests train on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from etude.core.seeds import rng_for


def write_classes(root: Path, names: Sequence[str] = ("round", "striped"), count: int = 12, side: int = 24) -> Path:
    """Write ``count`` images a class: gratings whose direction tells the class, at random phases under noise."""
    for kind, name in enumerate(names):
        (root / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            picture(kind, number, side).save(root / name / f"{number:03d}.png")
    return root


def write_flat(root: Path, count: int = 6, side: int = 24, kinds: int = 2) -> Path:
    """Write unlabelled images of all kinds into one folder."""
    root.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        picture(number % kinds, 1_000 + number, side).save(root / f"t{number:03d}.png")
    return root


def picture(kind: int, number: int, side: int) -> Image.Image:
    """Return one image of a class."""
    rng = rng_for(number, "picture", kind)
    y, x = np.mgrid[0:side, 0:side] * (2 * np.pi / 8)
    angle = kind * np.pi / 3
    wave = np.sin(x * np.cos(angle) + y * np.sin(angle) + rng.uniform(0, 2 * np.pi))
    shade = 128 + 80 * wave + rng.normal(0, 20, (side, side))
    colour = np.stack([shade, shade, 255 - shade], -1)
    return Image.fromarray(np.clip(colour, 0, 255).astype(np.uint8))
