"""Backbones by name: any of timm's, or the small network of our own."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import etude.compat  # noqa: F401  (before timm)

import torch
from torch import nn

from etude.core.errors import EtudeError, nearest
from etude.models.tiny import TinyNet
from etude.models.weights import BUNDLED_BACKBONE, bundled_lite0, read_safetensors


@dataclass(frozen=True, slots=True)
class Backbone:
    """A network without its classifier, and what it expects.

    Args:
        module: maps (B, in_channels, H, W) to (B, num_features).
        weights: where its weights came from, in words.
        pretrained: whether frozen features of it mean anything.
        fixed_size: the one image side it takes, or None when it takes any.
    """

    module: nn.Module
    num_features: int
    in_channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    weights: str
    pretrained: bool
    fixed_size: int | None = None

    def probe(self) -> torch.Tensor:
        """Return a small black image that the network takes, to look at its shapes."""
        side = self.fixed_size or 64
        return torch.zeros(1, self.in_channels, side, side)


def required_size(name: str) -> int | None:
    """Return the image side that backbone ``name`` needs, or None when it takes any or is not known.

    >>> required_size("vit_tiny_patch16_224"), required_size("resnet18"), required_size("auto")
    (224, None, None)
    """
    from timm.models import get_pretrained_cfg, is_model

    config = get_pretrained_cfg(name) if is_model(name) else None
    return config.input_size[-1] if config is not None and config.fixed_input_size else None


def build_backbone(name: str, weights: str, channels: int = 3, drop_path: float = 0.0) -> Backbone:
    """Build backbone ``name`` with ``weights``: auto, bundled, hub, none, or a ``.safetensors`` path.

    Args:
        channels: of the images; pretrained networks take 3 and get grey images repeated.
        drop_path: stochastic depth of the last block (Huang et al. 2016); the blocks before it get less.

    Raises:
        EtudeError: unknown name, weights that are not to be had or do not fit, a network without stochastic depth.
    """
    if name == "tiny":
        if drop_path:
            raise EtudeError("the small network has no stochastic depth: leave drop_path at 0, or name a backbone")
        return _tiny(weights, channels)
    import timm

    if not timm.is_model(name):
        raise EtudeError(f"there is no backbone {name!r} in timm.{nearest(name, [*timm.list_models(), 'tiny'])}")
    if weights == "auto":
        weights = "bundled" if name == BUNDLED_BACKBONE else "hub"
    if weights == "bundled" and name != BUNDLED_BACKBONE:
        raise EtudeError(
            f"bundled weights exist for {BUNDLED_BACKBONE} only, not for {name!r}; give hub, none or a path"
        )
    module = _timm_model(name, drop_path, from_hub=weights == "hub")
    if weights == "bundled":
        _fill(module, bundled_lite0(), "the bundled weights")
    elif weights not in ("hub", "none"):
        _fill(module, read_safetensors(Path(weights)), weights)
    config = cast(dict[str, Any], module.pretrained_cfg)
    return Backbone(
        module=module,
        num_features=cast(int, getattr(module, "head_hidden_size", None) or module.num_features),
        in_channels=3,
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        weights={"bundled": "ImageNet, from the pip package", "hub": "timm's hub", "none": "random"}.get(
            weights, weights
        ),
        pretrained=weights != "none",
        fixed_size=required_size(name),
    )


def _tiny(weights: str, channels: int) -> Backbone:
    module = TinyNet(channels)
    given = weights not in ("auto", "none")
    if weights in ("bundled", "hub"):
        raise EtudeError(f"the small network has no {weights} weights; give model.weights=none or a .safetensors path")
    if given:
        _fill(module, read_safetensors(Path(weights)), weights)
    half = (0.5,) * channels
    return Backbone(module, module.num_features, channels, half, half, weights if given else "random", given)


def _timm_model(name: str, drop_path: float, from_hub: bool) -> nn.Module:
    import timm

    depth: dict[str, Any] = {"drop_path_rate": drop_path} if drop_path else {}
    try:
        return timm.create_model(name, pretrained=from_hub, num_classes=0, **depth)
    except TypeError as error:
        if depth:
            raise EtudeError(f"backbone {name!r} has no stochastic depth: leave drop_path at 0") from error
        raise
    except Exception as error:  # the hub client raises its own, changing kinds when the network is away
        if not from_hub:
            raise
        raise EtudeError(
            f"the weights of {name!r} could not be fetched from timm's hub "
            f"({type(error).__name__}: {_first_line(error)}); "
            f"without a network use model.backbone={BUNDLED_BACKBONE}, model.weights=none or a .safetensors path"
        ) from error


def _fill(module: nn.Module, state: dict[str, torch.Tensor], origin: str) -> None:
    """Load a backbone's weights; a classifier in the file is left out, anything else must fit."""
    own = module.state_dict()
    # A classifier of stage 1 holds its network one level deeper, below the pooled depths.
    prefixed = {
        re.sub(r"^(backbone\.)+", "", key): value for key, value in state.items() if not key.startswith("head.")
    }
    source = prefixed if any(key.startswith("backbone.") for key in state) else state
    missing = [key for key in own if key not in source or source[key].shape != own[key].shape]
    if missing:
        raise EtudeError(
            f"{origin} does not fit this backbone: {len(missing)} of {len(own)} tensors are missing or of another "
            f"shape, first {missing[0]!r}; give weights that were saved from the same backbone"
        )
    module.load_state_dict({key: source[key] for key in own})


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0][:200]
