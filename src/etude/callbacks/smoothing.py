"""Label smoothing in any LightningModule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import etude.compat  # noqa: F401  (before lightning)

from etude.callbacks.batches import BatchTransform, ImageBatch, Occasion
from etude.callbacks.mixup import class_targets
from etude.core.errors import EtudeError
from etude.functional.targets import smoothed


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

    def changed(self, batch: ImageBatch, occasion: Occasion) -> ImageBatch:
        """Smooth the batch's targets, unless the amount is 0 now."""
        scheduled = occasion.moment.label_smoothing if occasion.moment else None
        amount = self.amount if scheduled is None else scheduled
        if amount <= 0.0 or not self.is_on(occasion):
            return batch
        targets = class_targets(batch.target, self.num_classes, occasion.module, type(self).__name__)
        return replace(batch, target=smoothed(targets, amount))
