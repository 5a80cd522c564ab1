"""The curves of several runs over each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from etude.core.errors import EtudeError
from etude.journal.figures import INK, LINE, MARK, QUIET, RULE, THIRD, new_figure

# Okabe & Ito's, the strongest first; lines beyond them repeat the colours with another dash.
_COLORS = (LINE, MARK, THIRD, "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_DASHES = ("-", (0, (5, 2)), (0, (1, 1.5)))
_LONGEST_NAME = 40
_PANELS = {"valid_accuracy": "validation accuracy", "valid_loss": "validation loss"}


def curves_figure(histories: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
    there = {
        column: {name: points for name, rows in histories.items() if (points := _points(rows, column))}
        for column in _PANELS
    }
    panels = {column: lines for column, lines in there.items() if lines}
    if not panels:
        raise EtudeError("none of these runs has training curves: they come from fine-tuning, in history.csv")
    styles = {name: _style(number) for number, name in enumerate(histories)}
    named = {name for lines in panels.values() for name in lines}
    legend = 0.25 * len(named) + 0.3
    height = 3.2 + legend
    figure = new_figure(9.6, height)
    width = 0.82 / len(panels)
    for number, (column, lines) in enumerate(panels.items()):
        axes = figure.add_axes((0.08 + number * (width + 0.08), (legend + 0.55) / height, width, 2.4 / height))
        for name, points in lines.items():
            axes.plot(*zip(*points, strict=True), label=_shortened(name), marker="o", markersize=2.5, **styles[name])
        axes.set_title(_PANELS[column], fontsize=10, color=INK, loc="left")
        axes.set_xlabel("seconds of training", fontsize=9, color=QUIET)
        axes.tick_params(labelsize=8, color=QUIET, labelcolor=INK)
        axes.grid(color=RULE, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    most = max(panels.values(), key=len)
    handles, names = figure.axes[[*panels.values()].index(most)].get_legend_handles_labels()
    figure.legend(handles, names, loc="lower left", bbox_to_anchor=(0.07, 0.0), frameon=False, fontsize=9)
    return figure


def _points(rows: Sequence[Mapping[str, Any]], column: str) -> list[tuple[float, float]]:
    found = [(row.get("seconds"), row.get(column)) for row in rows]
    return [(x, y) for x, y in found if isinstance(x, float) and isinstance(y, float)]


def _style(number: int) -> dict[str, Any]:
    dash = _DASHES[number // len(_COLORS) % len(_DASHES)]
    return {"color": _COLORS[number % len(_COLORS)], "linestyle": dash, "linewidth": 1.6}


def _shortened(name: str) -> str:
    name = name.encode("utf-8", "backslashreplace").decode("utf-8")  # a folder's name may be no UTF-8
    name = name if len(name) <= _LONGEST_NAME else f"…{name[1 - _LONGEST_NAME :]}"
    name = name.replace("$", r"\$")  # a $ is a $, not mathematics
    return f" {name}" if name.startswith("_") else name  # matplotlib leaves names that begin so out of the legend
