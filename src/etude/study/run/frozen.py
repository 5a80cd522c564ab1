"""The backbones of both stages: stage 1's, frozen, with its cached features, and stage 2's as it is trained."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from etude.core.context import Context
from etude.core.files import digest_of
from etude.data.dataset import Dataset
from etude.models.backbones import (
    BUNDLED_BACKBONE,
    Backbone,
    build_backbone,
    packaged_weights,
    usual_side,
    with_levels,
)
from etude.models.classifier import Preprocessing
from etude.models.device import best_device
from etude.models.dinov2 import DINOV2, INSTALL
from etude.models.features import cached, extract_features, weights_digest
from etude.models.optimize import fold_batchnorm, use_fast_depthwise
from etude.recipe.settings import Recipe, changed
from etude.recipe.timeline import maximum_of
from etude.training.optimizer import freeze_depthwise, freeze_first_layers

_OTHERS = {"tf_efficientnet_lite2": 260, DINOV2: 126}  # image sides in pixels; DINOv2 knows other things than ImageNet


@dataclass(frozen=True, slots=True)
class Frozen:
    """Stage 1's backbone, batch norm folded; ``levels`` more depths are pooled after its own features."""

    name: str
    backbone: Backbone
    levels: int


@dataclass(frozen=True, slots=True)
class FrozenFeatures:
    """Features float16 (N, D) of every image of a dataset; ``reused`` if they came from the cache."""

    frozen: Frozen
    preprocessing: Preprocessing
    values: np.ndarray
    reused: bool
    augmented: tuple[np.ndarray, np.ndarray] | None = None  # sorted rows (R,), and float16 (V, R, D) of their views

    def views_of(self, rows: np.ndarray) -> np.ndarray:
        """Return (V, R, D) features of training images, the plain view first."""
        plain = self.values[rows]
        if self.augmented is None:
            return plain[None]
        known, values = self.augmented
        return np.concatenate([plain[None], values[:, np.searchsorted(known, rows)]])


def frozen_name(recipe: Recipe) -> str:
    """Return the name of stage 1's backbone; the small network has no pretrained features, so Lite0 serves it."""
    return BUNDLED_BACKBONE if recipe.model.backbone == "tiny" else recipe.model.backbone


def build_frozen(recipe: Recipe, channels: int) -> Frozen | None:
    """Return stage 1's backbone, or None when the recipe leaves stage 1 out or only random weights are to be had."""
    if "head" not in recipe.stages:
        return None
    weights = "auto" if recipe.model.backbone == "tiny" else recipe.model.weights
    backbone = build_backbone(frozen_name(recipe), weights, channels)
    if not backbone.pretrained and recipe.stages != ("head",):
        return None  # features of random weights would only cost time
    fold_batchnorm(backbone.module, backbone.probe())
    pooled = with_levels(backbone, recipe.model.levels)
    pooled.module.requires_grad_(False)
    levels = recipe.model.levels if pooled is not backbone else 0
    return Frozen(frozen_name(recipe), pooled, levels)


def compute_features(frozen: Frozen, data: Dataset, recipe: Recipe, precision: str, context: Context) -> FrozenFeatures:
    """Return the features of all images, from the cache when data, size, weights and precision are the same."""
    module = frozen.backbone.module
    preprocessing = Preprocessing.of(frozen.backbone, data.build, recipe.model.feature_size)
    gather, rows = data.build.store.gather, np.arange(len(data))
    key = digest_of(
        f"features-1 {frozen.name} {frozen.levels} {precision}",
        data.build.store.folder.name,
        weights_digest(module),
        repr(preprocessing),
    )
    module.to(best_device())
    values, reused = cached(
        context.cached("features", f"{key}.npz"),
        lambda: extract_features(module, gather, rows, preprocessing, context=context, precision=precision),
        len(rows),
    )
    return FrozenFeatures(frozen, preprocessing, values, reused)


def other_recipes(recipe: Recipe) -> list[Recipe]:
    """Return a recipe for the head on each further backbone; ``auto`` are those whose weights are installed."""
    if "head" not in recipe.stages:
        return []
    own = frozen_name(recipe)
    automatic = [name for name in _OTHERS if name != own and packaged_weights(name) is not None]
    names = [each for name in recipe.model.others for each in (automatic if name == "auto" else [name])]
    found: list[Recipe] = []
    for name in dict.fromkeys(names):
        model = {"backbone": name, "weights": "auto", "feature_size": _OTHERS.get(name) or usual_side(name)}
        found.append(changed(recipe, {f"model.{key}": value for key, value in model.items()}))
    return found


def build_others(recipe: Recipe, channels: int, context: Context) -> list[tuple[Frozen, Recipe]]:
    """Return the further frozen backbones, each with the recipe of its head."""
    recipes = other_recipes(recipe)
    if not recipes and "auto" in recipe.model.others and "head" in recipe.stages:
        context.warn(f"one backbone alone is used: {INSTALL} brings others, and model.others=none wants none")
    built = [(build_frozen(each, channels), each) for each in recipes]
    return [(frozen, each) for frozen, each in built if frozen is not None]


def trainable_backbone(recipe: Recipe, channels: int, precision: str) -> Backbone:
    """Return the backbone folded, frozen and made fast as the recipe says."""
    drop_path = max(recipe.train.drop_path, maximum_of(recipe, "drop_path"))
    backbone = build_backbone(recipe.model.backbone, recipe.model.weights, channels, drop_path)
    if recipe.train.batchnorm == "keep":
        fold_batchnorm(backbone.module, backbone.probe())
    if precision == "bf16" and best_device().type == "cpu":
        use_fast_depthwise(backbone.module)
    freeze_first_layers(backbone.module, recipe.train.freeze)
    if recipe.train.freeze_depthwise:
        freeze_depthwise(backbone.module)
    return backbone
