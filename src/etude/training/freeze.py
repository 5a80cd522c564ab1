"""Parameters that stay as they are: general features whose gradients cost the most."""

from __future__ import annotations

from typing import Any, cast

import etude.compat  # noqa: F401  (before timm)

from torch import nn


def freeze_first_layers(backbone: nn.Module, share: float) -> int:
    """Switch gradients off for the first ``share`` of the backbone's layers; return how many parameters that holds.

    Layers are counted as timm groups them (stem, then each block). A network without such groups stays as it is.

    Args:
        share: in [0, 1]; 0 trains everything.
    """
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

    They are few, and on a CPU their gradients take about a fifth of a training step
    (``benchmarks/cpu_training.py``). Biases are trained.

    >>> freeze_depthwise(nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 8, 1)))
    36
    """
    frozen = 0
    for module in backbone.modules():
        if isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1:
            module.weight.requires_grad_(False)
            frozen += module.weight.numel()
    return frozen
