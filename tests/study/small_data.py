"""A small labelled data set, opened as a run opens it, with features that are its pixels."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from etude.core.context import Context, Silent
from etude.data.dataset import Dataset, open_dataset
from etude.data.scan import scan_images
from etude.data.sources import ImageSet, read_labelled, read_unlabelled
from etude.data.split import Fold
from picture_folders import picture, write_classes

SIDE = 32


def write_faulty(root: Path, count: int = 40) -> Path:
    """Write two classes with every fault: a bad file, a tiny image, copies, wrong labels."""
    write_classes(root, count=count, side=SIDE)
    (root / "round" / "bad.png").write_bytes(b"no image")
    picture(0, 500, 9).save(root / "round" / "tiny.png")
    copy = np.asarray(picture(0, 3, SIDE)) * 0.9
    Image.fromarray(copy.astype(np.uint8)).save(root / "round" / "near.png")
    (root / "striped" / "same.png").write_bytes((root / "round" / "007.png").read_bytes())
    for number in range(2):
        picture(1, 600 + number, SIDE).save(root / "round" / f"wrong-{number}.png")
    return root


def opened(images: ImageSet, cache: Path) -> Dataset:
    """Survey and store the images."""
    found = scan_images(images, Silent())
    return open_dataset(images, found, SIDE, Context(Silent(), lambda text: None, cache), fit="squash", kind="raw")


def labelled(root: Path, cache: Path) -> Dataset:
    """Open class folders."""
    return opened(read_labelled(root), cache)


def unlabelled(root: Path, cache: Path) -> Dataset:
    """Open a flat folder."""
    return opened(read_unlabelled(root), cache)


def features_of(data: Dataset) -> np.ndarray:
    """Return what tells the gratings' direction whatever their phase: the size of their Fourier coefficients."""
    pixels = data.build.store.gather(np.arange(len(data)), SIDE)[..., 0].astype(np.float32)
    blurred = np.stack([cv2.GaussianBlur(image, (3, 3), 0) for image in pixels])
    spectrum = np.fft.rfft2(blurred - blurred.mean(axis=(1, 2), keepdims=True))[:, :9, :9]
    phases = np.concatenate([spectrum.real, spectrum.imag], axis=1).reshape(len(pixels), -1)
    sizes = np.abs(spectrum).reshape(len(pixels), -1)
    return np.concatenate([np.log1p(sizes), phases / 100], axis=1).astype(np.float16)


def one_fold(data: Dataset) -> list[Fold]:
    """Return a split that validates on every fourth image."""
    rows = np.arange(len(data))
    return [Fold(rows[rows % 4 != 1], rows[rows % 4 == 1], 0)]
