"""A user's own functions at the beginning and end of epochs and batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import etude.compat  # noqa: F401  (before lightning)

import lightning.pytorch as pl
import torch

from etude.callbacks.base import EtudeCallback, loss_of
from etude.callbacks.clock import clock_of, scheduled_in

Logs = dict[str, Any]
Hook = Callable[[int, Logs], object]


class Hooks(EtudeCallback):
    """Call functions as Keras' LambdaCallback does: ``f(epoch, logs)`` and ``f(step, logs)``, both counted from 0.

    ``logs`` is a dict of plain numbers: with a Clock ``phase``, ``progress`` and every scheduled quantity; but for the
    beginning of a batch, the metrics that the module has logged so far; and at the end of a batch its ``loss``, at the
    end of an epoch the mean of its batches' losses. An epoch ends after its validation. What the functions return is
    ignored, ``step`` is the optimiser's, and the functions are not kept in checkpoints.

    Args:
        on_epoch_begin: before the first batch of an epoch.
        on_epoch_end: after its last batch and its validation.
        on_batch_begin: before a training batch.
        on_batch_end: after it; reading the loss waits for the device, at every step.

    Example::

        trainer = Trainer(max_epochs=10, callbacks=[Hooks(on_epoch_end=lambda epoch, logs: print(epoch, logs))])
    """

    def __init__(
        self,
        on_epoch_begin: Hook | None = None,
        on_epoch_end: Hook | None = None,
        on_batch_begin: Hook | None = None,
        on_batch_end: Hook | None = None,
    ) -> None:
        super().__init__()
        self._epoch_begin, self._epoch_end = on_epoch_begin, on_epoch_end
        self._batch_begin, self._batch_end = on_batch_begin, on_batch_end
        self._step = 0
        self._sum: torch.Tensor | float = 0.0
        self._count = 0

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._step, self._sum, self._count = trainer.global_step, 0.0, 0
        if self._epoch_begin:
            self._epoch_begin(trainer.current_epoch, self._moment(trainer) | _logged(trainer))

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._step = trainer.global_step
        if self._batch_begin:
            self._batch_begin(self._step, self._moment(trainer))  # asking Lightning for metrics costs 20 µs

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loss = loss_of(trainer, outputs) if self._epoch_end or self._batch_end else None
        if self._epoch_end and loss is not None:
            # Added up on the device: reading each loss would make every step wait for it.
            self._sum, self._count = self._sum + loss, self._count + 1
        if self._batch_end:
            known = {} if loss is None else {"loss": float(loss)}
            self._batch_end(self._step, self._moment(trainer) | _logged(trainer) | known)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._epoch_end:
            loss = {"loss": float(self._sum) / self._count} if self._count else {}
            self._epoch_end(trainer.current_epoch, self._moment(trainer) | _logged(trainer) | loss)

    def _moment(self, trainer: pl.Trainer) -> Logs:
        clock = clock_of(trainer)
        moment = clock.moment if clock else None
        if moment is None:
            return {}
        return {"phase": moment.phase, "progress": moment.progress, **scheduled_in(moment)}


def _logged(trainer: pl.Trainer) -> Logs:
    return {name: float(value) for name, value in trainer.callback_metrics.items()}
