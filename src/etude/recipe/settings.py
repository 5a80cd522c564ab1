"""The validated tree of a run's settings, each with its default, its limits and the line that describes it."""

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

from etude.timeline import parse_length
from etude.timeline.lengths import MAX_PARTS


class Settings(BaseModel):
    """Base of all settings: unknown names are refused, values never change after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def setting(default: Any, description: str, **limits: Any) -> Any:
    """Return a pydantic field; ``limits`` are those of :func:`pydantic.Field`."""
    return Field(default=default, description=description, **limits)


def refused(sentence: str) -> PydanticCustomError:
    """Return the error that makes pydantic refuse a value; ``sentence`` begins with ``Input``, as pydantic's do."""
    return PydanticCustomError("refused", "{sentence}", {"sentence": sentence})  # braces in it stay as they are


def _none_in_words(value: Any) -> Any:
    return None if value == "none" else value  # TOML has no word for it


def _length(accepted: str, *units: str, words: Sequence[str | None] = ()) -> BeforeValidator:
    """Return what reads a length in one of ``units``, or one of ``words``; a share must be below 1."""

    def read(value: Any) -> Any:
        if value in words:
            return _none_in_words(value)
        try:
            amount, unit = parse_length(value)
        except ValueError:
            amount, unit = 0.0, ""
        if unit not in units or (unit == "share" and amount >= 1):
            raise refused(f"Input must be {accepted}")
        return amount if unit == "share" else value.strip()

    return BeforeValidator(read)


def _disk_space(value: Any) -> int | None:
    """Bytes, or None for ``auto``."""
    if value is None or value == "auto":
        return None
    read = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)i?B?\s*", str(value), re.IGNORECASE)
    if isinstance(value, bool) or read is None:
        raise refused("Input must be a size on disk, such as 500MB or 20GB, or 'auto'")
    return int(float(read[1]) * 1000 ** " KMGT".index(read[2].upper() or " "))


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
    """Return the two ends of a :data:`ValueRange`, or None for ``auto``."""
    if text == "auto":
        return None
    low, high = text.split("..")
    return float(low), float(high)


_FIXED = "epochs '3ep', steps '500st' or time '10m' or '90s'"
_PART = f"a share between 0 and 1, such as 0.25 or '25%', or {_FIXED}"

Part = Annotated[float | str, _length(_PART, "share", "ep", "st", "s")]
"""A share in (0, 1), or ``"3ep"``, ``"500st"``, ``"90s"``, ``"10m"``."""

Interval = Annotated[float | str, _length(_PART, "share", "ep", "st", "s", words=["auto"])]
"""A :data:`Part` of the run, or ``"auto"``."""

RunLength = Annotated[str | None, _length(f"{_FIXED}, or 'none'", "ep", "st", "s", words=[None, "none"])]
"""``"3ep"``, ``"500st"``, ``"90s"`` or ``"10m"``, or None."""

Time = Annotated[str, _length("a time, such as '60s' or '10m'", "s")]
"""``"90s"`` or ``"10m"``."""

DiskSpace = Annotated[int | None, BeforeValidator(_disk_space)]
"""Bytes: a number, ``"500MB"``, ``"20GB"`` (of 1000 each); None for ``"auto"``."""

Count = Annotated[int | None, BeforeValidator(_none_in_words)]
"""A whole number, or None for ``"none"``."""

ValueRange = Annotated[str, BeforeValidator(_value_range)]
"""``"0..4095"``, from which ``4095`` alone is made too, or ``"auto"``; :func:`value_range` reads it."""


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

    method: Literal["auto", "off", "head", "rounds", "online"] = setting(
        "auto",
        "pseudo-labels for the head (rounds on frozen features), in rounds of training, online within one training, "
        "off, or auto: with --unlabeled online for the small network and head for others, off without",
    )
    use_test: bool = setting(True, "whether the test images join the unlabelled ones")
    labeled_share: Annotated[float | str, BeforeValidator(_share)] = setting(
        0.7, "share of each batch that is labelled, or auto: that of the images, from 0.125 to 0.7"
    )
    balanced: bool = setting(False, "draw as many labelled images of every class")
    length: RunLength = setting(
        None, "length of a training with unlabelled images: 500st, 3ep, 5m; none: the recipe's own"
    )
    batch_size: Count = setting(None, "images a step, both kinds together; none: train.batch_size", ge=2, le=65_536)
    rounds: int = setting(3, "maximum rounds of pseudo-labels; the first without a gain is the last", ge=1, le=20)
    start: Literal["fresh", "warm"] = setting(
        "fresh", "a student starts fresh, or warm from the weights that made its pseudo-labels"
    )
    keep_at: float = setting(0.8, "probability of being better, on validation images, that keeps it", ge=0.5, lt=1.0)
    kind: Literal["auto", "soft", "hard"] = setting(
        "auto",
        "soft: probabilities; hard: the most probable class alone; auto: hard where labels are propagated, or soft",
    )
    temperature: float = setting(1.0, "of soft pseudo-labels: below 1 sharpens them, 1 leaves them", gt=0.0, le=10.0)
    threshold: Annotated[float | tuple[float, ...], BeforeValidator(_levels)] = setting(
        0.0, "minimum confidence of a pseudo-label, one number or one a class"
    )
    quota: Count = setting(
        None, "rounds: maximum pseudo-labels of each class, the most confident first; none: all", ge=1
    )
    weights: Literal["softmatch", "none"] = setting(
        "softmatch", "weigh pseudo-labels by confidence (SoftMatch), or all equally"
    )
    prior: Literal["estimate", "labeled", "uniform", "none"] = setting(
        "estimate",
        "class shares that pseudo-labels are aligned to: labeled, uniform, none, or estimate: the labelled images' own "
        "unless the unlabelled ones have measurably others",
    )
    neighbours: int = setting(
        20, "rounds on a frozen network: neighbours that labels are propagated through; 0: none", ge=0, le=1000
    )
    weight: float = setting(1.0, "online: of the loss on unlabelled images", ge=0.0, le=100.0)
    ramp: tuple[float, float] = setting(
        (0.0, 0.3), "online: shares of the run between which that weight rises from 0 (Lee 2013)"
    )
    ema: float = setting(0.99, "online: decay of the averaged weights that teach; 0: the student's", ge=0.0, lt=1.0)
    strong: float = setting(1.0, "online: strength of the changes that the student sees", ge=0.0, le=1.0)

    @model_validator(mode="after")
    def _rising(self) -> Self:
        start, end = self.ramp
        if not 0.0 <= start <= end <= 1.0:
            raise refused("Input should keep 0 <= ramp start <= ramp end <= 1: shares of the run")
        return self

    @property
    def is_on(self) -> bool:
        """Whether unlabelled images are used; ``auto`` is decided when a recipe is resolved."""
        return self.method not in ("auto", "off")

    @property
    def trains_networks(self) -> bool:
        """Whether networks are trained with unlabelled images, after one that learned from the labelled ones alone."""
        return self.method in ("rounds", "online")


class DistillSettings(Settings):
    """What a student learns from its teachers; used only with ``--teacher``."""

    temperature: float = setting(2.0, "that softens both teacher and student", gt=0.0, le=100.0)
    weight: float = setting(0.5, "of the teachers' loss; the rest is the labels' own", gt=0.0, le=1.0)
    views: Literal["cached", "same"] = setting(
        "cached", "teachers see each image once, averaged over their views, or the very view that the student sees"
    )


class DataSettings(Settings):
    """How images become arrays."""

    fit: Literal["auto", "squash", "crop", "letterbox"] = setting(
        "auto", "how an image fills the square: squash, crop, letterbox, or auto by aspect ratios"
    )
    range: ValueRange = setting(
        "auto",
        "values that become black and white where images are deeper than 8 bits: 0..4095, 4095, or auto by all "
        "training images",
    )
    valid: float = setting(0.2, "share of the labelled images held out for validation", gt=0.0, lt=1.0)
    labels: Literal["tidy", "strict"] = setting(
        "tidy", "tidy: labels that differ by outer spaces or Unicode form are one class; or strict"
    )
    split_column: str = setting(
        "auto", "a table's column that names the validation rows: auto by its name, none, or a name"
    )
    store: Literal["auto", "raw", "blosc2", "encoded"] = setting(
        "auto", "how images are kept: raw, blosc2, encoded, or auto by a measured sample"
    )
    cache_limit: DiskSpace = setting(
        None, "maximum disk space for decoded images, such as 20GB; auto: half of what is free"
    )
    on_device: Literal["auto", "always", "never"] = setting(
        "auto", "keep the images in GPU memory: always, never, or auto when they fit easily"
    )


class ModelSettings(Settings):
    """Which network."""

    backbone: str = setting("auto", "any timm name, 'tiny' for the small network, or auto by image size", min_length=1)
    weights: str = setting("auto", "auto, bundled (Lite0), hub (timm's own), none, or a .safetensors path")
    others: tuple[str, ...] = setting(
        (),
        "further frozen backbones whose heads are blended with the other stages: timm names, none, or auto: those "
        "whose weights are installed as packages; small images get three small networks instead",
        max_length=8,
    )
    feature_size: int = setting(224, "image side in pixels for the frozen features of stage 1", ge=16, le=1024)
    levels: int = setting(3, "depths whose pooled maps join the frozen features; 0 for the last alone", ge=0, le=8)

    @field_validator("others", mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        names = value.split(",") if isinstance(value, str) else value
        if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
            return value
        return tuple(name.strip() for name in names if name.strip() != "none")


class HeadSettings(Settings):
    """Stage 1: the linear head on frozen features."""

    inverse_regularization: tuple[PositiveFloat, ...] = setting(
        (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1), "values of C that cross-validation chooses from", min_length=1
    )
    folds: int = setting(3, "folds of that cross-validation", ge=2, le=20)
    search_rows: int = setting(5_000, "rows that the search uses at most; the last fit uses all", ge=100)
    refit: Literal["auto", "never"] = setting(
        "auto",
        "auto: once validation images have judged the models, the head is fitted and further networks are trained on "
        "them too, where etude drew them; or never",
    )
    views: int = setting(1, "augmented views of each training image that the head is fitted on", ge=1, le=64)


class TrainSettings(Settings):
    """Stage 2: fine-tuning."""

    epochs: float = setting(8, "passes over the training images; timeline.length overrides it", gt=0, le=10_000)
    networks: int = setting(
        1, "networks trained from different seeds, which are averaged where the first of them is kept", ge=1, le=16
    )
    batch_size: int = setting(32, "images a step", ge=1, le=65_536)
    optimizer: Literal["adamw", "adam", "sgd", "lars", "lamb"] = setting(
        "adamw", "adamw, adam, sgd, or for large batches lars or lamb"
    )
    lr: float = setting(1.5e-4, "peak learning rate of the head", gt=0)
    find_lr: bool = setting(False, "search the peak learning rate by a range test before training")
    momentum: float = setting(0.9, "momentum of sgd and lars, first beta of adam, adamw and lamb", ge=0, lt=1)
    nesterov: bool = setting(True, "Nesterov's momentum, with sgd")
    weight_decay: float = setting(0.02, "not applied to norms and biases", ge=0)
    layer_decay: float = setting(0.93, "learning rate factor from each block to the one below it", gt=0, le=1)
    dropout: float = setting(0.2, "share of the features dropped before the head", ge=0, lt=1)
    drop_path: float = setting(0.0, "stochastic depth: share of the images that skip a residual block", ge=0, lt=1)
    freeze: float = setting(0.35, "share of the layers, from the image on, kept as is", ge=0, le=1)
    freeze_depthwise: bool = setting(True, "keep depthwise filters, whose gradients are slow on CPUs")
    clip: float = setting(1.0, "largest gradient norm; 0 switches clipping off", ge=0)
    label_smoothing: float = setting(0.0, "share of the target spread over all classes", ge=0, lt=1)
    batchnorm: Literal["keep", "train"] = setting("keep", "keep the pretrained statistics, or train them")
    ema: float = setting(0.98, "decay of the averaged weights that are kept; 0 switches it off", ge=0, lt=1)
    swa: bool = setting(False, "keep the equal average of the weights over the last phase, in place of ema's")
    validate_every: Interval = setting("auto", "interval between validations: 1ep, 200st, 0.1, or auto")
    checkpoint_every: Time = setting("60s", "interval between checkpoints: 60s, 10m")
    precision: Literal["auto", "fp32", "bf16"] = setting(
        "auto", "number format of the forward pass: fp32, bf16, or auto by a short measurement"
    )
    memory_format: Literal["auto", "channels_last", "contiguous"] = setting(
        "auto", "layout of images and weights: channels_last, contiguous, or auto by measurement"
    )
    threads: Count = setting(None, "processor threads that torch uses; none: by measurement", ge=1, le=1024)
    micro_batch: Count = setting(
        None, "images that are in memory at once, of a step's batch; none: as many as fit", ge=1
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

    preset: str = setting("default", "a named timeline: etude timeline --list shows them")
    start_size: int = setting(224, "image side in pixels at the start", ge=8, le=2048)
    final_size: int = setting(224, "image side in pixels at the end", ge=8, le=2048)
    size_multiple: int = setting(32, "image sizes are rounded to this multiple", ge=1, le=256)
    warmup: Part = setting(0.1, "share of the run spent warming up, or 3ep, 500st, 90s, 10m")
    finish: Part = setting(0.2, "share of the run at full size without augmentation, or 3ep, 500st, 90s, 10m")
    cycle: Part = setting(0.25, "length of a cycle, as share of its phase or 3ep, 500st, in the cyclic timelines")
    fade: bool = setting(False, "augmentation fades out in the last phase instead of being off")
    length: RunLength = setting(None, "length of the whole run, such as 5m, 500st or 3ep, in place of train.epochs")
    batch_growth: float = setting(1.0, "batch size of the last phase as multiple of train.batch_size", gt=0, le=64)
    batch_scaling: Literal["none", "linear", "sqrt"] = setting(
        "none", "how the learning rate follows a batch size that changes: none, linear or sqrt"
    )
    base_batch_size: Count = setting(None, "batch size that train.lr is meant for; none: train.batch_size", ge=1)
    phases: tuple[dict[str, Any], ...] = setting(
        (), "phases of your own in place of the preset's; lr counts in multiples of train.lr", max_length=MAX_PARTS
    )

    def growing_sizes(self, given: Collection[str]) -> tuple[int, int]:
        """Return start and final size; one that is not among the ``given`` settings gives way to the other."""
        if self.start_size > self.final_size:
            if "start_size" not in given:
                return self.final_size, self.final_size
            if "final_size" not in given:
                return self.start_size, self.start_size
        return self.start_size, self.final_size


class PlateauSettings(Settings):
    """The timeline ``plateau``: the rules of ``ReduceLROnPlateau``."""

    metric: Literal["valid_loss", "valid_accuracy"] = setting("valid_loss", "the metric watched")
    mode: Literal["auto", "min", "max"] = setting(
        "auto", "min when lower is better, max when higher is, or auto by the metric"
    )
    factor: float = setting(0.1, "of the learning rate, at each plateau", gt=0, lt=1)
    patience: int = setting(2, "validations without improvement that are tolerated", ge=0)
    threshold: float = setting(1e-4, "smallest change that counts as an improvement", ge=0)
    threshold_mode: Literal["rel", "abs"] = setting(
        "rel", "the threshold is a share of the best value, or in the metric's unit"
    )
    cooldown: int = setting(0, "validations after a plateau that are not counted", ge=0)
    min_lr: float = setting(0.0, "no plateau takes the learning rate below it", ge=0)
    reductions: Count = setting(2, "after so many the next plateau ends the phase; none: no plateau ends it", ge=0)


class AugmentSettings(Settings):
    """Random changes of the training images."""

    policy: str = setting(
        "auto", "a policy such as photos, digits or cells, trivial (a random change), none, or auto by the images"
    )
    transform: str = setting("", "your own augmentation of training images, as module:name; runs before the policy")
    mixup: float = setting(0.0, "alpha of MixUp's Beta distribution; 0 switches it off", ge=0)
    cutmix: float = setting(0.0, "alpha of CutMix's Beta distribution; 0 switches it off", ge=0)


class PredictSettings(Settings):
    """How predictions are made."""

    tta: int = setting(1, "views averaged for the predictions of validation and test images", ge=1, le=128)
    tta_if: Literal["harmless", "always"] = setting(
        "harmless", "one view alone where several raise the validation log loss or lower accuracy, or always several"
    )
    blend: Literal["auto", "never"] = setting(
        "auto", "auto: the mean of several stages' predictions where validation images favour it; never: one stage"
    )
    align: Literal["auto", "never"] = setting(
        "auto", "auto: features of images of another kind than the training images are aligned to those; or never"
    )
    train_features: Literal["auto", "always", "never"] = setting(
        "auto", "save the training images' features for etude refine: always, never, or auto when that is cheap"
    )


class Recipe(Settings):
    """What a run does."""

    name: str = "default"
    stages: tuple[Literal["head", "finetune"], ...] = setting(
        ("head", "finetune"), "the stages, in order: head, finetune, or both"
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

    @property
    def changes_images(self) -> bool:
        """Whether images are ever seen otherwise than they are: in training, or in views."""
        return self.stages != ("head",) or self.predict.tta > 1 or self.head.views > 1

    @field_validator("stages", mode="before")
    @classmethod
    def _in_order(cls, value: Any) -> Any:
        stages = [name.strip() for name in value.split(",")] if isinstance(value, str) else value
        stages = list(stages) if isinstance(stages, Sequence) else []
        if stages not in (["head"], ["finetune"], ["head", "finetune"]):
            raise refused("Input must be head, finetune or head,finetune")
        return tuple(stages)


def changed(recipe: Recipe, changes: Mapping[str, Any], *, unset_only: bool = False) -> Recipe:
    """Return the recipe with settings changed by dotted name; with ``unset_only`` those given by hand stay."""
    for key, value in changes.items():
        section, _, leaf = key.rpartition(".")
        owner: Any = getattr(recipe, section) if section else recipe
        if not unset_only or leaf not in owner.model_fields_set:
            made = owner.model_copy(update={leaf: tuple(value) if isinstance(value, list) else value})
            recipe = recipe.model_copy(update={section: made}) if section else made
    return recipe
