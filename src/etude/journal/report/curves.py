"""The run over time: its schedule as planned and as it ran, and the curves of training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from etude.core.errors import EtudeError
from etude.core.text import LABELS, UNITS, percent, short_number, spoken
from etude.journal.figures.timeline import Panel, panels_of
from etude.journal.report.charts import Figure, Series, line_chart
from etude.journal.report.folder import Model, Row, RunFolder
from etude.timeline import Timeline, timeline_from_tree

_SCHEDULED = {*LABELS, "epoch", "step", "seconds", "phase"}
_SPREAD = 20.0  # of the largest loss over the smallest; beyond it the axis is logarithmic
_MOST_FOLDS = 12  # drawn as lines of their own
_PARTS = {"train_loss": ("training", "second"), "valid_loss": ("validation", "first")}


@dataclass(frozen=True, slots=True)
class Schedule:
    """The plan of a training run.

    Args:
        figures: a chart for each quantity that moves, with what the history says of it.
        constants: the quantities that keep one value, with it.
        phases: name, start and end of each, as shares of the run.
        steps: optimiser steps of the whole run.
    """

    figures: list[Figure]
    constants: list[tuple[str, str]]
    phases: tuple[tuple[str, float, float], ...]
    steps: int


def schedule_of(run: RunFolder) -> Schedule | None:
    """Return the plan that ``run.json`` holds under ``timelines`` (that of the first fold); None when it holds none.

    Raises:
        EtudeError: the plan cannot be read, or does not fit the history.
    """
    planned = run.record.get("timelines") or {}
    if not planned:
        return None
    name, plan = next(iter(planned.items()))
    history = next((model.history for model in run.models if model.folder == name), ())
    try:
        timeline, steps = timeline_from_tree(plan["timeline"]), int(plan["steps"])
        # A row's step counts those that are done; its quantities are those of the last of them.
        panels = panels_of(timeline, steps, [{**row, "step": row["step"] - 1} for row in history if "step" in row])
    except (ValueError, TypeError, KeyError) as error:
        raise EtudeError(f"the timeline in run.json cannot be read ({error}), so it is not drawn") from None
    moving = [_timeline_figure(panel, timeline) for panel in panels if not panel.is_constant]
    still = [panel for panel in panels if panel.is_constant]
    constants = [(LABELS[panel.quantity], _with_unit(panel.quantity, panel.lowest_and_highest()[0])) for panel in still]
    return Schedule(moving, constants, timeline.spans(), steps)


def curve_figures(models: Sequence[Model]) -> list[Figure]:
    """Return the charts of training: losses together, then each metric of validation, a line a fold."""
    histories = [(model.folder, model.history) for model in models if model.history][:_MOST_FOLDS]
    columns = list(dict.fromkeys(name for _, rows in histories for row in rows for name in row))
    metrics = [name for name in columns if name not in _SCHEDULED and name not in _PARTS]
    figures = [_curves("Loss", [name for name in _PARTS if name in columns], histories)]
    figures += [_curves(_title(name), [name], histories) for name in metrics]
    return [figure for figure in figures if figure is not None]


def _timeline_figure(panel: Panel, timeline: Timeline) -> Figure:
    unit = UNITS.get(panel.quantity, "")
    lines = [Series("plan", panel.plan.x, panel.plan.y, "plan", panel.is_whole)]
    legend = [("plan", "plan")]
    if panel.actual is not None:
        lines.append(Series("as it ran", panel.actual.x, panel.actual.y, "first", panel.is_whole))
        legend.append(("first", "as it ran"))
    bands = [(name, 100 * start, 100 * end) for name, start, end in timeline.spans() if end > start]
    marks = [(100 * event.progress, f"plateau in {event.phase}") for event in timeline.events]
    low, high = panel.lowest_and_highest()
    name = LABELS[panel.quantity]
    told = f"{name} over the run, planned from {short_number(low)} to {short_number(high)} {unit}".rstrip()
    phases = ", ".join(f"{phase} until {end:.0f}%" for phase, _, end in bands)
    drawn = line_chart(
        lines, f"{told}; phases: {phases}", x_label="progress",
        x_format=lambda value: f"{value:g}%", x_range=(0.0, 100.0), log=panel.log, bands=bands, marks=marks,
    )  # fmt: skip
    notes = [unit, "logarithmic" if panel.log else ""]
    return Figure(", ".join([name, *filter(None, notes)]), drawn, legend=tuple(legend))


def _curves(title: str, columns: Sequence[str], histories: Sequence[tuple[str, Sequence[Row]]]) -> Figure | None:
    lines: list[Series] = []
    across = "epoch" if any("epoch" in row for _, rows in histories for row in rows) else "step"
    for folder, rows in histories:
        for column in columns:
            there = [(row[across], row[column]) for row in rows if _are_numbers(row.get(across), row.get(column))]
            if there:
                part, color = _PARTS.get(column, (f"{_title(column)[:1].lower()}{_title(column)[1:]}", "first"))
                name = part if folder == "." else f"{part}, {folder.replace('-', ' ')}"
                lines.append(Series(name, *np.array(sorted(there)).T, color=color))
    if not lines:
        return None
    values = np.concatenate([line.points()[1] for line in lines])
    share = columns[0].removeprefix("valid_") in ("accuracy", "balanced_accuracy", "macro_f1", "auc")
    positive = values[values > 0]
    log = "loss" in columns[0] and len(positive) == len(values) and values.max() > _SPREAD * values.min()
    if log:
        title += " (logarithmic)"
    write = (lambda value: f"{100 * value:.4g}%") if share else short_number
    told = [f"{line.name} ends at {_told(line, share)}" for line in lines[:4]]
    drawn = line_chart(lines, f"{title} by {across}: {'; '.join(told)}", x_label=across, y_format=write, log=log)
    return Figure(title, drawn, _caption(lines, share), _legend(lines) if len(columns) > 1 else ())


def _caption(lines: Sequence[Series], share: bool) -> str:
    if len(lines) > 4:
        return f"{len(lines)} lines, one a fold"
    return "; ".join(f"{line.name} ends at {_told(line, share)}" for line in lines)


def _legend(lines: Sequence[Series]) -> tuple[tuple[str, str], ...]:
    return tuple(dict.fromkeys((line.color, line.name.split(",")[0]) for line in lines))


def _told(line: Series, share: bool) -> str:
    last = float(line.points()[1][-1])
    return percent(last) if share else short_number(last)


def _title(column: str) -> str:
    words = spoken(column.removeprefix("valid_"))
    return f"Validation {words}" if column.startswith("valid_") else f"{words[:1].upper()}{words[1:]}"


def _are_numbers(*cells: Any) -> bool:
    return all(isinstance(cell, float) and np.isfinite(cell) for cell in cells)


def _with_unit(quantity: str, value: float) -> str:
    return f"{short_number(value)} {UNITS.get(quantity, '')}".rstrip()
