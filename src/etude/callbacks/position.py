"""Where a trainer stands in its run, by whichever of its limits it reaches first."""

from __future__ import annotations

import math

import etude.compat  # noqa: F401  (before lightning)

import lightning.pytorch as pl
from lightning.pytorch.callbacks import GradientAccumulationScheduler

from etude.callbacks.base import callbacks_of
from etude.core.errors import EtudeError
from etude.timeline import RunSize, step_progress


def run_size(trainer: pl.Trainer, name: str, steps: int = 0) -> RunSize:
    """Return the optimiser steps of the whole run and of an epoch, as known when training starts.

    In manual optimisation a batch counts as a step, since only the module knows when it steps.

    Args:
        name: of the callback that asks, for the message.
        steps: of the whole run, where they are given.

    Raises:
        EtudeError: the trainer has no limit.
    """
    epochs, of_epoch = trainer.max_epochs or -1, _steps_of_epoch(trainer, trainer.accumulate_grad_batches)
    limits = [trainer.max_steps] if trainer.max_steps > 0 else []
    if epochs > 0 and of_epoch < math.inf:
        whole = int(sum(_steps_of_epoch(trainer, _parts(trainer, epoch)) for epoch in range(epochs)))
        limits.append(whole)
        of_epoch = whole / epochs
    if not (steps or limits):
        raise EtudeError(
            f"{name} must know where the run ends: give the Trainer max_steps, or max_epochs and a loader with a "
            "length, or give the Clock steps"
        )
    return RunSize(steps or min(limits), of_epoch if of_epoch < math.inf else None)


def position(trainer: pl.Trainer, batches: int, steps: int = 0) -> tuple[int, int]:
    """Return how many steps are done and how many there are, by the limit that the run is nearer to.

    Where the epochs are limited, each is the same part of the run, however many batches and optimiser steps it has:
    accumulation may change, loaders may be reloaded, and in manual optimisation a batch may be several steps or none.

    Args:
        batches: of the present epoch that are done.
        steps: of the whole run, where they are given; otherwise the trainer's limits count.
    """
    limit, epochs, parts = steps or trainer.max_steps, trainer.max_epochs or -1, trainer.accumulate_grad_batches
    by_steps = (trainer.global_step, limit)
    if steps or epochs <= 0 or (of_epoch := _steps_of_epoch(trainer, parts)) == math.inf:
        return by_steps
    within = of_epoch if batches >= trainer.num_training_batches else batches // parts
    by_epochs = (int(trainer.current_epoch * of_epoch + within), int(epochs * of_epoch))
    return max(by_epochs, by_steps, key=lambda pair: step_progress(*pair)) if limit > 0 else by_epochs


def _steps_of_epoch(trainer: pl.Trainer, parts: int) -> float:
    """Return the optimiser steps of an epoch as long as the present one, each of ``parts`` batches."""
    batches = trainer.num_training_batches  # infinite for a loader without a length
    return math.ceil(batches / parts) if batches < math.inf else math.inf


def _parts(trainer: pl.Trainer, epoch: int) -> int:
    """Return the batches that gradients are accumulated over in an epoch."""
    for callback in callbacks_of(trainer):
        if isinstance(callback, GradientAccumulationScheduler):
            return callback.get_accumulate_grad_batches(epoch)
    return trainer.accumulate_grad_batches
