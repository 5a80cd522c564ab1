"""What the timeline figure shows: for each scheduled quantity the planned line and, where known, the real one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from etude.core.errors import EtudeError
from etude.timeline import Timeline, step_progress

_SAMPLES = 1600  # over the whole run; more than the pixels across
_BEFORE = 1e-6  # of a phase: how close to its end a line is read, since the end itself belongs to the next phase
_SMALL = 0.05  # of the peak; a learning rate that stays below it for long shows nothing on a linear axis
_LONG = 0.2  # of the run
_DEEPEST = 0.05  # of a line's points may lie below a logarithmic axis
_WHOLE = ("image_size", "batch_size")

Points = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Line:
    """Progress (N,) in percent and values (N,); NaN breaks the line where the quantity is not scheduled."""

    x: Points
    y: Points

    def values(self) -> Points:
        """Return the values that are there."""
        return self.y[np.isfinite(self.y)]


@dataclass(frozen=True, slots=True)
class Panel:
    """One quantity.

    Args:
        quantity: its name in a Moment.
        plan: the line as planned.
        actual: the line as it happened, or as plateaus have changed it; None when neither is known.
        log: whether the axis is logarithmic.
    """

    quantity: str
    plan: Line
    actual: Line | None
    log: bool = False

    def lowest_and_highest(self) -> tuple[float, float]:
        """Return the extremes of all values; a logarithmic axis ends above the last bit of a decay to zero."""
        found = [line.values() for line in (self.plan, self.actual) if line is not None]
        highest = max(values.max() for values in found)
        if not self.log:
            return float(min(values.min() for values in found)), float(highest)
        positive = [values[values > 0] for values in found if values.max() > 0]
        floor = min(np.quantile(values, _DEEPEST) for values in positive) / 3
        return float(max(floor, min(values.min() for values in positive))), float(highest)

    @property
    def is_constant(self) -> bool:
        """Whether the quantity never moves, to the eye."""
        low, high = self.lowest_and_highest()
        return high - low <= 1e-6 * max(abs(low), abs(high))

    @property
    def is_whole(self) -> bool:
        """Whether the values are whole numbers that step from one to the next."""
        return self.quantity in _WHOLE


def panels_of(timeline: Timeline, steps: int, happened: Sequence[Mapping[str, Any]] | None) -> tuple[Panel, ...]:
    """Return a panel for each quantity that the resolved ``timeline`` schedules, in its order.

    The plan is the timeline without its events; the real line comes from ``happened``, or else from the events.

    Raises:
        EtudeError: a row of ``happened`` has no step, or a value that is no number.
    """
    plan = replace(timeline, events=())
    return tuple(_panel(plan, timeline, quantity, steps, happened) for quantity in timeline.quantities())


def _panel(
    plan: Timeline, timeline: Timeline, quantity: str, steps: int, happened: Sequence[Mapping[str, Any]] | None
) -> Panel:
    planned = _sampled(plan, quantity)
    actual = _observed(happened, quantity, steps) if happened else None
    if not happened and timeline.events:
        actual = _sampled(timeline, quantity)
    if actual is not None and not len(actual.values()):
        actual = None
    return Panel(quantity, planned, actual, quantity == "lr" and _wants_logarithm(planned, actual))


def _sampled(timeline: Timeline, quantity: str) -> Line:
    x: list[float] = []
    y: list[float] = []
    for _, start, end in timeline.spans():
        if end <= start:
            continue  # a plateau ended the run before this phase
        stop = end if end >= 1.0 else end - _BEFORE * (end - start)
        cuts = {event.progress for event in timeline.events if start < event.progress < stop}
        sharp = {cut - _BEFORE for cut in cuts} | cuts  # a scaled learning rate falls straight down
        for progress in sorted({*np.linspace(start, stop, max(2, round(_SAMPLES * (end - start)))), *sharp}):
            value = getattr(timeline.at(float(progress)), quantity)
            x.append(100.0 * float(progress))
            y.append(math.nan if value is None else float(value))
    return Line(np.array(x), np.array(y))


def _observed(rows: Sequence[Mapping[str, Any]], quantity: str, steps: int) -> Line:
    found: list[tuple[float, float]] = []
    for row in rows:
        value = row.get(quantity)
        if value is None or value == "":
            continue
        try:
            found.append((100.0 * step_progress(int(row["step"]), steps), float(value)))
        except (KeyError, TypeError, ValueError):
            raise EtudeError(
                f"the history's row {dict(row)!r} cannot be drawn: it needs a whole number as step, "
                f"and {quantity} must be a number"
            ) from None
    points = np.array(sorted(found), dtype=np.float64).reshape(-1, 2)
    return Line(points[:, 0], points[:, 1])


def _wants_logarithm(plan: Line, actual: Line | None) -> bool:
    """Whether the learning rate spends so long far below its peak that only a logarithmic axis shows it."""
    values = (plan if actual is None else actual).values()
    peak = values.max(initial=0.0)
    return bool(peak > 0 and np.mean((values > 0) & (values < _SMALL * peak)) > _LONG)
