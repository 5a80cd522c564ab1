"""The timeline as a table: a column for each phase, a row for each scheduled quantity."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from etude.journal.quantities import LABELS, UNITS, short_number
from etude.timeline import Plateau, RunSize, Timeline

_SAMPLES = 2000  # of a phase; enough for hundreds of cycles
_BEFORE = 1e-6  # of a phase: its end already belongs to the next one
_MOST_COLUMNS = 5  # phases side by side; more are written below each other


def timeline_table(timeline: Timeline, size: RunSize) -> tuple[list[str], list[list[str]]]:
    """Return the columns and rows that describe the resolved ``timeline`` in a run of ``size``.

    >>> from etude.timeline import Linear, Phase
    >>> plan = Timeline((Phase("warmup", 0.1, lr=Linear(0, 1)), Phase("finish", 0.9, lr=1)))
    >>> columns, rows = timeline_table(plan, RunSize(200))
    >>> columns, rows[-1]
    (['', 'warmup', 'finish'], ['learning rate', '0 → 1', '1'])
    """
    phases = summary_of(timeline, size)
    head = ["", *(phase["name"] for phase in phases)]
    rows = [["share", *(f"{100 * (phase['end'] - phase['start']):.3g}%" for phase in phases)]]
    rows.append(["steps", *(short_number(phase["steps"]) for phase in phases)])
    if size.epoch_steps:
        rows.append(["epochs", *(short_number(phase["steps"] / size.epoch_steps) for phase in phases)])
    for quantity in timeline.quantities():
        name = " ".join(filter(None, (LABELS[quantity], f"({UNITS[quantity]})" if quantity in UNITS else "")))
        rows.append([name, *(_in_words(phase["quantities"].get(quantity)) for phase in phases)])
    plateaus = {phase.name: phase.plateau for phase in timeline.phases}
    if any(plateaus.values()):
        rows.append(["plateau", *(_plateau_in_words(plateaus[phase["name"]]) for phase in phases)])
    if len(phases) > _MOST_COLUMNS:
        head, *rows = (list(column) for column in zip(head, *rows, strict=True))
    return head, rows


def summary_of(timeline: Timeline, size: RunSize) -> list[dict[str, Any]]:
    """Return what each phase does: ``name``, ``start``, ``end`` (progress), ``steps`` and ``quantities``.

    A quantity has ``from``, ``to``, ``lowest``, ``highest`` and ``peaks``, its maxima within the phase.
    """
    found: list[dict[str, Any]] = []
    for name, start, end in timeline.spans():
        if end <= start:
            continue
        steps = (end - start) * size.steps
        found.append({"name": name, "start": start, "end": end, "steps": steps, "quantities": {}})
        stop = end if end >= 1.0 else end - _BEFORE * (end - start)
        moments = [timeline.at(min(stop, start + (stop - start) * n / _SAMPLES)) for n in range(_SAMPLES + 1)]
        for quantity in timeline.quantities():
            values = [getattr(moment, quantity) for moment in moments]
            if None not in values:
                found[-1]["quantities"][quantity] = _course([float(f"{value:.5g}") for value in values])
    return found


def _course(values: list[float]) -> dict[str, Any]:
    moves = [after > before for before, after in pairwise(values) if after != before]
    peaks = sum(rising and not later for rising, later in pairwise(moves))
    turns = sum(rising != later for rising, later in pairwise(moves))
    return {
        "from": values[0],
        "to": values[-1],
        "lowest": min(values),
        "highest": max(values),
        "peaks": peaks,
        "turns": turns,
    }


def _in_words(course: dict[str, Any] | None) -> str:
    if course is None:
        return ""
    first, last, low, high = (short_number(course[key]) for key in ("from", "to", "lowest", "highest"))
    if first == last == low == high:
        return first
    if course["turns"] == 0:
        return f"{first} → {last}"
    if course["turns"] == 1:
        return f"{first} → {high if course['peaks'] else low} → {last}"
    return f"{low} … {high}, {course['peaks']} peaks"


def _plateau_in_words(plateau: Plateau | None) -> str:
    if plateau is None:
        return ""
    told = f"{plateau.metric}: lr × {plateau.factor:g}, patience {plateau.patience}"
    match plateau.reductions:
        case None:
            return told
        case 0:
            return f"{plateau.metric}: next phase, patience {plateau.patience}"
        case times:
            return f"{told}, {times} times, then next phase"
