"""The validated tree of settings: everything that a run can be told."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, field_validator, model_validator
from pydantic_core import PydanticCustomError

Fit = Literal["auto", "squash", "crop", "letterbox"]
Stage = Literal["head", "finetune"]


class Settings(BaseModel):
    """Base of all settings: unknown names are refused, values never change after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class DataSettings(Settings):
    """How images become arrays."""

    fit: Fit = Field(
        default="auto", description="how an image fills the square: squash, crop, letterbox, or auto by aspect ratios"
    )
    valid: float = Field(
        default=0.2, gt=0.0, lt=1.0, description="share of the labelled images held out for validation"
    )


class ModelSettings(Settings):
    """Which network."""

    backbone: str = Field(
        default="auto", description="any timm name, 'tiny' for the small network, or auto by image size"
    )
    weights: str = Field(
        default="auto", description="auto, bundled (Lite0), hub (timm's own), none, or a .safetensors path"
    )
    feature_size: int = Field(
        default=224, ge=16, le=1024, description="image side in pixels for the frozen features of stage 1"
    )
    levels: int = Field(
        default=3, ge=0, le=8, description="depths whose pooled maps join the frozen features; 0 for the last alone"
    )


class HeadSettings(Settings):
    """Stage 1: the linear head on frozen features."""

    inverse_regularization: tuple[PositiveFloat, ...] = Field(
        default=(0.0003, 0.001, 0.003, 0.01, 0.03, 0.1),
        min_length=1,
        description="values of C that cross-validation chooses from",
    )
    folds: int = Field(default=3, ge=2, le=20, description="folds of that cross-validation")
    search_rows: int = Field(
        default=5_000, ge=100, description="rows that the search uses at most; the last fit uses all"
    )


class TrainSettings(Settings):
    """Stage 2: fine-tuning."""

    epochs: float = Field(default=8, gt=0, le=10_000, description="passes over the training images")
    batch_size: int = Field(default=32, ge=1, le=65_536, description="images a step")
    optimizer: Literal["adamw", "adam", "sgd"] = Field(default="adamw", description="adamw, adam or sgd")
    lr: float = Field(default=1.5e-4, gt=0, description="peak learning rate of the head")
    momentum: float = Field(default=0.9, ge=0, lt=1, description="momentum of sgd, first beta of adam and adamw")
    nesterov: bool = Field(default=True, description="Nesterov's momentum, with sgd")
    weight_decay: float = Field(default=0.02, ge=0, description="not applied to norms and biases")
    layer_decay: float = Field(
        default=0.93, gt=0, le=1, description="learning rate factor from each block to the one below it"
    )
    dropout: float = Field(default=0.2, ge=0, lt=1, description="share of the features dropped before the head")
    freeze: float = Field(default=0.35, ge=0, le=1, description="share of the layers, from the image on, kept as is")
    freeze_depthwise: bool = Field(default=True, description="keep depthwise filters, whose gradients are slow on CPUs")
    clip: float = Field(default=1.0, ge=0, description="largest gradient norm; 0 switches clipping off")
    label_smoothing: float = Field(default=0.0, ge=0, lt=1, description="share of the target spread over all classes")
    batchnorm: Literal["keep", "train"] = Field(
        default="keep", description="keep the pretrained statistics, or train them"
    )
    ema: float = Field(
        default=0.98, ge=0, lt=1, description="decay of the averaged weights that are kept; 0 switches it off"
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(default="auto", description="numeric mode of the forward pass")


class TimelineSettings(Settings):
    """The shape of stage 2's timeline."""

    start_size: int = Field(default=224, ge=8, le=2048, description="image side in pixels at the start")
    final_size: int = Field(default=224, ge=8, le=2048, description="image side in pixels at the end")
    size_multiple: int = Field(default=32, ge=1, le=256, description="image sizes are rounded to this multiple")
    warmup: float = Field(default=0.1, gt=0, lt=1, description="share of the run spent warming up")
    finish: float = Field(default=0.2, gt=0, lt=1, description="share of the run at full size without augmentation")

    @model_validator(mode="after")
    def _leaves_a_share_to_grow(self) -> Self:
        if self.warmup + self.finish >= 1:
            raise PydanticCustomError("shares", "Input should keep warmup + finish below 1: the rest is there to grow")
        return self


class AugmentSettings(Settings):
    """Random changes of the training images."""

    policy: str = Field(default="auto", description="photos, flips, symmetric, digits, none, or auto by the images")


class PredictSettings(Settings):
    """How predictions are made."""

    tta: int = Field(
        default=1, ge=1, le=128, description="views averaged for the predictions of validation and test images"
    )


class Recipe(Settings):
    """All settings of a run."""

    name: str = "default"
    stages: tuple[Stage, ...] = Field(default=("head", "finetune"), min_length=1, description="the stages, in order")
    data: DataSettings = DataSettings()
    model: ModelSettings = ModelSettings()
    head: HeadSettings = HeadSettings()
    train: TrainSettings = TrainSettings()
    timeline: TimelineSettings = TimelineSettings()
    augment: AugmentSettings = AugmentSettings()
    predict: PredictSettings = PredictSettings()

    @field_validator("stages")
    @classmethod
    def _in_order(cls, stages: tuple[Stage, ...]) -> tuple[Stage, ...]:
        if stages not in (("head",), ("finetune",), ("head", "finetune")):
            raise PydanticCustomError("stages", 'must be ["head"], ["finetune"] or ["head", "finetune"]')
        return stages
