"""The numeric mode that stage 2 trains in: as asked, as on most machines, or as measured on this one."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from etude.models.backbones import Backbone
from etude.models.modes import AskedMode, Mode, likely_mode
from etude.recipe import Recipe
from etude.recipe.sizes import image_sizes, most_of
from etude.recipe.timeline import resolved_timeline
from etude.study.plan import Amounts, pace_of
from etude.study.session import Session
from etude.study.speed import Speed, measure_speed, training_seconds
from etude.training.probe import DEFAULT_BUDGET, probe_modes

_WORTH_PROBING = 120.0  # seconds of training: below, a probe costs more than the better mode saves
_SHARE = 0.05  # of the training that a probe may take


@dataclass(frozen=True, slots=True)
class Training:
    """How stage 2 runs on this machine.

    Args:
        mode: that it trains in.
        speed: measured in that mode.
        told: why this mode, for the plan.
    """

    mode: Mode
    speed: Speed
    told: str


def settle_training(
    session: Session, recipe: Recipe, backbone: Backbone, amounts: Amounts, device: torch.device
) -> Training:
    """Return the mode to train in and its speed; a resumed run keeps the mode that it began with.

    A mode is measured where training takes long enough for that to pay, and on a GPU, whose memory may be too small
    for the batch.
    """
    first, train = image_sizes(recipe).first, recipe.train
    asked = AskedMode.of(train.precision, train.memory_format, train.threads, train.micro_batch)
    if (begun := session.begun_mode()) is not None:
        return Training(begun, measure_speed(backbone, first, begun), f"{begun.in_words()}, as this run began")
    mode = likely_mode(device, asked)
    speed = measure_speed(backbone, first, mode)
    expected = _expected_seconds(recipe, speed, amounts)
    if expected < _WORTH_PROBING and device.type != "cuda":
        return Training(mode, speed, mode.in_words())
    found = probe_modes(
        backbone.module, image_sizes(recipe).largest, _largest_batch(recipe, amounts), backbone.in_channels, device,
        asked=asked, budget=min(DEFAULT_BUDGET, expected * _SHARE + 1.0), cache=session.cache, progress=session.screen,
    )  # fmt: skip
    session.record.set("probe", found.as_dict())
    if found.mode != mode:
        speed = measure_speed(backbone, first, replace(found.mode, micro_batch=None))
    return Training(found.mode, speed, found.in_words())


def _expected_seconds(recipe: Recipe, speed: Speed, amounts: Amounts) -> float:
    timeline, steps = resolved_timeline(recipe, amounts.train, pace_of(speed, recipe, amounts))
    return training_seconds(speed, timeline, steps, min(recipe.train.batch_size, amounts.train)) * amounts.folds


def _largest_batch(recipe: Recipe, amounts: Amounts) -> int:
    return min(amounts.train, max(recipe.train.batch_size, round(most_of(recipe, "batch_size"))))
