"""Where each phase lies on the run: as planned, and as plateaus that ended phases early have moved it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from etude.timeline.curves import Curve
from etude.timeline.phase import Phase
from etude.timeline.plateau import Event

# A phase's first moment belongs to it although sums of shares are rounded.
SLACK = 1e-9


@dataclass(frozen=True, slots=True)
class Span:
    """A phase's place in the run.

    Args:
        phase: the phase.
        start: progress of the run at which it begins.
        stop: progress at which it ends.
        length: share of the run it was planned to take; longer than ``stop - start`` when it was ended early.
        curves: the phase's scheduled curves, by name.
    """

    phase: Phase
    start: float
    stop: float
    length: float
    curves: tuple[tuple[str, Curve], ...]


def planned_spans(phases: Sequence[Phase]) -> tuple[Span, ...]:
    """Return the places of resolved phases, end to end from 0 to 1."""
    spans: list[Span] = []
    start = 0.0
    for number, phase in enumerate(phases, 1):
        assert isinstance(phase.length, float)
        stop = start + phase.length if number < len(phases) else 1.0
        spans.append(Span(phase, start, stop, stop - start, tuple(phase.curves().items())))
        start = stop
    return tuple(spans)


def moved_by(spans: tuple[Span, ...], events: Sequence[Event]) -> tuple[Span, ...]:
    """Return the places after the ``"end"`` events: each ends its phase, and later phases move up, as long as before.

    An event after its phase's end changes nothing.

    Raises:
        ValueError: the events are out of order, or one names a phase that does not exist or has not begun.
    """
    names, before = [span.phase.name for span in spans], 0.0
    for event in events:
        if event.phase not in names:
            raise ValueError(f"an event names the phase {event.phase!r}, but the phases are {', '.join(names)}")
        if event.progress < before:
            raise ValueError(f"an event at progress {event.progress:g} comes after one at {before:g}; keep their order")
        before, number = event.progress, names.index(event.phase)
        if event.progress < spans[number].start - SLACK:
            raise ValueError(
                f"an event at progress {event.progress:g} belongs to phase {event.phase!r}, "
                f"which begins only at {spans[number].start:g}"
            )
        if event.kind == "end" and event.progress < spans[number].stop:
            spans = _ended(spans, number, max(event.progress, spans[number].start))
    return spans


def span_at(spans: tuple[Span, ...], progress: float) -> Span:
    """Return the last span that has begun."""
    for span in reversed(spans):
        if span.start <= progress + SLACK:
            return span
    return spans[0]


def scaled_lr(lr: float, events: Sequence[Event], progress: float) -> float:
    """Return the learning rate after the ``"scale"`` events up to ``progress``; none takes it below its ``min_lr``."""
    for event in events:
        if event.progress > progress + SLACK:
            break
        if event.kind == "scale":
            lr = max(lr * event.factor, min(lr, event.min_lr))
    return lr


def jump_between(before: float, after: float, peak: float) -> bool:
    """Whether a learning rate moves by more than a factor 2, or from or to zero by more than 1% of the peak."""
    low, high = sorted((before, after))
    if high <= 0.01 * peak and low == 0.0:
        return False
    return low == 0.0 or (high / low > 2.0 and not math.isclose(high / low, 2.0))


def _ended(spans: tuple[Span, ...], number: int, progress: float) -> tuple[Span, ...]:
    moved = [*spans[:number], replace(spans[number], stop=progress)]
    for span in spans[number + 1 :]:
        start = moved[-1].stop
        moved.append(replace(span, start=start, stop=min(1.0, start + (span.stop - span.start))))
    return tuple(moved)
