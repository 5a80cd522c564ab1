"""The learning-rate range test as a picture: the loss against the rate, and the rate to take."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from numpy.typing import ArrayLike, NDArray

from etude.core.lr_range import LrSuggestion
from etude.core.text import short_number
from etude.journal.figures import INK, LINE, MARK, PLAN, QUIET, new_figure

_HEADROOM = 0.5  # of the fall; the explosion at the end would press the rest flat
_DECADES_WITH_ALL_TICKS = 2.0


def lr_range_figure(rates: ArrayLike, losses: ArrayLike, smoothed: ArrayLike, suggestion: LrSuggestion) -> Figure:
    """Return a range test: raw losses (N,) thin, smoothed ones thick, and what ``suggest_lr`` found."""
    rate, raw, curve = (np.asarray(values, dtype=np.float64) for values in (rates, losses, smoothed))
    figure = new_figure(9.0, 5.0)
    axes = figure.add_axes((0.085, 0.12, 0.88, 0.74), facecolor="none")
    axes.set_xscale("log")
    axes.set_xlim(min(rate[0], suggestion.lr / 1.5), rate[-1])
    axes.set_ylim(*_limits(raw, curve))
    axes.plot(rate, raw, color=PLAN, linewidth=0.9, label="loss of each step")
    axes.plot(rate, curve, color=LINE, linewidth=2.6, label="smoothed")
    _mark_findings(axes, rate, curve, suggestion)
    low, high = axes.get_xlim()
    if np.log10(high / low) < _DECADES_WITH_ALL_TICKS:
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short_number(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("learning rate", fontsize=10, color=INK)
    axes.set_ylabel("training loss", fontsize=10, color=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(QUIET)
    axes.tick_params(colors=QUIET, labelcolor=INK, labelsize=9)
    axes.grid(axis="y", color="#E6E8EB", linewidth=0.8)
    axes.set_axisbelow(True)
    figure.text(0.085, 0.955, "Learning-rate range test", fontsize=12, fontweight="bold", color=INK, va="center")
    # Above the axes: inside them no corner is empty for every curve.
    figure.legend(
        loc="center right", bbox_to_anchor=(0.972, 0.935), ncols=3, fontsize=8.5, frameon=False, labelcolor=INK
    )
    return figure


def _limits(raw: NDArray[np.float64], curve: NDArray[np.float64]) -> tuple[float, float]:
    """Return the ends of the axis: all of the descent, and only the beginning of the explosion."""
    measured = raw[np.isfinite(curve) & np.isfinite(raw)]
    low, start = float(np.nanmin(curve)), float(np.nanmax(curve[: max(1, len(measured) // 3)]))
    room = max(start - low, 1e-12)
    bottom = max(float(measured.min()), low - room)
    top = max(float(measured[: max(1, len(measured) // 3)].max()), start + _HEADROOM * room)
    return bottom - 0.08 * room, min(top, start + 2 * room) + 0.12 * room


def _mark_findings(axes: Axes, rate: NDArray[np.float64], curve: NDArray[np.float64], found: LrSuggestion) -> None:
    label = f"suggested: {short_number(float(f'{found.lr:.2g}'))}"
    axes.axvline(found.lr, color=MARK, linewidth=2.0, linestyle=(0, (5, 2)), label=label)
    look = {"color": "white", "markeredgecolor": INK, "markeredgewidth": 1.5, "markersize": 8, "linestyle": "none"}
    for at, shape, name in ((found.steepest, "v", "steepest descent"), (found.lowest, "o", "lowest loss")):
        height = float(np.interp(np.log(at), np.log(rate), curve))
        axes.plot([at], [height], shape, zorder=5, label=f"{name}: {short_number(at)}", **look)
    if found.diverged_at is not None:
        label = f"diverged from {short_number(found.diverged_at)}"
        axes.axvspan(found.diverged_at, rate[-1], color="#F1F1F1", linewidth=0, zorder=0, label=label)
