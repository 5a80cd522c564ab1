"""Augmentation whose strength follows the run, in any LightningModule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

import etude.compat  # noqa: F401  (before lightning)

import numpy as np
import torch

from etude.callbacks.batches import BatchContext, BatchTransform, ImageBatch
from etude.core.errors import EtudeError
from etude.functional.augment import Policy, augment, policy_named
from etude.functional.augment_tensor import augment_tensor
from etude.timeline.plan import SLACK

Images = TypeVar("Images", np.ndarray, torch.Tensor)


class AugmentRamp(BatchTransform):
    """Augment training batches, gently at first and not at all at the end.

    Where the Clock schedules ``augment``, that is the strength. Otherwise it rises from 0 to ``strength`` over the
    first ``rise`` of the run and is off in the last ``finish`` of it, where the network settles on images as they are.
    Images are square, uint8 (B, H, W, C) or float (B, C, H, W), normalised or not. On a CPU uint8 is fastest.

    Args:
        policy: the augmentation policy, or its name: what may happen to an image.
        strength: largest strength, in [0, 1].
        rise: share of the run over which the strength rises.
        finish: share of the run without augmentation.
        phases: names of the timeline's phases that it is confined to.
        seed: of the draws.

    Raises:
        EtudeError: there is no such policy, or strength or shares lie outside their limits.

    Example::

        trainer = Trainer(max_epochs=10, callbacks=[AugmentRamp("photos")])
    """

    follows_run = True

    def __init__(
        self,
        policy: str | Policy = "photos",
        strength: float = 1.0,
        rise: float = 0.3,
        finish: float = 0.2,
        phases: Sequence[str] | str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(phases, seed)
        if not (0.0 <= strength <= 1.0 and rise >= 0.0 and finish >= 0.0 and rise + finish <= 1.0):
            raise EtudeError(
                f"AugmentRamp got strength={strength}, rise={rise}, finish={finish}; strength lies in [0, 1], and rise "
                "and finish are shares of the run that sum to at most 1"
            )
        self.policy = policy if isinstance(policy, Policy) else policy_named(policy)
        self.strength, self.rise, self.finish = strength, rise, finish

    def changed(self, batch: ImageBatch, context: BatchContext) -> ImageBatch:
        strength = self.strength_at(context)
        if strength <= 0.0:
            return batch
        rng = context.rng(self.seed, "augment")
        images = augment_tensor(batch.image, self.policy, strength, rng, channels_last=batch.channels_last)
        return replace(batch, image=images)

    def change(self, images: Images, strength: float, rng: np.random.Generator, size: int | None = None) -> Images:
        """Return arrays uint8 (B, S, S, C) or tensors (B, S, S, C) changed at ``strength``, of side ``size``.

        For a loader that does the work early, sampling its images at the size that the step needs.
        """
        if isinstance(images, np.ndarray):
            return augment(images, self.policy, strength, rng, size)
        return augment_tensor(images, self.policy, strength, rng, channels_last=True, size=size)

    def strength_at(self, context: BatchContext) -> float:
        """Return the present strength, in [0, 1]."""
        scheduled = context.moment.augment if context.moment else None
        if scheduled is not None:
            return scheduled
        progress = context.progress
        if progress >= 1.0 - self.finish - SLACK:
            return 0.0
        return self.strength * (min(1.0, progress / self.rise) if self.rise else 1.0)
