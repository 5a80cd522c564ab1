"""The validated tree of settings: everything that a run can be told."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    PositiveFloat,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from etude.core.errors import nearest
from etude.timeline import PRESETS, parse_length
from etude.timeline.lengths import MOST_PARTS


class Settings(BaseModel):
    """Base of all settings: unknown names are refused, values never change after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


FIXED = "epochs '3ep', steps '500st' or time '10m' or '90s'"


def refused(sentence: str) -> PydanticCustomError:
    """Return the error that makes pydantic refuse a value; ``sentence`` begins with ``Input``, as pydantic's do."""
    return PydanticCustomError("refused", "{sentence}", {"sentence": sentence})  # braces in it stay as they are


def _part(value: Any) -> float | str:
    """A part of a whole: a share above 0 and below 1, or a fixed length."""
    accepted = f"a share between 0 and 1, such as 0.25 or '25%', or {FIXED}"
    amount, unit = _parsed(value, accepted)
    if unit != "share":
        return value.strip()
    if amount >= 1:
        raise refused(f"Input must be {accepted}")
    return amount


def _run_length(value: Any) -> str | None:
    """The length of a whole run: a fixed length, or None for ``none``, since TOML has no word for it."""
    if value is None or value == "none":
        return None
    accepted = f"{FIXED}, or 'none'"
    if _parsed(value, accepted)[1] == "share":
        raise refused(f"Input must be {accepted}")
    return value.strip()


def _interval(value: Any) -> float | str:
    """``auto``, or a part of a run."""
    return "auto" if value == "auto" else _part(value)


def _time(value: Any) -> str:
    """A duration."""
    accepted = "a time, such as '60s' or '10m'"
    if _parsed(value, accepted)[1] != "s":
        raise refused(f"Input must be {accepted}")
    return value.strip()


def _disk_space(value: Any) -> int | None:
    """Bytes, or None for ``auto``."""
    if value is None or value == "auto":
        return None
    told = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)i?B?\s*", str(value), re.IGNORECASE)
    if isinstance(value, bool) or told is None:
        raise refused("Input must be a size on disk, such as 500MB or 20GB, or 'auto'")
    return int(float(told[1]) * 1000 ** " KMGT".index(told[2].upper() or " "))


def _value_range(value: Any) -> str:
    """``auto``, or ``"LOW..HIGH"``."""
    text = f"0..{value}" if isinstance(value, int | float) and not isinstance(value, bool) else str(value).strip()
    if text != "auto":
        try:
            text = text if ".." in text else f"0..{text}"
            low, high = value_range(text) or (0.0, 0.0)
            if not -math.inf < low < high < math.inf:
                raise ValueError
        except ValueError:
            raise refused(
                "Input must be two numbers such as 0..4095, the highest alone such as 4095, or 'auto'"
            ) from None
    return text


def value_range(text: str) -> tuple[float, float] | None:
    """Return the two ends of a :data:`ValueRange`, or None for ``auto``.

    >>> value_range("-1000..3000"), value_range("auto")
    ((-1000.0, 3000.0), None)
    """
    if text == "auto":
        return None
    low, high = text.split("..")
    return float(low), float(high)


def _parsed(value: Any, accepted: str) -> tuple[float, str]:
    try:
        return parse_length(value)
    except ValueError:
        raise refused(f"Input must be {accepted}") from None


Part = Annotated[float | str, BeforeValidator(_part)]
"""A share in (0, 1), or ``"3ep"``, ``"500st"``, ``"90s"``, ``"10m"``."""

Interval = Annotated[float | str, BeforeValidator(_interval)]
"""A :data:`Part` of the run, or ``"auto"``."""

RunLength = Annotated[str | None, BeforeValidator(_run_length)]
"""``"3ep"``, ``"500st"``, ``"90s"`` or ``"10m"``, or None."""

Time = Annotated[str, BeforeValidator(_time)]
"""``"90s"`` or ``"10m"``."""

DiskSpace = Annotated[int | None, BeforeValidator(_disk_space)]
"""Bytes: a number, ``"500MB"``, ``"20GB"`` (of 1000 each); None for ``"auto"``."""

ValueRange = Annotated[str, BeforeValidator(_value_range)]
"""``"0..4095"``, from which ``4095`` alone is made too, or ``"auto"``; :func:`value_range` reads it."""


SAFE_SHARE = (0.65, 0.75)
"""Labelled share of pseudo-label rounds that competitors use; any other is allowed with a warning."""


def _none_in_words(value: Any) -> Any:
    return None if value == "none" else value  # TOML has no word for it


def _share(value: Any) -> float | str:
    """``auto``, or a share of a batch."""
    if value == "auto":
        return value
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 < value < 1.0:
        raise refused("Input must be a share above 0 and below 1, or 'auto'")
    return float(value)


def _levels(value: Any) -> float | tuple[float, ...]:
    """A confidence, or one for each class."""
    each = list(value) if isinstance(value, list | tuple) else [value]
    if not each or any(isinstance(one, bool) or not isinstance(one, int | float) or not 0 <= one < 1 for one in each):
        raise refused("Input must be a confidence from 0 to below 1, or a list of them, one a class")
    return tuple(float(one) for one in each) if isinstance(value, list | tuple) else float(value)


class UnlabeledSettings(Settings):
    """Pseudo-labels, in rounds or within one training."""

    method: Literal["off", "rounds", "online"] = Field(
        default="off", description="pseudo-labels in rounds of training, online within one training, or off"
    )
    use_test: bool = Field(default=True, description="whether the test images join the unlabelled ones")
    labeled_share: Annotated[float | str, BeforeValidator(_share)] = Field(
        default=0.7, description="share of each batch that is labelled, or auto: that of the images, from 0.125 to 0.7"
    )
    balanced: bool = Field(default=False, description="draw as many labelled images of every class")
    length: RunLength = Field(
        default=None, description="length of a training with unlabelled images: 500st, 3ep, 5m; none: the recipe's own"
    )
    batch_size: Annotated[int | None, BeforeValidator(_none_in_words)] = Field(
        default=None, ge=2, le=65_536, description="images a step, both kinds together; none: train.batch_size"
    )
    rounds: int = Field(default=3, ge=1, le=20, description="rounds of pseudo-labels at most; one without gain is last")
    start: Literal["fresh", "warm"] = Field(
        default="fresh", description="a student starts fresh, or warm from the weights that made its pseudo-labels"
    )
    keep_at: float = Field(
        default=0.8, ge=0.5, lt=1.0, description="probability of being better, on validation images, that keeps it"
    )
    kind: Literal["soft", "hard"] = Field(default="soft", description="probabilities, or the most probable class alone")
    temperature: float = Field(
        default=1.0, gt=0.0, le=10.0, description="of soft pseudo-labels: below 1 sharpens them, 1 leaves them"
    )
    threshold: Annotated[float | tuple[float, ...], BeforeValidator(_levels)] = Field(
        default=0.0, description="least confidence of a pseudo-label, one number or one a class"
    )
    quota: Annotated[int | None, BeforeValidator(_none_in_words)] = Field(
        default=None, ge=1, description="rounds: most pseudo-labels of each class, the surest first; none: all"
    )
    weights: Literal["softmatch", "none"] = Field(
        default="softmatch", description="weigh pseudo-labels by confidence (SoftMatch), or all alike"
    )
    prior: Literal["estimate", "labeled", "uniform", "none"] = Field(
        default="estimate",
        description="class shares that pseudo-labels are aligned to: labeled, uniform, none, or estimate: the labelled "
        "images' own unless the unlabelled ones have measurably others",
    )
    weight: float = Field(default=1.0, ge=0.0, le=100.0, description="online: of the loss on unlabelled images")
    ramp: tuple[float, float] = Field(
        default=(0.0, 0.3), description="online: shares of the run between which that weight rises from 0 (Lee 2013)"
    )
    ema: float = Field(
        default=0.99, ge=0.0, lt=1.0, description="online: decay of the averaged weights that teach; 0: the student's"
    )
    strong: float = Field(
        default=1.0, ge=0.0, le=1.0, description="online: strength of the changes that the student sees"
    )

    @model_validator(mode="after")
    def _rising(self) -> Self:
        start, end = self.ramp
        if not 0.0 <= start <= end <= 1.0:
            raise refused("Input should keep 0 <= ramp start <= ramp end <= 1: shares of the run")
        return self

    @property
    def is_on(self) -> bool:
        """Whether unlabelled images are used."""
        return self.method != "off"


class DistillSettings(Settings):
    """What a student learns from its teachers; of use with ``--teacher`` alone."""

    temperature: float = Field(default=2.0, gt=0.0, le=100.0, description="that softens teacher and student alike")
    weight: float = Field(default=0.5, gt=0.0, le=1.0, description="of the teachers' loss; the rest is the labels' own")
    views: Literal["cached", "same"] = Field(
        default="cached",
        description="teachers see each image once, averaged over their views, or the very view that the student sees",
    )


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


LEAST_SHARE, MOST_SHARE = 0.125, 0.7  # of labelled images in a batch, where the share is decided by their number


def labelled_share(recipe: Recipe, labelled: int, unlabelled: int) -> float:
    """Return the share of each batch that is labelled; ``auto`` is the images' own, within limits.

    >>> from etude.recipe import load_recipe
    >>> [labelled_share(load_recipe("consistency"), labelled, 900) for labelled in (10, 300, 9_000)]
    [0.125, 0.25, 0.7]
    """
    asked = recipe.unlabeled.labeled_share
    if isinstance(asked, float):
        return asked
    return min(MOST_SHARE, max(LEAST_SHARE, labelled / (labelled + unlabelled)))


def share_caution(recipe: Recipe) -> str | None:
    """Return a word of caution where rounds train at another share of labelled images than competitors use."""
    asked, (low, high) = recipe.unlabeled.labeled_share, SAFE_SHARE
    if recipe.unlabeled.method != "rounds" or not isinstance(asked, float) or low <= asked <= high:
        return None
    return (
        f"unlabeled.labeled_share={asked:g}: {low:.0%} to {high:.0%} labelled images a batch keep pseudo-labels from "
        "taking over; fewer follow the teacher's mistakes sooner, and more use little of the unlabelled images"
    )


def mixed_recipe(recipe: Recipe) -> Recipe:
    """Return the recipe of a training with unlabelled images: their own length and batch size in place of the usual."""
    settings = recipe.unlabeled
    train, timeline = recipe.train, recipe.timeline
    if settings.batch_size is not None:
        train = train.model_copy(update={"batch_size": settings.batch_size})
    if settings.length is not None:
        timeline = timeline.model_copy(update={"length": settings.length})
    return recipe.model_copy(update={"train": train, "timeline": timeline})


def supervised_recipe(recipe: Recipe) -> Recipe:
    """Return the recipe of a training on the labelled images alone."""
    return recipe.model_copy(update={"unlabeled": recipe.unlabeled.model_copy(update={"method": "off"})})
