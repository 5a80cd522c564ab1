"""What a fine-tuning does beside labels: how long an epoch of a mix is, the strong view, and who teaches."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import etude.compat  # noqa: F401  (before lightning)

import lightning.pytorch as pl
import torch

from etude.callbacks import Distill, PseudoLabels
from etude.data.mix import epoch_images
from etude.functional.policies import Policy
from etude.models.classifier import Classifier, Preprocessing
from etude.models.features import autocast

if TYPE_CHECKING:
    from etude.training.fit import FineTuneTask

_WIDER = 1.5  # times the policy's own changes of geometry


def images_of_epoch(task: FineTuneTask) -> int:
    """Return the images that an epoch of the task takes: of a fixed mix, until the longer stream has been seen once."""
    rows = task.train
    if task.mix is None or rows.labelled is None:
        return len(rows)
    labelled = int(rows.labelled.sum())
    return epoch_images(labelled, len(rows) - labelled, task.mix.share)


def learns_online(task: FineTuneTask) -> bool:
    """Whether pseudo-labels are made during this training."""
    return task.mix is not None and task.recipe.unlabeled.method == "online"


def strong_policy(policy: Policy) -> Policy:
    """Return the policy whose changes the student of online pseudo-labels sees.

    The same symmetries, half as much again of every other change of geometry, light, blur, noise, and in half of the
    images an erased rectangle. What the weak view leaves alone (colours, mirror images) stays alone: it may carry the
    class.

    >>> strong_policy(Policy("digits", angle=15)).angle
    22.5
    """
    return replace(
        policy,
        name=f"{policy.name}, strong",
        angle=_WIDER * policy.angle,
        log_scale=_WIDER * policy.log_scale,
        shear=_WIDER * policy.shear,
        shear_y=_WIDER * policy.shear_y,
        shift=_WIDER * policy.shift,
        contrast=max(policy.contrast, 0.4),
        brightness=max(policy.brightness, 0.15),
        blur=max(policy.blur, 0.2),
        noise=max(policy.noise, 0.2),
        erase=max(policy.erase, 0.5),
    )


def teaching(task: FineTuneTask) -> list[pl.Callback]:
    """Return the callbacks that stand for teachers: the network's own average, or trained networks."""
    found: list[pl.Callback] = []
    if learns_online(task):
        settings = task.recipe.unlabeled
        found.append(
            PseudoLabels(
                settings.weight,
                kind=settings.kind,
                temperature=settings.temperature,
                threshold=settings.threshold,
                weights=settings.weights,
                prior=None if task.prior is None else task.prior.tolist(),
                teacher="ema" if settings.ema else "self",
                decay=settings.ema,
            )
        )
    if task.teachers:
        found.append(Distill(task.teachers))
    return found


class Teacher(torch.nn.Module):
    """A trained network that looks at a student's batches.

    Args:
        model: the network.
        preprocessing: of its input; images of another size are resized to it.
        columns: (C,) its classes in the student's order.
        precision: numeric mode, ``fp32`` or ``bf16``.
    """

    def __init__(self, model: Classifier, preprocessing: Preprocessing, columns: list[int], precision: str) -> None:
        super().__init__()
        self.model, self.preprocessing, self.precision = model, preprocessing, precision
        self.register_buffer("columns", torch.tensor(columns), persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits float32 (B, C) of uint8 images (B, S, S, channels)."""
        size = self.preprocessing.size
        with autocast(images.device, self.precision):
            inputs = self.preprocessing.to_input(images)
            if inputs.shape[2] != size:
                inputs = torch.nn.functional.interpolate(inputs, (size, size), mode="bilinear", antialias=True)
            return self.model(inputs).float()[:, self.get_buffer("columns")]
