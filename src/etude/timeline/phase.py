"""A phase: a named part of the run in which every scheduled quantity follows its curve."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

from etude.timeline.curves import Constant, Curve, is_resolved
from etude.timeline.lengths import Length, parse_length
from etude.timeline.plateau import Plateau

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

QUANTITIES: tuple[str, ...] = tuple(LIMITS)


@dataclass(frozen=True, slots=True)
class Moment:
    """What holds at one point of the run; None: not scheduled, so left as the trainer has it."""

    progress: float  # of the run, in [0, 1]
    phase: str  # its name
    lr: float | None = None  # learning rate of the head; layer-wise multipliers apply on top
    momentum: float | None = None  # of SGD, or Adam's first beta
    image_size: int | None = None  # side of the square input in pixels
    augment: float | None = None  # strength of augmentation in [0, 1]
    mixup: float | None = None  # alpha of MixUp's Beta distribution; 0 is off
    cutmix: float | None = None  # alpha of CutMix's Beta distribution; 0 is off
    dropout: float | None = None  # probability in [0, 1]
    drop_path: float | None = None  # probability of stochastic depth in [0, 1]
    batch_size: int | None = None  # images a step
    label_smoothing: float | None = None  # share of the target spread over all classes, in [0, 1]
    unlabeled_weight: float | None = None  # of the loss on unlabelled images


def step_progress(step: int, steps: int) -> float:
    """Return the progress of step ``step`` (counted from 0) in a run of ``steps`` steps: its middle.

    The middle keeps the first step of a warmup from training at a learning rate of exactly zero.

    >>> step_progress(0, 2), step_progress(1, 2)
    (0.25, 0.75)
    """
    return min(1.0, (step + 0.5) / max(1, steps))


@dataclass(frozen=True, slots=True)
class Phase:
    """A named part of the run; each quantity follows a curve over the phase's own progress.

    A quantity may be given as a number, which becomes a :class:`Constant`, or be left out (None): it is then not
    scheduled in this phase and stays as the trainer has it. See :class:`Moment` for the meaning of each quantity.

    Its length is a share of what the fixed lengths leave of the run, in (0, 1], or a fixed length: ``"3ep"`` epochs,
    ``"500st"`` steps, ``"10m"`` minutes, ``"90s"`` seconds.

    >>> Phase("warmup", "3ep", lr=0.1).lr
    Constant(value=0.1)
    """

    name: str  # such as "warmup", "grow", "finish"
    length: Length
    lr: Curve | float | None = None
    momentum: Curve | float | None = None
    image_size: Curve | float | None = None
    augment: Curve | float | None = None
    mixup: Curve | float | None = None
    cutmix: Curve | float | None = None
    dropout: Curve | float | None = None
    drop_path: Curve | float | None = None
    batch_size: Curve | float | None = None
    label_smoothing: Curve | float | None = None
    unlabeled_weight: Curve | float | None = None
    plateau: Plateau | None = None  # what to do when a metric stops improving in this phase
    jump: bool = False  # the learning rate may jump where this phase begins

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError("a phase needs a name")
        for quantity in QUANTITIES:
            value = getattr(self, quantity)
            if isinstance(value, int | float) and not isinstance(value, bool):
                object.__setattr__(self, quantity, Constant(float(value)))
            elif value is not None and not callable(getattr(value, "at", None)):
                raise ValueError(
                    f"phase {self.name!r} has {quantity} = {value!r}; "
                    "give a number, a curve such as Linear(0, 1), or None"
                )
        try:
            amount, unit = parse_length(self.length)
        except ValueError as error:
            raise ValueError(f"phase {self.name!r}: {error}") from None
        if unit == "share":
            if amount > 1.0:
                raise ValueError(
                    f"phase {self.name!r} has the share {self.length} of the run; a share is at most 1, "
                    "a fixed length is written like '3ep', '500st', '10m' or '90s'"
                )
            object.__setattr__(self, "length", amount)  # "25%" is stored as 0.25

    @property
    def is_share(self) -> bool:
        """Whether the length is a share of the run, not a fixed one."""
        return isinstance(self.length, float)

    @property
    def is_resolved(self) -> bool:
        """Whether the length and every length inside the curves is a share."""
        return self.is_share and all(is_resolved(curve) for curve in self.curves().values())

    def curve(self, quantity: str) -> Curve | None:
        """Return the curve of a quantity, or None where it is not scheduled."""
        return cast(Curve | None, getattr(self, quantity))

    def curves(self) -> dict[str, Curve]:
        """Return the curves of the scheduled quantities by name, in the order of ``QUANTITIES``."""
        found = {quantity: self.curve(quantity) for quantity in QUANTITIES}
        return {quantity: curve for quantity, curve in found.items() if curve is not None}


_SAMPLES = 64  # points at which a curve's values are checked; cycles show between the ends only


def check_values(phase: Phase) -> None:
    """Raise ValueError when a quantity of a resolved phase leaves its limits, such as a learning rate below zero."""
    for quantity, curve in phase.curves().items():
        low, high = LIMITS[quantity]
        values = [curve.at(sample / _SAMPLES) for sample in range(_SAMPLES + 1)]
        wrong = [value for value in values if not low <= value <= high]
        if wrong:
            worst = max(wrong, key=lambda value: max(low - value, value - high))
            accepted = f"at least {low:g}" if high == math.inf else f"within [{low:g}, {high:g}]"
            raise ValueError(f"phase {phase.name!r} sets {quantity} to {worst:g}; it must be {accepted}")
