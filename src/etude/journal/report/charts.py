"""Bars and squares as inline SVG: shares of classes, calibration, the confusion matrix, a bar in a table's cell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from etude.core.text import percent, shortened
from etude.journal.report.html import element

# In units of the page: charts are drawn as narrow as a phone and stand side by side.
WIDTH = 340.0
_LETTER = 6.2  # mean width of a letter of the charts' text
_NAME = 96.0  # room for the names of classes
_BAR, _GAP = 8.0, 10.0
_VALUE = 46.0  # room for a bar's value
_NUMBERED = 20  # classes up to which the cells of the confusion matrix hold numbers
_MUCH = 0.25  # of a class predicted as another one
LEVELS = 8  # of a cell's colour; charts.css has a class for each
CELL_WIDTH = 120.0  # of the bar in a table's cell
_CELL_INNER = CELL_WIDTH - 4.0


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


def bar_in_cell(share: float, described: str, color: str = "first") -> Markup:
    """Return a bar of ``share`` over [0, 1] for a table's cell."""
    parts = [element("rect", class_="track", x=2, y=3, width=_CELL_INNER, height=10, rx=2)]
    parts.append(element("rect", class_=f"fill {color}", x=2, y=3, width=share * _CELL_INNER, height=10, rx=2))
    return _picture(CELL_WIDTH, 16, described, parts)


def interval_in_cell(share: float, low: float, high: float, described: str) -> Markup:
    """Return a share as a mark over [0, 1], and its interval as a bar below it, for a table's cell."""
    wide = {"x": 2 + low * _CELL_INNER, "width": max(1.0, (high - low) * _CELL_INNER)}
    parts = [
        element("rect", class_="track", x=2, y=6, width=_CELL_INNER, height=4, rx=2),
        element("rect", class_="fill first", y=4, height=8, rx=2, **wide),
        element("rect", class_="tick", x=2 + share * _CELL_INNER - 1.5, y=1, width=3, height=14, rx=1),
    ]
    return _picture(CELL_WIDTH, 16, described, parts)


def share_bars(names: Sequence[str], sides: Sequence[tuple[str, str, NDArray[np.float64]]], described: str) -> Markup:
    """Return a group of horizontal bars for each class."""
    largest = max(float(shares.max()) for _, _, shares in sides) or 1.0
    room = WIDTH - _NAME - _VALUE
    parts: list[Markup] = []
    for place, name in enumerate(names):
        top = 4 + place * (_BAR * len(sides) + _GAP)
        middle = top + _BAR * len(sides) / 2 + 4
        parts.append(element("text", _fitting(name, _NAME - 8), element("title", name), x=0, y=middle, class_="name"))
        for number, (side, color, shares) in enumerate(sides):
            share = float(shares[place])
            size = {"x": _NAME, "y": top + number * _BAR, "width": max(0.5, share / largest * room), "height": _BAR - 1}
            parts.append(
                element("rect", element("title", f"{name}, {side}: {percent(share)}"), class_=f"fill {color}", **size)
            )
        told_share = percent(float(sides[0][2][place]))
        longest = max(float(shares[place]) for _, _, shares in sides) / largest * room
        parts.append(_label(_NAME + longest + 5, middle, told_share, class_="quiet"))
    return _picture(WIDTH, 4 + len(names) * (_BAR * len(sides) + _GAP), described, parts)


def reliability_chart(bins: Sequence[Bin], described: str, height: float = 300.0) -> Markup:
    """Return the reliability diagram: the share that is right against the predicted probability."""
    left, right, top, floor = 44.0, WIDTH - 20.0, 10.0, height - 36.0

    def across(share: float) -> float:
        return left + share * (right - left)

    def down(share: float) -> float:
        return floor - share * (floor - top)

    parts: list[Markup] = []
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        parts.append(element("line", x1=left, x2=right, y1=down(tick), y2=down(tick), class_="grid"))
        parts.append(_label(left - 6, down(tick) + 4, f"{tick:.0%}", "end"))
        parts.append(_label(across(tick), floor + 16, f"{tick:.0%}", "middle"))
    parts.append(_label(right, floor + 31, "probability of the predicted class", "end", "quiet"))
    parts.append(_label(left + 6, top + 10, "share that is right", class_="quiet"))
    parts.append(element("line", class_="ideal", x1=left, y1=floor, x2=right, y2=top))
    most = max(one.images for one in bins)
    for one in bins:
        filled = 0.22 * (floor - top) * one.images / most
        size = {"x": across(one.start) + 1, "width": across(one.end) - across(one.start) - 2}
        text = f"{one.images:,} images at {one.start:.0%} to {one.end:.0%}: {percent(one.accuracy)} right"
        title = element("title", text)
        parts.append(element("rect", title, class_="count", y=floor - filled, height=filled, **size))
        x = across(one.confidence)
        parts.append(element("line", x1=x, x2=x, y1=down(one.low), y2=down(one.high), class_="whisker"))
        parts.append(element("circle", title, class_="dot first", cx=x, cy=down(one.accuracy), r=3.6))
    return _picture(WIDTH, height, described, parts)


def matrix_chart(matrix: NDArray[np.int64], names: Sequence[str], described: str) -> Markup:
    """Return the confusion matrix (C, C), a row a label, a column a prediction.

    Right predictions are coloured by their share of the row, wrong ones by that share against the largest of them,
    or against a quarter where none is as large.
    """
    count = len(names)
    cell = 44.0 if count <= 6 else 30.0 if count <= _NUMBERED else 16.0
    room = min(120.0, 8 + 6.6 * max(len(name) for name in names))
    left, top = room + 18, room + 24
    parts = [
        _label(left + count * cell / 2, 12, "predicted", "middle", "quiet"),
        element(
            "text", "label", class_="quiet", text_anchor="middle",
            transform=f"translate(11 {top + count * cell / 2:g}) rotate(-90)",
        ),
    ]  # fmt: skip
    for place, name in enumerate(names):
        middle = (place + 0.5) * cell + 4
        parts.append(_label(left - 6, top + middle, _fitting(name, room), "end"))
        turned = f"translate({left + middle:g} {top - 6:g}) rotate(-90)"
        parts.append(element("text", _fitting(name, room), transform=turned))
    totals = matrix.sum(axis=1)
    shares = matrix / np.maximum(totals, 1)[:, None]
    worst = max(_MUCH, float((shares * (1 - np.eye(count))).max()))
    for row in range(count):
        for column in range(count):
            held = int(matrix[row, column])
            kind = "right" if row == column else "wrong"
            level = level_of(shares[row, column] if row == column else (shares[row, column] / worst) ** 2)
            at = {"x": left + column * cell, "y": top + row * cell}
            text = f"{names[row]} predicted as {names[column]}: {held:,} of {int(totals[row]):,}"
            name = element("title", text) if held else ""
            shade = f"cell {kind}-{level}" if held else "cell"
            parts.append(element("rect", name, width=cell - 1, height=cell - 1, rx=2, class_=shade, **at))
            if held and count <= _NUMBERED:
                middle = (at["x"] + (cell - 1) / 2, at["y"] + cell / 2 + 4)
                dark = "over" if level > LEVELS // 2 else "number"
                parts.append(_label(*middle, _in_cell(held), "middle", dark))
    return _picture(left + count * cell + 2, top + count * cell + 2, described, parts)


def level_of(share: float) -> int:
    """Return the colour level, 1 to ``LEVELS``, of a share in (0, 1]; small shares differ too.

    >>> [level_of(share) for share in (0.001, 0.01, 0.1, 0.5, 1.0)]
    [1, 1, 3, 6, 8]
    """
    return max(1, min(LEVELS, int(np.ceil(LEVELS * share**0.5))))


def _in_cell(count: int) -> str:
    return f"{count}" if count < 10_000 else f"{count / 1000:.0f}k"


def _picture(width: float, height: float, described: str, parts: Sequence[Markup]) -> Markup:
    """Return an SVG that screen readers read as one image; it shrinks with the page and grows a little."""
    box = f"0 0 {width:g} {height:g}"
    return element("svg", *parts, viewBox=box, width=width, height=height, role="img", aria_label=described)


def _label(x: float, y: float, text: str, anchor: str = "start", class_: str | None = None) -> Markup:
    return element("text", text, x=x, y=y, text_anchor=None if anchor == "start" else anchor, class_=class_)


def _fitting(name: str, width: float) -> str:
    """Return a name cut to about ``width`` units of a chart."""
    return shortened(name, max(2, int(width / _LETTER)))
