"""The LightningModule of stage 2."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import etude.compat  # noqa: F401  (before lightning)

import lightning.pytorch as pl
import torch
from torch import nn

from etude.data.loader import EpochBatches, OrderedBatches
from etude.functional.targets import cross_entropy
from etude.models.classifier import Classifier, Preprocessing
from etude.models.features import autocast
from etude.recipe.settings import TrainSettings
from etude.training.optimizer import build_optimizer


class FineTune(pl.LightningModule):
    """Train a :class:`Classifier` on dense targets.

    Args:
        model: trained in place.
        preprocessing: turns uint8 batches into the network's input.
        settings: of the training.
        epoch_batches: returns the batches of an epoch.
        valid_batches: labelled validation images, or None.
        precision: numeric mode of the forward pass, ``fp32`` or ``bf16``.
    """

    def __init__(
        self,
        model: Classifier,
        preprocessing: Preprocessing,
        settings: TrainSettings,
        epoch_batches: Callable[[int], EpochBatches],
        valid_batches: OrderedBatches | None,
        precision: str = "fp32",
    ) -> None:
        super().__init__()
        self.model, self.preprocessing, self.settings = model, preprocessing, settings
        self._epoch_batches, self._valid_batches = epoch_batches, valid_batches
        self._precision = precision

    def training_step(self, batch: Mapping[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        """Return the batch's mean loss."""
        loss = cross_entropy(self._logits(batch), batch["target"], batch["weight"])
        self.log("train_loss", loss, batch_size=len(batch["target"]))
        return loss

    def validation_step(self, batch: Mapping[str, torch.Tensor], batch_idx: int) -> None:
        """Log loss and accuracy on validation images."""
        logits, target = self._logits(batch), batch["target"]
        correct = (logits.argmax(1) == target.argmax(1)).float().mean()
        loss = cross_entropy(logits, target, torch.ones_like(batch["weight"]))
        self.log_dict({"valid_loss": loss, "valid_accuracy": correct}, batch_size=len(target))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the optimiser that the settings name."""
        return build_optimizer(self.model, self.settings)

    def train_dataloader(self) -> EpochBatches:
        """Return the present epoch's batches."""
        return self._epoch_batches(self.trainer.current_epoch)

    def val_dataloader(self) -> OrderedBatches | list[OrderedBatches]:
        """Return the validation batches, if any."""
        return self._valid_batches if self._valid_batches is not None else []

    def train(self, mode: bool = True) -> FineTune:
        """Switch to training; pretrained batch norm keeps its statistics when the settings say so.

        In training mode the batch statistics of other sizes and images would replace those that the stage 1
        head was fitted on: it would start at a loss of about 7 (two classes).
        """
        super().train(mode)
        if mode and self.settings.batchnorm == "keep":
            for module in self.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self

    def _logits(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        # Not Lightning's mixed precision: it refuses to clip the gradients of fused optimisers.
        with autocast(self.device, self._precision):
            return self.model(self.preprocessing.to_input(batch["image"]))
