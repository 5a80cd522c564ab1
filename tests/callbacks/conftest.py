"""A user's own LightningModule, with tuple batches, for the tests of the callbacks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import etude.compat  # noqa: F401  (before lightning)

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset


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


class ImageModule(pl.LightningModule):
    """A user's classifier of images (B, C, H, W) with labels (B,): plain cross-entropy, nothing of etude.

    It writes down the batches that its steps saw.
    """

    def __init__(self, num_classes: int = 3, channels: int = 3) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.convolution = torch.nn.Conv2d(channels, 4, 3, padding=1)
        self.norm = torch.nn.BatchNorm2d(4)
        self.head = torch.nn.Linear(4, num_classes)
        self.seen: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.validated: list[tuple[torch.Tensor, torch.Tensor]] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.convolution(images)).relu().mean((2, 3)))

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> torch.Tensor:
        images, labels = batch
        self.seen.append((images, labels))
        loss = torch.nn.functional.cross_entropy(self(images), labels)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> None:
        images, labels = batch
        self.validated.append((images, labels))
        self.log("valid_loss", torch.nn.functional.cross_entropy(self(images), labels))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9)


Fit = Callable[..., pl.Trainer]


@pytest.fixture
def plain_module() -> type[PlainModule]:
    return PlainModule


@pytest.fixture
def image_module() -> type[ImageModule]:
    torch.manual_seed(0)
    return ImageModule


@pytest.fixture
def images() -> TensorDataset:
    """24 images (3, 16, 16) in [0, 1], labels 0, 1 and 2 in turn."""
    generator = torch.Generator().manual_seed(0)
    return TensorDataset(torch.rand(24, 3, 16, 16, generator=generator), torch.arange(24) % 3)


@pytest.fixture
def fit_images(tmp_path: Path, images: TensorDataset) -> Fit:
    """``fit_images(module, callbacks, steps=8, **trainer_settings)`` trains on 4 batches of 6 an epoch, in order."""

    def run(
        module: pl.LightningModule,
        callbacks: list[pl.Callback],
        steps: int = 8,
        data: Dataset[Any] = images,
        ckpt_path: Path | None = None,
        datamodule: pl.LightningDataModule | None = None,
        **settings: Any,
    ) -> pl.Trainer:
        loader = DataLoader(data, batch_size=6)
        settings = {"logger": False, "enable_checkpointing": False, "max_epochs": -1} | settings
        trainer = pl.Trainer(
            max_steps=steps,
            accelerator="cpu",
            callbacks=callbacks,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
            **settings,
        )
        loaders = () if datamodule else (loader, loader)
        trainer.fit(module, *loaders, datamodule=datamodule, ckpt_path=ckpt_path)
        return trainer

    return run


@pytest.fixture
def fit(tmp_path: Path) -> Fit:
    """``fit(module, callbacks, steps=8, per_epoch=4, valid=False)`` trains on batches of 5 tuples."""

    def run(
        module: pl.LightningModule,
        callbacks: list[pl.Callback],
        steps: int = 8,
        per_epoch: int = 4,
        valid: bool = False,
        ckpt_path: Path | None = None,
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
        trainer.fit(module, loader, loader if valid else None, ckpt_path=ckpt_path)
        return trainer

    return run
