"""What the tests of the stores share: images of several natures, and a build that no warning passes unnoticed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

import etude
from etude.core.context import Context, Progress, Silent
from etude.data.scan import scan_images
from etude.data.sources import ImageSet, read_unlabelled
from etude.data.stores import partial as ingest
from etude.data.stores.build import StoreBuild, build_store
from etude.data.stores.partial import PartialStore

KINDS = ("raw", "blosc2", "encoded")


def build(images: ImageSet, cache: Path, size: int = 8, warn=None, progress: Progress | None = None, **options):
    """Survey and build; a warning that no test expects fails it."""

    def unexpected(sentence: str) -> None:
        raise AssertionError(sentence)

    shown = progress or Silent()
    context = Context(shown, warn or unexpected, cache)
    built: StoreBuild = build_store(images, scan_images(images, shown), size, context, **options)
    return built


def smooth(number: int, side: int, channels: int) -> np.ndarray:
    """Return an image (side, side, C) such as photos are: soft shapes, and some noise."""
    rng = np.random.default_rng(number)
    coarse = cv2.resize(rng.integers(0, 256, (5, 5, channels), dtype=np.uint8), (side, side))
    noise = rng.normal(0, 3, (side, side, channels))
    return np.clip(coarse.reshape(noise.shape) + noise, 0, 255).astype(np.uint8)


def flat(number: int, side: int, channels: int) -> np.ndarray:
    """Return an image (side, side, C) such as drawings are: one rectangle on white."""
    pixels = np.full((side, side, channels), 255, np.uint8)
    first, last = np.sort(np.random.default_rng(number).choice(side, 2, replace=False))
    pixels[first:last, first:last] = number * 7 % 256
    return pixels


def write_images(folder: Path, count: int, side: int = 32, channels: int = 3, draw=smooth) -> ImageSet:
    """Write PNG images and return them as a set."""
    folder.mkdir(parents=True)
    for number in range(count):
        Image.fromarray(draw(number, side, channels).squeeze()).save(folder / f"{number:04d}.png")
    return read_unlabelled(folder)


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file of a folder, by name."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def whole_stores(cache: Path) -> list[str]:
    """Return what stands beside the locks."""
    return sorted(path.name for path in (cache / "stores").iterdir() if path.suffix != ".lock")


def start(script: str) -> subprocess.Popen[str]:
    """Start Python with the house and the tests on its path."""
    source = Path(etude.__file__).parents[1]
    paths = f"{source}{os.pathsep}{Path(__file__).parents[1]}"
    return subprocess.Popen(
        [sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": paths}, stdout=-1, text=True
    )


@contextmanager
def stopped_at(count: int, how: BaseException, saving: bool = True) -> Iterator[None]:
    """Raise ``how`` when the ``count``-th image has been appended; with ``saving``, each image is recorded."""
    append = PartialStore.append

    def appended(store: PartialStore, row: bytes, dull: str = "") -> None:
        if store.done >= count:
            raise how
        append(store, row, dull)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PartialStore, "append", appended)
        patch.setattr(ingest, "SAVE_SECONDS", 0.0 if saving else 1e9)
        yield
