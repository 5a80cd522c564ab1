"""The lift chart: the contribution of each trick, with its interval and its cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from etude.core.text import shortened
from etude.journal.figures import INK, LINE, MARK, QUIET, SHADES, axes_at, new_figure, write

# Inches; 100 pixels each.
_WIDTH, _LEFT, _RIGHT = 9.0, 1.9, 2.75
_TITLE, _HEADING, _ROW, _GAP, _AXIS = 0.62, 0.34, 0.34, 0.16, 0.52
_COLUMNS = (_WIDTH - 2.2, _WIDTH - 1.5, _WIDTH - 0.65)  # of gain, verdict and cost
_LONGEST = 22  # characters of a name
_STYLES = {"helps": (LINE, "o", True), "hurts": (MARK, "s", True), "cannot tell": (QUIET, "o", False)}
"""Colour, shape and whether filled, by verdict: none of them is needed to distinguish two verdicts."""


@dataclass(frozen=True, slots=True)
class Lift:
    name: str
    gain: float
    low: float  # end of its interval, or the gain where there is none
    high: float
    verdict: str
    text: str  # the gain
    cost: str  # more seconds of a run with the trick, as text


def lift_figure(panels: Mapping[str, Sequence[Lift]], *, title: str, unit: str) -> Figure:
    """Return a panel a heading with the gain of each trick, 900 pixels wide; ``unit`` is that of the gains."""
    height = _TITLE + sum(_HEADING + _ROW * len(rows) + _GAP for rows in panels.values()) + _AXIS
    figure = new_figure(_WIDTH, height)
    write(figure, 0.2, height - 0.22, title, fontsize=12, fontweight="bold", color=INK)
    handles = [Line2D([], [], linewidth=2.0, **_marker(verdict)) for verdict in _STYLES]
    figure.legend(
        handles, list(_STYLES), loc="center left", bbox_to_anchor=(0.1 / _WIDTH, (height - 0.5) / height),
        ncols=len(handles), frameon=False, fontsize=8.5, labelcolor=INK, handlelength=2.4,
    )  # fmt: skip
    # The ends of the axis: zero and every interval, with room at both sides.
    every = [row for rows in panels.values() for row in rows]
    low, high = min(0.0, *(row.low for row in every)), max(0.0, *(row.high for row in every))
    room = 0.06 * (high - low) or 1.0
    top = height - _TITLE
    for number, (heading, rows) in enumerate(panels.items(), 1):
        write(figure, 0.2, top - _HEADING / 2, heading, fontsize=9.5, color=QUIET)
        for at, name in zip(_COLUMNS, ("gain", "verdict", "seconds"), strict=True):
            write(figure, at, top - _HEADING / 2, name, fontsize=8.5, color=QUIET, ha="center")
        room_of_rows = _ROW * len(rows)
        top -= _HEADING + room_of_rows
        axes = axes_at(figure, _LEFT, top, _WIDTH - _LEFT - _RIGHT, room_of_rows)
        axes.set_xlim(low - room, high + room)
        _draw_rows(axes, rows)
        _label_rows(figure, rows, top + room_of_rows)
        top -= _GAP
        last = number == len(panels)
        axes.tick_params(colors=QUIET, labelcolor=INK, labelsize=9, length=0, labelbottom=last)
        axes.set_xlabel(unit if last else "", fontsize=9.5, color=INK)
    return figure


def _marker(verdict: str) -> dict[str, Any]:
    color, shape, filled = _STYLES[verdict]
    fill = color if filled else "white"
    return {"color": color, "marker": shape, "markersize": 7.5, "markeredgewidth": 1.8, "markerfacecolor": fill}


def _draw_rows(axes: Axes, rows: Sequence[Lift]) -> None:
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_yticks([])
    axes.grid(axis="x", color="#DDE1E6", linewidth=0.8)
    for number, row in enumerate(rows):
        if number % 2 == 0:
            axes.axhspan(number - 0.5, number + 0.5, color=SHADES[0], linewidth=0, zorder=0)
        ends, color = [row.low, row.high], _STYLES[row.verdict][0]
        axes.plot(ends, [number, number], color=color, linewidth=2.0, solid_capstyle="butt", zorder=2)
        axes.plot([row.gain], [number], linestyle="none", zorder=3, **_marker(row.verdict))
    axes.axvline(0.0, color=INK, linewidth=1.0, zorder=1)


def _label_rows(figure: Figure, rows: Sequence[Lift], top: float) -> None:
    for number, row in enumerate(rows):
        middle, color = top - (number + 0.5) * _ROW, _STYLES[row.verdict][0]
        write(figure, 0.2, middle, shortened(row.name, _LONGEST), fontsize=10, color=INK)
        texts = zip(_COLUMNS, (row.text, row.verdict, row.cost), (INK, color, INK), strict=True)
        for at, text, ink in texts:
            write(figure, at, middle, text, fontsize=9.5, color=ink, ha="center")
