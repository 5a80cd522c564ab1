"""Bars and squares as inline SVG: shares of classes, calibration, the confusion matrix, a bar in a table's cell."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from etude.journal.charts import WIDTH, Frame, label, picture, shortened
from etude.journal.html import element
from etude.journal.quantities import percent
from etude.journal.report_scores import Bin

_NAME = 96.0  # room for the names of classes
_BAR, _GAP = 8.0, 10.0
_VALUE = 46.0  # room for a bar's value
_NUMBERED = 20  # classes up to which the cells of the confusion matrix hold numbers
_MUCH = 0.25  # of a class taken for another one
LEVELS = 8  # of a cell's colour; page.css has a class for each
CELL_WIDTH = 120.0  # of the bar in a table's cell
_CELL_INNER = CELL_WIDTH - 4.0


def bar_in_cell(share: float, told: str, color: str = "first") -> Markup:
    """Return a bar of ``share`` over [0, 1] for a table's cell."""
    parts = [element("rect", class_="track", x=2, y=3, width=_CELL_INNER, height=10, rx=2)]
    parts.append(element("rect", class_=f"fill {color}", x=2, y=3, width=share * _CELL_INNER, height=10, rx=2))
    return picture(CELL_WIDTH, 16, told, parts)


def interval_in_cell(share: float, low: float, high: float, told: str) -> Markup:
    """Return a share as a mark over [0, 1], and its interval as a bar below it, for a table's cell."""
    wide = {"x": 2 + low * _CELL_INNER, "width": max(1.0, (high - low) * _CELL_INNER)}
    parts = [
        element("rect", class_="track", x=2, y=6, width=_CELL_INNER, height=4, rx=2),
        element("rect", class_="fill first", y=4, height=8, rx=2, **wide),
        element("rect", class_="tick", x=2 + share * _CELL_INNER - 1.5, y=1, width=3, height=14, rx=1),
    ]
    return picture(CELL_WIDTH, 16, told, parts)


def share_bars(names: Sequence[str], sides: Sequence[tuple[str, str, NDArray[np.float64]]], told: str) -> Markup:
    """Return a group of horizontal bars for each class.

    Args:
        names: C class names.
        sides: for each bar of a group its name, its colour's class, and the shares (C,).
        told: the chart in words.
    """
    largest = max(float(shares.max()) for _, _, shares in sides) or 1.0
    room = WIDTH - _NAME - _VALUE
    parts: list[Markup] = []
    for place, name in enumerate(names):
        top = 4 + place * (_BAR * len(sides) + _GAP)
        middle = top + _BAR * len(sides) / 2 + 4
        parts.append(element("text", shortened(name, _NAME - 8), element("title", name), x=0, y=middle, class_="name"))
        for number, (side, color, shares) in enumerate(sides):
            share = float(shares[place])
            size = {"x": _NAME, "y": top + number * _BAR, "width": max(0.5, share / largest * room), "height": _BAR - 1}
            parts.append(
                element("rect", element("title", f"{name}, {side}: {percent(share)}"), class_=f"fill {color}", **size)
            )
        told_share = percent(float(sides[0][2][place]))
        longest = max(float(shares[place]) for _, _, shares in sides) / largest * room
        parts.append(label(_NAME + longest + 5, middle, told_share, class_="quiet"))
    return picture(WIDTH, 4 + len(names) * (_BAR * len(sides) + _GAP), told, parts)


def reliability_chart(bins: Sequence[Bin], told: str, height: float = 300.0) -> Markup:
    """Return the reliability diagram: how often predictions were right against how sure they were."""
    frame = Frame((0.0, 1.0), (0.0, 1.0), height)
    parts = []
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = float(frame.y(tick))
        parts.append(element("line", x1=frame.left, x2=frame.right, y1=y, y2=y, class_="grid"))
        parts.append(label(frame.left - 6, y + 4, f"{tick:.0%}", "end"))
        parts.append(label(float(frame.x(tick)), frame.floor + 16, f"{tick:.0%}", "middle"))
    parts.append(label(frame.right, frame.floor + 31, "probability given to the predicted class", "end", "quiet"))
    parts.append(label(frame.left + 6, frame.top + 10, "share that is right", class_="quiet"))
    ends = {"x1": frame.left, "y1": frame.floor, "x2": frame.right, "y2": frame.top}
    parts.append(element("line", class_="ideal", **ends))
    most = max(one.images for one in bins)
    for one in bins:
        left, right = (float(value) for value in frame.x([one.start, one.end]))
        filled = 0.22 * (frame.floor - frame.top) * one.images / most
        size = {"x": left + 1, "width": right - left - 2, "y": frame.floor - filled, "height": filled}
        text = f"{one.images:,} images at {one.start:.0%} to {one.end:.0%}: {percent(one.accuracy)} right"
        parts.append(element("rect", element("title", text), class_="count", **size))
        x, low, high = float(frame.x(one.confidence)), float(frame.y(one.low)), float(frame.y(one.high))
        parts.append(element("line", x1=x, x2=x, y1=low, y2=high, class_="whisker"))
        dot = {"cx": x, "cy": float(frame.y(one.accuracy)), "r": 3.6}
        parts.append(element("circle", element("title", text), class_="dot first", **dot))
    return picture(WIDTH, height, told, parts)


def matrix_chart(matrix: NDArray[np.int64], names: Sequence[str], told: str) -> Markup:
    """Return the confusion matrix (C, C), a row a label, a column a prediction.

    Right predictions are coloured by their share of the row, wrong ones by that share against the largest of them,
    or against a quarter where none is as large.
    """
    count = len(names)
    cell = 44.0 if count <= 6 else 30.0 if count <= _NUMBERED else 16.0
    room = min(120.0, 8 + 6.6 * max(len(name) for name in names))
    left, top = room + 18, room + 24
    parts = [
        label(left + count * cell / 2, 12, "predicted", "middle", "quiet"),
        element(
            "text", "label", class_="quiet", text_anchor="middle",
            transform=f"translate(11 {top + count * cell / 2:g}) rotate(-90)",
        ),
    ]  # fmt: skip
    for place, name in enumerate(names):
        middle = (place + 0.5) * cell + 4
        parts.append(label(left - 6, top + middle, shortened(name, room), "end"))
        turned = f"translate({left + middle:g} {top - 6:g}) rotate(-90)"
        parts.append(element("text", shortened(name, room), transform=turned))
    totals = matrix.sum(axis=1)
    shares = matrix / np.maximum(totals, 1)[:, None]
    worst = max(_MUCH, float((shares * (1 - np.eye(count))).max()))
    for row in range(count):
        for column in range(count):
            held = int(matrix[row, column])
            kind = "right" if row == column else "wrong"
            level = level_of(shares[row, column] if row == column else (shares[row, column] / worst) ** 2)
            at = {"x": left + column * cell, "y": top + row * cell}
            said = f"{names[row]} taken for {names[column]}: {held:,} of {int(totals[row]):,}"
            name = element("title", said) if held else ""
            shade = f"cell {kind}-{level}" if held else "cell"
            parts.append(element("rect", name, width=cell - 1, height=cell - 1, rx=2, class_=shade, **at))
            if held and count <= _NUMBERED:
                middle = (at["x"] + (cell - 1) / 2, at["y"] + cell / 2 + 4)
                dark = "over" if level > LEVELS // 2 else "number"
                parts.append(label(*middle, _in_cell(held), "middle", dark))
    return picture(left + count * cell + 2, top + count * cell + 2, told, parts)


def level_of(share: float) -> int:
    """Return the colour level, 1 to ``LEVELS``, of a share in (0, 1]; small shares are told apart too.

    >>> [level_of(share) for share in (0.001, 0.01, 0.1, 0.5, 1.0)]
    [1, 1, 3, 6, 8]
    """
    return max(1, min(LEVELS, int(np.ceil(LEVELS * share**0.5))))


def _in_cell(count: int) -> str:
    return f"{count}" if count < 10_000 else f"{count / 1000:.0f}k"
