"""Cyclical learning rates (Smith 2015): triangles between a base and a peak, by the paper's formulas."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Self

from etude.timeline.composed import resolved_share
from etude.timeline.curves import check_numbers
from etude.timeline.lengths import Length, RunSize, length_in_steps, parse_length, share_of


@dataclass(frozen=True, slots=True)
class Triangular:
    """Straight lines up from ``base`` to ``peak`` and back, again and again (Smith 2015, ``triangular``).

    With c the cycle as a share of the phase and p the progress, x = |2p/c - 2 floor(1 + p/c) + 1| and the value is
    base + (peak - base) max(0, 1 - x). Smith counts iterations and calls half a cycle the step size: p/c is his
    iteration / (2 step sizes).

    Args:
        base: value where a cycle begins and ends.
        peak: value in the middle of a cycle; below ``base`` for momentum.
        cycle: length of a whole cycle: a share of the phase (above 1 for part of a cycle), or epochs, steps or time.

    Raises:
        ValueError: a number is not finite or ``cycle`` is malformed.

    >>> curve = Triangular(0.1, 0.5, cycle=0.5)
    >>> curve.at(0.0), curve.at(0.25), curve.at(0.5)
    (0.1, 0.5, 0.1)
    """

    base: float
    peak: float
    cycle: Length = 0.5

    def __post_init__(self) -> None:
        check_numbers(self._name(), base=self.base, peak=self.peak)
        parse_length(self.cycle)

    @property
    def is_resolved(self) -> bool:
        """Whether the cycle is a share."""
        return share_of(self.cycle) is not None

    def resolved(self, phase_steps: float, run: RunSize) -> Self:
        """Return the same curve with the cycle as a share of a phase of ``phase_steps`` steps.

        Raises:
            ValueError: ``run`` lacks what the length of the cycle needs.
        """
        share = share_of(self.cycle)
        return replace(
            self, cycle=length_in_steps(self.cycle, phase_steps, run) / phase_steps if share is None else share
        )

    def at(self, progress: float) -> float:
        """Return the value at ``progress`` in [0, 1] of the phase.

        Raises:
            ValueError: the cycle is not a share; resolve the curve first.
        """
        cycles = progress / resolved_share(self._name(), self.cycle)
        number = math.floor(1.0 + cycles)
        x = abs(2.0 * cycles - 2.0 * number + 1.0)
        return self.base + (self.peak - self.base) * max(0.0, 1.0 - x) * self.amplitude(progress, number)

    def _name(self) -> str:
        return "triangular"

    def amplitude(self, progress: float, number: int) -> float:
        """Return the part of (peak - base) that cycle ``number``, counted from 1, reaches at ``progress``."""
        return 1.0


@dataclass(frozen=True, slots=True)
class Triangular2(Triangular):
    """:class:`Triangular` with half the amplitude in every next cycle (Smith 2015, ``triangular2``).

    >>> curve = Triangular2(0.0, 1.0, cycle=0.5)
    >>> curve.at(0.25), curve.at(0.75)
    (1.0, 0.5)
    """

    def _name(self) -> str:
        return "triangular2"

    def amplitude(self, progress: float, number: int) -> float:
        """Return 2 ** -(number - 1)."""
        return 0.5 ** (number - 1)


@dataclass(frozen=True, slots=True)
class ExpRange(Triangular):
    """:class:`Triangular` with an amplitude that decays exponentially (Smith 2015, ``exp_range``).

    Smith multiplies the amplitude by gamma ** iteration. Here it is decay ** progress, the same with
    decay = gamma ** (steps of the phase), so that a longer run keeps the shape; see :meth:`from_gamma`.

    Args:
        base: value where a cycle begins and ends.
        peak: value in the middle of the first cycle, were there no decay.
        cycle: length of a whole cycle: a share of the phase, or epochs, steps or time.
        decay: what is left of the amplitude at the end of the phase, above 0 and at most 1.

    Raises:
        ValueError: a number is not finite, ``cycle`` is malformed, or ``decay`` is out of bounds.

    >>> round(ExpRange(0.0, 1.0, cycle=1.0, decay=0.25).at(0.5), 6)
    0.5
    """

    decay: float = 0.1

    def __post_init__(self) -> None:
        Triangular.__post_init__(self)  # super() finds no class where slots=True has made a new one
        check_numbers("exp_range", decay=self.decay)
        if not 0.0 < self.decay <= 1.0:
            raise ValueError(f"decay of an exp_range curve must be above 0 and at most 1, got {self.decay!r}")

    @classmethod
    def from_gamma(cls, base: float, peak: float, cycle: Length, gamma: float, steps: float) -> ExpRange:
        """Return the curve whose amplitude is multiplied by ``gamma`` at every one of a phase's ``steps`` steps.

        Raises:
            ValueError: ``gamma`` lies outside (0, 1], or so many steps of it leave an amplitude of zero.
        """
        check_numbers("exp_range", gamma=gamma, steps=steps)
        if not 0.0 < gamma <= 1.0:
            raise ValueError(f"gamma of an exp_range curve must be above 0 and at most 1, got {gamma!r}")
        if steps < 1:
            raise ValueError(f"the steps of the phase must be at least 1, got {steps!r}")
        if gamma**steps <= 0.0:
            raise ValueError(
                f"the amplitude shrinks so fast that gamma {gamma!r} leaves nothing of it after {steps!r} steps: "
                "give a gamma nearer to 1"
            )
        return cls(base, peak, cycle, gamma**steps)

    def _name(self) -> str:
        return "exp_range"

    def amplitude(self, progress: float, number: int) -> float:
        """Return decay ** progress."""
        return self.decay**progress
