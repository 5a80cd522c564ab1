"""Fine-tuning: the timeline, the loader and Lightning's loop put together."""

from __future__ import annotations

import math
import os

import etude.compat  # noqa: F401  (before lightning)

import lightning.pytorch as pl
import numpy as np

from etude.callbacks import EMA, SWA, Checkpoints, Clock, History, TimeLimit, TrainingProgress, arrange
from etude.core.context import Context
from etude.core.errors import EtudeError
from etude.core.files import explained_write
from etude.data.loader import OrderedBatches
from etude.functional.batchnorm import recompute_batchnorm
from etude.models.classifier import Classifier
from etude.models.device import is_first_process
from etude.models.modes import applied
from etude.recipe.settings import Recipe
from etude.recipe.timeline import resolved_run
from etude.timeline import RunSize, Timeline, length_in_steps, parse_length
from etude.training.batches import parts_of, tricks
from etude.training.module import FineTune
from etude.training.resume import Finished, ResumeFolder, RunPlan
from etude.training.task import DivergedError, FineTuneTask
from etude.training.trainer import build_trainer, passing_interrupts, quiet_lightning, silent_writers

_STATISTICS_IMAGES = 2_048  # seen at most to measure batch norm statistics anew


def fine_tune(
    model: Classifier, task: FineTuneTask, *, context: Context = Context(), name: str = "fine-tune"
) -> Finished:
    """Train ``model`` in place by the task's recipe; a resumed task goes on from its last checkpoint.

    It ends with the weights of the uninterrupted one (on a CPU with as many threads: bit for bit).
    """
    if task.processes > 1 and "RANK" not in os.environ:
        raise EtudeError(
            f"training has {task.processes} processes, and RANK does not say which one this is: start "
            "them with torchrun, or leave processes at 1"
        )
    kept = ResumeFolder(task.folder)
    if not task.resume:
        if is_first_process():
            kept.clear()
    elif done := kept.load_finished(model):
        model.eval()
        return done
    plan = _plan(task, kept)
    clock = Clock(plan.timeline, plan.steps, context.warn)
    module = FineTune(model, task, clock)
    history, averaging = History(task.folder / "history.csv", plan.epoch_steps), _averaging(task.recipe, plan.timeline)
    every = parse_length(task.recipe.train.checkpoint_every)[0]
    limits = [] if task.left is None else [TimeLimit(task.left)]
    callbacks: list[pl.Callback] = [clock, *limits, history, *averaging, *tricks(task, plan.timeline)]
    callbacks += [
        TrainingProgress(context, plan.steps, task.batch_size, name),
        Checkpoints(
            kept.folder, every_steps=round(plan.epoch_steps), every_seconds=every, warn=context.warn,
            at_stop=task.left is None,  # of a budget, a stop is the end
        ),
    ]  # fmt: skip
    # A new run's processes do not wait for the first to clear the folder, so an older checkpoint may still be there.
    checkpoint, start = (kept.checkpoint, kept.step_for(module)) if task.resume else (None, None)
    with quiet_lightning():
        trainer = build_trainer(
            steps=plan.steps, validate_every=plan.validate_every, clip=task.recipe.train.clip,
            callbacks=arrange(callbacks), folder=task.folder, start=start, processes=task.processes,
            parts=parts_of(task, plan.timeline, plan.steps),
        )  # fmt: skip
        with applied(task.mode), explained_write(task.folder), passing_interrupts(), silent_writers():
            trainer.fit(module.train(), ckpt_path=checkpoint, weights_only=True)
    _settle(module, averaging, task)
    if not all(bool(parameter.isfinite().all()) for parameter in model.parameters()):
        lr = task.recipe.train.lr
        raise DivergedError(
            f"training diverged: after {plan.steps} steps at train.lr={lr:g} weights are infinite or not a number; "
            f"lower it, for example --set train.lr={lr / 3:.1g}"
        )
    done = Finished(trainer.global_step, clock.timeline, history.rows, clock.happened)
    if is_first_process():
        kept.save_finished(model, done)
    return done


def validation_interval(recipe: Recipe, timeline: Timeline, steps: int, size: RunSize) -> int:
    """Return the steps from one validation to the next: by default ten in whole epochs, with a plateau one an epoch."""
    asked = recipe.train.validate_every
    least = min(2, steps)  # a checkpoint is never saved right before a validation, so there must be steps between
    if asked != "auto":
        return max(least, min(steps, round(length_in_steps(asked, steps, size))))
    epoch = size.epoch_steps or steps
    watched = any(phase.plateau for phase in timeline.phases)
    epochs = 1 if watched else max(1, round(steps / epoch / 10))
    return max(least, min(steps, math.floor(epochs * epoch)))  # rounded up, the last one would fall behind the end


def _plan(task: FineTuneTask, kept: ResumeFolder) -> RunPlan:
    """Resolve the recipe for these images; a resumed task takes the plan that it began with."""
    if task.resume and (plan := kept.load_plan()) is not None:
        return plan
    timeline, size = resolved_run(task.recipe, task.images_per_epoch, task.pace)
    interval = validation_interval(task.recipe, timeline, size.steps, size)
    plan = RunPlan(timeline, size.steps, interval, size.epoch_steps or float(size.steps))
    if is_first_process():
        kept.save_plan(plan)
    return plan


def _settle(module: FineTune, averaging: list[EMA | SWA], task: FineTuneTask) -> None:
    """Put averaged weights in place, with batch norm statistics that fit them."""
    for callback in averaging:
        callback.settle(module)
    module.eval()
    if (task.recipe.train.swa or task.learns_online) and task.recipe.train.batchnorm == "train":
        # An exponential average follows the statistics closely; an equal one over a phase mixes all of its stages, and
        # strong views are unlike the images that the network will see.
        chosen = np.unique(np.linspace(0, len(task.train.rows) - 1, _STATISTICS_IMAGES).astype(int))
        batches = OrderedBatches(task.train.subset(chosen), batch_size=task.batch_size, size=task.preprocessing.size)
        recompute_batchnorm(module.model, batches, lambda batch: module.logits(batch))


def _averaging(recipe: Recipe, timeline: Timeline) -> list[EMA | SWA]:
    if recipe.train.swa:
        return [SWA(timeline.phases[-1].name)]
    return [EMA(recipe.train.ema)] if recipe.train.ema else []
