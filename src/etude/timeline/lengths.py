"""Lengths of phases, warmups and cycles: a share of the whole, or epochs, steps or minutes of a run."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

Length = float | str
"""``0.25`` or ``"25%"``: a share; ``"3ep"``: epochs; ``"500st"``: steps; ``"90s"``, ``"10m"``, ``"1h"``: time."""

ACCEPTED = "a length is a share such as 0.25 or '25%', epochs '3ep', steps '500st', or time '10m' or '90s'"

MAX_PARTS = 200
"""Maximum number of phases of a timeline, and of parts of a curve: each takes milliseconds to read."""

_WRITTEN = re.compile(r"\s*(\d+(?:\.\d*)?(?:e[+-]?\d+)?|\.\d+)\s*(ep|st|s|m|h|%)?\s*")
_FACTOR_AND_UNIT = {
    None: (1.0, "share"),
    "%": (0.01, "share"),
    "ep": (1.0, "ep"),
    "st": (1.0, "st"),
    "s": (1.0, "s"),
    "m": (60.0, "s"),
    "h": (3600.0, "s"),
}


@dataclass(frozen=True, slots=True)
class Pace:
    """How long a training step takes.

    >>> Pace(0.1, size=112).at(224)
    0.4
    """

    seconds: float  # of one step; above 0
    size: int | None = None  # side in pixels of the images it was measured with; None: it does not matter or is unknown

    def __post_init__(self) -> None:
        for name, value in (("seconds", self.seconds), ("size", self.size)):
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ValueError(f"the {name} of a pace must be a finite number above 0, got {value!r}")

    def at(self, image_size: float | None) -> float:
        """Return the seconds of a step at ``image_size`` pixels: the work grows with the area of the image."""
        if self.size is None or image_size is None:
            return self.seconds
        return self.seconds * (image_size / self.size) ** 2


@dataclass(frozen=True, slots=True)
class RunSize:
    """How long a run is, for turning lengths into shares."""

    steps: int  # optimiser steps of the whole run; at least 1
    epoch_steps: float | None = None  # steps of one epoch; needed for lengths in epochs only
    pace: Pace | None = None  # duration of a step; needed for lengths in time only

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"a run has at least 1 step, got {self.steps!r}")
        if self.epoch_steps is not None and not (math.isfinite(self.epoch_steps) and self.epoch_steps > 0):
            raise ValueError(f"the steps of an epoch must be a finite number above 0, got {self.epoch_steps!r}")


def parse_length(length: Length) -> tuple[float, str]:
    """Return the amount and its unit: ``"share"``, ``"ep"`` (epochs), ``"st"`` (steps) or ``"s"`` (seconds).

    A share above 1 passes, because a cycle may be longer than its phase; who takes a part of a whole refuses it. What
    cannot be read, or is not a finite number above 0, is a ValueError.

    >>> parse_length("3ep"), parse_length("10m"), parse_length("25%"), parse_length(0.1)
    ((3.0, 'ep'), (600.0, 's'), (0.25, 'share'), (0.1, 'share'))
    """
    received: object = length  # unchecked: it may come from a user's file
    if isinstance(received, int | float) and not isinstance(received, bool):
        amount, unit = float(received), "share"
    else:
        written = _WRITTEN.fullmatch(received.lower()) if isinstance(received, str) else None
        if written is None:
            raise ValueError(f"the length {received!r} cannot be read; {ACCEPTED}")
        factor, unit = _FACTOR_AND_UNIT[written[2]]
        amount = float(written[1]) * factor
    if not (math.isfinite(amount) and amount > 0):
        raise ValueError(f"the length {received!r} must be above 0 and finite; {ACCEPTED}")
    return amount, unit


def share_of(length: Length) -> float | None:
    """Return the share that ``length`` is, or None if it is given in epochs, steps or time."""
    if isinstance(length, float):
        return length
    amount, unit = parse_length(length)
    return amount if unit == "share" else None


def length_in_steps(length: Length, whole_steps: float, run: RunSize, mean_size: float | None = None) -> float:
    """Return how many steps ``length`` is, a share of ``whole_steps``; the result need not be a whole number.

    ``mean_size`` is the mean side in pixels of the images during that time, where it is known. A ValueError says when
    ``run`` lacks what epochs or time need.
    """
    amount, unit = parse_length(length)
    if unit == "share":
        return amount * whole_steps
    if unit == "st":
        return amount
    if unit == "ep":
        if run.epoch_steps is None:
            raise ValueError(
                f"the length {length!r} is in epochs, and the steps of an epoch are not known: "
                "give RunSize(epoch_steps=...), or a share or steps instead"
            )
        return amount * run.epoch_steps
    if run.pace is None:
        raise ValueError(
            f"the length {length!r} is in time, and the duration of a step is not known: "
            "give RunSize(pace=Pace(seconds)), or a share, epochs or steps instead"
        )
    return amount / run.pace.at(mean_size)


def as_share(length: Length, whole_steps: float, run: RunSize) -> float:
    """Return the part of ``whole_steps`` that ``length`` is."""
    share = share_of(length)
    return length_in_steps(length, whole_steps, run) / whole_steps if share is None else share


def check_shares(lengths: Sequence[Length]) -> None:
    """Raise ValueError unless the shares among ``lengths`` sum to 1 (within 1e-6), and there are at most MAX_PARTS."""
    if len(lengths) > MAX_PARTS:
        raise ValueError(f"{len(lengths):,} phases or parts of a curve follow each other; give at most {MAX_PARTS}")
    shares = [amount for amount, unit in map(parse_length, lengths) if unit == "share"]
    if shares and not math.isclose(sum(shares), 1.0, abs_tol=1e-6):
        listed = " + ".join(f"{share:g}" for share in shares)
        raise ValueError(
            f"the shares {listed} sum to {sum(shares):g}, they must sum to 1: they divide what the lengths in epochs, "
            "steps or time leave"
        )


def divided(lengths: Sequence[Length], whole_steps: float, run: RunSize) -> tuple[float, ...]:
    """Return the share of ``whole_steps`` that each of ``lengths`` in a row takes; they sum to 1.

    Epochs, steps and time come first; shares divide what they leave. Without shares they must fill the whole to within
    half a step; ValueError otherwise.
    """
    check_shares(lengths)
    shares = [share_of(length) for length in lengths]
    fixed = [length for length, share in zip(lengths, shares, strict=True) if share is None]
    if not fixed:
        return tuple(share for share in shares if share is not None)
    taken = math.fsum(length_in_steps(length, whole_steps, run) for length in fixed)
    has_shares = len(fixed) < len(lengths)
    named = f"the lengths {' + '.join(map(str, fixed))} take {taken:,.10g} of {whole_steps:,.10g} steps"
    if has_shares and taken >= whole_steps:
        raise ValueError(f"{named} and leave nothing for the shares: shorten them or make the whole longer")
    if not has_shares and abs(taken - whole_steps) > 0.5:
        raise ValueError(f"{named}: make them fill it exactly, or make one of them a share, which takes what is left")
    whole = whole_steps if has_shares else taken
    return tuple(
        (length_in_steps(length, whole_steps, run) if share is None else share * (whole - taken)) / whole
        for length, share in zip(lengths, shares, strict=True)
    )
