"""Checkpoints from which a stopped run goes on exactly: by time, by epoch and at a stop, each whole or absent."""

from __future__ import annotations

import os
import signal
import threading
import time
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import Any

import etude.compat  # noqa: F401  (before lightning)

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Checkpoint

from etude.callbacks.base import EtudeCallback, ends_step
from etude.core.errors import EtudeError
from etude.core.files import replacing
from etude.core.stops import handled_by

FILE_NAME = "last.ckpt"
_PATIENCE = 8.0  # seconds; docker stop kills what has not ended after 10


class Checkpoints(EtudeCallback, Checkpoint):
    """Save the whole state of training after ``every_steps`` steps and after ``every_seconds``, whichever comes first.

    Lightning writes the state; this decides when. Its ModelCheckpoint saves by time or by steps, not both, and when a
    validation is due right after the step it saves first: a run resumed from there would leave that validation out, and
    a plateau would not see it. Here such a step is passed over, and the next one is saved.

    Ctrl-C or SIGTERM takes effect once the step has ended and is saved, or after 8 seconds, or when it comes again.

    Args:
        folder: where ``last.ckpt`` stands; it is replaced each time.
        every_steps: such as the steps of an epoch; by default time alone counts.
        every_seconds: of wall time.
        warn: called when a checkpoint cannot be written; training goes on with the one before.
        clock: seconds from any start.
        at_stop: whether signals wait for a checkpoint.
    """

    def __init__(
        self,
        folder: Path | str,
        *,
        every_steps: int | None = None,
        every_seconds: float = 60.0,
        warn: Callable[[str], object] = warnings.warn,
        clock: Callable[[], float] = time.monotonic,
        at_stop: bool = True,
    ) -> None:
        super().__init__()
        self.path = Path(folder) / FILE_NAME
        self.every_steps, self.every_seconds = every_steps, every_seconds
        self._warn, self._clock = warn, clock
        self._saved_step, self._saved_at = 0, 0.0
        self._at_stop, self._handling = at_stop, ExitStack()
        self._stopped_by = 0  # a signal
        self._stop: threading.Timer | None = None  # sends the signal that came again, if no checkpoint has by then

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._saved_step, self._saved_at = trainer.global_step, self._clock()
        if self._at_stop:
            self._handling.enter_context(handled_by(self._wait))

    def _wait(self, number: int, frame: FrameType | None) -> None:
        self._handling.close()  # the second one takes effect at once
        self._stopped_by = number
        self._stop = threading.Timer(_PATIENCE, os.kill, [os.getpid(), number])  # which wakes the main thread
        self._stop.daemon = True
        self._stop.start()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not ends_step(trainer, batch_idx):
            return  # half a step's gradients would be lost, and a resumed run would count its batches from there
        step = trainer.global_step
        stepped = self.every_steps is not None and step - self._saved_step >= self.every_steps
        due = stepped or self._stop is not None or self._clock() - self._saved_at >= self.every_seconds
        # Wall time differs between processes, and all of them take part in saving.
        if trainer.world_size > 1:
            due = trainer.strategy.broadcast(due)
        if due and not self._is_followed(trainer, batch_idx):
            self._save(trainer)
            self._saved_step, self._saved_at = step, self._clock()
            self._let_stop()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._handling.close()  # before Lightning puts back what it found
        self._let_stop()  # what came too late for a checkpoint

    def _let_stop(self) -> None:
        """Send the signal that has waited, if one has."""
        if (stop := self._stop) is not None:
            self._stop = None
            stop.cancel()
            signal.raise_signal(self._stopped_by)

    def undo(self) -> None:
        self._handling.close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        super().on_exception(trainer, pl_module, exception)
        if self._stop is not None:
            self._stop.cancel()

    def _is_followed(self, trainer: pl.Trainer, batch_idx: int) -> bool:
        """Whether a validation or the end comes right after this step."""
        interval = trainer.val_check_batch
        across_epochs = trainer.check_val_every_n_epoch is None
        batches = (trainer.fit_loop.epoch_loop.total_batch_idx if across_epochs else batch_idx) + 1
        # Where every step is validated there is no better moment.
        validates = interval is not None and interval > 1 and trainer.enable_validation and batches % interval == 0
        return validates or trainer.should_stop or trainer.global_step >= trainer.max_steps > 0

    def _save(self, trainer: pl.Trainer) -> None:
        if not trainer.is_global_zero:
            trainer.save_checkpoint(self.path)  # the first process alone writes, but all take part
            return
        met = False
        try:
            with replacing(self.path) as temporary:
                trainer.save_checkpoint(temporary)
                met = True
        except EtudeError as problem:  # a full disk must not end hours of training
            if not met:
                trainer.strategy.barrier()  # the others wait for this process at the end of save_checkpoint
            self._warn(f"no checkpoint at step {trainer.global_step:,}: {problem}")
