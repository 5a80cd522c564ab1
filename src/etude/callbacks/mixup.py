"""MixUp and CutMix in any LightningModule."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import etude.compat  # noqa: F401  (before lightning)

import lightning.pytorch as pl
import numpy as np
import torch

from etude.callbacks.base import callbacks_of
from etude.callbacks.batches import BatchContext, BatchTransform, ImageBatch
from etude.callbacks.clock import clock_of
from etude.core.errors import EtudeError
from etude.functional.mix import (
    check_alpha,
    cutmix,
    draw_box,
    draw_lambda,
    mixup,
    one_hot,
    smoothed,
    with_weights,
    without_weights,
)
from etude.timeline import Timeline


class _Mixing(BatchTransform):
    """What MixUp and CutMix share. Where both are on, each batch is mixed by one of them, drawn evenly."""

    quantity: ClassVar[str]

    def __init__(
        self,
        alpha: float = 0.2,
        num_classes: int | None = None,
        phases: Sequence[str] | str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(phases, seed)
        check_alpha(alpha)
        self.alpha, self.num_classes = alpha, num_classes

    @abstractmethod
    def mixed(
        self, batch: ImageBatch, targets: torch.Tensor, alpha: float, rng: np.random.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return mixed images and targets; ``targets`` are dense floats."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        clock = clock_of(trainer)
        if clock is not None and not ever_on(clock.timeline, self.quantity, where_unscheduled=self.alpha):
            raise EtudeError(
                f"the timeline keeps {self.quantity} at 0 throughout, so {type(self).__name__} would do nothing: "
                f"schedule {self.quantity} in a phase, or leave {type(self).__name__} out"
            )

    def changed(self, batch: ImageBatch, context: BatchContext) -> ImageBatch:
        alpha = self.alpha_at(context)
        if alpha <= 0.0 or not self._is_drawn(context):
            return batch
        dense = dense_targets(batch.target, self.num_classes, context.module, type(self).__name__)
        targets = dense[:, None] if dense.ndim == 1 else dense
        rng = context.rng(self.seed, self.quantity)
        classes = targets.shape[-1]
        together = targets if batch.teacher is None else torch.cat([targets, batch.teacher.to(targets.dtype)], 1)
        if batch.weight is None:
            weight, (images, together) = None, self.mixed(batch, together, alpha, rng)
        else:
            images, weighted = self.mixed(batch, with_weights(together, batch.weight), alpha, rng)
            together, weight = without_weights(weighted)
        teacher = None if batch.teacher is None else together[:, classes:]
        target = together[:, :classes].reshape(dense.shape)
        return replace(batch, image=images, target=target, weight=weight, teacher=teacher)

    def alpha_at(self, context: BatchContext) -> float:
        """Return the present alpha: the timeline's where it schedules one, else this callback's own; 0 is off."""
        return context.scheduled(self.quantity, self.alpha) if self.is_on(context) else 0.0

    def _is_drawn(self, context: BatchContext) -> bool:
        rivals = [
            callback
            for callback in callbacks_of(context.trainer)
            if isinstance(callback, _Mixing) and callback.alpha_at(context) > 0.0
        ]
        draw = context.rng(rivals[0].seed, "mixup-or-cutmix").integers(len(rivals))
        return rivals[int(draw)] is self


class MixUp(_Mixing):
    """Train on mixtures of two images and of their targets (Zhang et al. 2017).

    Labels (B,) become dense targets (B, C), which ``torch.nn.functional.cross_entropy`` takes as they are; weights and
    a teacher's probabilities, where the batch has them, are mixed too, by the same share. With :class:`CutMix` in the
    trainer too, each batch is mixed by one of the two. All images of a batch share one draw of Beta(alpha, alpha).

    Args:
        alpha: of the Beta distribution, at least 0; the Clock's moment takes precedence where it schedules ``mixup``.
        num_classes: by default ``module.num_classes``.
        phases: names of the timeline's phases that it is confined to.
        seed: of the draws.

    Raises:
        EtudeError: alpha is negative, or labels cannot be made dense.

    Example::

        trainer = Trainer(max_epochs=10, callbacks=[MixUp(alpha=0.2, num_classes=10)])
    """

    quantity = "mixup"

    def mixed(
        self, batch: ImageBatch, targets: torch.Tensor, alpha: float, rng: np.random.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        lam = draw_lambda(alpha, rng)
        return mixup(batch.image, targets, lam, _permutation(rng, batch.image))


class CutMix(_Mixing):
    """Train on images with a box of another one pasted in, targets mixed by area (Yun et al. 2019).

    Everything else is as with :class:`MixUp`; the Clock's moment takes precedence where it schedules ``cutmix``.

    Example::

        trainer = Trainer(max_epochs=10, callbacks=[CutMix(num_classes=10)])
    """

    quantity = "cutmix"

    def __init__(
        self,
        alpha: float = 1.0,
        num_classes: int | None = None,
        phases: Sequence[str] | str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(alpha, num_classes, phases, seed)

    def mixed(
        self, batch: ImageBatch, targets: torch.Tensor, alpha: float, rng: np.random.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        box = draw_box(*batch.size, draw_lambda(alpha, rng), rng)
        permutation = _permutation(rng, batch.image)
        return cutmix(batch.image, targets, box, permutation, channels_last=batch.channels_last)


def ever_on(timeline: Timeline, quantity: str, where_unscheduled: float = 0.0) -> bool:
    """Return whether a quantity is above 0 at any point of a resolved timeline's phases."""
    curves = [phase.curve(quantity) for phase in timeline.phases]
    return any(
        where_unscheduled > 0.0 if curve is None else any(curve.at(k / 64) > 0.0 for k in range(65)) for curve in curves
    )


def dense_targets(
    targets: torch.Tensor, num_classes: int | None, module: pl.LightningModule, name: str
) -> torch.Tensor:
    """Return targets that can be mixed: floats as they are, integer labels (B,) as one-hot rows (B, C)."""
    if targets.is_floating_point() and targets.ndim <= 2:
        return targets
    if targets.ndim != 1 or targets.is_floating_point():
        raise EtudeError(
            f"{name} got targets {tuple(targets.shape)} of {targets.dtype}; it mixes labels (B,) and float targets "
            "(B,) or (B, C)"
        )
    classes = num_classes or getattr(module, "num_classes", None)
    if not isinstance(classes, int):
        raise EtudeError(
            f"{name} turns labels into dense targets and does not know how many classes there are: write "
            f"{name}(num_classes=...), or give {type(module).__name__} an attribute num_classes"
        )
    # On a GPU a look at the values would hold up every step; there one_hot itself stops the run.
    if targets.device.type == "cpu" and not 0 <= int(targets.min()) <= int(targets.max()) < classes:
        raise EtudeError(
            f"a training batch has labels from {int(targets.min())} to {int(targets.max())}, and {name} has "
            f"{classes} classes: labels run from 0 to {classes - 1}"
        )
    return one_hot(targets.long(), classes)


def class_targets(
    targets: torch.Tensor, num_classes: int | None, module: pl.LightningModule, name: str
) -> torch.Tensor:
    """Return :func:`dense_targets`, (B, C)."""
    dense = dense_targets(targets, num_classes, module, name)
    if dense.ndim != 2 or dense.shape[1] < 2:
        raise EtudeError(
            f"{name} got float targets {tuple(dense.shape)}; it takes integer labels (B,) and dense targets (B, C) "
            "of at least 2 classes"
        )
    return dense


def _permutation(rng: np.random.Generator, images: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(rng.permutation(len(images))).to(images.device)


class LabelSmoothing(BatchTransform):
    """Train on targets with a share of their mass spread evenly over all classes (Szegedy et al. 2016).

    Labels (B,) become dense targets (B, C), which ``torch.nn.functional.cross_entropy`` takes as they are. Mixed
    targets may be smoothed too: both are linear, so their order does not matter.

    Args:
        amount: that share, in [0, 1); the Clock's moment takes precedence where it schedules ``label_smoothing``.
        num_classes: by default ``module.num_classes``.
        phases: names of the timeline's phases that it is confined to.

    Raises:
        EtudeError: the amount is not in [0, 1), or labels cannot be made dense.

    Example::

        trainer = Trainer(max_epochs=10, callbacks=[LabelSmoothing(0.1, num_classes=10)])
    """

    def __init__(
        self, amount: float = 0.1, num_classes: int | None = None, phases: Sequence[str] | str | None = None
    ) -> None:
        super().__init__(phases)
        if not 0.0 <= amount < 1.0:
            raise EtudeError(f"LabelSmoothing got amount={amount}; it must be at least 0 and below 1, such as 0.1")
        self.amount, self.num_classes = amount, num_classes

    def changed(self, batch: ImageBatch, context: BatchContext) -> ImageBatch:
        amount = context.scheduled("label_smoothing", self.amount)
        if amount <= 0.0:
            return batch
        targets = class_targets(batch.target, self.num_classes, context.module, type(self).__name__)
        return replace(batch, target=smoothed(targets, amount))
