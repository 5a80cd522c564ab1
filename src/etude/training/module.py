"""The LightningModule of stage 2."""

from __future__ import annotations

from collections.abc import Mapping

import etude.compat  # noqa: F401  (before lightning)

import lightning.pytorch as pl
import torch
from torch import nn

from etude.callbacks import Clock
from etude.core.seeds import derive_seed
from etude.data.loader import OrderedBatches, StepBatches
from etude.functional.distill import distillation_loss
from etude.functional.mix import cross_entropy
from etude.models.classifier import Classifier
from etude.models.features import autocast
from etude.models.modes import lay_out, lay_out_images
from etude.training.batches import step_batches, valid_batches
from etude.training.optimizer import build_optimizer
from etude.training.task import FineTuneTask


class FineTune(pl.LightningModule):
    """Train a :class:`Classifier` in place on dense targets; its batches follow the clock's plan."""

    def __init__(self, model: Classifier, task: FineTuneTask, clock: Clock) -> None:
        super().__init__()
        self.model, self.task, self._clock = lay_out(model, task.mode), task, clock

    def training_step(self, batch: Mapping[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        step, rank = self.trainer.global_step, self.trainer.global_rank
        part = batch_idx % self.trainer.accumulate_grad_batches
        # Seeded anew each step, a resumed run needs no state of torch's generator.
        torch.manual_seed(derive_seed(self.task.seed, f"torch/{rank}/{part}" if rank or part else "torch", step))
        logits, target, weight, distill = self.logits(batch), batch["target"], batch["weight"], self.task.recipe.distill
        if "teacher" in batch:
            loss = distillation_loss(logits, target, weight, batch["teacher"], distill.temperature, distill.weight)
        else:
            loss = cross_entropy(logits, target, weight)
        self.log("train_loss", loss, batch_size=len(weight))
        return loss

    def validation_step(self, batch: Mapping[str, torch.Tensor], batch_idx: int) -> None:
        logits, target = self.logits(batch), batch["target"]
        correct = (logits.argmax(1) == target.argmax(1)).float().mean()
        loss = cross_entropy(logits, target, torch.ones_like(batch["weight"]))
        self.log_dict({"valid_loss": loss, "valid_accuracy": correct}, batch_size=len(target), sync_dist=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return build_optimizer(self.model, self.task.recipe.train)

    def train_dataloader(self) -> StepBatches:
        """Return the batches that are left: a resumed run goes on where it stood."""
        return step_batches(self.task, self._clock, self.trainer.global_step)

    def val_dataloader(self) -> OrderedBatches | list[OrderedBatches]:
        return valid_batches(self.task)

    def train(self, mode: bool = True) -> FineTune:
        """Switch to training; pretrained batch norm keeps its statistics when the settings say so.

        In training mode the batch statistics of other sizes and images would replace those that the stage 1
        head was fitted on: it would start at a loss of about 7 (two classes).
        """
        super().train(mode)
        if mode and self.task.recipe.train.batchnorm == "keep":
            for module in self.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self

    def logits(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return the (B, C) logits of a batch's images."""
        # Not Lightning's mixed precision: it refuses to clip the gradients of fused optimisers.
        with autocast(self.device, self.task.mode.precision):
            return self.model(lay_out_images(self.task.preprocessing.to_input(batch["image"]), self.task.mode))
