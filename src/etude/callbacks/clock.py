"""The one place where the timeline is written into the trainer."""

from __future__ import annotations

from typing import Any

import etude.compat  # noqa: F401  (before lightning)

import lightning.pytorch as pl

from etude.timeline import Moment, Timeline, step_progress


class Clock(pl.Callback):
    """Set the learning rate of every optimiser group before each step, by the timeline.

    A group's own ``lr_scale`` (layer-wise decay) multiplies the timeline's learning rate.

    Args:
        timeline: the plan.
        steps: optimiser steps of the whole run.

    Example::

        trainer = Trainer(max_steps=1000, callbacks=[Clock(default_timeline(1e-3, 128, 224), 1000)])
    """

    def __init__(self, timeline: Timeline, steps: int) -> None:
        super().__init__()
        self.timeline, self.steps = timeline, steps
        self.moment: Moment = timeline.at(step_progress(0, steps))

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Move to the moment of the coming step."""
        self.moment = self.timeline.at(step_progress(trainer.global_step, self.steps))
        for optimizer in trainer.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.moment.lr * group.get("lr_scale", 1.0)
