"""The LR range test (Smith 2015): a short training whose learning rate grows until the loss diverges."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, cast

import etude.compat  # noqa: F401  (before lightning)

import lightning.pytorch as pl
import numpy as np
import torch

from etude.callbacks import Clock, TrainingProgress, arrange
from etude.callbacks.base import loss_of
from etude.core.context import Context
from etude.core.lr_range import DIVERGED
from etude.models.classifier import Classifier
from etude.models.modes import applied
from etude.recipe.timeline import image_sizes, timeline_of
from etude.timeline import Exponential, Phase, Timeline
from etude.training.batches import parts_of, smoothing
from etude.training.module import FineTune
from etude.training.task import FineTuneTask
from etude.training.trainer import build_trainer, passing_interrupts, quiet_lightning

_SMOOTHING = 0.9


def lr_range_test(
    model: Classifier,
    task: FineTuneTask,
    *,
    steps: int = 100,
    lowest: float = 1e-7,
    highest: float = 1.0,
    context: Context = Context(),
) -> tuple[np.ndarray, np.ndarray]:
    """Return the learning rates (S,) that were tried, and the loss (S,) of the step at each; ``model`` is used up.

    A timeline of one phase, by the clock, loader and multipliers of the training that it is for; Lightning's own finder
    would set all layers to one rate. It ends early when the loss has diverged.
    """
    timeline = Timeline(
        (Phase("range test", 1.0, lr=Exponential(lowest, highest), image_size=image_sizes(task.recipe).first),),
        size_multiple=timeline_of(task.recipe).size_multiple,
    )
    clock, losses = Clock(timeline, steps), _Losses()
    task = replace(task, valid=None)
    bar = TrainingProgress(context, steps, task.batch_size, "learning rate")
    with quiet_lightning():
        callbacks = arrange([clock, losses, *smoothing(task, timeline), bar])
        trainer = build_trainer(
            steps=steps, validate_every=steps, clip=task.recipe.train.clip, callbacks=callbacks, folder=None,
            parts=parts_of(task, timeline, steps),
        )  # fmt: skip
        with applied(task.mode), passing_interrupts():
            trainer.fit(FineTune(model, task, clock).train())
    rates = np.array([clock.moment_at(step).lr for step in range(len(losses.values))], dtype=float)
    return rates, np.array(losses.values)


class _Losses(pl.Callback):
    """Keep the loss of every step; stop when its smoothed value exceeds four times the lowest."""

    def __init__(self) -> None:
        super().__init__()
        self.values: list[float] = []
        self._average, self._best = 0.0, math.inf

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return  # a part of a step
        loss = float(cast(torch.Tensor, loss_of(trainer, outputs)))
        self.values.append(loss)
        self._average = _SMOOTHING * self._average + (1 - _SMOOTHING) * loss
        smoothed = self._average / (1 - _SMOOTHING ** len(self.values))
        self._best = min(self._best, smoothed)
        if not math.isfinite(loss) or smoothed > DIVERGED * self._best:
            trainer.should_stop = True
