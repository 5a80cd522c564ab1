"""The optimiser: layer-wise learning rates, and weight decay only where it belongs."""

from __future__ import annotations

from typing import Any, cast

import etude.compat  # noqa: F401  (before timm)

import torch
from torch import nn

from etude.models.backbones import PooledLevels
from etude.models.classifier import Classifier
from etude.recipe.settings import TrainSettings


def freeze_first_layers(backbone: nn.Module, share: float) -> int:
    """Switch gradients off for the first ``share`` of the layers as timm groups them; return how many parameters."""
    if share <= 0 or not hasattr(backbone, "group_matcher"):
        return 0
    from timm.models import group_parameters

    matcher = cast(Any, backbone).group_matcher(coarse=False)
    layers = cast(dict[str, int], group_parameters(backbone, matcher, reverse=True))
    count = max(layers.values()) + 1
    frozen = 0
    for name, parameter in backbone.named_parameters():
        if layers[name] < round(share * count):
            parameter.requires_grad_(False)
            frozen += parameter.numel()
    return frozen


def freeze_depthwise(backbone: nn.Module) -> int:
    """Switch gradients off for the filters of depthwise convolutions; return how many parameters that holds.

    They are few, and on a CPU their gradients take about a fifth of a step (``benchmarks/cpu_training.py``).
    """
    frozen = 0
    for module in backbone.modules():
        if isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1:
            module.weight.requires_grad_(False)
            frozen += module.weight.numel()
    return frozen


def parameter_groups(model: Classifier, weight_decay: float, layer_decay: float) -> list[dict[str, Any]]:
    """Return optimiser groups with ``lr_scale`` = ``layer_decay`` ** (distance from the head); norms do not decay."""
    pooled, head = model.backbone, model.head
    backbone = pooled.backbone if isinstance(pooled, PooledLevels) else pooled
    if hasattr(backbone, "group_matcher"):
        from timm.optim import param_groups_layer_decay

        found = param_groups_layer_decay(backbone, weight_decay=weight_decay, layer_decay=layer_decay)
        layers = [(group["params"], group["weight_decay"], group["lr_scale"] * layer_decay) for group in found]
    else:
        trained = [parameter for parameter in backbone.parameters() if parameter.requires_grad]
        layers = [
            ([p for p in trained if p.ndim > 1], weight_decay, layer_decay),
            ([p for p in trained if p.ndim <= 1], 0.0, layer_decay),
        ]
    layers += [([head.weight], weight_decay, 1.0), ([head.bias], 0.0, 1.0)]
    return [{"params": params, "weight_decay": decay, "lr_scale": scale} for params, decay, scale in layers]


def build_optimizer(model: Classifier, settings: TrainSettings) -> torch.optim.Optimizer:
    """Return the optimiser that the settings name; the learning rates are the timeline's to set."""
    groups = parameter_groups(model, settings.weight_decay, settings.layer_decay)
    swing: dict[str, Any] = {"momentum": settings.momentum, "nesterov": settings.nesterov and settings.momentum > 0}
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=settings.lr, **swing)
    if settings.optimizer in ("lars", "lamb"):
        from timm.optim import Lamb, Lars

        if settings.optimizer == "lars":
            return Lars(groups, lr=settings.lr, **swing)
        return Lamb(groups, lr=settings.lr, betas=(settings.momentum, 0.999))
    kind = torch.optim.AdamW if settings.optimizer == "adamw" else torch.optim.Adam
    return kind(groups, lr=settings.lr, betas=(settings.momentum, 0.999), fused=True)
