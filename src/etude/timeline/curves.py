"""Curves: how one scheduled quantity moves while a phase runs from 0 to 1.

Every curve is a frozen dataclass, so its settings can be printed, compared, pickled and plotted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol


class Curve(Protocol):
    """A pure function of a phase's own progress."""

    def at(self, progress: float) -> float:
        """Return the value at ``progress`` in [0, 1]."""
        ...


@dataclass(frozen=True, slots=True)
class Constant:
    """The same value throughout.

    >>> Constant(0.1).at(0.7)
    0.1
    """

    value: float

    def at(self, progress: float) -> float:
        """Return the value, whatever the progress."""
        return self.value


@dataclass(frozen=True, slots=True)
class Linear:
    """A straight line from ``start`` to ``end``.

    >>> Linear(0.0, 2.0).at(0.25)
    0.5
    """

    start: float
    end: float

    def at(self, progress: float) -> float:
        """Return ``start + (end - start) * progress``."""
        return self.start + (self.end - self.start) * progress


@dataclass(frozen=True, slots=True)
class Cosine:
    """Half a cosine from ``start`` to ``end``: flat at both ends (Loshchilov & Hutter 2016, without restarts).

    >>> round(Cosine(1.0, 0.0).at(0.5), 6)
    0.5
    """

    start: float
    end: float

    def at(self, progress: float) -> float:
        """Return ``end + (start - end) * (1 + cos(pi * progress)) / 2``."""
        return self.end + (self.start - self.end) * (1.0 + math.cos(math.pi * progress)) / 2.0
