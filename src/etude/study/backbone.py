"""Stage 2's backbone as it is trained."""

from __future__ import annotations

from etude.models.backbones import Backbone, build_backbone
from etude.models.depthwise import use_fast_depthwise
from etude.models.device import best_device
from etude.models.fold import fold_batchnorm
from etude.recipe.settings import Recipe
from etude.recipe.sizes import most_of
from etude.training.freeze import freeze_depthwise, freeze_first_layers


def trainable_backbone(recipe: Recipe, channels: int, precision: str) -> Backbone:
    """Return the backbone folded, frozen and made fast as the recipe says."""
    drop_path = max(recipe.train.drop_path, most_of(recipe, "drop_path"))
    backbone = build_backbone(recipe.model.backbone, recipe.model.weights, channels, drop_path)
    if recipe.train.batchnorm == "keep":
        fold_batchnorm(backbone.module, backbone.probe())
    if precision == "bf16" and best_device().type == "cpu":
        use_fast_depthwise(backbone.module)
    freeze_first_layers(backbone.module, recipe.train.freeze)
    if recipe.train.freeze_depthwise:
        freeze_depthwise(backbone.module)
    return backbone
