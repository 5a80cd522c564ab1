"""The LightningModule of stage 2."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import etude.compat  # noqa: F401  (before lightning)

import lightning.pytorch as pl
import torch
from torch import nn

from etude.callbacks import Clock
from etude.core.seeds import derive_seed
from etude.data.loader import OrderedBatches, StepBatches
from etude.functional.distill import distillation_loss
from etude.functional.mix import cross_entropy, smoothed
from etude.models.classifier import Classifier, Preprocessing
from etude.models.features import autocast
from etude.models.modes import Mode, lay_out_images
from etude.recipe.settings import TrainSettings
from etude.training.optimizer import build_optimizer


class FineTune(pl.LightningModule):
    """Train a :class:`Classifier` on dense targets.

    Args:
        model: trained in place.
        preprocessing: turns uint8 batches into the network's input.
        settings: of the training.
        clock: tells the moment of a step.
        batches: returns the batches from a step on, so that a resumed run goes on where it stood.
        valid_batches: returns this process's labelled validation images; None without any.
        mode: numeric mode; its precision and layout hold for the forward pass.
        seed: of what is random inside the network (dropout, stochastic depth), with the step.
        temperature: that softens teacher and student, for batches with a teacher's probabilities.
        soft_share: of the loss on those probabilities, in [0, 1]; the rest is that on the targets.
    """

    def __init__(
        self,
        model: Classifier,
        preprocessing: Preprocessing,
        settings: TrainSettings,
        clock: Clock,
        batches: Callable[[int], StepBatches],
        valid_batches: Callable[[], OrderedBatches] | None,
        mode: Mode,
        seed: int = 0,
        temperature: float = 2.0,
        soft_share: float = 0.5,
    ) -> None:
        super().__init__()
        self.model, self.preprocessing, self.settings = model, preprocessing, settings
        self._clock, self._batches, self._valid_batches = clock, batches, valid_batches
        self._mode, self._seed = mode, seed
        self._temperature, self._soft_share = temperature, soft_share

    def training_step(self, batch: Mapping[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        """Return the batch's mean loss."""
        step, rank, part = self.trainer.global_step, self.trainer.global_rank, self._part(batch_idx)
        # Seeded anew each step, a resumed run needs no state of torch's generator.
        torch.manual_seed(derive_seed(self._seed, f"torch/{rank}/{part}" if rank or part else "torch", step))
        scheduled = self._clock.moment_at(step).label_smoothing
        loss = self._loss(batch, self.settings.label_smoothing if scheduled is None else scheduled)
        self.log("train_loss", loss, batch_size=len(batch["weight"]))
        return loss

    def validation_step(self, batch: Mapping[str, torch.Tensor], batch_idx: int) -> None:
        """Log loss and accuracy on validation images."""
        logits, target = self.logits(batch), batch["target"]
        correct = (logits.argmax(1) == target.argmax(1)).float().mean()
        loss = cross_entropy(logits, target, torch.ones_like(batch["weight"]))
        self.log_dict({"valid_loss": loss, "valid_accuracy": correct}, batch_size=len(target), sync_dist=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the optimiser that the settings name."""
        return build_optimizer(self.model, self.settings)

    def train_dataloader(self) -> StepBatches:
        """Return the batches that are left."""
        return self._batches(self.trainer.global_step)

    def val_dataloader(self) -> OrderedBatches | list[OrderedBatches]:
        """Return the validation batches, if any."""
        return self._valid_batches() if self._valid_batches is not None else []

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

    def _loss(self, batch: Mapping[str, torch.Tensor], smoothing: float) -> torch.Tensor:
        """Return the mean loss on smoothed targets, and on a teacher's probabilities where the batch has them."""
        logits, target, weight = self.logits(batch), batch["target"], batch["weight"]
        if "teacher" not in batch:
            return cross_entropy(logits, smoothed(target, smoothing), weight)
        # A target of zeros, or its part of a mixture, belongs to an image without a label: none of it is spread.
        mass = target.sum(1, keepdim=True)
        target = smoothed(target / mass.clamp_min(1e-12), smoothing) * mass
        return distillation_loss(logits, target, weight, batch["teacher"], self._temperature, self._soft_share)

    def _part(self, batch_idx: int) -> int:
        """Return which of a step's accumulated batches this is."""
        return batch_idx % self.trainer.accumulate_grad_batches

    def logits(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return the (B, C) logits of a batch's images."""
        # Not Lightning's mixed precision: it refuses to clip the gradients of fused optimisers.
        with autocast(self.device, self._mode.precision):
            return self.model(lay_out_images(self.preprocessing.to_input(batch["image"]), self._mode))
