"""What can be scheduled, and what holds at one point of the run."""

from __future__ import annotations

import math
from dataclasses import dataclass

QUANTITIES: tuple[str, ...] = (
    "lr",
    "momentum",
    "image_size",
    "augment",
    "mixup",
    "cutmix",
    "dropout",
    "drop_path",
    "batch_size",
    "label_smoothing",
    "unlabeled_weight",
)

# Lowest and highest value that makes sense; augment is clipped to [0, 1] instead, so that a ramp may reach beyond it.
LIMITS: dict[str, tuple[float, float]] = {
    "lr": (0.0, math.inf),
    "momentum": (0.0, 1.0),
    "image_size": (1.0, math.inf),
    "augment": (-math.inf, math.inf),
    "mixup": (0.0, math.inf),
    "cutmix": (0.0, math.inf),
    "dropout": (0.0, 1.0),
    "drop_path": (0.0, 1.0),
    "batch_size": (1.0, math.inf),
    "label_smoothing": (0.0, 1.0),
    "unlabeled_weight": (0.0, math.inf),
}


@dataclass(frozen=True, slots=True)
class Moment:
    """What holds at one point of the run; None: not scheduled, so left as the trainer has it.

    Args:
        progress: of the run, in [0, 1].
        phase: name of the phase.
        lr: learning rate of the head; layer-wise multipliers apply on top.
        momentum: of SGD, or Adam's first beta.
        image_size: side of the square input in pixels.
        augment: strength of augmentation in [0, 1].
        mixup: alpha of MixUp's Beta distribution; 0 is off.
        cutmix: alpha of CutMix's Beta distribution; 0 is off.
        dropout: probability in [0, 1].
        drop_path: probability of stochastic depth in [0, 1].
        batch_size: images a step.
        label_smoothing: share of the target spread over all classes, in [0, 1].
        unlabeled_weight: of the loss on unlabelled images.
    """

    progress: float
    phase: str
    lr: float | None = None
    momentum: float | None = None
    image_size: int | None = None
    augment: float | None = None
    mixup: float | None = None
    cutmix: float | None = None
    dropout: float | None = None
    drop_path: float | None = None
    batch_size: int | None = None
    label_smoothing: float | None = None
    unlabeled_weight: float | None = None


def step_progress(step: int, steps: int) -> float:
    """Return the progress of step ``step`` (counted from 0) in a run of ``steps`` steps: its middle.

    The middle keeps the first step of a warmup from training at a learning rate of exactly zero.

    >>> step_progress(0, 2), step_progress(1, 2)
    (0.25, 0.75)
    """
    return min(1.0, (step + 0.5) / max(1, steps))
