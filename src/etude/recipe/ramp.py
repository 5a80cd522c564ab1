"""The weight of unlabelled images over a run: nothing at first, then a straight rise (Lee 2013's α)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

from etude.timeline import Constant, Curve, Joined, Linear, Timeline


def with_ramp(timeline: Timeline, weight: float, start: float, end: float) -> Timeline:
    """Return a resolved timeline whose ``unlabeled_weight`` rises from 0 to ``weight`` between two shares of the run.

    Phases count their own progress, so each gets its piece of the rise. A timeline that schedules the weight by itself
    stays as it is.

    >>> from etude.timeline import Phase
    >>> plan = with_ramp(Timeline((Phase("a", 0.5), Phase("b", 0.5))), 2.0, 0.25, 0.75)
    >>> [plan.at(progress).unlabeled_weight for progress in (0.0, 0.25, 0.5, 0.75, 1.0)]
    [0.0, 0.0, 1.0, 2.0, 2.0]
    """
    if "unlabeled_weight" in timeline.quantities():
        return timeline

    def risen(progress: float) -> float:
        if progress >= end:
            return weight
        return 0.0 if progress <= start else weight * (progress - start) / (end - start)

    def piece(left: float, right: float) -> Iterator[tuple[float, Curve]]:
        inner = [point for point in (start, end) if left < point < right]
        points = [left, *dict.fromkeys(inner), right]
        for one, other in pairwise(points):
            # Where the weight jumps (start = end), the value just after the point is that of the whole piece.
            low, high = (weight, weight) if one >= end else (0.0, 0.0) if other <= start else (risen(one), risen(other))
            yield (other - one) / (right - left), Constant(low) if low == high else Linear(low, high)

    phases = [
        replace(phase, unlabeled_weight=_in_a_row([*piece(left, right)]))
        for phase, (_, left, right) in zip(timeline.phases, timeline.spans(), strict=True)
    ]
    return replace(timeline, phases=tuple(phases))


def _in_a_row(parts: list[tuple[float, Curve]]) -> Curve:
    return parts[0][1] if len(parts) == 1 else Joined(tuple(parts))
