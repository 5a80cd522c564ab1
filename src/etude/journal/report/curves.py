"""The run over time: its schedule as planned and as it ran, and the curves of training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from etude.core.errors import EtudeError
from etude.core.text import LABELS, UNITS, duration, percent, plain_name, short_number
from etude.journal.figures.lines import Series, line_chart, panel_chart
from etude.journal.figures.timeline import panels_of
from etude.journal.report.charts import Figure
from etude.journal.report.folder import Model, Row, RunFolder
from etude.journal.report.tables import FOLD, builds_up
from etude.journal.runs import was_kept
from etude.timeline import timeline_from_tree

_SCHEDULED = {*LABELS, "epoch", "step", "seconds", "phase"}
_SPREAD = 20.0  # of the largest loss over the smallest; beyond it the axis is logarithmic
_MOST_FOLDS = 12  # drawn as lines of their own
_LONG = 600.0  # seconds, from which a run is drawn over minutes
_PARTS = {"train_loss": ("training", "second"), "valid_loss": ("validation", "first")}
_SHARES = ("accuracy", "balanced_accuracy", "macro_f1", "auc")


@dataclass(frozen=True, slots=True)
class Schedule:
    """The plan of a run: a chart for each quantity that moves, the others with their value, and phases with shares."""

    figures: list[Figure]
    constants: list[tuple[str, str]]
    phases: tuple[tuple[str, float, float], ...]
    steps: int


def schedule_of(run: RunFolder) -> Schedule | None:
    """Return the plan that ``run.json`` holds under ``timelines`` (that of the first fold); None when it holds none."""
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
    moving: list[Figure] = []
    constants: list[tuple[str, str]] = []
    for panel in panels:
        title, unit = LABELS[panel.quantity], UNITS.get(panel.quantity, "")
        if panel.is_constant:
            constants.append((title, f"{short_number(panel.lowest_and_highest()[0])} {unit}".rstrip()))
            continue
        legend = (("plan", "plan"), *([("first", "as it ran")] if panel.actual is not None else []))
        notes = [unit, "logarithmic" if panel.log else ""]
        drawn = panel_chart(panel, timeline)
        moving.append(Figure(", ".join([title, *filter(None, notes)]), drawn, legend=legend))
    return Schedule(moving, constants, timeline.spans(), steps)


def curve_figures(models: Sequence[Model]) -> list[Figure]:
    """Return the charts of training: losses together, then each metric of validation, a line a fold."""
    histories = [(model.folder, model.history) for model in models if model.history][:_MOST_FOLDS]
    columns = list(dict.fromkeys(name for _, rows in histories for row in rows for name in row))
    metrics = [name for name in columns if name not in _SCHEDULED and name not in _PARTS]
    figures = [_curves("Loss", [name for name in _PARTS if name in columns], histories)]
    figures += [_curves(_title(name), [name], histories) for name in metrics]
    return [figure for figure in figures if figure is not None]


def path_figure(record: Mapping[str, Any]) -> Figure | None:
    """Return the accuracy of a run's stages over its time; None with folds, and where fewer than two have one."""
    stages = record["stages"]
    ends = np.cumsum([float(stage["seconds"]) for stage in stages])
    scored = [
        (end, stage) for end, stage in zip(ends, stages, strict=True) if stage["scores"].get("accuracy") is not None
    ]
    if len(scored) < 2 or not builds_up(record) or any(FOLD.search(stage["name"]) for stage in stages):
        return None
    unit, length = ("minutes", 60.0) if ends[-1] > _LONG else ("seconds", 1.0)
    x = (np.array([*(end for end, _ in scored), ends[-1]]) / length).round(2)
    y = np.array([float(stage["scores"]["accuracy"]) for _, stage in scored])
    lines = [Series("highest so far", x, [*np.maximum.accumulate(y), y.max()], stepped=True)]
    if left_out := [one for one, (_, stage) in enumerate(scored) if not was_kept(stage)]:
        gaps = np.full(len(left_out), np.nan)  # points that no line joins
        both = [np.stack([values[left_out], gaps], axis=1).ravel() for values in (x, y)]
        lines.append(Series("not kept", *both, color="second"))
    points = zip(scored, y.tolist(), strict=True)
    words = "; ".join(f"{stage['name']} {percent(share)} after {duration(end)}" for (end, stage), share in points)
    drawn = line_chart(lines, f"Accuracy over time: {words}", x_label=unit, y_format=_in_percent, from_zero=True)
    return Figure("Validation accuracy over time", drawn, words, tuple((line.color, line.name) for line in lines))


def _curves(title: str, columns: Sequence[str], histories: Sequence[tuple[str, Sequence[Row]]]) -> Figure | None:
    lines: list[Series] = []
    across = "epoch" if any("epoch" in row for _, rows in histories for row in rows) else "step"
    for folder, rows in histories:
        for column in columns:
            cells = [(row.get(across), row.get(column)) for row in rows]
            found = [(x, y) for x, y in cells if isinstance(x, float) and isinstance(y, float) and np.isfinite(x + y)]
            if found:
                part, color = _PARTS.get(column, (f"{_title(column)[:1].lower()}{_title(column)[1:]}", "first"))
                name = part if folder == "." else f"{part}, {folder.replace('-', ' ')}"
                lines.append(Series(name, *np.array(sorted(found)).T, color=color))
    if not lines:
        return None
    values = np.concatenate([np.asarray(line.y) for line in lines])
    share = columns[0].removeprefix("valid_") in _SHARES
    log = "loss" in columns[0] and bool(values.min() > 0) and values.max() > _SPREAD * values.min()
    if log:
        title += " (logarithmic)"
    ends = [f"{line.name} ends at {(percent if share else short_number)(np.asarray(line.y)[-1])}" for line in lines]
    write = _in_percent if share else short_number
    drawn = line_chart(lines, f"{title} by {across}: {'; '.join(ends[:4])}", x_label=across, y_format=write, log=log)
    caption = f"{len(lines)} lines, one a fold" if len(lines) > 4 else "; ".join(ends)
    legend = dict.fromkeys((line.color, line.name.split(",")[0]) for line in lines) if len(columns) > 1 else ()
    return Figure(title, drawn, caption, tuple(legend))


def _in_percent(share: float) -> str:
    return f"{100 * share:.4g}%"


def _title(column: str) -> str:
    words = plain_name(column.removeprefix("valid_"))
    return f"Validation {words}" if column.startswith("valid_") else f"{words[:1].upper()}{words[1:]}"
