"""A fine-tuning's batches, and the tricks that change them, on the processor or where the images are kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import etude.compat  # noqa: F401  (before lightning)

import lightning.pytorch as pl
import numpy as np
import torch

from etude.callbacks import AugmentRamp, Clock, CutMix, Distill, LabelSmoothing, MixUp, PseudoLabels
from etude.callbacks.mixup import ever_on
from etude.core.context import Context
from etude.core.errors import EtudeError
from etude.data.loader import OrderedBatches, StepBatches
from etude.functional.augment import Policy
from etude.functional.transforms import as_batch_transform, load_transform
from etude.models.classifier import Classifier, Preprocessing
from etude.models.device import best_device
from etude.models.features import autocast
from etude.timeline import Timeline
from etude.training.task import FineTuneTask

_WIDER = 1.5  # times the policy's own changes of geometry


def strong_policy(policy: Policy) -> Policy:
    """Return the policy whose changes the student of online pseudo-labels sees.

    Colours and mirror images stay as in the weak view: they may carry the class.
    """
    return replace(
        policy,
        name=f"{policy.name}, strong",
        angle=_WIDER * policy.angle,
        log_scale=_WIDER * policy.log_scale,
        shear=_WIDER * policy.shear,
        shear_y=_WIDER * policy.shear_y,
        shift=_WIDER * policy.shift,
        contrast=max(policy.contrast, 0.4),
        brightness=max(policy.brightness, 0.15),
        blur=max(policy.blur, 0.2),
        noise=max(policy.noise, 0.2),
        erase=max(policy.erase, 0.5),
    )


def tricks(task: FineTuneTask, timeline: Timeline) -> list[pl.Callback]:
    """Return the callbacks that change batches: mixing, smoothing, and teachers."""
    found: list[pl.Callback] = [kind(seed=task.seed) for kind in (MixUp, CutMix) if ever_on(timeline, kind.quantity)]
    found += smoothing(task, timeline)
    if task.learns_online:
        settings = task.recipe.unlabeled
        found.append(
            PseudoLabels(
                settings.weight,
                kind="soft" if settings.kind == "auto" else settings.kind,
                temperature=settings.temperature,
                threshold=settings.threshold,
                weights=settings.weights,
                prior=None if task.prior is None else task.prior.tolist(),
                teacher="ema" if settings.ema else "self",
                decay=settings.ema,
            )
        )
    if task.teachers:
        found.append(Distill(task.teachers))
    return found


def smoothing(task: FineTuneTask, timeline: Timeline) -> list[pl.Callback]:
    """Return the callback that smooths targets, where settings or timeline ask for it."""
    amount = task.recipe.train.label_smoothing
    scheduled = any(phase.curve("label_smoothing") is not None for phase in timeline.phases)
    return [LabelSmoothing(amount)] if amount or scheduled else []


class Teacher(torch.nn.Module):
    """A trained network for a student's batches; ``columns`` are its classes in the student's order."""

    def __init__(self, model: Classifier, preprocessing: Preprocessing, columns: list[int], precision: str) -> None:
        super().__init__()
        self.model, self.preprocessing, self.precision = model, preprocessing, precision
        self.register_buffer("columns", torch.tensor(columns), persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits float32 (B, C) of uint8 images (B, S, S, channels)."""
        size = self.preprocessing.size
        with autocast(images.device, self.precision):
            inputs = self.preprocessing.to_input(images)
            if inputs.shape[2] != size:
                inputs = torch.nn.functional.interpolate(inputs, (size, size), mode="bilinear", antialias=True)
            return self.model(inputs).float()[:, self.get_buffer("columns")]


class BlendedTeacher(torch.nn.Module):
    """Several networks whose log probabilities are added with weights, as a run blends its stages."""

    def __init__(self, teachers: Sequence[Teacher], weights: Sequence[float]) -> None:
        super().__init__()
        self.teachers, self.weights = torch.nn.ModuleList(teachers), tuple(weights)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits float32 (B, C) of uint8 images (B, S, S, channels)."""
        parts = zip(self.weights, self.teachers, strict=True)
        return torch.stack([weight * teacher(images).log_softmax(1) for weight, teacher in parts]).sum(0)


def step_batches(task: FineTuneTask, clock: Clock, start: int) -> StepBatches:
    """Return the batches from step ``start`` on; they follow the clock's plan, also when an event changes it."""
    change, strong = changes_of(task.policy, task.recipe.augment.transform), None
    if task.learns_online:
        scale = task.recipe.unlabeled.strong
        student = changes_of(strong_policy(task.policy), task.recipe.augment.transform)
        strong = lambda images, strength, rng, size: student(images, strength * scale, rng, size)  # noqa: E731
    return StepBatches(
        task.train,
        steps=clock.steps,
        batch_size=task.batch_size,
        plan=clock.moment_at,
        augment=change,
        mix=task.mix,
        strong=strong,
        context=Context(seed=task.seed),
        start=start,
        part=task.part,
        parts=parts_of(task, clock.timeline, clock.steps),
        fixed_batch="batch_size" not in clock.timeline.quantities(),
        pin=best_device().type == "cuda",
    )


def valid_batches(task: FineTuneTask) -> OrderedBatches | list[OrderedBatches]:
    """Return this process's share of the validation images, in order, if there are any."""
    if task.valid is None:
        return []
    most = min(task.recipe.train.batch_size, task.mode.micro_batch or task.recipe.train.batch_size)
    pin = best_device().type == "cuda"
    return OrderedBatches(task.valid, batch_size=most, size=task.preprocessing.size, part=task.part, pin=pin)


def parts_of(task: FineTuneTask, timeline: Timeline, steps: int) -> int:
    """Return the parts that each step's batch comes in, so that none exceeds the mode's micro-batch."""
    micro = task.mode.micro_batch
    if micro is None:
        return 1
    scheduled = "batch_size" in timeline.quantities()
    planned = [moment.batch_size for moment in timeline.moments(steps) if moment.batch_size] if scheduled else []
    sizes = [min(size, len(task.train.rows)) for size in planned or [task.batch_size]]
    parts = math.ceil(max(sizes) / micro)
    if parts > min(sizes):
        raise EtudeError(
            f"batches of up to {max(sizes):,} images in parts of {micro} make {parts} parts a step, and the smallest "
            f"batch has {min(sizes)}: raise train.micro_batch, or let the batches differ less"
        )
    return parts


def changes_of(policy: Policy, transform: str = "") -> Callable[..., Any]:
    """Return ``change(images, strength, rng, size)``: the user's own transform, if one is named, then AugmentRamp's."""
    change = AugmentRamp(policy).change
    if not transform:
        return change
    own = as_batch_transform(load_transform(transform))

    def both(images: Any, strength: float, rng: np.random.Generator, size: int) -> Any:
        # A phase without augmentation leaves the user's own changes out too.
        mine = strength > 0.0 and isinstance(images, np.ndarray)
        return change(own(images, rng) if mine else images, strength, rng, size)

    return both
