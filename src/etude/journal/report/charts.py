"""Bars and squares as inline SVG: shares of classes, calibration, the confusion matrix, a bar in a table's cell."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from numpy.typing import ArrayLike, NDArray

from etude.core.text import percent, short_number
from etude.journal.report.html import element
from etude.journal.report.scores import Bin

# In the chart's own units, which are pixels on a phone: charts are drawn as narrow as that and stand side by side.
WIDTH = 340.0
_LEFT, _RIGHT, _TOP, _BOTTOM, _BAND = 44.0, 20.0, 10.0, 36.0, 18.0
_LETTER = 6.2  # mean width of a letter of the charts' text
_FEW_LETTERS = 5  # a name cut to fewer says nothing
_FEW_POINTS = 40  # shown one by one
_TOLERANCE = 0.25  # a line may be thinned by as much

Values = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Figure:
    """A chart with what stands around it.

    Args:
        title: above it.
        svg: the chart.
        caption: below it.
        legend: pairs of a colour's class and what it stands for.
    """

    title: str
    svg: Markup
    caption: str = ""
    legend: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Series:
    """One line: N points, NaN where it breaks.

    Args:
        name: in the legend.
        x: (N,) rising.
        y: (N,).
        color: class of the page's style: ``plan``, ``first``, ``second`` or ``third``.
        stepped: whether a value holds until the next one.
    """

    name: str
    x: ArrayLike
    y: ArrayLike
    color: str = "first"
    stepped: bool = False

    def points(self) -> tuple[Values, Values]:
        """Return x and y as float64 arrays, with the corners of the steps."""
        x, y = np.asarray(self.x, np.float64), np.asarray(self.y, np.float64)
        if self.stepped and len(x):
            x, y = np.repeat(x, 2)[1:], np.repeat(y, 2)[:-1]
        return x, y


@dataclass(frozen=True, slots=True)
class Frame:
    """Where values stand in a chart: linear in x, linear or logarithmic in y."""

    x_range: tuple[float, float]
    y_range: tuple[float, float]
    height: float
    top: float = _TOP
    log: bool = False
    left: float = _LEFT

    def x(self, values: ArrayLike) -> Values:
        """Return where values (N,) stand across."""
        low, high = self.x_range
        return self.left + (np.asarray(values, np.float64) - low) / (high - low) * (self.right - self.left)

    def y(self, values: ArrayLike) -> Values:
        """Return where values (N,) stand from the top; what is too small for a logarithm lies on the floor."""
        found, (low, high) = np.asarray(values, np.float64), self.y_range
        if self.log:
            found, low, high = np.log10(np.maximum(found, low)), math.log10(low), math.log10(high)
        return self.floor - (found - low) / (high - low) * (self.floor - self.top)

    @property
    def floor(self) -> float:
        """The x axis, from the top."""
        return self.height - _BOTTOM

    @property
    def right(self) -> float:
        """Where the plot ends."""
        return WIDTH - _RIGHT


def line_chart(
    series: Sequence[Series],
    told: str,
    *,
    x_label: str,
    y_format: Callable[[float], str] = short_number,
    x_format: Callable[[float], str] = short_number,
    x_range: tuple[float, float] | None = None,
    log: bool = False,
    bands: Sequence[tuple[str, float, float]] = (),
    marks: Sequence[tuple[float, str]] = (),
    height: float = 190.0,
) -> Markup:
    """Return a chart of lines over one axis.

    Args:
        series: at least one, with at least one finite value; later ones lie on top.
        told: the chart in words.
        x_label: below the axis.
        y_format: writes the values beside the axis.
        x_format: writes those below it.
        x_range: from where to where; the series' own range when None.
        log: whether y is logarithmic; values must then hold one above zero.
        bands: name, start and end of what is shaded behind the lines.
        marks: places on the x axis with what happened there.
        height: of the whole chart, which is ``WIDTH`` wide.
    """
    found = [one.points() for one in series]
    top = _TOP + (_BAND if bands else 0.0)
    frame = Frame(x_range or _range_of([x for x, _ in found]), _y_range([y for _, y in found], log), height, top, log)
    parts = [*_bands(frame, bands), *_grid(frame, y_format, x_format, x_label)]
    for at, what in marks:
        place = float(frame.x(at))
        line = {"x1": place, "x2": place, "y1": frame.top, "y2": frame.floor}
        parts.append(element("line", element("title", what), class_="mark", **line))
    for one, (x, y) in zip(series, found, strict=True):
        parts.append(element("path", d=_path(frame.x(x), frame.y(y)), class_=f"line {one.color}"))
        if one.color != "plan" and len(np.asarray(one.x)) <= _FEW_POINTS:
            parts += _dots(frame, one, x_format, y_format)
    return picture(WIDTH, height, told, parts)


def picture(width: float, height: float, told: str, parts: Sequence[Markup]) -> Markup:
    """Return an SVG that screen readers read as one image, ``told``; it shrinks with the page and grows a little."""
    box = f"0 0 {width:g} {height:g}"
    return element("svg", *parts, viewBox=box, width=width, height=height, role="img", aria_label=told)


def label(x: float, y: float, text: str, anchor: str = "start", class_: str | None = None) -> Markup:
    """Return a text of a chart; ``anchor`` is start, middle or end."""
    return element("text", text, x=x, y=y, text_anchor=None if anchor == "start" else anchor, class_=class_)


def shortened(name: str, width: float) -> str:
    """Return a name cut to about ``width`` units of a chart.

    >>> shortened("defective", 100), shortened("a very long class name", 60)
    ('defective', 'a very l…')
    """
    most = max(2, int(width / _LETTER))
    return name if len(name) <= most else f"{name[: most - 1]}…"


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Return at most ``most`` multiples of 1, 2 or 5 times a power of ten from ``low`` to ``high``.

    >>> ticks(0, 30), ticks(0.962, 0.99, 4)
    ([0.0, 10.0, 20.0, 30.0], [0.97, 0.98, 0.99])
    """
    for exponent in range(math.floor(math.log10((high - low) / most)) - 1, 400):
        for times in (1, 2, 5):
            step = float(f"{times}e{exponent}")
            first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
            if last - first < most:
                return [float(f"{number * step:.12g}") for number in range(first, last + 1)]
    raise ValueError(f"no ticks from {low} to {high}")


def log_ticks(low: float, high: float) -> list[float]:
    """Return powers of ten from ``low`` to ``high``, at most five; with 3 between them where there are fewer than two.

    >>> log_ticks(2e-4, 0.6), log_ticks(0.02, 0.09)
    ([0.001, 0.01, 0.1], [0.03])
    """
    powers = range(math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9) + 1)
    if len(powers) >= 2:
        return [float(f"1e{power}") for power in powers[:: -(-len(powers) // 5)]]
    near = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [tick for power in near for tick in (float(f"1e{power}"), float(f"3e{power}")) if low <= tick <= high]


def thinned(x: Values, y: Values) -> list[int]:
    """Return which points (N,) keep a line in its place to within a quarter of a unit (Ramer 1972)."""
    kept, open_ = {0, len(x) - 1}, [(0, len(x) - 1)]
    while open_:
        first, last = open_.pop()
        if last - first < 2:
            continue
        across, down = x[last] - x[first], y[last] - y[first]
        inner = slice(first + 1, last)
        off = np.abs(across * (y[inner] - y[first]) - down * (x[inner] - x[first]))
        length = math.hypot(across, down)
        off = off / length if length else np.hypot(x[inner] - x[first], y[inner] - y[first])
        worst = int(np.argmax(off))
        if off[worst] > _TOLERANCE:
            middle = first + 1 + worst
            kept.add(middle)
            open_ += [(first, middle), (middle, last)]
    return sorted(kept)


def _path(x: Values, y: Values) -> str:
    there = np.flatnonzero(np.isfinite(x) & np.isfinite(y))
    pieces = np.split(there, np.flatnonzero(np.diff(there) > 1) + 1) if len(there) else []
    drawn: list[str] = []
    for piece in pieces:
        kept = piece[thinned(x[piece], y[piece])]
        drawn.append("M" + "L".join(f"{across:.1f} {down:.1f}" for across, down in zip(x[kept], y[kept], strict=True)))
    return "".join(drawn)


def _dots(
    frame: Frame, one: Series, x_format: Callable[[float], str], y_format: Callable[[float], str]
) -> list[Markup]:
    points = [(x, y) for x, y in zip(np.asarray(one.x), np.asarray(one.y), strict=True) if np.isfinite(y)]
    return [
        element(
            "circle", element("title", f"{one.name}: {y_format(float(y))} at {x_format(float(x))}"),
            cx=float(frame.x(x)), cy=float(frame.y(y)), r=2.6, class_=f"dot {one.color}",
        )
        for x, y in points
    ]  # fmt: skip


def _bands(frame: Frame, bands: Sequence[tuple[str, float, float]]) -> list[Markup]:
    drawn: list[Markup] = []
    for number, (name, start, end) in enumerate(bands):
        left, right = float(frame.x(start)), float(frame.x(end))
        size = {"x": left, "width": max(0.0, right - left), "y": frame.top - _BAND, "height": frame.floor - frame.top}
        size["height"] += _BAND
        drawn.append(element("rect", element("title", name), class_=f"band band-{number % 2}", **size))
        shown = shortened(name, right - left - 6)
        if shown == name or len(shown) >= _FEW_LETTERS:
            drawn.append(label(left + 4, frame.top - 6, shown, class_="quiet"))
    return drawn


def _grid(
    frame: Frame, y_format: Callable[[float], str], x_format: Callable[[float], str], x_label: str
) -> list[Markup]:
    drawn: list[Markup] = []
    for tick in log_ticks(*frame.y_range) if frame.log else ticks(*frame.y_range, most=5):
        y = float(frame.y(tick))
        drawn.append(element("line", x1=frame.left, x2=frame.right, y1=y, y2=y, class_="grid"))
        drawn.append(label(frame.left - 6, y + 4, y_format(tick), "end"))
    for tick in ticks(*frame.x_range, most=6):
        drawn.append(label(float(frame.x(tick)), frame.floor + 16, x_format(tick), "middle"))
    drawn.append(label(frame.right, frame.floor + 31, x_label, "end", "quiet"))
    return drawn


def _range_of(parts: Sequence[Values]) -> tuple[float, float]:
    values = np.concatenate(parts)
    values = values[np.isfinite(values)]
    low, high = float(values.min()), float(values.max())
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _y_range(parts: Sequence[Values], log: bool) -> tuple[float, float]:
    values = np.concatenate(parts)
    values = values[np.isfinite(values)]
    if log:
        low, high = float(values[values > 0].min()), float(values.max())
        return low / 1.25, high * 1.25
    low, high = float(values.min()), float(values.max())
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        room = 0.1 * abs(high) or 0.5
        return low - room, high + room
    room = 0.06 * (high - low)
    return (0.0 if 0.0 <= low < 0.3 * high else low - room), high + room


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
