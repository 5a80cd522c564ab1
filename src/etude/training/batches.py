"""A fine-tuning's batches: the user's own change, then the policy, on the processor or where the images are kept."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import etude.compat  # noqa: F401  (before lightning)

import lightning.pytorch as pl
import numpy as np
import torch

from etude.callbacks import Clock, Distill, PseudoLabels
from etude.core.errors import EtudeError
from etude.data.loader import Augment, AugmentTensor, OrderedBatches, StepBatches
from etude.data.order import epoch_images
from etude.functional.augment import Policy, augment
from etude.functional.augment_tensor import augment_tensor
from etude.functional.transforms import as_batch_transform, load_transform
from etude.models.classifier import Classifier, Preprocessing
from etude.models.device import best_device
from etude.models.features import autocast
from etude.timeline import Timeline

if TYPE_CHECKING:
    from etude.training.fit import FineTuneTask


_WIDER = 1.5  # times the policy's own changes of geometry


def images_of_epoch(task: FineTuneTask) -> int:
    """Return the images that an epoch of the task takes: of a fixed mix, until the longer stream has been seen once."""
    rows = task.train
    if task.mix is None or rows.labelled is None:
        return len(rows)
    labelled = int(rows.labelled.sum())
    return epoch_images(labelled, len(rows) - labelled, task.mix.share)


def learns_online(task: FineTuneTask) -> bool:
    """Whether pseudo-labels are made during this training."""
    return task.mix is not None and task.recipe.unlabeled.method == "online"


def strong_policy(policy: Policy) -> Policy:
    """Return the policy whose changes the student of online pseudo-labels sees.

    The same symmetries, half as much again of every other change of geometry, light, blur, noise, and in half of the
    images an erased rectangle. What the weak view leaves alone (colours, mirror images) stays alone: it may carry the
    class.

    >>> strong_policy(Policy("digits", angle=15)).angle
    22.5
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


def teaching(task: FineTuneTask) -> list[pl.Callback]:
    """Return the callbacks that stand for teachers: the network's own average, or trained networks."""
    found: list[pl.Callback] = []
    if learns_online(task):
        settings = task.recipe.unlabeled
        found.append(
            PseudoLabels(
                settings.weight,
                kind=settings.kind,
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


class Teacher(torch.nn.Module):
    """A trained network that looks at a student's batches.

    Args:
        model: the network.
        preprocessing: of its input; images of another size are resized to it.
        columns: (C,) its classes in the student's order.
        precision: numeric mode, ``fp32`` or ``bf16``.
    """

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


def step_batches(task: FineTuneTask, clock: Clock) -> Callable[[int], StepBatches]:
    """Return a function from a step to the batches from there on; they follow the clock's plan, whatever changes it.

    Raises:
        EtudeError: the user's own transform cannot be loaded.
    """
    change, change_tensor = changes_of(task.policy, task.recipe.augment.transform), _changes_of_tensors(task.policy)
    strong, strong_tensor = _strong_changes(task) if learns_online(task) else (None, None)
    parts = parts_of(task, clock.timeline, clock.steps)

    def batches(start: int) -> StepBatches:
        return StepBatches(
            task.train,
            steps=clock.steps,
            batch_size=task.batch_size,
            plan=clock.moment_at,
            augment=change,
            augment_tensor=change_tensor,
            mix=task.mix,
            strong=strong,
            strong_tensor=strong_tensor,
            seed=task.seed,
            start=start,
            part=(_rank(task), task.processes),
            parts=parts,
            fixed_batch="batch_size" not in clock.timeline.quantities(),
            pin=best_device().type == "cuda",
        )

    return batches


def valid_batches(task: FineTuneTask) -> Callable[[], OrderedBatches] | None:
    """Return a function that gives this process's share of the validation images, in order; None without any."""
    rows, most = task.valid, min(task.recipe.train.batch_size, task.mode.micro_batch or task.recipe.train.batch_size)
    if rows is None:
        return None
    return lambda: OrderedBatches(
        rows,
        batch_size=most,
        size=task.preprocessing.size,
        part=(_rank(task), task.processes),  # known once Lightning has let the processes meet
        pin=best_device().type == "cuda",
    )


def parts_of(task: FineTuneTask, timeline: Timeline, steps: int) -> int:
    """Return the parts that each step's batch comes in, so that none exceeds the mode's micro-batch.

    Raises:
        EtudeError: the plan's smallest batch has fewer images than the largest needs parts.
    """
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


def changes_of(policy: Policy, transform: str = "") -> Augment:
    """Return what is done to a batch of training images: the user's own transform, if one is named, then the policy.

    Raises:
        EtudeError: the transform cannot be loaded.
    """
    if not transform:
        return lambda images, strength, rng, size: augment(images, policy, strength, rng, size)
    own = as_batch_transform(load_transform(transform))

    def both(images: np.ndarray, strength: float, rng: np.random.Generator, size: int) -> np.ndarray:
        # What a phase without augmentation promises holds for the user's own changes too.
        return augment(own(images, rng) if strength > 0.0 else images, policy, strength, rng, size)

    return both


def _strong_changes(task: FineTuneTask) -> tuple[Augment, AugmentTensor]:
    """Return what the student of online pseudo-labels sees of unlabelled images, at the recipe's own strength."""
    policy, strength = strong_policy(task.policy), task.recipe.unlabeled.strong
    change, change_tensor = changes_of(policy, task.recipe.augment.transform), _changes_of_tensors(policy)
    return (
        lambda images, asked, rng, size: change(images, asked * strength, rng, size),
        lambda images, asked, rng, size: change_tensor(images, asked * strength, rng, size),
    )


def _changes_of_tensors(policy: Policy) -> AugmentTensor:
    return lambda images, strength, rng, size: augment_tensor(
        images, policy, strength, rng, channels_last=True, size=size
    )


def _rank(task: FineTuneTask) -> int:
    return torch.distributed.get_rank() if task.processes > 1 else 0
