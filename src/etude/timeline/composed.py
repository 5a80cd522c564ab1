"""Curves made of curves: a warmup before one, several in a row, one at another scale."""

from __future__ import annotations

from dataclasses import dataclass, replace

from etude.timeline.curves import ROUNDING, Curve, check_numbers, is_resolved, resolved
from etude.timeline.lengths import Length, RunSize, check_shares, divided, length_in_steps, share_of


@dataclass(frozen=True, slots=True)
class Warmup:
    """A straight line up to where ``after`` begins, then ``after`` over the rest (Goyal et al. 2017).

    Args:
        after: the curve to warm up for; it runs from 0 to 1 over what the warmup leaves.
        length: of the warmup: a share of the phase below 1, or epochs, steps or time.
        start: value at the very beginning.

    Raises:
        ValueError: ``length`` is malformed or a share of 1 or more, or ``start`` is not a finite number.

    >>> from etude.timeline.curves import Linear
    >>> curve = Warmup(Linear(1.0, 0.0), length=0.2)
    >>> curve.at(0.1), curve.at(0.2), curve.at(0.6)
    (0.5, 1.0, 0.5)
    """

    after: Curve
    length: Length = 0.1
    start: float = 0.0

    def __post_init__(self) -> None:
        check_numbers("warmup", start=self.start)
        share = share_of(self.length)
        if share is not None and not 0.0 < share < 1.0:
            raise ValueError(
                f"the length {self.length!r} of a warmup must be a share between 0 and 1, or epochs '3ep', "
                "steps '500st' or time '1m'"
            )

    @property
    def is_resolved(self) -> bool:
        """Whether the length is a share and ``after`` is resolved."""
        return share_of(self.length) is not None and is_resolved(self.after)

    def resolved(self, phase_steps: float, run: RunSize) -> Warmup:
        """Return the same curve with lengths as shares of a phase of ``phase_steps`` steps.

        Raises:
            ValueError: the warmup leaves nothing of the phase, or ``run`` lacks what its length needs.
        """
        steps = length_in_steps(self.length, phase_steps, run)
        if steps >= phase_steps:
            raise ValueError(
                f"a warmup of {self.length!r} takes {steps:,.10g} of the {phase_steps:,.10g} steps it is part of and "
                "leaves nothing after it: shorten the warmup or make the run longer"
            )
        share = share_of(self.length)
        share = steps / phase_steps if share is None else share
        return replace(self, after=resolved(self.after, phase_steps - steps, run), length=share)

    def at(self, progress: float) -> float:
        """Return the line before ``length``, ``after`` from there on.

        Raises:
            ValueError: the length is not a share; resolve the curve first.
        """
        share = resolved_share("warmup", self.length)
        if progress < share:
            return self.start + (self.after.at(0.0) - self.start) * progress / share
        return self.after.at((progress - share) / (1.0 - share))


@dataclass(frozen=True, slots=True)
class Joined:
    """Curves one after the other, each over its own part of the phase.

    Args:
        parts: pairs of length and curve; epochs, steps and time come first, shares divide what they leave and sum to 1.

    Raises:
        ValueError: no part, a malformed length, or shares that do not sum to 1.

    >>> from etude.timeline.curves import Constant, Linear
    >>> curve = Joined(((0.5, Constant(1.0)), (0.5, Linear(1.0, 0.0))))
    >>> curve.at(0.25), curve.at(0.75), curve.at(1.0)
    (1.0, 0.5, 0.0)
    """

    parts: tuple[tuple[Length, Curve], ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "parts", tuple((length, curve) for length, curve in self.parts))
        if not self.parts:
            raise ValueError("a joined curve needs at least one part: a length and a curve")
        check_shares([length for length, _ in self.parts])

    @property
    def is_resolved(self) -> bool:
        """Whether all lengths are shares and all parts are resolved."""
        return all(share_of(length) is not None and is_resolved(curve) for length, curve in self.parts)

    def resolved(self, phase_steps: float, run: RunSize) -> Joined:
        """Return the same curve with lengths as shares of a phase of ``phase_steps`` steps.

        Raises:
            ValueError: the lengths exceed or do not fill the phase, or ``run`` lacks what one of them needs.
        """
        shares = divided([length for length, _ in self.parts], phase_steps, run)
        curves = (
            resolved(curve, share * phase_steps, run) for share, (_, curve) in zip(shares, self.parts, strict=True)
        )
        return Joined(tuple(zip(shares, curves, strict=True)))

    def at(self, progress: float) -> float:
        """Return the value of the part that ``progress`` lies in; a boundary belongs to the part it begins.

        Raises:
            ValueError: a length is not a share; resolve the curve first.
        """
        start = 0.0
        for length, curve in self.parts[:-1]:
            share = resolved_share("joined", length)
            if progress < start + share - ROUNDING:
                return curve.at(max(0.0, progress - start) / share)
            start += share
        length, curve = self.parts[-1]
        return curve.at(min(1.0, max(0.0, progress - start) / resolved_share("joined", length)))


@dataclass(frozen=True, slots=True)
class Scaled:
    """Another curve times ``factor``.

    Raises:
        ValueError: ``factor`` is not a finite number.

    >>> from etude.timeline.curves import Linear
    >>> Scaled(Linear(0.0, 1.0), 0.1).at(0.5)
    0.05
    """

    curve: Curve
    factor: float

    def __post_init__(self) -> None:
        check_numbers("scaled", factor=self.factor)

    @property
    def is_resolved(self) -> bool:
        """Whether the curve within is resolved."""
        return is_resolved(self.curve)

    def resolved(self, phase_steps: float, run: RunSize) -> Scaled:
        """Return the same curve with the lengths within it as shares of a phase of ``phase_steps`` steps."""
        return replace(self, curve=resolved(self.curve, phase_steps, run))

    def at(self, progress: float) -> float:
        """Return ``factor`` times the curve's value."""
        return self.curve.at(progress) * self.factor


def resolved_share(curve: str, length: Length) -> float:
    """Return ``length`` as the share it is.

    Raises:
        ValueError: it is in epochs, steps or time, which are no share before the run's size is known.
    """
    share = share_of(length)
    if share is None:
        raise ValueError(
            f"the curve {curve!r} with the length {length!r} has no values before the run's size is known: "
            "call resolved(curve, phase_steps, RunSize(...)) first"
        )
    return share
