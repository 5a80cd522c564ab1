"""Charts whose parts stand for one number each: shares of classes, calibration, the confusion matrix, bars in tables.

``templates/charts.svg.j2`` draws them; here is what it draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from etude.core.text import percent, shortened
from etude.journal.report.html import macro

_LETTER = 6.2  # mean width of a letter of the charts' text
_NUMBERED = 20  # classes up to which the cells of the confusion matrix hold numbers
_MUCH = 0.25  # of a class predicted as another one
LEVELS = 8  # of a cell's colour; charts.css has a class for each


@dataclass(frozen=True, slots=True)
class Figure:
    """A chart with its title, its caption, and a legend: pairs of a colour's class and what it stands for."""

    title: str
    svg: Markup
    caption: str = ""
    legend: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Bin:
    """Images whose predicted class got a probability from ``start`` to ``end``."""

    start: float
    end: float
    images: int
    confidence: float
    accuracy: float
    low: float
    high: float


def chart(name: str, *values: Any) -> Markup:
    """Return a chart that needs no computation: bar, interval or reliability, with its numbers and description."""
    return macro("charts.svg.j2", name, *values)


def share_bars(names: Sequence[str], sides: Sequence[tuple[str, str, NDArray[np.float64]]], described: str) -> Markup:
    largest = max(float(shares.max()) for _, _, shares in sides) or 1.0
    rows = [
        (
            *(name, _fitting(name, 88)),
            [(color, f"{name}, {side}: {percent(float(x[k]))}", float(x[k]) / largest) for side, color, x in sides],
            percent(float(sides[0][2][k])),
        )
        for k, name in enumerate(names)
    ]
    return chart("share_bars", rows, len(sides), described)


def matrix_chart(matrix: NDArray[np.int64], names: Sequence[str], described: str) -> Markup:
    """Return the confusion matrix (C, C), coloured by share of the row, errors against the largest share."""
    count = len(names)
    totals = matrix.sum(axis=1)
    shares = matrix / np.maximum(totals, 1)[:, None]
    worst = max(_MUCH, float((shares * (1 - np.eye(count))).max()))

    def cell(row: int, column: int) -> tuple[str, str, str, bool]:
        if not (held := int(matrix[row, column])):
            return "", "", "", False
        right = row == column
        level = level_of(shares[row, column] if right else (shares[row, column] / worst) ** 2)
        title = f"{names[row]} predicted as {names[column]}: {held:,} of {int(totals[row]):,}"
        number = (f"{held}" if held < 10_000 else f"{held / 1000:.0f}k") if count <= _NUMBERED else ""
        return f"{'right' if right else 'wrong'}-{level}", title, number, level > LEVELS // 2

    room = min(120.0, 8 + 6.6 * max(len(name) for name in names))
    side = 44.0 if count <= 6 else 30.0 if count <= _NUMBERED else 16.0
    rows = [[cell(row, column) for column in range(count)] for row in range(count)]
    return chart("matrix", [_fitting(name, room) for name in names], rows, side, room, described)


def level_of(share: float) -> int:
    """Return the colour level, 1 to ``LEVELS``, of a share in (0, 1]; small shares differ too."""
    return max(1, min(LEVELS, int(np.ceil(LEVELS * share**0.5))))


def _fitting(name: str, width: float) -> str:
    return shortened(name, max(2, int(width / _LETTER)))
