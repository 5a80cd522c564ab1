"""Features pooled at several depths of a network, for a head on frozen weights.

What a class looks like may be local and texture-like (a crack, a stain): deep average-pooled features were trained to
forget just that. The mean and the spread of earlier activations keep it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import torch
from torch import nn

from etude.models.backbones import Backbone


class PooledLevels(nn.Module):
    """Map images to the backbone's own features, the spread of its last map, and mean and spread at earlier depths.

    Args:
        backbone: a timm network without classifier.
        levels: how many of its stages, counted from the end.
    """

    def __init__(self, backbone: nn.Module, levels: int = 3) -> None:
        super().__init__()
        self.backbone, self.levels = backbone, min(levels, len(cast(Any, backbone).feature_info))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return (B, D) features; the first columns are the backbone's own."""
        network = cast(Any, self.backbone)
        final, maps = network.forward_intermediates(image, indices=self.levels)
        own = network.forward_head(final, pre_logits=True)
        pooled = [part for depth in maps for part in _mean_and_spread(depth)]
        if final.ndim == 4:  # its mean is in the network's own features already
            pooled.append(_mean_and_spread(final)[1])
        return torch.cat([own.float(), *pooled], dim=1)


def with_levels(backbone: Backbone, levels: int) -> Backbone:
    """Return the backbone with that many depths pooled into its features.

    With 0, or with a network that does not give its maps, it comes back unchanged.
    The first ``backbone.num_features`` columns stay what they were.
    """
    if levels == 0 or not _gives_maps(backbone.module):
        return backbone
    module = PooledLevels(backbone.module, levels).eval()
    with torch.inference_mode():
        width = module(backbone.probe()).shape[1]
    return replace(backbone, module=module, num_features=width)


def _gives_maps(module: nn.Module) -> bool:
    return all(hasattr(module, name) for name in ("forward_intermediates", "forward_head", "feature_info"))


def _mean_and_spread(maps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and standard deviation over places of (B, C, H, W), each (B, C)."""
    variance, mean = torch.var_mean(maps.float(), dim=(2, 3), correction=0)
    return mean, variance.clamp_min(1e-12).sqrt()
