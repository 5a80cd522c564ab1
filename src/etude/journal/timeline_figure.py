"""The timeline as a picture: every scheduled quantity over one axis, phases shaded, the plan and what happened."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text

from etude.core.errors import EtudeError
from etude.journal.figures import (
    ACTUAL,
    DPI,
    INK,
    LINE,
    MARK,
    PLAN,
    QUIET,
    SHADES,
    check_figure_path,
    new_figure,
    save_figure,
)
from etude.journal.quantities import LABELS, UNITS
from etude.journal.timeline_axes import draw_panel
from etude.journal.timeline_panels import Panel, panels_of
from etude.timeline import RunSize, Timeline

# Inches; 100 pixels each.
_WIDTH, _LEFT, _RIGHT = 12.0, 2.05, 0.45
_LEGEND = 2.9
_TITLE, _ROW, _PANEL, _THIN, _GAP, _AXIS_ROW = 0.42, 0.23, 1.0, 0.24, 0.2, 0.19
_LONGEST_LABEL = 40  # characters of a phase's name
_MOST_ROWS = 3  # of event labels; more plateaus get shorter labels


def draw_timeline(
    path: Path,
    timeline: Timeline,
    steps: int,
    *,
    happened: Sequence[Mapping[str, Any]] | None = None,
    title: str = "",
    epoch_steps: float | None = None,
) -> None:
    """Draw all scheduled quantities of a run of ``steps`` optimiser steps over one axis, 1200 pixels wide.

    Args:
        path: of the picture, .png or .svg.
        timeline: the plan; its events (plateaus) are marked.
        steps: optimiser steps of the whole run.
        happened: what the run did, drawn over the plan: one mapping a row with ``step`` (counted from 0) and
            quantities by their names in a Moment; None and "" are left out.
        title: a line above the picture.
        epoch_steps: optimiser steps of an epoch, to count epochs below the axis too.

    Raises:
        EtudeError: another ending, a row that cannot be read, a timeline that does not fit into ``steps`` or
            schedules nothing.
    """
    check_figure_path(path)
    save_figure(timeline_figure(timeline, steps, happened=happened, title=title, epoch_steps=epoch_steps), path)


def timeline_figure(
    timeline: Timeline,
    steps: int,
    *,
    happened: Sequence[Mapping[str, Any]] | None = None,
    title: str = "",
    epoch_steps: float | None = None,
) -> Figure:
    """Return the picture that :func:`draw_timeline` writes; the arguments are the same."""
    if not timeline.is_resolved:
        try:
            timeline = timeline.resolved(RunSize(steps, epoch_steps))
        except ValueError as error:
            raise EtudeError(f"the timeline cannot be drawn for a run of {steps} steps: {error}") from None
    panels = panels_of(timeline, steps, happened)
    if not panels:
        raise EtudeError("the timeline schedules no quantity, so there is nothing to draw")
    return _Drawing(timeline, panels, steps, title, epoch_steps, bool(happened)).figure


@dataclass(slots=True)
class _Flag:
    """A text that begins at a place on the axis, or ends there when there is no room to its right."""

    text: Text
    left: float
    right: float


class _Drawing:
    """Lays the figure out from the top: title, names of phases, events, panels, axis."""

    def __init__(
        self,
        timeline: Timeline,
        panels: Sequence[Panel],
        steps: int,
        title: str,
        epoch_steps: float | None,
        has_history: bool,
    ) -> None:
        self.timeline, self.panels, self.steps, self.epoch_steps = timeline, panels, steps, epoch_steps
        names, events = self._names(), self._events()
        self.figure = new_figure(_WIDTH, 1.0)  # the flags are measured before the height is known
        self._has_actual = any(panel.actual is not None for panel in panels)
        name_rows = self._rows_of(names, INK, 10)
        event_rows = self._rows_of(events, MARK, 8.5)
        if len(event_rows) > _MOST_ROWS:
            for flag in (flag for row in event_rows for flag in row):
                flag.text.remove()
            event_rows = self._rows_of([(at, text.removeprefix("plateau: ")) for at, text in events], MARK, 8)
        heights = [_THIN if panel.is_constant else _PANEL for panel in panels]
        header = _ROW * (len(name_rows) + len(event_rows)) + 0.1
        body = header + sum(heights) + _GAP * len(heights)
        axis = _AXIS_ROW * (3 if epoch_steps else 2) + 0.16
        self.height = _TITLE + body + axis
        self.figure.set_size_inches(_WIDTH, self.height)
        self._draw_background(axis, body)
        self._draw_title(title, has_history)
        top = self.height - _TITLE - 0.04
        for row in (*name_rows, *event_rows):
            for flag in row:
                flag.text.set_y(top - _ROW / 2)
            top -= _ROW
        self._draw_panels(self.height - _TITLE - header, heights)

    def _names(self) -> list[tuple[float, str]]:
        names = [(start, name) for name, start, end in self.timeline.spans() if end > start]
        if self.timeline.end < 1.0 - 1e-9:
            names.append((self.timeline.end, f"ended early, at {100 * self.timeline.end:.0f}%"))
        return names

    def _events(self) -> list[tuple[float, str]]:
        says = {"scale": "plateau: lr × {:g}", "end": "plateau: {} ends"}
        return [
            (event.progress, says[event.kind].format(event.factor if event.kind == "scale" else event.phase))
            for event in self.timeline.events
        ]

    def _rows_of(self, labels: Sequence[tuple[float, str]], color: str, size: float) -> list[list[_Flag]]:
        """Place texts at their progress in as few rows as keep them apart."""
        rows: list[list[_Flag]] = []
        for progress, label in labels:
            flag = self._flag(progress, label, color, size)
            for row in rows:
                if row[-1].right + 0.08 <= flag.left:
                    row.append(flag)
                    break
            else:
                rows.append([flag])
        return rows

    def _flag(self, progress: float, label: str, color: str, size: float) -> _Flag:
        label = label if len(label) <= _LONGEST_LABEL else f"{label[: _LONGEST_LABEL - 1]}…"
        tag = {"facecolor": self._shade_at(progress), "edgecolor": "none", "pad": 1.2}  # lines pass below the text
        text = self._text(0.0, 0.0, label, color=color, fontsize=size, va="center", bbox=tag)
        width = text.get_window_extent().width / DPI
        at = _LEFT + progress * (_WIDTH - _LEFT - _RIGHT)
        left = at + 0.06
        if left + width > _WIDTH - 0.05:
            left = at - 0.06 - width
        text.set_x(left)
        return _Flag(text, left, left + width)

    def _shade_at(self, progress: float) -> str:
        begun = [number for number, (_, start, _) in enumerate(self.timeline.spans()) if start <= progress + 1e-9]
        return SHADES[begun[-1] % 2] if progress < self.timeline.end - 1e-9 else "#F4F4F4"

    def _text(self, x: float, y: float, text: str, **style: Any) -> Text:
        """Write at inches from the lower left corner; a $ in a name is a $, not mathematics."""
        return self.figure.text(x, y, text, transform=self.figure.dpi_scale_trans, parse_math=False, **style)

    def _axes(self, bottom: float, height: float, **options: Any) -> Axes:
        place = (_LEFT / _WIDTH, bottom / self.height, (_WIDTH - _LEFT - _RIGHT) / _WIDTH, height / self.height)
        axes = self.figure.add_axes(place, facecolor="none", **options)
        axes.set_xlim(0, 100)
        axes.spines[:].set_visible(False)
        return axes

    def _draw_background(self, axis: float, body: float) -> None:
        """Shade the phases behind all panels, mark the events, and write the axis below."""
        axes = self._axes(axis, body, zorder=-1)
        axes.set_ylim(0, 1)
        axes.set_yticks([])
        for number, (_, start, end) in enumerate(self.timeline.spans()):
            axes.axvspan(100 * start, 100 * end, color=SHADES[number % 2], linewidth=0)
            if number:
                axes.axvline(100 * start, color="#C3C9D2", linewidth=0.8)
        if self.timeline.end < 1.0 - 1e-9:
            axes.axvspan(
                100 * self.timeline.end, 100, facecolor="#F4F4F4", edgecolor="#DDDDDD", hatch="//", linewidth=0
            )
        for event in self.timeline.events:
            axes.axvline(100 * event.progress, color=MARK, linewidth=1.1, linestyle=(0, (4, 3)))
        percents = range(0, 101, 10)
        axes.set_xticks([*percents], [self._under(percent) for percent in percents], fontsize=9, color=INK)
        axes.tick_params(length=3, color=QUIET, pad=3)
        caption = "\n".join(["progress", "step", *(["epoch"] if self.epoch_steps else [])])
        axes.annotate(
            caption, (0, 0), (12 - 72 * _LEFT, -6), "axes fraction", "offset points", va="top", fontsize=9, color=QUIET
        )

    def _under(self, percent: int) -> str:
        step = self.steps * percent / 100
        lines = [f"{percent}%", f"{math.floor(step + 0.5):,}"]
        if self.epoch_steps:
            lines.append(f"{step / self.epoch_steps:.3g}")
        return "\n".join(lines)

    def _draw_title(self, title: str, has_history: bool) -> None:
        middle = self.height - 0.23
        room = _WIDTH - 0.4
        if self._has_actual:
            room -= _LEGEND
            self._draw_legend("as it happened" if has_history else "with plateaus", middle)
        text = self._text(12 / 72, middle, title, fontsize=12, fontweight="bold", color=INK, va="center")
        if text.get_window_extent().width / DPI > room:
            text.set_fontsize(9)
        while text.get_window_extent().width / DPI > room:
            title = title[: max(1, int(0.95 * len(title)))]
            text.set_text(f"{title.rstrip()} …")

    def _draw_legend(self, real: str, middle: float) -> None:
        self.figure.legend(
            [Line2D([], [], color=PLAN, linewidth=4), Line2D([], [], color=ACTUAL, linewidth=1.4)],
            ["plan", real],
            loc="center right",
            bbox_to_anchor=((_WIDTH - _RIGHT + 0.08) / _WIDTH, middle / self.height),
            ncols=2,
            frameon=False,
            fontsize=9,
        )

    def _draw_panels(self, top: float, heights: Sequence[float]) -> None:
        for panel, height in zip(self.panels, heights, strict=True):
            axes = self._axes(top - height, height)
            axes.set_xticks([])
            draw_panel(axes, panel, PLAN if self._has_actual else LINE)
            self._label(panel, top, height)
            top -= height + _GAP

    def _label(self, panel: Panel, top: float, height: float) -> None:
        name, unit = LABELS[panel.quantity], UNITS.get(panel.quantity, "")
        middle = top - height / 2
        self._text(12 / 72, middle, name, fontsize=10, color=INK, va="center")
        notes = [unit] if unit else []
        if panel.log:
            notes.append("log scale")
        if notes and not panel.is_constant:
            self._text(12 / 72, middle - 0.19, ", ".join(notes), fontsize=8, color=QUIET, va="center")
