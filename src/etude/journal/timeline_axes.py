"""One panel of the timeline figure: a quantity's lines, and the ticks that name its values."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from etude.journal.figures import ACTUAL, GRID, INK, PLAN
from etude.journal.quantities import UNITS, short_number
from etude.journal.timeline_panels import Line, Panel

_FEW_POINTS = 60  # of what happened, also shown one by one
_TICK_DISTANCE = 0.2  # of a panel's height; ticks closer than that would touch


def draw_panel(axes: Axes, panel: Panel, plan_color: str) -> None:
    """Draw the lines of one quantity and the ticks that name its values."""
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

    if plan_color == PLAN:
        draw(panel.plan, color=PLAN, linewidth=4.0, solid_capstyle="butt")
    else:
        draw(panel.plan, color=plan_color, linewidth=1.4 if panel.is_constant else 2.0, solid_capstyle="butt")
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
    apart = np.diff(reached, prepend=-np.inf).min() if len(reached) > 1 else 0.0
    if apart >= margin and low == reached[0] and high == reached[-1]:
        return reached.tolist()
    inner = reached[(reached > low + margin) & (reached < high - margin)]
    return [low, *inner[[np.argmin(np.abs(inner - (low + high) / 2))]], high] if len(inner) else [low, high]


def log_ticks(low: float, high: float) -> list[float]:
    """Return at most four powers of ten within the range, or its ends when it holds fewer than two.

    >>> log_ticks(1e-5, 1e-3), log_ticks(0.2, 0.9)
    ([1e-05, 0.0001, 0.001], [0.2, 0.9])
    """
    powers = range(math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9) + 1)
    if len(powers) < 2:
        return [low, high]
    every = -(-len(powers) // 4)
    return [float(f"1e{power}") for power in powers[::-1][::every]][::-1]
