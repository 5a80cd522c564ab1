"""How images without labels take part in a run, and how a student learns from teachers."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from etude.recipe.base import Settings
from etude.recipe.lengths import RunLength, refused

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
