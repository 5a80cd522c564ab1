"""The validated tree of settings: everything that a run can be told."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal, Self

from pydantic import (
    Field,
    ModelWrapValidatorHandler,
    PositiveFloat,
    field_validator,
    model_validator,
)

from etude.core.errors import nearest
from etude.recipe.base import Settings
from etude.recipe.lengths import DiskSpace, Interval, Part, RunLength, Time, ValueRange, refused
from etude.recipe.unlabeled_settings import DistillSettings, UnlabeledSettings
from etude.timeline import PRESETS
from etude.timeline.lengths import MOST_PARTS

Fit = Literal["auto", "squash", "crop", "letterbox"]
Stage = Literal["head", "finetune"]


class DataSettings(Settings):
    """How images become arrays."""

    fit: Fit = Field(
        default="auto", description="how an image fills the square: squash, crop, letterbox, or auto by aspect ratios"
    )
    range: ValueRange = Field(
        default="auto",
        description="values that become black and white where images are deeper than 8 bits: 0..4095, 4095, or auto by "
        "all training images",
    )
    valid: float = Field(
        default=0.2, gt=0.0, lt=1.0, description="share of the labelled images held out for validation"
    )
    labels: Literal["tidy", "strict"] = Field(
        default="tidy", description="tidy: labels that differ by outer spaces or Unicode form are one class; or strict"
    )
    split_column: str = Field(
        default="auto", description="a table's column that names the validation rows: auto by its name, none, or a name"
    )
    store: Literal["auto", "raw", "blosc2", "encoded"] = Field(
        default="auto", description="how images are kept: raw, blosc2, encoded, or auto by a measured sample"
    )
    cache_limit: DiskSpace = Field(
        default=None, description="most disk space for decoded images, such as 20GB; auto: half of what is free"
    )
    on_device: Literal["auto", "always", "never"] = Field(
        default="auto",
        description="keep the images in GPU memory: always, never, or auto when they fit easily",
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
    views: int = Field(
        default=1, ge=1, le=64, description="augmented views of each training image that the head is fitted on"
    )


class TrainSettings(Settings):
    """Stage 2: fine-tuning."""

    epochs: float = Field(
        default=8, gt=0, le=10_000, description="passes over the training images; timeline.length goes before it"
    )
    batch_size: int = Field(default=32, ge=1, le=65_536, description="images a step")
    optimizer: Literal["adamw", "adam", "sgd", "lars", "lamb"] = Field(
        default="adamw", description="adamw, adam, sgd, or for large batches lars or lamb"
    )
    lr: float = Field(default=1.5e-4, gt=0, description="peak learning rate of the head")
    find_lr: bool = Field(default=False, description="search the peak learning rate by a range test before training")
    momentum: float = Field(
        default=0.9, ge=0, lt=1, description="momentum of sgd and lars, first beta of adam, adamw and lamb"
    )
    nesterov: bool = Field(default=True, description="Nesterov's momentum, with sgd")
    weight_decay: float = Field(default=0.02, ge=0, description="not applied to norms and biases")
    layer_decay: float = Field(
        default=0.93, gt=0, le=1, description="learning rate factor from each block to the one below it"
    )
    dropout: float = Field(default=0.2, ge=0, lt=1, description="share of the features dropped before the head")
    drop_path: float = Field(
        default=0.0, ge=0, lt=1, description="stochastic depth: share of the images that skip a residual block"
    )
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
    swa: bool = Field(
        default=False, description="keep the equal average of the weights over the last phase, in place of ema's"
    )
    validate_every: Interval = Field(
        default="auto", description="from one look at the validation images to the next: 1ep, 200st, 0.1, or auto"
    )
    checkpoint_every: Time = Field(default="60s", description="time from one checkpoint to the next: 60s, 10m")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        default="auto", description="numeric mode of the forward pass: fp32, bf16, or auto by a short measurement"
    )
    memory_format: Literal["auto", "channels_last", "contiguous"] = Field(
        default="auto", description="layout of images and weights: channels_last, contiguous, or auto by measurement"
    )
    threads: int | None = Field(
        default=None, ge=1, le=1024, description="processor threads that torch uses; none: by measurement"
    )
    micro_batch: int | None = Field(
        default=None, ge=1, description="images that are in memory at once, of a step's batch; none: as many as fit"
    )

    @model_validator(mode="wrap")
    @classmethod
    def _one_average(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        settings = handler(data)
        if not settings.swa or not settings.ema:
            return settings
        if "ema" in settings.model_fields_set:
            raise refused(
                f"Input asks for two averages of the weights, swa=true and ema={settings.ema:g}; leave one of them out"
            )
        return handler({**data, "ema": 0.0} if isinstance(data, Mapping) else data)


class TimelineSettings(Settings):
    """The shape of stage 2's timeline."""

    preset: str = Field(default="default", description="a named timeline: etude timeline --list shows them")
    start_size: int = Field(default=224, ge=8, le=2048, description="image side in pixels at the start")
    final_size: int = Field(default=224, ge=8, le=2048, description="image side in pixels at the end")
    size_multiple: int = Field(default=32, ge=1, le=256, description="image sizes are rounded to this multiple")
    warmup: Part = Field(default=0.1, description="share of the run spent warming up, or 3ep, 500st, 90s, 10m")
    finish: Part = Field(
        default=0.2, description="share of the run at full size without augmentation, or 3ep, 500st, 90s, 10m"
    )
    cycle: Part = Field(
        default=0.25, description="length of a cycle, as share of its phase or 3ep, 500st, in the cyclic timelines"
    )
    fade: bool = Field(default=False, description="augmentation fades out in the last phase instead of being off")
    length: RunLength = Field(
        default=None, description="length of the whole run, such as 5m, 500st or 3ep, in place of train.epochs"
    )
    batch_growth: float = Field(
        default=1.0, gt=0, le=64, description="batch size of the last phase as multiple of train.batch_size"
    )
    batch_scaling: Literal["none", "linear", "sqrt"] = Field(
        default="none", description="how the learning rate follows a batch size that changes: none, linear or sqrt"
    )
    base_batch_size: int | None = Field(
        default=None, ge=1, description="batch size that train.lr is meant for; none: train.batch_size"
    )
    phases: tuple[dict[str, Any], ...] = Field(
        default=(),
        max_length=MOST_PARTS,
        description="phases of your own in place of the preset's; lr counts in multiples of train.lr",
    )

    @field_validator("preset")
    @classmethod
    def _known(cls, preset: str) -> str:
        if preset not in PRESETS:
            hint = nearest(preset, PRESETS)
            raise refused(f"Input must be one of {', '.join(PRESETS)}{'.' if hint else ''}{hint}")
        return preset

    @field_validator("base_batch_size", mode="before")
    @classmethod
    def _none_in_words(cls, value: Any) -> Any:
        return None if value == "none" else value  # TOML has no word for it

    @model_validator(mode="after")
    def _leaves_a_share_to_grow(self) -> Self:
        shares = [length for length in (self.warmup, self.finish) if isinstance(length, float)]
        if sum(shares) >= 1:
            raise refused("Input should keep warmup + finish below 1: the rest is there to grow")
        return self

    def growing_sizes(self, given: Collection[str]) -> tuple[int, int]:
        """Return start and final size; one that is not among the ``given`` settings gives way to the other.

        >>> TimelineSettings(final_size=128).growing_sizes({"final_size"})
        (128, 128)
        """
        if self.start_size > self.final_size:
            if "start_size" not in given:
                return self.final_size, self.final_size
            if "final_size" not in given:
                return self.start_size, self.start_size
        return self.start_size, self.final_size


class PlateauSettings(Settings):
    """What the timeline ``plateau`` does when a metric stops improving: the rules of ``ReduceLROnPlateau``."""

    metric: Literal["valid_loss", "valid_accuracy"] = Field(default="valid_loss", description="the metric watched")
    mode: Literal["auto", "min", "max"] = Field(
        default="auto", description="min when lower is better, max when higher is, or auto by the metric"
    )
    factor: float = Field(default=0.1, gt=0, lt=1, description="of the learning rate, at each plateau")
    patience: int = Field(default=2, ge=0, description="validations without improvement that are borne")
    threshold: float = Field(default=1e-4, ge=0, description="smallest change that counts as an improvement")
    threshold_mode: Literal["rel", "abs"] = Field(
        default="rel", description="the threshold is a share of the best value, or in the metric's unit"
    )
    cooldown: int = Field(default=0, ge=0, description="validations after a plateau that are not counted")
    min_lr: float = Field(default=0.0, ge=0, description="no plateau takes the learning rate below it")
    reductions: int | None = Field(
        default=2, ge=0, description="after so many the next plateau ends the phase; none: no plateau ends it"
    )

    @field_validator("reductions", mode="before")
    @classmethod
    def _none_in_words(cls, value: Any) -> Any:
        return None if value == "none" else value  # TOML has no word for it

    @model_validator(mode="after")
    def _relative_below_one(self) -> Self:
        if self.threshold_mode == "rel" and self.threshold >= 1:
            raise refused("Input should keep threshold below 1 while threshold_mode is rel: it is a share")
        return self


class AugmentSettings(Settings):
    """Random changes of the training images."""

    policy: str = Field(
        default="auto",
        description="a policy such as photos, digits or cells, trivial (a random change), none, or auto by the images",
    )
    transform: str = Field(
        default="", description="your own change of training images, as module:name; goes before the policy"
    )
    mixup: float = Field(default=0.0, ge=0, description="alpha of MixUp's Beta distribution; 0 switches it off")
    cutmix: float = Field(default=0.0, ge=0, description="alpha of CutMix's Beta distribution; 0 switches it off")


class PredictSettings(Settings):
    """How predictions are made."""

    tta: int = Field(
        default=1, ge=1, le=128, description="views averaged for the predictions of validation and test images"
    )
    tta_if: Literal["harmless", "always"] = Field(
        default="harmless",
        description="one view alone where several raise the validation log loss or lower accuracy, or always several",
    )
    train_features: Literal["auto", "always", "never"] = Field(
        default="auto",
        description="save the training images' features for etude refine: always, never, or auto when that is cheap",
    )


class Recipe(Settings):
    """All settings of a run."""

    name: str = "default"
    stages: tuple[Stage, ...] = Field(
        default=("head", "finetune"), description="the stages, in order: head, finetune, or both"
    )
    data: DataSettings = DataSettings()
    model: ModelSettings = ModelSettings()
    head: HeadSettings = HeadSettings()
    train: TrainSettings = TrainSettings()
    timeline: TimelineSettings = TimelineSettings()
    plateau: PlateauSettings = PlateauSettings()
    augment: AugmentSettings = AugmentSettings()
    unlabeled: UnlabeledSettings = UnlabeledSettings()
    distill: DistillSettings = DistillSettings()
    predict: PredictSettings = PredictSettings()

    @field_validator("stages", mode="before")
    @classmethod
    def _in_order(cls, value: Any) -> Any:
        stages = [name.strip() for name in value.split(",")] if isinstance(value, str) else value
        stages = list(stages) if isinstance(stages, Sequence) else []
        if stages not in (["head"], ["finetune"], ["head", "finetune"]):
            raise refused("Input must be head, finetune or head,finetune")
        return tuple(stages)
