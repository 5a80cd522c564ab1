"""Small charts of a page: the schedule of one quantity, and lines over epochs, steps or runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import ArrayLike

from etude.core.text import LABELS, UNITS, short_number, shortened, visible
from etude.journal.figures import INK, LINE, MARK, PLAN, QUIET, RULE, SHADES, THIRD, axes_at, inline_svg, new_figure
from etude.journal.figures.timeline import Panel, draw_panel, log_ticks
from etude.timeline import Timeline

# In units of the page, 72 an inch: charts are drawn as narrow as a phone and stand side by side.
WIDTH, HEIGHT = 340.0, 190.0
_LEFT, _RIGHT, _TOP, _BOTTOM, _BAND = 46.0, 20.0, 10.0, 36.0, 18.0
_LETTER = 6.2  # mean width of a letter of 12 units
_FEWEST_LETTERS = 5  # a name cut to fewer says nothing
_FEW_POINTS = 40  # shown one by one
_STYLES = {
    "plan": {"color": PLAN, "linewidth": 4.0},
    "first": {"color": LINE, "linewidth": 2.0},
    "second": {"color": MARK, "linewidth": 2.0, "linestyle": (0, (3, 1.5))},
    "third": {"color": THIRD, "linewidth": 2.0, "linestyle": (0, (1, 1.5))},
}


@dataclass(frozen=True, slots=True)
class Series:
    """A line of N points, broken at NaN; ``color`` is plan, first, second or third; ``stepped`` holds each value."""

    name: str
    x: ArrayLike
    y: ArrayLike
    color: str = "first"
    stepped: bool = False


def line_chart(
    series: Sequence[Series],
    described: str,
    *,
    x_label: str,
    y_format: Callable[[float], str] = short_number,
    log: bool = False,
    from_zero: bool = False,
) -> Markup:
    """Return lines over one axis of whole numbers; later ones lie on top, and each point shows its values."""
    figure, axes = _small_chart(x_label)
    titles: dict[str, list[str]] = {}
    for number, one in enumerate(series):
        x, y, style = np.asarray(one.x, float), np.asarray(one.y, float), _STYLES[one.color]
        axes.plot(x, y, drawstyle="steps-post" if one.stepped else "default", **style)
        if one.color != "plan" and len(x) <= _FEW_POINTS:
            dots = [(a, b) for a, b in zip(x.tolist(), y.tolist(), strict=True) if np.isfinite(b)]
            look = {"color": style["color"], "markersize": 4.5, "markeredgewidth": 0, "clip_on": False}
            axes.plot(*zip(*dots, strict=True), "o", gid=f"points-{number}", **look)
            titles[f"points-{number}"] = [f"{one.name}: {y_format(b)} at {a:g}" for a, b in dots]
    low, high = axes.dataLim.intervaly
    if log:
        axes.set_yscale("log")
        axes.set_ylim(low / 1.25, high * 1.25)
        axes.set_yticks(log_ticks(low, high), [y_format(tick) for tick in log_ticks(low, high)])
        axes.set_yticks([], minor=True)
    else:
        axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: y_format(value)))
        if 0.0 <= low < 0.3 * high:
            axes.set_ylim(bottom=0.0)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.margins(x=0.0)
    if from_zero:
        axes.set_xlim(left=0.0)
    axes.grid(axis="y", color=RULE, linewidth=1.0)
    return inline_svg(figure, described, titles)


def panel_chart(panel: Panel, timeline: Timeline) -> Markup:
    """Return the schedule of one quantity over the run, phases shaded and plateaus marked."""
    figure, axes = _small_chart("progress", band=True)
    spans = [(name, 100 * start, 100 * end) for name, start, end in timeline.spans() if end > start]
    unit = (WIDTH - _LEFT - _RIGHT) / 100
    for number, (name, start, end) in enumerate(spans):
        axes.axvspan(start, end, color=SHADES[number % 2], linewidth=0)
        letters = int((end - start) * unit / _LETTER)
        if letters >= min(_FEWEST_LETTERS, len(name)):
            place = {"transform": axes.get_xaxis_transform(), "va": "bottom", "fontsize": 12, "parse_math": False}
            axes.text(start + 4 / unit, 1.02, shortened(visible(name), letters), color=QUIET, **place)
    titles = {f"event-{k}": [f"plateau in {event.phase}"] for k, event in enumerate(timeline.events)}
    for gid, event in zip(titles, timeline.events, strict=True):
        axes.axvline(100 * event.progress, color=MARK, linewidth=1.1, linestyle=(0, (4, 3)), gid=gid)
    draw_panel(axes, panel, PLAN)
    axes.tick_params(axis="y", labelsize=12)
    axes.set_xlim(0, 100)
    axes.set_xticks(range(0, 101, 20), [f"{share}%" for share in range(0, 101, 20)])
    low, high = panel.lowest_and_highest()
    described = f"{LABELS[panel.quantity]} over the run, planned from {short_number(low)} to {short_number(high)}"
    phases = ", ".join(f"{name} until {end:.0f}%" for name, _, end in spans)
    return inline_svg(figure, f"{described} {UNITS.get(panel.quantity, '')}".rstrip() + f"; phases: {phases}", titles)


def _small_chart(x_label: str, band: bool = False) -> tuple[Figure, Axes]:
    figure = new_figure(WIDTH / 72, HEIGHT / 72)
    top = _TOP + _BAND * band
    axes = axes_at(figure, *(size / 72 for size in (_LEFT, _BOTTOM, WIDTH - _LEFT - _RIGHT, HEIGHT - top - _BOTTOM)))
    axes.tick_params(length=0, labelsize=12, labelcolor=INK)
    axes.set_xlabel(x_label, fontsize=12, color=QUIET, loc="right", labelpad=1)
    return figure, axes
