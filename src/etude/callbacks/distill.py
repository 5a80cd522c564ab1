"""Distillation in any LightningModule: teachers look at what the student is shown."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import etude.compat  # noqa: F401  (before lightning)

import lightning.pytorch as pl
import torch
from lightning.pytorch.plugins import MixedPrecision
from torch import nn

from etude.callbacks.batches import BatchContext, BatchTransform, ImageBatch
from etude.callbacks.mixup import class_targets
from etude.core.errors import EtudeError
from etude.functional.distill import mean_probabilities


class Distill(BatchTransform):
    """Give each training batch its teachers' probabilities, of the very view that the student sees.

    They stand in ``batch["teacher"]``, float32 (B, C): the mean over teachers. ``training_step`` learns from them by
    :func:`~etude.functional.distill.distillation_loss`, whose temperature and share it chooses. With ``share`` they
    become part of the target instead: (1 - share) · target + share · teacher, that loss at a temperature of 1, which
    any cross-entropy of dense targets takes. An unlabelled image has a target of zeros.

    Teachers run without gradients and in evaluation mode, on the module's device. Mixed precision holds for them too; a
    module in bfloat16 or double precision (``bf16-true``, ``64-true``) leaves them in their own. They are not part of
    checkpoints.

    Args:
        teachers: each maps the batch's images, as the callbacks before this one left them, to logits (B, C).
        share: of the teachers in the target, in [0, 1]; None leaves the target alone.
        num_classes: for labels (B,), with ``share``; by default ``module.num_classes``.
        phases: names of the timeline's phases that it is confined to.

    Raises:
        EtudeError: there is no teacher, or one is the module itself; ``share`` is outside [0, 1]; batches hold a
            teacher's probabilities already, or without ``share`` have no place for them; or the teachers' classes
            are not the targets'.

    Example::

        trainer = Trainer(max_epochs=10, callbacks=[Distill([teacher], share=0.5, num_classes=10)])
    """

    def __init__(
        self,
        teachers: Sequence[nn.Module],
        share: float | None = None,
        num_classes: int | None = None,
        phases: Sequence[str] | str | None = None,
    ) -> None:
        super().__init__(phases)
        if not teachers:
            raise EtudeError("Distill got no teachers; give it at least one trained network")
        if share is not None and not 0.0 <= share <= 1.0:
            raise EtudeError(f"Distill got share={share}; it must lie in [0, 1], such as 0.5, or be None")
        self.teachers, self.share, self.num_classes = list(teachers), share, num_classes

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        students = set(pl_module.modules())
        for teacher in self.teachers:
            if teacher in students:  # evaluation mode would stop its training
                raise EtudeError(
                    f"Distill's teacher {type(teacher).__name__} is part of the module that is trained; give it a "
                    "copy, or use PseudoLabels for a network that teaches itself"
                )
            teacher.to(pl_module.device).eval()

    def changed(self, batch: ImageBatch, context: BatchContext) -> ImageBatch:
        """Add the teachers' probabilities to the batch, or mix them into its targets."""
        if batch.teacher is not None:
            raise EtudeError(
                "Distill found batches that hold a teacher's probabilities already: leave out Distill, or 'teacher' in "
                "the batches"
            )
        precision = context.trainer.precision_plugin
        teachers = [partial(_asked, teacher) for teacher in self.teachers]
        with precision.forward_context() if isinstance(precision, MixedPrecision) else nullcontext():
            probabilities = mean_probabilities(teachers, batch.image, "a teacher of Distill")
        if self.share is None:
            return replace(batch, teacher=probabilities)
        targets = class_targets(batch.target, self.num_classes, context.module, type(self).__name__)
        if targets.shape != probabilities.shape:
            raise EtudeError(
                f"Distill's teachers give probabilities {tuple(probabilities.shape)} and the batch has targets "
                f"{tuple(targets.shape)}: both need the same classes in the same order"
            )
        return replace(batch, target=targets * (1.0 - self.share) + probabilities.to(targets.dtype) * self.share)


def _asked(teacher: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Return a teacher's logits of images, which it gets in its own dtype if they are floats."""
    own = next((weight.dtype for weight in teacher.parameters() if weight.is_floating_point()), images.dtype)
    return teacher(images.to(own) if images.is_floating_point() else images)
