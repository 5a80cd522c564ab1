"""The timeline: training as named phases in which every scheduled quantity moves together."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, pairwise
from typing import Any, Literal, cast

from etude.timeline.curves import Curve, is_resolved, resolved
from etude.timeline.lengths import Pace, RunSize, check_shares, divided, length_in_steps, parse_length
from etude.timeline.phase import QUANTITIES, Moment, Phase, check_values, step_progress
from etude.timeline.plateau import Event

SIZE_SAMPLES = 32  # points at which a size curve is read for its mean area


def resolve_phases(phases: Sequence[Phase], run: RunSize, size_multiple: int) -> tuple[Phase, ...]:
    """Return the phases with all lengths as shares of the run; ValueError when they do not fit into it or fill it."""
    # How many steps fit into a time depends on the phase's image sizes.
    lengths = [
        f"{steps_of(phase, run, size_multiple):.15g}st" if parse_length(phase.length)[1] == "s" else phase.length
        for phase in phases
    ]
    resolved_phases: list[Phase] = []
    for phase, share in zip(phases, divided(lengths, float(run.steps), run), strict=True):
        curves = {name: _resolved_curve(phase, curve, share * run.steps, run) for name, curve in phase.curves().items()}
        resolved_phases.append(replace(phase, length=share, **cast(dict[str, Any], curves)))
    return tuple(resolved_phases)


def steps_of(phase: Phase, run: RunSize, size_multiple: int) -> float:
    """Return the steps of a phase of fixed length; ValueError when its unit is one that ``run`` does not know."""
    size, curve = None, phase.curve("image_size")
    if curve is not None and parse_length(phase.length)[1] == "s":
        # A step's work grows with the area, so the size is that of the phase's mean area. The curve of sizes may
        # itself hold a fixed length, which depends on the steps that are sought; a few rounds settle that.
        for _ in range(1 if is_resolved(curve) else 4):
            steps = length_in_steps(phase.length, float(run.steps), run, size)
            settled = _resolved_curve(phase, curve, steps, run)
            points = ((sample + 0.5) / SIZE_SAMPLES for sample in range(SIZE_SAMPLES))
            size = math.sqrt(sum(rounded(settled.at(point), size_multiple) ** 2 for point in points) / SIZE_SAMPLES)
    return length_in_steps(phase.length, float(run.steps), run, size)


def rounded(size: float, multiple: int) -> int:
    """Round half up to the multiple: Python's ``round`` would send 144 and 176 in different directions."""
    return max(multiple, math.floor(size / multiple + 0.5) * multiple)


def _resolved_curve(phase: Phase, curve: Curve, steps: float, run: RunSize) -> Curve:
    try:
        return resolved(curve, steps, run)
    except ValueError as error:
        raise ValueError(f"phase {phase.name!r}: {error}") from None


# A phase's first moment belongs to it although sums of shares are rounded.
SLACK = 1e-9


@dataclass(frozen=True, slots=True)
class Span:
    """A phase's place in the run."""

    phase: Phase
    start: float  # progress of the run
    stop: float
    length: float  # share of the run as planned: longer than stop - start when the phase was ended early
    curves: tuple[tuple[str, Curve], ...]


def planned_spans(phases: Sequence[Phase]) -> tuple[Span, ...]:
    """Return the places of resolved phases, end to end from 0 to 1."""
    ends = [*accumulate((cast(float, phase.length) for phase in phases[:-1]), initial=0.0), 1.0]
    return tuple(
        Span(phase, start, stop, stop - start, tuple(phase.curves().items()))
        for phase, (start, stop) in zip(phases, pairwise(ends), strict=True)
    )


def moved_by(spans: tuple[Span, ...], events: Sequence[Event]) -> tuple[Span, ...]:
    """Return the places after the ``"end"`` events: each ends its phase, and later phases move up, as long as before.

    An event after its phase's end changes nothing; events out of order or of a phase that has not begun are refused.
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
            moved = [*spans[:number], replace(spans[number], stop=max(event.progress, spans[number].start))]
            for span in spans[number + 1 :]:
                start = moved[-1].stop
                moved.append(replace(span, start=start, stop=min(1.0, start + (span.stop - span.start))))
            spans = tuple(moved)
    return spans


def scaled_lr(lr: float, events: Sequence[Event], t: float) -> float:
    """Return the learning rate after the ``"scale"`` events up to ``t``; none takes it below its ``min_lr``."""
    for event in events:
        if event.progress > t + SLACK:
            break
        if event.kind == "scale":
            lr = max(lr * event.factor, min(lr, event.min_lr))
    return lr


BatchScaling = Literal["none", "linear", "sqrt"]
_SCALINGS: dict[str, float] = {"none": 0.0, "linear": 1.0, "sqrt": 0.5}  # powers of the batch's ratio to the base


@dataclass(frozen=True, slots=True)
class Timeline:
    """Phases in order. ``at`` is pure: the same progress always gives the same :class:`Moment`.

    Fixed lengths (``"3ep"``, ``"500st"``, ``"10m"``) come first; shares divide what they leave and sum to 1. A
    timeline that holds a fixed length has to be resolved for a run of known size before ``at`` can be called. Phases
    that do not fit each other, values out of their limits, and events of other phases raise a ValueError.

    The learning rate follows a scheduled batch size by ``batch_scaling``: ``"none"``, ``"linear"`` (times the ratio to
    the base, Goyal et al. 2017) or ``"sqrt"`` (times the ratio's root).

    >>> from etude.timeline import Linear
    >>> plan = Timeline((Phase("warmup", 0.5, lr=Linear(0, 1)), Phase("finish", 0.5, lr=Linear(1, 0), image_size=96)))
    >>> plan.at(0.25).lr, plan.at(0.5).phase, plan.at(1.0).image_size
    (0.5, 'finish', 96)
    """

    phases: tuple[Phase, ...]  # at least one, with names that differ
    size_multiple: int = 32  # image sizes are rounded half up to this multiple of pixels
    batch_scaling: BatchScaling = "none"
    base_batch_size: int | None = None  # batch size that the learning rates are meant for; default: the first moment's
    events: tuple[Event, ...] = ()  # what plateaus did to this run, in order; they hold progress of a resolved timeline
    _spans: tuple[Span, ...] = field(init=False, repr=False, compare=False, default=())
    _base: float = field(init=False, repr=False, compare=False, default=1.0)

    def __post_init__(self) -> None:
        object.__setattr__(self, "phases", tuple(self.phases))
        object.__setattr__(self, "events", tuple(self.events))
        self._check()
        if all(phase.is_resolved for phase in self.phases):
            for phase in self.phases:
                check_values(phase)
            object.__setattr__(self, "_spans", moved_by(planned_spans(self.phases), self.events))
            batch = self.phases[0].curve("batch_size")
            base = self.base_batch_size or (_whole(batch.at(0.0)) if batch else 1)
            object.__setattr__(self, "_base", float(base))
        elif self.events:
            raise ValueError("events belong to a run of known size; resolve the timeline before adding them")

    def _check(self) -> None:
        if not self.phases:
            raise ValueError("a timeline needs at least one phase")
        names = [phase.name for phase in self.phases]
        if len(set(names)) < len(names):
            raise ValueError(f"phase names must differ, got {names}")
        check_shares([phase.length for phase in self.phases])
        if self.size_multiple < 1:
            raise ValueError(f"size_multiple is {self.size_multiple}; it is a number of pixels, at least 1")
        if self.batch_scaling not in _SCALINGS:
            raise ValueError(f"batch_scaling is {self.batch_scaling!r}; give one of {', '.join(_SCALINGS)}")
        if self.base_batch_size is not None and self.base_batch_size < 1:
            raise ValueError(f"base_batch_size is {self.base_batch_size}; it is a number of images, at least 1")
        scheduled = [phase.name for phase in self.phases if phase.batch_size is not None]
        if self.batch_scaling != "none" and 0 < len(scheduled) < len(self.phases):
            missing = next(phase.name for phase in self.phases if phase.name not in scheduled)
            raise ValueError(
                f"the learning rate follows the batch size, but phase {missing!r} does not schedule batch_size; "
                "schedule it in every phase or in none"
            )

    @property
    def is_resolved(self) -> bool:
        """Whether all lengths are shares, so that ``at`` can answer."""
        return bool(self._spans)

    @property
    def end(self) -> float:
        """Progress at which the run ends: 1.0 unless a plateau ended a phase early."""
        return self._resolved_spans()[-1].stop

    def resolved(self, run: RunSize) -> Timeline:
        """Return the timeline with every length as a share of a run of this size; a resolved one returns itself.

        ValueError where the fixed lengths do not fit into the run, do not fill it although no phase has a share, or
        are in a unit that ``run`` does not know.

        >>> plan = Timeline((Phase("warmup", "25st"), Phase("finish", 1.0)))
        >>> [phase.length for phase in plan.resolved(RunSize(steps=100)).phases]
        [0.25, 0.75]
        """
        if self.is_resolved:
            return self
        return replace(self, phases=resolve_phases(self.phases, run, self.size_multiple))

    def fixed_steps(self, epoch_steps: float | None, pace: Pace | None = None) -> float | None:
        """Return the steps of a timeline whose phases all have fixed lengths; None when any phase has a share."""
        if any(phase.is_share for phase in self.phases):
            return None
        run = RunSize(1, epoch_steps, pace)
        return math.fsum(steps_of(phase, run, self.size_multiple) for phase in self.phases)

    def at(self, t: float) -> Moment:
        """Return what holds at ``t`` of the run; a phase's first moment belongs to that phase.

        Beyond ``end`` it is the last moment. A timeline that is not resolved, or a ``t`` outside [0, 1]: ValueError.
        """
        span, t = self._locate(t)
        within = min(1.0, max(0.0, (t - span.start) / span.length))
        values: dict[str, Any] = {quantity: curve.at(within) for quantity, curve in span.curves}
        if "image_size" in values:
            values["image_size"] = rounded(values["image_size"], self.size_multiple)
        if "augment" in values:
            values["augment"] = min(1.0, max(0.0, values["augment"]))
        if "batch_size" in values:
            values["batch_size"] = _whole(values["batch_size"])
        if "lr" in values:
            values["lr"] = scaled_lr(values["lr"] * self._batch_factor(values.get("batch_size")), self.events, t)
        return Moment(t, span.phase.name, **values)

    def phase_at(self, t: float) -> Phase:
        """Return the phase that runs at ``t``; the same errors as ``at``."""
        return self._locate(t)[0].phase

    def spans(self) -> tuple[tuple[str, float, float], ...]:
        """Return (phase name, start, end) of every phase, in progress, as the events left them."""
        return tuple((span.phase.name, span.start, span.stop) for span in self._resolved_spans())

    def with_event(self, event: Event) -> Timeline:
        """Return the timeline, which is resolved, after one more event; ValueError where the event does not fit it."""
        return replace(self, events=(*self.events, event))

    def quantities(self) -> tuple[str, ...]:
        """Return the names of what any phase schedules, in the order of ``QUANTITIES``."""
        return tuple(name for name in QUANTITIES if any(phase.curve(name) is not None for phase in self.phases))

    def jumps(self) -> tuple[str, ...]:
        """Return a sentence for each join at which the learning rate jumps although the phase does not allow it.

        A jump is a change by more than a factor 2, or from or to zero by more than 1% of the highest rate.
        """
        spans = planned_spans(self.phases) if self._resolved_spans() else ()
        starts, middles, stops = ([self._planned_lr(span, within) for span in spans] for within in (0.0, 0.5, 1.0))
        peak = max((lr for lr in (*starts, *middles, *stops) if lr is not None), default=0.0)

        def jump(before: float, after: float) -> bool:
            low, high = sorted((before, after))
            if low == 0.0:
                return high > 0.01 * peak
            return high / low > 2.0 and not math.isclose(high / low, 2.0)

        return tuple(
            f"the learning rate jumps from {before:g} to {after:g} where phase {span.phase.name!r} begins; "
            "make the curves meet, or set jump = true in that phase if the jump is meant"
            for span, before, after in zip(spans[1:], stops[:-1], starts[1:], strict=True)
            if before is not None and after is not None
            if not span.phase.jump and jump(before, after)
        )

    def moments(self, steps: int) -> Iterator[Moment]:
        """Yield the moment of every step of a run of ``steps`` steps."""
        for step in range(steps):
            yield self.at(step_progress(step, steps))

    def _resolved_spans(self) -> tuple[Span, ...]:
        if not self._spans:
            raise ValueError(
                "this timeline holds epochs, steps or minutes; "
                "resolve it for a run first: timeline.resolved(RunSize(steps))"
            )
        return self._spans

    def _locate(self, t: float) -> tuple[Span, float]:
        """Return the span that runs at ``t``, and ``t`` itself, at most the end of the run."""
        if not 0.0 <= t <= 1.0:
            raise ValueError(f"progress is {t}, it must lie in [0, 1]")
        spans = self._resolved_spans()
        t = min(t, spans[-1].stop)
        begun = next((span for span in reversed(spans) if span.start <= t + SLACK), spans[0])
        return begun, t

    def _batch_factor(self, batch_size: int | None) -> float:
        if batch_size is None or self.batch_scaling == "none":
            return 1.0
        return (batch_size / self._base) ** _SCALINGS[self.batch_scaling]

    def _planned_lr(self, span: Span, within: float) -> float | None:
        lr, batch = span.phase.curve("lr"), span.phase.curve("batch_size")
        if lr is None:
            return None
        return lr.at(within) * self._batch_factor(None if batch is None else _whole(batch.at(within)))


def _whole(batch_size: float) -> int:
    return max(1, math.floor(batch_size + 0.5))
