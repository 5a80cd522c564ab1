"""The timeline: training as named phases in which every scheduled quantity moves together."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

from etude.timeline.curves import Constant, Curve


@dataclass(frozen=True, slots=True)
class Phase:
    """A named part of the run; each quantity follows a curve over the phase's own progress.

    Args:
        name: such as ``"warmup"``, ``"grow"``, ``"finish"``.
        share: this phase's part of the run, in (0, 1].
        lr: learning rate of the head; layer-wise multipliers apply on top.
        image_size: side of the square input in pixels, rounded by the timeline.
        augment: strength of augmentation in [0, 1].
    """

    name: str
    share: float
    lr: Curve
    image_size: Curve
    augment: Curve = field(default_factory=lambda: Constant(0.0))


@dataclass(frozen=True, slots=True)
class Moment:
    """What holds at one point of the run."""

    progress: float
    phase: str
    lr: float
    image_size: int
    augment: float


@dataclass(frozen=True, slots=True)
class Timeline:
    """Phases in order. ``at`` is pure: the same progress always gives the same :class:`Moment`.

    Args:
        phases: at least one; their shares sum to 1.
        size_multiple: image sizes are rounded half up to this multiple of pixels.

    Raises:
        ValueError: no phase, a share out of (0, 1], shares that do not sum to 1, or a name used twice.

    >>> from etude.timeline import Constant, Linear, Phase, Timeline
    >>> warmup = Phase("warmup", 0.5, Linear(0, 1), Constant(64))
    >>> finish = Phase("finish", 0.5, Linear(1, 0), Constant(96))
    >>> plan = Timeline((warmup, finish))
    >>> plan.at(0.25).lr, plan.at(0.5).phase, plan.at(1.0).image_size
    (0.5, 'finish', 96)
    """

    phases: tuple[Phase, ...]
    size_multiple: int = 32

    def __post_init__(self) -> None:
        if not self.phases:
            raise ValueError("a timeline needs at least one phase")
        names = [phase.name for phase in self.phases]
        if len(set(names)) < len(names):
            raise ValueError(f"phase names must differ, got {names}")
        for phase in self.phases:
            if not 0.0 < phase.share <= 1.0:
                raise ValueError(f"phase {phase.name!r} has share {phase.share}; a share lies above 0 and at most at 1")
        total = sum(phase.share for phase in self.phases)
        if not math.isclose(total, 1.0, abs_tol=1e-6):
            raise ValueError(f"the shares of the phases sum to {total:g}, they must sum to 1")

    def at(self, progress: float) -> Moment:
        """Return what holds at ``progress`` of the run; a phase's first moment belongs to that phase.

        Raises:
            ValueError: ``progress`` lies outside [0, 1].
        """
        if not 0.0 <= progress <= 1.0:
            raise ValueError(f"progress is {progress}, it must lie in [0, 1]")
        phase, within = self._locate(progress)
        return Moment(
            progress=progress,
            phase=phase.name,
            lr=phase.lr.at(within),
            image_size=self.rounded_size(phase.image_size.at(within)),
            augment=min(1.0, max(0.0, phase.augment.at(within))),
        )

    def rounded_size(self, size: float) -> int:
        """Round half up to the multiple: Python's ``round`` would send 144 and 176 in different directions."""
        return max(self.size_multiple, math.floor(size / self.size_multiple + 0.5) * self.size_multiple)

    def moments(self, steps: int) -> Iterator[Moment]:
        """Yield the moment of every step of a run of ``steps`` steps."""
        for step in range(steps):
            yield self.at(step_progress(step, steps))

    def largest_size(self, steps: int) -> int:
        """Return the largest image size that any of ``steps`` steps needs."""
        return max(moment.image_size for moment in self.moments(steps))

    def _locate(self, progress: float) -> tuple[Phase, float]:
        start = 0.0
        for phase in self.phases[:-1]:
            if progress < start + phase.share - 1e-9:
                return phase, (progress - start) / phase.share
            start += phase.share
        last = self.phases[-1]
        return last, min(1.0, max(0.0, (progress - start) / last.share))


def step_progress(step: int, steps: int) -> float:
    """Return the progress of step ``step`` (counted from 0) in a run of ``steps`` steps: its middle.

    The middle keeps the first step of a warmup from training at a learning rate of exactly zero.

    >>> step_progress(0, 2), step_progress(1, 2)
    (0.25, 0.75)
    """
    return min(1.0, (step + 0.5) / max(1, steps))
