"""What all figures share: colours that the colour-blind can distinguish, files as PNG or SVG, and SVG inside a page."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from etude.core.errors import EtudeError
from etude.core.files import replacing

# From Okabe & Ito's palette; the light blue is their blue towards white, to lie quietly below the dark one.
INK = "#222222"
QUIET = "#6B7280"
LINE = "#0072B2"
PLAN = "#9CC7E4"
ACTUAL = "#0B2545"
MARK = "#D55E00"
THIRD = "#009E73"
SHADES = ("#EDF2F8", "#F8F2E6")
GRID = "#FFFFFF"
RULE = "#E3E7EC"  # a grid on white

DPI = 100
_FORMATS = (".png", ".svg")
# In a page a colour is a variable of its style sheet, which has another value on a dark ground.
_VARIABLES = {
    **{INK: "ink", QUIET: "quiet", LINE: "first", PLAN: "plan", ACTUAL: "first", MARK: "second", THIRD: "third"},
    **{SHADES[0]: "band-0", SHADES[1]: "band-1", GRID: "line", RULE: "line"},
}
_THEME = {color.lower(): f"var(--{name})" for color, name in _VARIABLES.items()}
_SHAPES = ("fill", "stroke", "stroke-width", "stroke-dasharray", "stroke-linecap", "opacity")


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of ``width`` by ``height`` inches, 100 pixels an inch, that can measure its texts."""
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def axes_at(figure: Figure, left: float, bottom: float, width: float, height: float, **options: Any) -> Axes:
    """Return axes without a frame at inches from the lower left corner."""
    whole_width, whole_height = figure.get_size_inches()
    place = (left / whole_width, bottom / whole_height, width / whole_width, height / whole_height)
    axes = figure.add_axes(place, facecolor="none", **options)
    axes.spines[:].set_visible(False)
    axes.set_axisbelow(True)
    return axes


def write(figure: Figure, x: float, y: float, text: str, **style: Any) -> Text:
    """Write at inches from the lower left corner; a $ in a name is a $, not mathematics."""
    return figure.text(x, y, text, transform=figure.dpi_scale_trans, va="center", parse_math=False, **style)


def check_figure_path(path: Path) -> None:
    if path.suffix.lower() not in _FORMATS:
        raise EtudeError(
            f"the figure {path} cannot be drawn as {path.suffix or 'a file without ending'!r}: "
            "give a name that ends in .png or .svg"
        )


def save_figure(figure: Figure, path: Path) -> None:
    """Write the figure whole or not at all; the same figure gives the same bytes."""
    check_figure_path(path)
    kind = path.suffix.lower()[1:]
    dated = {"Date": None} if kind == "svg" else None  # else matplotlib writes the time into the file
    with replacing(path) as temporary, matplotlib.rc_context({"svg.hashsalt": "etude"}):
        figure.savefig(temporary, format=kind, dpi=DPI, metadata=dated)


def inline_svg(figure: Figure, described: str, titles: Mapping[str, Sequence[str]] | None = None) -> Markup:
    """Return the figure (72 units an inch) as SVG in a page's colours; ``titles`` are tooltips by an artist's gid."""
    file = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "etude", "svg.fonttype": "none"}):
        figure.savefig(file, format="svg", facecolor="none", metadata={"Date": None})
    root = ElementTree.fromstring(file.getvalue())
    for part in [*root.iter()]:
        part.tag = part.tag.rpartition("}")[2]
        for child in [*part]:
            if child.tag.rpartition("}")[2] in ("metadata", "style", "clipPath"):
                part.remove(child)
        _plain_attributes(part)
    for gid, texts in (titles or {}).items():
        group = next(part for part in root.iter() if part.get("id") == gid)
        for part, text in zip([*group.iter("use")] or [group], texts, strict=True):
            ElementTree.SubElement(part, "title").text = text
    used = {(part.get("href") or "").removeprefix("#") for part in root.iter()}
    for part in root.iter():
        if part.get("id") not in used:
            part.attrib.pop("id", None)
    width, height = (f"{72 * inches:g}" for inches in figure.get_size_inches())
    root.attrib.update(width=width, height=height, viewBox=f"0 0 {width} {height}", role="img")
    root.set("aria-label", described)
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _plain_attributes(part: ElementTree.Element) -> None:
    """Give an element attributes in place of a style, which the page forbids, and drop those of its style sheet."""
    style = dict(rule.split(": ", 1) for rule in part.get("style", "").rstrip("; ").split("; ") if rule)
    attributes = {name.rpartition("}")[2]: value for name, value in part.attrib.items()}
    part.attrib.clear()
    part.attrib.update((name, attributes[name]) for name in attributes if name not in ("style", "clip-path", "version"))
    if part.tag == "text":
        part.attrib.update({name: style[name] for name in ("text-anchor",) if name in style})
        if _THEME.get(style.get("fill", "")) == "var(--quiet)":
            part.set("class", "quiet")
    else:
        part.attrib.update({name: _THEME.get(style[name], style[name]) for name in _SHAPES if name in style})
