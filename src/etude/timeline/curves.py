"""Curves: how one scheduled quantity moves while a phase runs from 0 to 1.

Every curve is a frozen dataclass, so its settings can be printed, compared, pickled and plotted.
"""

from __future__ import annotations

import bisect
import math
from dataclasses import dataclass
from numbers import Real
from typing import Protocol, runtime_checkable

from etude.timeline.lengths import RunSize

# Arithmetic on shares errs by parts in 1e16; it must not delay a boundary by a step.
ROUNDING = 1e-9


class Curve(Protocol):
    """A pure function of a phase's own progress."""

    def at(self, progress: float) -> float:
        """Return the value at ``progress`` in [0, 1]."""
        ...


@runtime_checkable
class Resolvable(Protocol):
    """A curve that holds a length, or curves that may: it must know the run's size before it can be read."""

    @property
    def is_resolved(self) -> bool:
        """Whether every length in it is a share."""
        ...

    def resolved(self, phase_steps: float, run: RunSize) -> Curve:
        """Return the same curve with every length a share."""
        ...


def resolved(curve: Curve, phase_steps: float, run: RunSize) -> Curve:
    """Return ``curve`` with lengths in epochs, steps and time turned into shares of its phase.

    Args:
        curve: any curve; one without lengths comes back as it is.
        phase_steps: the steps of the phase (or of the part of it) over which the curve runs.
        run: says how many steps an epoch has and how long a step takes.

    Raises:
        ValueError: a length is longer than the phase allows, or ``run`` does not say what it takes to resolve it.
    """
    return curve.resolved(phase_steps, run) if isinstance(curve, Resolvable) else curve


def is_resolved(curve: Curve) -> bool:
    """Return whether ``curve`` can be read without knowing the run's size."""
    return curve.is_resolved if isinstance(curve, Resolvable) else True


def check_numbers(curve: str, **values: object) -> None:
    """Check that every value is a finite number.

    Raises:
        ValueError: one is not; the sentence names it and the curve.
    """
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
            raise ValueError(f"{name} of the curve {curve!r} must be a finite number, got {value!r}")


@dataclass(frozen=True, slots=True)
class Constant:
    """The same value throughout.

    Raises:
        ValueError: ``value`` is not a finite number.

    >>> Constant(0.1).at(0.7)
    0.1
    """

    value: float

    def __post_init__(self) -> None:
        check_numbers("constant", value=self.value)

    def at(self, progress: float) -> float:
        """Return the value, whatever the progress."""
        return self.value


@dataclass(frozen=True, slots=True)
class Linear:
    """A straight line from ``start`` to ``end``.

    Raises:
        ValueError: an end is not a finite number.

    >>> Linear(0.0, 2.0).at(0.25)
    0.5
    """

    start: float
    end: float

    def __post_init__(self) -> None:
        check_numbers("linear", start=self.start, end=self.end)

    def at(self, progress: float) -> float:
        """Return ``start + (end - start) * progress``."""
        return self.start + (self.end - self.start) * progress


@dataclass(frozen=True, slots=True)
class Cosine:
    """Half a cosine from ``start`` to ``end``: flat at both ends (Loshchilov & Hutter 2016, without restarts).

    Raises:
        ValueError: an end is not a finite number.

    >>> round(Cosine(1.0, 0.0).at(0.5), 6)
    0.5
    """

    start: float
    end: float

    def __post_init__(self) -> None:
        check_numbers("cosine", start=self.start, end=self.end)

    def at(self, progress: float) -> float:
        """Return ``end + (start - end) * (1 + cos(pi * progress)) / 2``."""
        return _half_cosine(self.start, self.end, progress)


@dataclass(frozen=True, slots=True)
class Exponential:
    """From ``start`` to ``end`` by the same factor in equal times: a straight line on a logarithmic axis.

    Raises:
        ValueError: an end is not a finite number above 0.

    >>> round(Exponential(1.0, 0.01).at(0.5), 6)
    0.1
    """

    start: float
    end: float

    def __post_init__(self) -> None:
        check_numbers("exponential", start=self.start, end=self.end)
        if min(self.start, self.end) <= 0.0:
            raise ValueError(f"an exponential curve runs between numbers above 0, got {self.start!r} to {self.end!r}")

    def at(self, progress: float) -> float:
        """Return ``start * (end / start) ** progress``."""
        # Written so that the ends are exact and the quotient of two far numbers cannot overflow.
        return self.start ** (1.0 - progress) * self.end**progress


@dataclass(frozen=True, slots=True)
class Steps:
    """Constant pieces: multiplied by ``factor`` at every milestone (torch's ``MultiStepLR``).

    Args:
        start: value before the first milestone.
        factor: above 0.
        milestones: progress of each change, rising, in [0, 1].

    Raises:
        ValueError: a number is not finite, ``factor`` is not above 0, or the milestones do not rise within [0, 1].

    >>> [round(Steps(1.0, 0.1, (0.5, 0.75)).at(progress), 6) for progress in (0.4, 0.5, 0.8)]
    [1.0, 0.1, 0.01]
    """

    start: float
    factor: float
    milestones: tuple[float, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "milestones", tuple(self.milestones))
        check_numbers("steps", start=self.start, factor=self.factor)
        for milestone in self.milestones:
            check_numbers("steps", milestone=milestone)
        if self.factor <= 0.0:
            raise ValueError(f"factor of a steps curve must be above 0, got {self.factor!r}")
        rising = all(early < late for early, late in zip(self.milestones, self.milestones[1:], strict=False))
        if not rising or not all(0.0 <= milestone <= 1.0 for milestone in self.milestones):
            raise ValueError(f"milestones of a steps curve must rise within [0, 1], got {list(self.milestones)}")

    def at(self, progress: float) -> float:
        """Return ``start * factor ** (number of milestones at or before progress)``."""
        passed = bisect.bisect_right(self.milestones, progress + ROUNDING)
        return self.start * self.factor**passed


@dataclass(frozen=True, slots=True)
class OneCycle:
    """Half a cosine from ``start`` to ``peak``, then half a cosine to ``end`` (Smith & Topin 2017).

    For momentum, which falls while the learning rate rises, ``peak`` lies below ``start``.

    Args:
        start: value at 0.
        peak: value at ``rise``.
        end: value at 1.
        rise: share of the phase until the peak, in (0, 1).

    Raises:
        ValueError: a number is not finite or ``rise`` lies outside (0, 1).

    >>> curve = OneCycle(0.1, 1.0, 0.0, rise=0.25)
    >>> round(curve.at(0.0), 6), curve.at(0.25), curve.at(1.0)
    (0.1, 1.0, 0.0)
    """

    start: float
    peak: float
    end: float
    rise: float = 0.3

    def __post_init__(self) -> None:
        check_numbers("one_cycle", start=self.start, peak=self.peak, end=self.end, rise=self.rise)
        if not 0.0 < self.rise < 1.0:
            raise ValueError(f"rise of a one_cycle curve must lie between 0 and 1, got {self.rise!r}")

    def at(self, progress: float) -> float:
        """Return the value of the rising half before ``rise``, of the falling half from there on."""
        if progress < self.rise:
            return _half_cosine(self.start, self.peak, progress / self.rise)
        return _half_cosine(self.peak, self.end, (progress - self.rise) / (1.0 - self.rise))


def _half_cosine(start: float, end: float, progress: float) -> float:
    return end + (start - end) * (1.0 + math.cos(math.pi * progress)) / 2.0
