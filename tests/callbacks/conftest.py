"""A user's own LightningModule, with tuple batches, for the tests of the callbacks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import etude.compat  # noqa: F401  (before lightning)

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset


class PlainModule(pl.LightningModule):
    """Linear regression that writes down what the optimiser saw; step ``fail_at`` raises."""

    def __init__(self, fail_at: int = -1) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)
        self.fail_at = fail_at
        self.rates: list[list[float]] = []
        self.losses: list[float] = []

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> torch.Tensor:
        if len(self.rates) == self.fail_at:
            raise RuntimeError("the cable fell out")
        x, y = batch
        self.rates.append([group["lr"] for group in self.optimizers().param_groups])  # type: ignore[union-attr]
        loss = (self.layer(x)[:, 0] - y).square().mean()
        self.losses.append(loss.item())
        return loss

    def validation_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> None:
        self.log_dict({"valid_loss": 0.25, "valid_accuracy": 0.75})

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(
            [{"params": [self.layer.weight], "lr_scale": 0.1}, {"params": [self.layer.bias]}], lr=123.0
        )


Fit = Callable[..., pl.Trainer]


@pytest.fixture
def plain_module() -> type[PlainModule]:
    return PlainModule


@pytest.fixture
def fit(tmp_path: Path) -> Fit:
    """``fit(module, callbacks, steps=8, per_epoch=4, valid=False)`` trains on batches of 5 tuples."""

    def run(
        module: pl.LightningModule,
        callbacks: list[pl.Callback],
        steps: int = 8,
        per_epoch: int = 4,
        valid: bool = False,
    ) -> pl.Trainer:
        torch.manual_seed(0)
        loader = DataLoader(TensorDataset(torch.randn(5 * per_epoch, 2), torch.randn(5 * per_epoch)), batch_size=5)
        trainer = pl.Trainer(
            max_steps=steps,
            max_epochs=-1,
            accelerator="cpu",
            callbacks=callbacks,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
        )
        trainer.fit(module, loader, loader if valid else None)
        return trainer

    return run
