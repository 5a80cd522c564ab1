"""Training's progress bar, drawn by whatever the run uses for all its bars."""

from __future__ import annotations

from typing import Any

import etude.compat  # noqa: F401  (before lightning)

import lightning.pytorch as pl

from etude.callbacks.base import EtudeCallback, ends_step
from etude.core.progress import Advance, BarContext, Progress


class TrainingProgress(EtudeCallback):
    """One bar over all steps of the run, in images.

    Args:
        progress: draws the bar.
        steps: optimiser steps of the whole run.
        batch_size: images a step.
        name: shown before the bar.
    """

    def __init__(self, progress: Progress, steps: int, batch_size: int, name: str = "fine-tune") -> None:
        super().__init__()
        self.progress, self.steps, self.batch_size, self.name = progress, steps, batch_size, name
        self._context: BarContext | None = None
        self._advance: Advance | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Open the bar."""
        super().on_train_start(trainer, pl_module)
        self._context = self.progress.bar(self.name, self.steps * self.batch_size)
        self._advance = self._context.__enter__()
        if trainer.global_step:  # a resumed run
            self._advance(trainer.global_step * self.batch_size)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Advance by one step's images, of which accumulated batches each hold a part."""
        if self._advance and ends_step(trainer, batch_idx):
            self._advance(self.batch_size)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Close the bar."""
        self._close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Close the bar, so that the message stands on a line of its own."""
        super().on_exception(trainer, pl_module, exception)
        self._close()

    def _close(self) -> None:
        if self._context:
            self._context.__exit__(None, None, None)
            self._context = self._advance = None
