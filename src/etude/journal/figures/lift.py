"""The lift chart: the contribution of each trick, with its interval and its cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from etude.core.text import shortened
from etude.journal.figures import INK, LINE, MARK, QUIET, SHADES, new_figure

# Inches; 100 pixels each.
_WIDTH, _LEFT, _RIGHT = 9.0, 1.9, 2.75
_TITLE, _HEADING, _ROW, _GAP, _AXIS = 0.62, 0.34, 0.34, 0.16, 0.52
_LONGEST = 22  # characters of a name
_STYLES = {"helps": (LINE, "o", "full"), "hurts": (MARK, "s", "full"), "cannot tell": (QUIET, "o", "none")}
"""Colour, shape and filling by verdict: none of them is needed to distinguish two verdicts."""


@dataclass(frozen=True, slots=True)
class Lift:
    name: str
    gain: float
    low: float  # end of its interval, or the gain where there is none
    high: float
    verdict: str
    text: str  # the gain
    cost: str  # more seconds of a run with the trick, as text


@dataclass(frozen=True, slots=True)
class LiftPanel:
    """Rows that were compared in the same way, under one heading."""

    heading: str
    rows: Sequence[Lift]


def lift_figure(panels: Sequence[LiftPanel], *, title: str, unit: str) -> Figure:
    """Return the gain of each trick, the largest first, 900 pixels wide; ``unit`` is that of the gains."""
    heights = [_ROW * len(panel.rows) for panel in panels]
    height = _TITLE + sum(_HEADING + rows + _GAP for rows in heights) + _AXIS
    figure = new_figure(_WIDTH, height)
    _write(figure, 0.2, height - 0.22, title, height, fontsize=12, fontweight="bold", color=INK)
    _draw_legend(figure, height)
    limits = _limits([row for panel in panels for row in panel.rows])
    top = height - _TITLE
    for panel, rows in zip(panels, heights, strict=True):
        _write(figure, 0.2, top - _HEADING / 2, panel.heading, height, fontsize=9.5, color=QUIET)
        for at, name in ((2.2, "gain"), (1.5, "verdict"), (0.65, "seconds")):
            _write(figure, _WIDTH - at, top - _HEADING / 2, name, height, fontsize=8.5, color=QUIET, ha="center")
        top -= _HEADING
        place = (_LEFT / _WIDTH, (top - rows) / height, (_WIDTH - _LEFT - _RIGHT) / _WIDTH, rows / height)
        axes = figure.add_axes(place, facecolor="none")
        _draw_rows(axes, panel.rows, limits)
        _label_rows(figure, panel.rows, top, height)
        top -= rows + _GAP
        _style(axes, unit if panel is panels[-1] else None)
    return figure


def _draw_rows(axes: Axes, rows: Sequence[Lift], limits: tuple[float, float]) -> None:
    axes.set_xlim(*limits)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    for number, row in enumerate(rows):
        if number % 2 == 0:
            axes.axhspan(number - 0.5, number + 0.5, color=SHADES[0], linewidth=0, zorder=0)
        color, shape, filling = _STYLES[row.verdict]
        axes.plot([row.low, row.high], [number, number], color=color, linewidth=2.0, solid_capstyle="butt", zorder=2)
        axes.plot(
            [row.gain], [number], shape, color=color, markersize=7.5, markeredgewidth=1.8,
            markerfacecolor="white" if filling == "none" else color, zorder=3,
        )  # fmt: skip
    axes.axvline(0.0, color=INK, linewidth=1.0, zorder=1)


def _label_rows(figure: Figure, rows: Sequence[Lift], top: float, height: float) -> None:
    for number, row in enumerate(rows):
        middle, color = top - (number + 0.5) * _ROW, _STYLES[row.verdict][0]
        name = shortened(row.name, _LONGEST)
        _write(figure, 0.2, middle, name, height, fontsize=10, color=INK)
        _write(figure, _WIDTH - 2.2, middle, row.text, height, fontsize=9.5, color=INK, ha="center")
        _write(figure, _WIDTH - 1.5, middle, row.verdict, height, fontsize=9.5, color=color, ha="center")
        _write(figure, _WIDTH - 0.65, middle, row.cost, height, fontsize=9.5, color=INK, ha="center")


def _limits(rows: Sequence[Lift]) -> tuple[float, float]:
    """Return the ends of the axis: zero and every interval, with room at both sides."""
    low, high = min(0.0, *(row.low for row in rows)), max(0.0, *(row.high for row in rows))
    room = 0.06 * (high - low) or 1.0
    return low - room, high + room


def _draw_legend(figure: Figure, height: float) -> None:
    handles = [
        Line2D([], [], color=color, marker=shape, markersize=7, markeredgewidth=1.8, linewidth=2.0,
               markerfacecolor="white" if filling == "none" else color)
        for color, shape, filling in _STYLES.values()
    ]  # fmt: skip
    figure.legend(
        handles, list(_STYLES), loc="center left", bbox_to_anchor=(0.1 / _WIDTH, (height - 0.5) / height),
        ncols=len(handles), frameon=False, fontsize=8.5, labelcolor=INK, handlelength=2.4,
    )  # fmt: skip


def _style(axes: Axes, unit: str | None) -> None:
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    axes.grid(axis="x", color="#DDE1E6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=QUIET, labelcolor=INK, labelsize=9, length=0, labelbottom=unit is not None)
    if unit is not None:
        axes.set_xlabel(unit, fontsize=9.5, color=INK)


def _write(figure: Figure, x: float, y: float, text: str, height: float, **style: object) -> None:
    """Write at inches from the lower left corner; a $ in a name is a $, not mathematics."""
    figure.text(x / _WIDTH, y / height, text, va="center", parse_math=False, **style)  # pyright: ignore[reportArgumentType]
