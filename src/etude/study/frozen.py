"""Stage 1's frozen backbone and the features it gives, computed once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from etude.core.files import digest_of
from etude.core.progress import Progress
from etude.data.dataset import Dataset
from etude.models.backbones import Backbone, build_backbone
from etude.models.classifier import Preprocessing
from etude.models.device import best_device
from etude.models.features import cached, extract_features, weights_digest
from etude.models.weights import BUNDLED_BACKBONE
from etude.recipe.settings import Recipe


@dataclass(frozen=True, slots=True)
class FrozenFeatures:
    """Features of every image of a data set.

    Args:
        name: of the backbone.
        backbone: the frozen network.
        preprocessing: of its input.
        values: float16 (N, D).
        reused: whether they came from the cache.
    """

    name: str
    backbone: Backbone
    preprocessing: Preprocessing
    values: np.ndarray
    reused: bool


def frozen_name(recipe: Recipe) -> str:
    """Return the name of stage 1's backbone; the small network has no pretrained features, so Lite0 serves it."""
    return BUNDLED_BACKBONE if recipe.model.backbone == "tiny" else recipe.model.backbone


def build_frozen(recipe: Recipe, channels: int) -> Backbone | None:
    """Return stage 1's backbone, or None when the recipe leaves stage 1 out or only random weights are to be had."""
    if "head" not in recipe.stages:
        return None
    weights = "auto" if recipe.model.backbone == "tiny" else recipe.model.weights
    backbone = build_backbone(frozen_name(recipe), weights, channels)
    # Features of random weights would only cost time, unless the user asked for nothing else.
    return backbone if backbone.pretrained or recipe.stages == ("head",) else None


def compute_features(
    backbone: Backbone, data: Dataset, recipe: Recipe, *, precision: str, cache: Path, progress: Progress
) -> FrozenFeatures:
    """Return the features of all images, from the cache when data, size, weights and numeric mode are the same."""
    preprocessing = Preprocessing.of(backbone, data.build, recipe.model.feature_size)
    gather, rows = data.build.store.gather, np.arange(len(data))
    key = digest_of(
        "features-1", data.build.store.folder.name, weights_digest(backbone.module), repr(preprocessing), precision
    )
    module = backbone.module.to(best_device())
    values, reused = cached(
        cache / "features" / f"{key}.npz",
        lambda: extract_features(module, gather, rows, preprocessing, progress=progress, precision=precision),
        len(rows),
    )
    return FrozenFeatures(frozen_name(recipe), backbone, preprocessing, values, reused)
