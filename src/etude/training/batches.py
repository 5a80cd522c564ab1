"""A fine-tuning's batches: the user's own change, then the policy, on the processor or where the images are kept."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch

from etude.callbacks import Clock
from etude.core.errors import EtudeError
from etude.data.loader import Augment, AugmentTensor, OrderedBatches, StepBatches
from etude.functional.augment import augment
from etude.functional.augment_tensor import augment_tensor
from etude.functional.policies import Policy
from etude.functional.transforms import as_batch_transform, load_transform
from etude.models.device import best_device
from etude.timeline import Timeline
from etude.training.unlabelled import learns_online, strong_policy

if TYPE_CHECKING:
    from etude.training.fit import FineTuneTask


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
