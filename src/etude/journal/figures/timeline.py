"""The timeline as a picture: every scheduled quantity over one axis, phases shaded, the plan and what happened."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text
from numpy.typing import NDArray

from etude.core.errors import EtudeError
from etude.core.text import LABELS, UNITS, short_number, shortened
from etude.journal.figures import ACTUAL, DPI, GRID, INK, LINE, MARK, PLAN, QUIET, SHADES, axes_at, new_figure, write
from etude.timeline import Moment, RunSize, Timeline, step_progress

_SAMPLES = 1600  # over the whole run; more than the pixels across
_BEFORE = 1e-6  # of a phase: how close to its end a line is read, since the end itself belongs to the next phase
_SMALL = 0.05  # of the peak; a learning rate that stays below it for long shows nothing on a linear axis
_LONG = 0.2  # of the run
_DEEPEST = 0.05  # of a line's points may lie below a logarithmic axis
_WHOLE = ("image_size", "batch_size")

_FEW_POINTS = 60  # of what happened, also shown one by one
_TICK_DISTANCE = 0.2  # of a panel's height; ticks closer than that would touch

# Inches; 100 pixels each.
_WIDTH, _LEFT, _RIGHT = 12.0, 2.05, 0.45
_LEGEND = 2.9
_TITLE, _ROW, _PANEL, _THIN, _GAP, _AXIS_ROW = 0.42, 0.23, 1.0, 0.24, 0.2, 0.19
_LONGEST_LABEL = 40  # characters of a phase's name
_UNUSED = "#F4F4F4"  # the ground of what a plateau has cut off
_MOST_ROWS = 3  # of event labels; more plateaus get shorter labels

Points = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Line:
    """Progress (N,) in percent and values (N,); NaN breaks the line where the quantity is not scheduled."""

    x: Points
    y: Points

    def values(self) -> Points:
        return self.y[np.isfinite(self.y)]


@dataclass(frozen=True, slots=True)
class Panel:
    quantity: str
    plan: Line
    actual: Line | None  # as it ran, or as plateaus have changed it
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
        low, high = self.lowest_and_highest()
        return high - low <= 1e-6 * max(abs(low), abs(high))

    @property
    def is_whole(self) -> bool:
        return self.quantity in _WHOLE


def panels_of(timeline: Timeline, steps: int, happened: Sequence[Mapping[str, Any]] | None) -> tuple[Panel, ...]:
    """Return a panel a scheduled quantity: the plan without events, and ``happened``, or else the plan with them."""
    quantities = timeline.quantities()
    plans = _sampled(replace(timeline, events=()), quantities)
    events = _sampled(timeline, quantities) if timeline.events and not happened else {}
    panels: list[Panel] = []
    for name in quantities:
        actual = _observed(happened, name, steps) if happened else events.get(name)
        actual = actual if actual is not None and len(actual.values()) else None
        # A learning rate that spends long far below its peak shows on a logarithmic axis only.
        values = (actual or plans[name]).values()
        low = (values > 0) & (values < _SMALL * values.max(initial=0.0))
        panels.append(Panel(name, plans[name], actual, name == "lr" and bool(low.any() and low.mean() > _LONG)))
    return tuple(panels)


def _sampled(timeline: Timeline, quantities: Sequence[str]) -> dict[str, Line]:
    found: list[Moment] = []
    for _, start, end in timeline.spans():
        if end <= start:
            continue  # a plateau ended the run before this phase
        stop = end if end >= 1.0 else end - _BEFORE * (end - start)
        cuts = {event.progress for event in timeline.events if start < event.progress < stop}
        sharp = {cut - _BEFORE for cut in cuts} | cuts  # a scaled learning rate falls straight down
        points = sorted({*np.linspace(start, stop, max(2, round(_SAMPLES * (end - start)))).tolist(), *sharp})
        found += map(timeline.at, points)
    x = np.array([100.0 * moment.progress for moment in found])
    # Where a quantity is not scheduled, None becomes NaN.
    return {name: Line(x, np.array([getattr(moment, name) for moment in found], np.float64)) for name in quantities}


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


def draw_panel(axes: Axes, panel: Panel, plan_color: str) -> None:
    low, high = panel.lowest_and_highest()
    if panel.is_constant:
        unit = UNITS.get(panel.quantity, "")
        axes.set_yticks([low], [f"{short_number(low)} {unit}".rstrip()])
        axes.set_ylim(low - 1, low + 1)
    elif panel.log:
        axes.set_yscale("log")
        axes.set_ylim(low / 1.3, high * 1.3)
        ticks = log_ticks(low, high)
        axes.set_yticks(ticks, [short_number(tick) for tick in ticks])
        axes.set_yticks([], minor=True)
    else:
        low = 0.0 if 0.0 < low < 0.3 * high and not panel.is_whole else low
        axes.set_ylim(low - 0.07 * (high - low), high + 0.07 * (high - low))
        ticks = linear_ticks(panel, low, high)
        axes.set_yticks(ticks, [short_number(tick) for tick in ticks])
    axes.tick_params(axis="y", length=0, labelsize=8.5, labelcolor=INK, pad=5)
    axes.grid(axis="y", color=GRID, linewidth=1.2)
    axes.set_axisbelow(True)
    _draw_lines(axes, panel, low if panel.log else -math.inf, plan_color)


def _draw_lines(axes: Axes, panel: Panel, floor: float, plan_color: str) -> None:
    def draw(line: Line, **style: Any) -> None:
        y = np.maximum(line.y, floor)  # zero lies infinitely deep on a logarithmic axis
        axes.plot(line.x, y, drawstyle="steps-post" if panel.is_whole else "default", clip_on=False, **style)

    width = 4.0 if plan_color == PLAN else 1.4 if panel.is_constant else 2.0
    draw(panel.plan, color=plan_color, linewidth=width, solid_capstyle="butt")
    if panel.actual is not None:
        few = len(panel.actual.values()) <= _FEW_POINTS
        draw(panel.actual, color=ACTUAL, linewidth=1.4, marker="o" if few else None, markersize=3.5)


def linear_ticks(panel: Panel, low: float, high: float) -> list[float]:
    """Return the lowest and highest value and one between; of whole numbers those that the run really has."""
    margin = _TICK_DISTANCE * (high - low)
    if not panel.is_whole:
        middle = float(f"{(low + high) / 2:.2g}")
        return [low, middle, high] if low + margin < middle < high - margin else [low, high]
    reached = np.unique(panel.plan.values())
    distance = np.diff(reached, prepend=-np.inf).min() if len(reached) > 1 else 0.0
    if distance >= margin and low == reached[0] and high == reached[-1]:
        return reached.tolist()
    inner = reached[(reached > low + margin) & (reached < high - margin)]
    return [low, *inner[[np.argmin(np.abs(inner - (low + high) / 2))]], high] if len(inner) else [low, high]


def log_ticks(low: float, high: float) -> list[float]:
    """Return at most four powers of ten within the range, or its ends when it holds fewer than two."""
    powers = range(math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9) + 1)
    if len(powers) < 2:
        return [low, high]
    every = -(-len(powers) // 4)
    return [float(f"1e{power}") for power in powers[::-1][::every]][::-1]


def timeline_figure(
    timeline: Timeline,
    steps: int,
    *,
    happened: Sequence[Mapping[str, Any]] | None = None,
    title: str = "",
    epoch_steps: float | None = None,
) -> Figure:
    """Draw all quantities of a run of ``steps`` steps, 1200 pixels wide; ``happened`` are rows with ``step`` from 0."""
    if not timeline.is_resolved:
        try:
            timeline = timeline.resolved(RunSize(steps, epoch_steps))
        except ValueError as error:
            raise EtudeError(f"the timeline cannot be drawn for a run of {steps} steps: {error}") from None
    panels = panels_of(timeline, steps, happened)
    if not panels:
        raise EtudeError("the timeline schedules no quantity, so there is nothing to draw")
    actual = "as it happened" if happened else "with plateaus"
    return _Drawing(timeline, panels, steps, epoch_steps, title, actual).figure


class _Flag(NamedTuple):
    """A text that begins at a place on the axis, or ends there when there is no room to its right."""

    text: Text
    left: float
    right: float


class _Drawing:
    """Lays the figure out from the top: title, names of phases, events, panels, axis."""

    def __init__(
        self, timeline: Timeline, panels: Sequence[Panel], steps: int, epochs: float | None, title: str, actual: str
    ) -> None:
        self.timeline, self.panels, self.steps, self.epoch_steps = timeline, panels, steps, epochs
        names = [(start, name) for name, start, end in timeline.spans() if end > start]
        if timeline.end < 1.0 - 1e-9:
            names.append((timeline.end, f"ended early, at {100 * timeline.end:.0f}%"))
        texts = {"scale": "plateau: lr × {0.factor:g}", "end": "plateau: {0.phase} ends"}
        events = [(event.progress, texts[event.kind].format(event)) for event in timeline.events]
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
        axis = _AXIS_ROW * (3 if epochs else 2) + 0.16
        self.height = _TITLE + body + axis
        self.figure.set_size_inches(_WIDTH, self.height)
        self._draw_background(axis, body)
        self._draw_title(title, actual)
        top = self.height - _TITLE - 0.04
        for row in (*name_rows, *event_rows):
            for flag in row:
                flag.text.set_y(top - _ROW / 2)
            top -= _ROW
        self._draw_panels(self.height - _TITLE - header, heights)

    def _rows_of(self, labels: Sequence[tuple[float, str]], color: str, size: float) -> list[list[_Flag]]:
        """Place texts at their progress in as few rows as keep them from overlapping."""
        rows: list[list[_Flag]] = []
        for t, label in labels:
            flag = self._flag(t, label, color, size)
            for row in rows:
                if row[-1].right + 0.08 <= flag.left:
                    row.append(flag)
                    break
            else:
                rows.append([flag])
        return rows

    def _flag(self, t: float, label: str, color: str, size: float) -> _Flag:
        label = shortened(label, _LONGEST_LABEL)
        tag = {"facecolor": self._shade_at(t), "edgecolor": "none", "pad": 1.2}  # lines pass below the text
        text = write(self.figure, 0.0, 0.0, label, color=color, fontsize=size, bbox=tag)
        width = text.get_window_extent().width / DPI
        at = _LEFT + t * (_WIDTH - _LEFT - _RIGHT)
        left = at + 0.06
        if left + width > _WIDTH - 0.05:
            left = at - 0.06 - width
        text.set_x(left)
        return _Flag(text, left, left + width)

    def _shade_at(self, t: float) -> str:
        begun = [number for number, (_, start, _) in enumerate(self.timeline.spans()) if start <= t + 1e-9]
        return SHADES[begun[-1] % 2] if t < self.timeline.end - 1e-9 else _UNUSED

    def _axes(self, bottom: float, height: float, **options: Any) -> Axes:
        axes = axes_at(self.figure, _LEFT, bottom, _WIDTH - _LEFT - _RIGHT, height, **options)
        axes.set_xlim(0, 100)
        return axes

    def _draw_background(self, axis: float, body: float) -> None:
        axes = self._axes(axis, body, zorder=-1)
        axes.set_ylim(0, 1)
        axes.set_yticks([])
        for number, (_, start, end) in enumerate(self.timeline.spans()):
            axes.axvspan(100 * start, 100 * end, color=SHADES[number % 2], linewidth=0)
            if number:
                axes.axvline(100 * start, color="#C3C9D2", linewidth=0.8)
        if self.timeline.end < 1.0 - 1e-9:
            look = {"facecolor": _UNUSED, "edgecolor": "#DDDDDD", "hatch": "//", "linewidth": 0}
            axes.axvspan(100 * self.timeline.end, 100, **look)
        for event in self.timeline.events:
            axes.axvline(100 * event.progress, color=MARK, linewidth=1.1, linestyle=(0, (4, 3)))
        percents = range(0, 101, 10)
        axes.set_xticks([*percents], [self._under(percent) for percent in percents], fontsize=9, color=INK)
        axes.tick_params(length=3, color=QUIET, pad=3)
        caption = "\n".join(["progress", "step", *(["epoch"] if self.epoch_steps else [])])
        place = (0, 0), (12 - 72 * _LEFT, -6), "axes fraction", "offset points"
        axes.annotate(caption, *place, va="top", fontsize=9, color=QUIET)

    def _under(self, percent: int) -> str:
        step = self.steps * percent / 100
        epoch = f"\n{step / self.epoch_steps:.3g}" if self.epoch_steps else ""
        return f"{percent}%\n{math.floor(step + 0.5):,}{epoch}"

    def _draw_title(self, title: str, actual: str) -> None:
        middle = self.height - 0.23
        room = _WIDTH - 0.4
        if self._has_actual:
            room -= _LEGEND
            lines = [Line2D([], [], color=PLAN, linewidth=4), Line2D([], [], color=ACTUAL, linewidth=1.4)]
            place = (_WIDTH - _RIGHT + 0.08) / _WIDTH, middle / self.height
            look = {"loc": "center right", "ncols": 2, "frameon": False, "fontsize": 9}
            self.figure.legend(lines, ["plan", actual], bbox_to_anchor=place, **look)
        text = write(self.figure, 12 / 72, middle, title, fontsize=12, fontweight="bold", color=INK)
        if text.get_window_extent().width / DPI > room:
            text.set_fontsize(9)
        while text.get_window_extent().width / DPI > room:
            title = title[: max(1, int(0.95 * len(title)))]
            text.set_text(f"{title.rstrip()} …")

    def _draw_panels(self, top: float, heights: Sequence[float]) -> None:
        for panel, height in zip(self.panels, heights, strict=True):
            axes = self._axes(top - height, height)
            axes.set_xticks([])
            draw_panel(axes, panel, PLAN if self._has_actual else LINE)
            middle = top - height / 2
            write(self.figure, 12 / 72, middle, LABELS[panel.quantity], fontsize=10, color=INK)
            notes = filter(None, (UNITS.get(panel.quantity), "log scale" if panel.log else ""))
            if not panel.is_constant and (text := ", ".join(notes)):
                write(self.figure, 12 / 72, middle - 0.19, text, fontsize=8, color=QUIET)
            top -= height + _GAP
