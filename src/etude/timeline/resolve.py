"""Resolving a timeline: epochs, steps and minutes become shares of one run of known size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

from etude.timeline.curves import Curve, is_resolved, resolved
from etude.timeline.lengths import Length, RunSize, divided, length_in_steps, parse_length
from etude.timeline.phase import Phase

SIZE_SAMPLES = 32  # points at which a size curve is read for its mean area


def resolve_phases(phases: Sequence[Phase], run: RunSize, size_multiple: int) -> tuple[Phase, ...]:
    """Return the phases with all lengths as shares of the run.

    Fixed lengths come first; shares divide what they leave.

    Raises:
        ValueError: the fixed lengths do not fit into the run, do not fill it although no phase has a share, or are
            in a unit that ``run`` does not know.
    """
    lengths = [_in_steps_if_timed(phase, run, size_multiple) for phase in phases]
    shares = divided(lengths, float(run.steps), run)
    return tuple(_with_share(phase, share, run) for phase, share in zip(phases, shares, strict=True))


def steps_of(phase: Phase, run: RunSize, size_multiple: int) -> float:
    """Return the steps of a phase of fixed length; ValueError when its unit is one that ``run`` does not know."""
    return length_in_steps(phase.length, float(run.steps), run, _mean_size(phase, run, size_multiple))


def rounded(size: float, multiple: int) -> int:
    """Round half up to the multiple: Python's ``round`` would send 144 and 176 in different directions."""
    return max(multiple, math.floor(size / multiple + 0.5) * multiple)


def _in_steps_if_timed(phase: Phase, run: RunSize, size_multiple: int) -> Length:
    """Return the phase's length, in steps if it is in time: how many fit depends on the phase's image sizes."""
    timed = parse_length(phase.length)[1] == "s"
    return f"{steps_of(phase, run, size_multiple):.15g}st" if timed else phase.length


def _with_share(phase: Phase, share: float, run: RunSize) -> Phase:
    curves = {
        quantity: _resolved_curve(phase, curve, share * run.steps, run) for quantity, curve in phase.curves().items()
    }
    return replace(phase, length=share, **cast(dict[str, Any], curves))


def _resolved_curve(phase: Phase, curve: Curve, steps: float, run: RunSize) -> Curve:
    try:
        return resolved(curve, steps, run)
    except ValueError as error:
        raise ValueError(f"phase {phase.name!r}: {error}") from None


def _mean_size(phase: Phase, run: RunSize, size_multiple: int) -> float | None:
    """Return the size whose area is the phase's mean area, as a step's work grows with the area.

    Only a phase in minutes asks for it. Its curve of sizes may itself hold a fixed length, which depends on the
    steps that are sought; a few rounds settle that.
    """
    curve = phase.curve("image_size")
    if curve is None or parse_length(phase.length)[1] != "s":
        return None
    size = None
    for _ in range(1 if is_resolved(curve) else 4):
        steps = length_in_steps(phase.length, float(run.steps), run, size)
        settled = _resolved_curve(phase, curve, steps, run)
        sizes = [rounded(settled.at((sample + 0.5) / SIZE_SAMPLES), size_multiple) for sample in range(SIZE_SAMPLES)]
        size = math.sqrt(sum(size * size for size in sizes) / SIZE_SAMPLES)
    return size
