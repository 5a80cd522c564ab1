"""Curves: how one scheduled quantity moves while a phase runs from 0 to 1.

Every curve is a frozen dataclass, so its settings can be printed, compared, pickled and plotted. Numbers that are not
finite, or outside the limits of a setting, raise a ValueError that names the curve and the setting.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from numbers import Real
from typing import Any, ClassVar, Protocol, Self, cast

from etude.timeline.lengths import (
    Length,
    RunSize,
    as_share,
    check_shares,
    divided,
    length_in_steps,
    parse_length,
    share_of,
)

# Arithmetic on shares errs by parts in 1e16; it must not delay a boundary by a step.
ROUNDING = 1e-9


class Curve(Protocol):
    """A pure function of a phase's own progress ``t``, 0 to 1."""

    def at(self, t: float) -> float:
        """Return the value at ``t`` in [0, 1]."""
        ...


def resolved(curve: Curve, phase_steps: float, run: RunSize) -> Curve:
    """Return ``curve`` with lengths in epochs, steps and time as shares of the ``phase_steps`` that it runs over.

    ValueError where a length is longer than these, or ``run`` does not say what it takes to resolve it.
    """
    return curve.resolved(phase_steps, run) if isinstance(curve, Named) else curve


def is_resolved(curve: Curve) -> bool:
    """Return whether ``curve`` can be read without knowing the run's size."""
    return all(share_of(length) is not None for length in lengths_in(curve))


def lengths_in(held: object) -> Iterator[str]:
    """Yield the lengths written as text in a curve and the curves within it, or in a tuple of both."""
    if isinstance(held, str):
        yield held
    elif isinstance(held, Named):
        held = tuple(getattr(held, field.name) for field in fields(cast(Any, held)))
    for part in cast(tuple[object, ...], held) if isinstance(held, tuple) else ():
        yield from lengths_in(part)


def check_numbers(curve: str, **values: object) -> None:
    """Raise ValueError unless every value is a finite number."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
            raise ValueError(f"{name} of the curve {curve!r} must be a finite number, got {value!r}")


class Named:
    """The base of the curves here: ``name`` is the one they have in files; their numbers are checked when made."""

    __slots__ = ()
    name: ClassVar[str]

    def __post_init__(self) -> None:
        found = [field.name for field in fields(cast(Any, self)) if field.type == "float"]
        check_numbers(self.name, **{field: getattr(self, field) for field in found})

    def resolved(self, phase_steps: float, run: RunSize) -> Self:
        """Return the curve with every length in it as a share of a phase of ``phase_steps`` steps."""
        return self

    def _share(self, length: Length) -> float:
        """Return ``length`` as the share it is; ValueError where it is none before the run's size is known."""
        share = share_of(length)
        if share is None:
            raise ValueError(
                f"the curve {self.name!r} with the length {length!r} has no values before the run's size is known: "
                "call resolved(curve, phase_steps, RunSize(...)) first"
            )
        return share


@dataclass(frozen=True, slots=True)
class Constant(Named):
    """The same value throughout.

    >>> Constant(0.1).at(0.7)
    0.1
    """

    name = "constant"
    value: float

    def at(self, t: float) -> float:
        return self.value


@dataclass(frozen=True, slots=True)
class Linear(Named):
    """A straight line from ``start`` to ``end``.

    >>> Linear(0.0, 2.0).at(0.25)
    0.5
    """

    name = "linear"
    start: float
    end: float

    def at(self, t: float) -> float:
        return self.start + (self.end - self.start) * t


@dataclass(frozen=True, slots=True)
class Cosine(Named):
    """Half a cosine from ``start`` to ``end``: flat at both ends (Loshchilov & Hutter 2016, without restarts).

    >>> round(Cosine(1.0, 0.0).at(0.5), 6)
    0.5
    """

    name = "cosine"
    start: float
    end: float

    def at(self, t: float) -> float:
        return _half_cosine(self.start, self.end, t)


def _half_cosine(start: float, end: float, t: float) -> float:
    return end + (start - end) * (1.0 + math.cos(math.pi * t)) / 2.0


@dataclass(frozen=True, slots=True)
class Exponential(Named):
    """From ``start`` to ``end``, both above 0, by the same factor in equal times: straight on a logarithmic axis.

    >>> round(Exponential(1.0, 0.01).at(0.5), 6)
    0.1
    """

    name = "exponential"
    start: float
    end: float

    def __post_init__(self) -> None:
        Named.__post_init__(self)
        if min(self.start, self.end) <= 0.0:
            raise ValueError(f"an exponential curve runs between numbers above 0, got {self.start!r} to {self.end!r}")

    def at(self, t: float) -> float:
        # Not start * (end / start) ** t: the ends are exact, and the quotient of two far numbers cannot overflow.
        return self.start ** (1.0 - t) * self.end**t


@dataclass(frozen=True, slots=True)
class Steps(Named):
    """Constant pieces: ``start``, multiplied by ``factor`` at every milestone (torch's ``MultiStepLR``).

    >>> [round(Steps(1.0, 0.1, (0.5, 0.75)).at(t), 6) for t in (0.4, 0.5, 0.8)]
    [1.0, 0.1, 0.01]
    """

    name = "steps"
    start: float  # value before the first milestone
    factor: float  # above 0
    milestones: tuple[float, ...]  # progress of each change, rising, in [0, 1]

    def __post_init__(self) -> None:
        object.__setattr__(self, "milestones", tuple(self.milestones))
        Named.__post_init__(self)
        for milestone in self.milestones:
            check_numbers("steps", milestone=milestone)
        if self.factor <= 0.0:
            raise ValueError(f"factor of a steps curve must be above 0, got {self.factor!r}")
        rising = all(early < late for early, late in zip(self.milestones, self.milestones[1:], strict=False))
        if not rising or not all(0.0 <= milestone <= 1.0 for milestone in self.milestones):
            raise ValueError(f"milestones of a steps curve must rise within [0, 1], got {list(self.milestones)}")

    def at(self, t: float) -> float:
        return self.start * self.factor ** bisect.bisect_right(self.milestones, t + ROUNDING)


@dataclass(frozen=True, slots=True)
class OneCycle(Named):
    """Half a cosine from ``start`` to ``peak``, then half a cosine to ``end`` (Smith & Topin 2017).

    For momentum, which falls while the learning rate rises, ``peak`` lies below ``start``.

    >>> curve = OneCycle(0.1, 1.0, 0.0, rise=0.25)
    >>> round(curve.at(0.0), 6), curve.at(0.25), curve.at(1.0)
    (0.1, 1.0, 0.0)
    """

    name = "one_cycle"
    start: float  # value at 0
    peak: float  # value at rise
    end: float  # value at 1
    rise: float = 0.3  # share of the phase until the peak, in (0, 1)

    def __post_init__(self) -> None:
        Named.__post_init__(self)
        if not 0.0 < self.rise < 1.0:
            raise ValueError(f"rise of a one_cycle curve must lie between 0 and 1, got {self.rise!r}")

    def at(self, t: float) -> float:
        if t < self.rise:
            return _half_cosine(self.start, self.peak, t / self.rise)
        return _half_cosine(self.peak, self.end, (t - self.rise) / (1.0 - self.rise))


@dataclass(frozen=True, slots=True)
class Warmup(Named):
    """A straight line up to where ``after`` begins, then ``after`` over the rest (Goyal et al. 2017).

    >>> curve = Warmup(Linear(1.0, 0.0), length=0.2)
    >>> curve.at(0.1), curve.at(0.2), curve.at(0.6)
    (0.5, 1.0, 0.5)
    """

    name = "warmup"
    after: Curve  # the curve to warm up for; it runs from 0 to 1 over what the warmup leaves
    length: Length = 0.1  # of the warmup: a share of the phase below 1, or epochs, steps or time
    start: float = 0.0  # value at the very beginning

    def __post_init__(self) -> None:
        Named.__post_init__(self)
        share = share_of(self.length)
        if share is not None and not 0.0 < share < 1.0:
            raise ValueError(
                f"the length {self.length!r} of a warmup must be a share between 0 and 1, or epochs '3ep', "
                "steps '500st' or time '1m'"
            )

    def resolved(self, phase_steps: float, run: RunSize) -> Self:
        steps = length_in_steps(self.length, phase_steps, run)
        if steps >= phase_steps:
            raise ValueError(
                f"a warmup of {self.length!r} takes {steps:,.10g} of the {phase_steps:,.10g} steps it is part of and "
                "leaves nothing after it: shorten the warmup or make the run longer"
            )
        after = resolved(self.after, phase_steps - steps, run)
        return replace(self, after=after, length=as_share(self.length, phase_steps, run))

    def at(self, t: float) -> float:
        share = self._share(self.length)
        if t < share:
            return self.start + (self.after.at(0.0) - self.start) * t / share
        return self.after.at((t - share) / (1.0 - share))


@dataclass(frozen=True, slots=True)
class Joined(Named):
    """Curves one after the other, each over its own part of the phase; a boundary belongs to the part it begins.

    Lengths in epochs, steps and time come first; shares divide what they leave and sum to 1.

    >>> curve = Joined(((0.5, Constant(1.0)), (0.5, Linear(1.0, 0.0))))
    >>> curve.at(0.25), curve.at(0.75), curve.at(1.0)
    (1.0, 0.5, 0.0)
    """

    name = "joined"
    parts: tuple[tuple[Length, Curve], ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "parts", tuple((length, curve) for length, curve in self.parts))
        if not self.parts:
            raise ValueError("a joined curve needs at least one part: a length and a curve")
        check_shares([length for length, _ in self.parts])

    def resolved(self, phase_steps: float, run: RunSize) -> Self:
        shares = divided([length for length, _ in self.parts], phase_steps, run)
        curves = [curve for _, curve in self.parts]
        parts = zip(shares, curves, strict=True)
        return replace(self, parts=tuple((share, resolved(curve, share * phase_steps, run)) for share, curve in parts))

    def at(self, t: float) -> float:
        start = 0.0
        for length, curve in self.parts[:-1]:
            share = self._share(length)
            if t < start + share - ROUNDING:
                return curve.at(max(0.0, t - start) / share)
            start += share
        length, curve = self.parts[-1]
        return curve.at(min(1.0, max(0.0, t - start) / self._share(length)))


@dataclass(frozen=True, slots=True)
class Scaled(Named):
    """Another curve times ``factor``.

    >>> Scaled(Linear(0.0, 1.0), 0.1).at(0.5)
    0.05
    """

    name = "scaled"
    curve: Curve
    factor: float

    def resolved(self, phase_steps: float, run: RunSize) -> Self:
        return replace(self, curve=resolved(self.curve, phase_steps, run))

    def at(self, t: float) -> float:
        return self.curve.at(t) * self.factor


@dataclass(frozen=True, slots=True)
class Triangular(Named):
    """Straight lines up from ``base`` to ``peak`` and back, again and again (Smith 2015, ``triangular``).

    With c the cycle as a share of the phase, x = |2t/c - 2 floor(1 + t/c) + 1| and the value is
    base + (peak - base) max(0, 1 - x). Smith counts iterations and calls half a cycle the step size: t/c is his
    iteration / (2 step sizes).

    >>> curve = Triangular(0.1, 0.5, cycle=0.5)
    >>> curve.at(0.0), curve.at(0.25), curve.at(0.5)
    (0.1, 0.5, 0.1)
    """

    name = "triangular"
    base: float  # value where a cycle begins and ends
    peak: float  # value in the middle of a cycle; below base for momentum
    cycle: Length = 0.5  # of a whole cycle: a share of the phase (above 1: part of a cycle), or epochs, steps or time

    def __post_init__(self) -> None:
        Named.__post_init__(self)
        parse_length(self.cycle)

    def resolved(self, phase_steps: float, run: RunSize) -> Self:
        return replace(self, cycle=as_share(self.cycle, phase_steps, run))

    def at(self, t: float) -> float:
        cycles = t / self._share(self.cycle)
        number = math.floor(1.0 + cycles)
        x = abs(2.0 * cycles - 2.0 * number + 1.0)
        return self.base + (self.peak - self.base) * max(0.0, 1.0 - x) * self.amplitude(t, number)

    def amplitude(self, t: float, number: int) -> float:
        """Return the part of (peak - base) that cycle ``number``, counted from 1, reaches at ``t``."""
        return 1.0


@dataclass(frozen=True, slots=True)
class Triangular2(Triangular):
    """:class:`Triangular` with half the amplitude in every next cycle (Smith 2015, ``triangular2``).

    >>> curve = Triangular2(0.0, 1.0, cycle=0.5)
    >>> curve.at(0.25), curve.at(0.75)
    (1.0, 0.5)
    """

    name = "triangular2"

    def amplitude(self, t: float, number: int) -> float:
        return 0.5 ** (number - 1)


@dataclass(frozen=True, slots=True)
class ExpRange(Triangular):
    """:class:`Triangular` with an amplitude that decays exponentially (Smith 2015, ``exp_range``).

    Smith multiplies the amplitude by gamma ** iteration. Here it is decay ** t, the same with
    decay = gamma ** (steps of the phase), so that a longer run keeps the shape; see :meth:`from_gamma`.
    ``peak`` would be reached in the first cycle, were there no decay.

    >>> round(ExpRange(0.0, 1.0, cycle=1.0, decay=0.25).at(0.5), 6)
    0.5
    """

    name = "exp_range"
    decay: float = 0.1  # what is left of the amplitude at the end of the phase, above 0 and at most 1

    def __post_init__(self) -> None:
        Triangular.__post_init__(self)  # super() finds no class where slots=True has made a new one
        if not 0.0 < self.decay <= 1.0:
            raise ValueError(f"decay of an exp_range curve must be above 0 and at most 1, got {self.decay!r}")

    @classmethod
    def from_gamma(cls, base: float, peak: float, cycle: Length, gamma: float, steps: float) -> ExpRange:
        """Return the curve whose amplitude is multiplied by ``gamma`` at every one of a phase's ``steps`` steps."""
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

    def amplitude(self, t: float, number: int) -> float:
        return self.decay**t


_SIMPLE = (Constant, Linear, Cosine, Exponential, Steps, OneCycle, Triangular, Triangular2, ExpRange)
CURVES: dict[str, type[Any]] = {kind.name: kind for kind in (*_SIMPLE, Warmup, Joined, Scaled)}
"""The curves by the name that they have in files, under the key ``curve``."""
