"""The curves of a run: a table in memory and ``history.csv``."""

from __future__ import annotations

import csv
import time
from pathlib import Path
from typing import Any

import etude.compat  # noqa: F401  (before lightning)

import lightning.pytorch as pl
import torch

from etude.callbacks.clock import Clock
from etude.core.files import replacing

COLUMNS: tuple[str, ...] = (
    "epoch",
    "step",
    "seconds",
    "phase",
    "lr",
    "image_size",
    "augment",
    "train_loss",
    "valid_loss",
    "valid_accuracy",
)


class History(pl.Callback):
    """Keep one row per validation and write all rows to a CSV file each time, so that a killed run keeps its curves.

    The columns are those of ``COLUMNS``; ``train_loss`` is the mean since the row before.

    Args:
        path: of the CSV file, or None to keep the rows in memory only.
    """

    def __init__(self, path: Path | None = None) -> None:
        super().__init__()
        self.path = path
        self.rows: list[dict[str, Any]] = []
        self._losses: list[torch.Tensor] = []
        self._started = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock of the ``seconds`` column."""
        self._started = time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Remember the step's loss."""
        if outputs is not None:
            # Kept as a tensor: reading its value here would make every step wait for the GPU.
            self._losses.append((outputs["loss"] if isinstance(outputs, dict) else outputs).detach())

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write a row."""
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        metrics = {key: float(value) for key, value in trainer.callback_metrics.items()}
        clock = next((callback for callback in trainer.callbacks if isinstance(callback, Clock)), None)  # pyright: ignore[reportAttributeAccessIssue]
        moment = clock.moment if clock else None
        self.rows.append(
            {
                "epoch": trainer.current_epoch,
                "step": trainer.global_step,
                "seconds": round(time.perf_counter() - self._started, 3),
                "phase": moment.phase if moment else "",
                "lr": moment.lr if moment else "",
                "image_size": moment.image_size if moment else "",
                "augment": moment.augment if moment else "",
                "train_loss": float(torch.stack(self._losses).mean()) if self._losses else "",
                "valid_loss": metrics.get("valid_loss", ""),
                "valid_accuracy": metrics.get("valid_accuracy", ""),
            }
        )
        self._losses.clear()
        self._write()

    def _write(self) -> None:
        if self.path is None:
            return
        with replacing(self.path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(self.rows)
