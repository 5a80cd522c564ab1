"""The curves of a run: a table in memory and ``history.csv``."""

from __future__ import annotations

import csv
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import etude.compat  # noqa: F401  (before lightning)

import lightning.pytorch as pl
import torch

from etude.callbacks.base import EtudeCallback, callbacks_of, ends_step, loss_of
from etude.callbacks.clock import clock_of
from etude.core.context import Advance, BarContext, Progress
from etude.core.files import replacing
from etude.core.text import rough_duration

_LINES = 20  # of a training, about
_COLUMNS = {
    "epoch": 9,
    "step": 6,
    "px": 4,
    "lr": 7,
    "train loss": 10,
    "valid loss": 10,
    "accuracy": 8,
    "": 4,
    "left": 6,
}


class History(EtudeCallback):
    """Keep one row per validation and write all rows to a CSV file each time, so that a killed run keeps its curves.

    A row holds ``epoch``, ``step``, ``seconds``, then with a :class:`~etude.callbacks.Clock` the ``phase`` and every
    quantity that it schedules, then ``train_loss`` (the mean since the row before; with several
    processes, over the first one's share of each batch) and every metric that validation logged. A checkpoint keeps
    the rows.

    Args:
        path: of the CSV file, or None to keep the rows in memory only.
        epoch_steps: optimiser steps of a pass over the data where Lightning's own count of epochs does not tell;
            ``epoch`` is then a fraction.

    Example::

        history = History("history.csv")
        Trainer(callbacks=[history]).fit(module, loader, valid_loader)
        history.rows[-1]["valid_loss"]
    """

    def __init__(self, path: Path | str | None = None, epoch_steps: float | None = None) -> None:
        super().__init__()
        self.path = None if path is None else Path(path)
        self.epoch_steps = epoch_steps
        self._start_afresh()

    def _start_afresh(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self._losses: list[torch.Tensor] = []
        self._started = time.perf_counter()
        self._seconds_before = 0.0

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "fit" and not trainer.global_step:
            self._start_afresh()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._started = time.perf_counter()
        self._losses = [loss.to(pl_module.device) for loss in self._losses]  # a checkpoint's stand on the CPU

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (loss := loss_of(trainer, outputs)) is not None:
            self._losses.append(loss)  # a tensor: reading its value here would make every step wait for the GPU

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        epoch = trainer.current_epoch
        row: dict[str, Any] = {
            "epoch": round(trainer.global_step / self.epoch_steps, 3) if self.epoch_steps else epoch,
            "step": trainer.global_step,
            "seconds": round(self._seconds(), 3),
        }
        clock = clock_of(trainer)
        if clock is not None and clock.moment is not None:
            row["phase"] = clock.moment.phase
            row |= {name: getattr(clock.moment, name) for name in clock.timeline.quantities()}
        row["train_loss"] = float(torch.stack(self._losses).mean()) if self._losses else None
        row |= {name: metrics[name] for name in sorted(metrics) if name != "train_loss"}
        self.rows.append(row)
        self._losses.clear()
        if trainer.is_global_zero:
            self._write()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._seconds_before, self._started = self._seconds(), time.perf_counter()

    def state_dict(self) -> dict[str, Any]:
        losses = [float(loss) for loss in self._losses]
        return {"rows": self.rows, "losses": losses, "seconds": self._seconds()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = list(state_dict["rows"])
        self._losses = [torch.tensor(loss) for loss in state_dict["losses"]]
        self._seconds_before = float(state_dict["seconds"])

    def _seconds(self) -> float:
        return self._seconds_before + time.perf_counter() - self._started

    def _write(self) -> None:
        if self.path is None:
            return
        columns = list(dict.fromkeys(name for row in self.rows for name in row))
        with replacing(self.path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(self.rows)


class TrainingProgress(EtudeCallback):
    """One bar over all steps of the run, in images, and above it a line for each row of a :class:`History`.

    Where there are more than about 20 validations, those lines are left out that come sooner than a 20th of the run
    after the one before.
    """

    def __init__(self, progress: Progress, steps: int, batch_size: int, name: str = "fine-tune") -> None:
        super().__init__()
        self.progress, self.steps, self.batch_size, self.name = progress, steps, batch_size, name
        self._context: BarContext | None = None
        self._advance: Advance | None = None
        self._began, self._shown = (0, 0.0), -1

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._context = self.progress.bar(self.name, self.steps * self.batch_size)
        self._advance = self._context.__enter__()
        if trainer.global_step:  # a resumed run
            self._advance(trainer.global_step * self.batch_size)
        self._began, self._shown = (trainer.global_step, time.monotonic()), -1

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._advance and ends_step(trainer, batch_idx):
            self._advance(self.batch_size)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        history = next((one for one in callbacks_of(trainer) if isinstance(one, History)), None)
        if not self._context or not history or not trainer.is_global_zero:
            return
        clock, step = clock_of(trainer), trainer.global_step
        steps = self.steps if clock is None else max(1, round(self.steps * clock.timeline.end))
        if step * _LINES // steps == self._shown:
            return
        if self._shown < 0:
            self.progress.say(_line({name: name for name in _COLUMNS}))
        self._shown = step * _LINES // steps
        start, began = self._began
        left = (steps - step) * (time.monotonic() - began) / max(1, step - start)
        self.progress.say(_line({**_cells(history, steps), "left": rough_duration(left) if step < steps else ""}))

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.undo()

    def undo(self) -> None:
        if self._context:
            self._context.__exit__(None, None, None)
            self._context = self._advance = None


def _line(cells: Mapping[str, str]) -> str:
    return "  ".join(cells[name].rjust(width) for name, width in _COLUMNS.items()).rstrip()


def _cells(history: History, steps: int) -> dict[str, str]:
    """Return what the line of the last validation says, with ``best`` where none before was as good."""
    row = history.rows[-1]

    def number(name: str, form: str) -> str:
        return "" if row.get(name) is None else format(row[name], form)

    of = f"/{round(steps / history.epoch_steps, 1):g}" if history.epoch_steps else ""
    scores = [(one.get("valid_accuracy", 0.0), -one.get("valid_loss", math.inf)) for one in history.rows]
    return {
        "epoch": f"{round(row['epoch'], 1):g}{of}",
        "step": str(row["step"]),
        "px": number("image_size", "g"),
        "lr": number("lr", ".1e"),
        "train loss": number("train_loss", ".4f"),
        "valid loss": number("valid_loss", ".4f"),
        "accuracy": number("valid_accuracy", ".2%"),
        "": "best" if scores[-1] > max(scores[:-1], default=(0.0, -math.inf)) else "",
    }
