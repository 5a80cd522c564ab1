"""The classifier: a backbone that turns images into features, and a linear head."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import ConfigDict, Field, FiniteFloat, StrictBool, StrictInt, TypeAdapter, ValidationError
from torch import nn

from etude.core.errors import EtudeError
from etude.core.files import read_json, reading, replacing, write_json
from etude.models.backbones import Backbone, build_backbone, read_safetensors, with_levels
from etude.models.optimize import fold_batchnorm

MODEL_VERSION = 1
VALIDATED = "validated-head.safetensors"
LARGEST_SIDE = 16_384  # pixels of an input, which no network of today comes near

Side = Annotated[int, Field(ge=1, le=LARGEST_SIDE, strict=True)]
Name = Annotated[str, Field(min_length=1)]


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """How an image becomes the network's input; saved with the model.

    Images are decoded at ``stored_size`` and resized to ``size``. Grey images are repeated where the backbone takes
    three channels. ``mean`` and ``std`` of each channel are for values in [0, 1]. ``value_range`` are the values that
    become black and white in images deeper than 8 bits; None where the training images have 8.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    size: Side
    stored_size: Side
    fit: Annotated[str, Field(pattern="^(squash|crop|letterbox)$")]
    channels: StrictInt
    in_channels: StrictInt
    mean: tuple[FiniteFloat, ...]
    std: tuple[Annotated[FiniteFloat, Field(gt=0)], ...]
    value_range: tuple[FiniteFloat, FiniteFloat] | None = None

    @classmethod
    def of(cls, backbone: Backbone, stored: Any, size: int) -> Preprocessing:
        """Return how images of ``stored`` (a StoreBuild) become this backbone's input at ``size``."""
        return cls(
            size=size,
            stored_size=stored.store.size,
            fit=stored.fit,
            channels=stored.store.channels,
            in_channels=backbone.in_channels,
            mean=backbone.mean,
            std=backbone.std,
            value_range=stored.value_range,
        )

    def to_input(self, images: torch.Tensor) -> torch.Tensor:
        """Turn uint8 (B, H, W, channels) into normalised floats (B, in_channels, H, W), channels last in memory."""
        if images.shape[3] != self.in_channels:
            images = images.expand(-1, -1, -1, self.in_channels)
        count, height, width, channels = images.shape
        # Row by row of pixels: torch's loops over the few channels alone take several times as long.
        mean = torch.tensor(self.mean * width, device=images.device) * 255.0
        std = torch.tensor(self.std * width, device=images.device) * 255.0
        rows = torch.sub(images.reshape(count * height, width * channels), mean).div_(std)
        return rows.view(count, height, width, channels).permute(0, 3, 1, 2)


class Classifier(nn.Module):
    """A backbone, (B, in_channels, H, W) to (B, D), with a linear head on its pooled features."""

    def __init__(self, backbone: nn.Module, num_features: int, num_classes: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.backbone = backbone
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(num_features, num_classes)

    def features(self, image: torch.Tensor) -> torch.Tensor:
        """Return the (B, D) features of normalised images."""
        return self.backbone(image)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return the (B, C) logits of normalised images."""
        return self.head(self.dropout(self.features(image)))

    def set_head(self, weight: np.ndarray, bias: np.ndarray) -> None:
        """Start the head from ``weight`` (C, D) and ``bias`` (C,)."""
        with torch.no_grad():
            self.head.weight.copy_(torch.from_numpy(np.asarray(weight, np.float32)))
            self.head.bias.copy_(torch.from_numpy(np.asarray(bias, np.float32)))


@dataclass(frozen=True, slots=True)
class ModelCard:
    """Everything besides the weights that is needed to predict again."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    backbone: Name
    classes: Annotated[tuple[Name, ...], Field(min_length=2)]
    preprocessing: Preprocessing
    precision: Annotated[str, Field(pattern="^(fp32|bf16)$")]
    tta: Annotated[int, Field(ge=1, le=128, strict=True)]  # views averaged by default, symmetries of the policy
    policy: Name  # of augmentation
    levels: Annotated[int, Field(ge=0, le=8, strict=True)] = 0  # depths pooled into the features (stage 1)
    folded: StrictBool = False  # batch norm was folded into the convolutions (stage 2)


def save_model(folder: Path, model: Classifier, card: ModelCard, name: str = "model") -> list[Path]:
    """Write ``NAME.safetensors`` and ``NAME.json`` into ``folder``, each atomically; return their paths."""
    weights, described = folder / f"{name}.safetensors", folder / f"{name}.json"
    save_weights(weights, model)
    write_json(described, {"version": MODEL_VERSION, **asdict(card)})
    return [weights, described]


def save_weights(path: Path, model: nn.Module) -> None:
    """Write a network's tensors as a safetensors file, whole or not at all."""
    from safetensors.torch import save

    with replacing(path) as temporary:
        # Not safetensors' own writing: it hides the file from other users, and a full disk is no OSError there.
        temporary.write_bytes(save({k: tensor.detach().cpu().contiguous() for k, tensor in model.state_dict().items()}))


def load_model(folder: Path, name: str = "model") -> tuple[Classifier, ModelCard]:
    """Read back what :func:`save_model` wrote."""
    described = folder / f"{name}.json"
    if not described.is_file():
        raise EtudeError(
            f"{folder} holds no trained model ({described.name} is missing); give the folder of a finished run"
        )
    card = _read_card(described)
    preprocessing = card.preprocessing
    weights = folder / f"{name}.safetensors"
    if not weights.is_file():
        raise EtudeError(f"{weights} is missing, though {described.name} is there: restore it, or train the run again")
    state = read_safetensors(weights)
    built = build_backbone(card.backbone, "none", preprocessing.in_channels)
    if card.folded:
        fold_batchnorm(built.module, built.probe())
    built = with_levels(built, card.levels)
    model = Classifier(built.module, built.num_features, len(card.classes))
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise EtudeError(
            f"{folder / name}.safetensors does not fit {described.name}: {str(error).splitlines()[0]}"
        ) from None
    return model.eval(), card


def save_validated_head(folder: Path, model: Classifier) -> Path:
    """Write the weights of a head that is about to learn from the images that validated it."""
    save_weights(folder / VALIDATED, model.head)
    return folder / VALIDATED


def load_validated(folder: Path) -> tuple[Classifier, ModelCard]:
    """Read a model as it was validated: a teacher must not have learned from images that validate its student."""
    model, card = load_model(folder)
    if (kept := folder / VALIDATED).is_file():
        model.head.load_state_dict(read_safetensors(kept))
    return model, card


def _read_card(path: Path) -> ModelCard:
    fields = read_json(path)
    if not isinstance(fields, dict) or fields.pop("version", None) != MODEL_VERSION:
        raise EtudeError(f"{path} was written by another version of etude; this one reads format {MODEL_VERSION}")
    with reading(path, "the description of a model", "bring back the file that the run wrote, or train the run again"):
        try:
            card = TypeAdapter(ModelCard).validate_python(fields)
        except ValidationError as problem:
            first = problem.errors()[0]
            raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
        seen = card.preprocessing
        fits = {
            "channels": seen.channels in (1, 3),
            "in_channels": seen.in_channels in (seen.channels, 3),
            "mean": len(seen.mean) == seen.in_channels,
            "std": len(seen.std) == seen.in_channels,
            "value_range": seen.value_range is None or seen.value_range[0] < seen.value_range[1],
            "classes": len({*card.classes}) == len(card.classes),
        }
        if odd := [name for name, holds in fits.items() if not holds]:
            raise ValueError(f"it gives {odd[0]} a value that no model has")
    return card
