"""Online pseudo-labels in any LightningModule: unlabelled images of a batch learn what a teacher says of them."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import etude.compat  # noqa: F401  (before lightning)

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import nn

from etude.callbacks.averaging import TensorAverage
from etude.callbacks.batches import BatchContext, BatchTransform, ImageBatch
from etude.callbacks.mixup import class_targets
from etude.core.errors import EtudeError
from etude.functional.augment_tensor import shrink
from etude.functional.batchnorm import evaluating
from etude.functional.distill import check_temperature, mean_probabilities
from etude.functional.pseudo import Confidence, align, sharpen, softmatch_weight


def logits_of(module: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Return the module's logits: by its method ``logits(batch)`` where it has one, else of ``module(images)``."""
    method = getattr(module, "logits", None)
    # A layer of that name is no method.
    return method({"image": images}) if inspect.ismethod(method) else module(images)


class PseudoLabels(BatchTransform):
    """Train on unlabelled images too: a teacher predicts them, and its predictions become their targets.

    Unlabelled are the images whose ``batch["is_labeled"]`` is False; without that, those of label -1. The teacher sees
    the batch's images, in evaluation mode and without gradients, so that BatchNorm uses its running statistics and
    learns nothing from it. The student sees ``batch["strong"]`` in their place, where there is one, with all that
    callbacks after this one do to them: with :class:`AugmentRamp` alone that is weak-to-strong consistency.

    A batch's unlabelled images together weigh ``weight`` times as much as its labelled ones, less where the teacher is
    less sure than usual. Weights go to ``batch["weight"]``; a batch without one has its dense targets multiplied by
    them, and by the ratio of all images to the labelled ones. The mean over a batch, which any cross-entropy of dense
    targets takes, is then the labelled images' mean loss plus ``weight`` times the unlabelled ones'.
    :class:`~etude.data.order.FixedMixSampler` keeps both kinds in every batch.

    Lee 2013 is ``kind="hard", weights="none", teacher="self"`` under a Clock that schedules ``unlabeled_weight``;
    FixMatch (Sohn et al. 2020) is ``weights="none", teacher="self", threshold=0.95``; the default is SoftMatch (Chen et
    al. 2023) with a moving average as teacher, as in Tarvainen & Valpola 2017.

    Args:
        weight: of the unlabelled images; the Clock's moment takes precedence where it schedules
            ``unlabeled_weight``. At 0 the teacher is not asked.
        kind: ``"hard"``, the most probable class alone, or ``"soft"``, probabilities.
        temperature: of soft ones, above 0; below 1 sharpens them.
        threshold: least confidence of those that count, one number or one for each class.
        weights: by confidence, ``"softmatch"``, or equal ones, ``"none"``.
        n: of SoftMatch: a confidence one standard deviation below the mean weighs exp(-n² / 2).
        prior: (C,), shares of the classes among the unlabelled images, to which predictions are aligned; None: not.
        teacher: ``"ema"``, an exponential average of the module's weights, or ``"self"``, the module as it stands.
        decay: of that average at each step, at most; (1 + n) / (10 + n) after n steps, so that it forgets the start.
        momentum: of the running confidences and class shares, from batch to batch, at most.
        num_classes: for labels (B,); by default ``module.num_classes``.

    Attributes:
        confidence: running statistics of the teacher's predictions; None before the first.

    Raises:
        EtudeError: an argument is out of its range, a batch does not say which of its images are unlabelled, or the
            network's logits do not fit the targets.

    Example::

        trainer = Trainer(max_epochs=10, callbacks=[PseudoLabels(num_classes=10)])
    """

    def __init__(
        self,
        weight: float = 1.0,
        *,
        kind: Literal["soft", "hard"] = "hard",
        temperature: float = 1.0,
        threshold: float | Sequence[float] = 0.0,
        weights: Literal["softmatch", "none"] = "softmatch",
        n: float = 2.0,
        prior: Sequence[float] | torch.Tensor | None = None,
        teacher: Literal["ema", "self"] = "ema",
        decay: float = 0.99,
        momentum: float = 0.99,
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        for name, value, known in (
            ("kind", kind, ("soft", "hard")),
            ("weights", weights, ("softmatch", "none")),
            ("teacher", teacher, ("ema", "self")),
        ):
            if value not in known:
                raise EtudeError(f"PseudoLabels got {name}={value!r}; it is {known[0]!r} or {known[1]!r}")
        if not (weight >= 0.0 and n > 0.0 and 0.0 <= decay < 1.0 and 0.0 <= momentum < 1.0):
            raise EtudeError(
                f"PseudoLabels got weight={weight}, n={n}, decay={decay}, momentum={momentum}; weight is at least 0, "
                "n above 0, decay and momentum are at least 0 and below 1"
            )
        check_temperature(temperature)
        self.weight, self.kind, self.temperature, self.weights, self.n = weight, kind, temperature, weights, n
        self.teacher, self.decay, self.momentum, self.num_classes = teacher, decay, momentum, num_classes
        self.threshold, self.prior = _threshold(threshold), None if prior is None else _prior(prior)
        self.confidence: Confidence | None = None
        self._average, self._latest_step = TensorAverage(), 0  # the teacher's weights
        self._seen = False  # an unlabelled image, in this training

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            self.confidence, self._average, self._seen = None, TensorAverage(), False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._latest_step = trainer.global_step

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step, steps = trainer.global_step, self._average.steps  # a step stays as it is while gradients accumulate
        if self.teacher == "ema" and self.decay > 0.0 and step > self._latest_step:
            self._latest_step = step
            self._average.update(pl_module, 1.0 - min(self.decay, (1 + steps) / (10 + steps)))

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not self._seen:
            rank_zero_warn(
                "PseudoLabels saw no unlabelled image in this training: mark them by False in batch['is_labeled'], or "
                "by the label -1"
            )

    def changed(self, batch: ImageBatch, context: BatchContext) -> ImageBatch:
        unlabelled = _unlabelled(batch)
        some = bool(unlabelled.any())
        self._seen |= some
        if not some and context.trainer.world_size == 1:
            return batch
        known = batch.target if batch.target.is_floating_point() else batch.target.clamp_min(0)
        target = class_targets(known, self.num_classes, context.module, type(self).__name__).clone()
        weight = torch.ones_like(target[:, 0]) if batch.weight is None else batch.weight.clone()
        image, share = batch.image, context.scheduled("unlabeled_weight", self.weight)
        labelled = float((~unlabelled).sum())
        if share > 0.0:  # with several processes also without images: all add up their statistics together
            probabilities = self._predicted(batch.image[unlabelled], target.shape[1], context)
            labels, sure = self._made(probabilities, context.trainer)
            target[unlabelled] = labels.to(target.dtype)
            weight[unlabelled] = (sure * (share * (labelled / max(1, len(labels))))).to(weight.dtype)
            image = _student_view(batch, unlabelled)
        else:
            weight[unlabelled] = 0.0
        if batch.weight is None:
            weight = weight * (len(weight) / max(1.0, labelled))  # a loss's mean over all is then one over the labelled
            return replace(batch, image=image, target=target * weight[:, None])
        return replace(batch, image=image, target=target, weight=weight)

    def state_dict(self) -> dict[str, Any]:
        teacher, seen = self._average.state_dict(), self.confidence
        if seen is None:
            return {"teacher": teacher}
        numbers = {"mean": seen.mean, "variance": seen.variance, "shares": seen.shares, "batches": seen.batches}
        return {"teacher": teacher, "confidence": numbers}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._average = TensorAverage.of_state(state_dict["teacher"])
        numbers = state_dict.get("confidence")
        self.confidence = None if numbers is None else Confidence(**numbers)

    def _predicted(self, images: torch.Tensor, classes: int, context: BatchContext) -> torch.Tensor:
        """Return the teacher's probabilities of the images, float32 (U, C)."""
        if not len(images):
            return torch.zeros(0, classes, device=images.device)
        module = context.module
        kept = self._average.put_in(module) if self._average.steps else {}  # before the first step both are the same
        try:
            with evaluating(module), module.trainer.precision_plugin.forward_context():
                found = mean_probabilities([lambda x: logits_of(module, x)], images, type(module).__name__)
        finally:
            if kept:
                self._average.put_back(kept)
        if found.shape[1] != classes:
            raise EtudeError(
                f"{type(module).__name__} predicts {found.shape[1]} classes and PseudoLabels has {classes}: "
                "write num_classes as the network has them"
            )
        return found

    def _made(self, probabilities: torch.Tensor, trainer: pl.Trainer) -> tuple[torch.Tensor, torch.Tensor]:
        """Return targets (U, C) and weights in [0, 1] (U,), with the statistics brought up to date."""
        classes, device = probabilities.shape[1], probabilities.device
        threshold = _fitting(self.threshold, classes, device)
        prior = None if self.prior is None else _fitting(self.prior, classes, device)

        def total(sums: torch.Tensor) -> torch.Tensor:
            several = trainer.world_size > 1
            return trainer.strategy.reduce(sums, reduce_op="sum") if several else sums  # type: ignore[return-value]

        before = self.confidence or Confidence.none(classes)
        self.confidence = seen = before.updated(probabilities, self.momentum, prior, total)
        aligned = probabilities if prior is None else align(probabilities, prior, seen.shares)
        confidence, likeliest = aligned.max(1)
        weight = (confidence >= (threshold[likeliest] if threshold.ndim else threshold)).float()
        if self.weights == "softmatch":
            weight = weight * softmatch_weight(confidence, seen.mean, seen.variance, self.n)
        return sharpen(aligned, 0.0 if self.kind == "hard" else self.temperature), weight


def _unlabelled(batch: ImageBatch) -> torch.Tensor:
    """Return which images are unlabelled, bool (B,)."""
    if batch.is_labeled is not None:
        return ~batch.is_labeled.bool()
    if batch.target.ndim == 1 and not batch.target.is_floating_point():
        return batch.target < 0
    raise EtudeError(
        f"PseudoLabels got targets {tuple(batch.target.shape)} of {batch.target.dtype}, which do not tell what is "
        "unlabelled: add 'is_labeled', bool (B,), to the batches, or use integer labels with -1 for the unlabelled"
    )


def _student_view(batch: ImageBatch, unlabelled: torch.Tensor) -> torch.Tensor:
    """Return the images with the strong views of the unlabelled ones, at the size of the rest."""
    if batch.strong is None:
        return batch.image
    strong = shrink(batch.strong[unlabelled], *batch.size, channels_last=batch.channels_last)
    if strong.shape[1:] != batch.image.shape[1:]:
        raise EtudeError(
            f"the strong views of a batch are {tuple(batch.strong.shape)} and its images {tuple(batch.image.shape)}; "
            "they need the same size, or a larger one"
        )
    image = batch.image.clone()
    image[unlabelled] = strong.to(image.dtype)
    return image


def _prior(prior: Sequence[float] | torch.Tensor) -> torch.Tensor:
    shares = torch.as_tensor(prior, dtype=torch.float32)
    if shares.ndim != 1 or not bool((shares >= 0).all()) or not 0.0 < float(shares.sum()) < float("inf"):
        raise EtudeError(f"PseudoLabels got prior={prior!r}; it takes the share of each class, none below 0")
    return shares / shares.sum()


def _threshold(threshold: float | Sequence[float]) -> torch.Tensor:
    levels = torch.as_tensor(threshold, dtype=torch.float32)
    if levels.ndim > 1 or not bool(((levels >= 0) & (levels <= 1)).all()):
        raise EtudeError(
            f"PseudoLabels got threshold={threshold!r}; it is a confidence in [0, 1], or one for each class"
        )
    return levels


def _fitting(values: torch.Tensor, classes: int, device: torch.device) -> torch.Tensor:
    """Return a number, or one for each of the classes, on the device."""
    if values.ndim and len(values) != classes:
        raise EtudeError(
            f"PseudoLabels got {len(values)} numbers as its prior or thresholds, and the network predicts {classes} "
            "classes: give one for each"
        )
    return values.to(device)
