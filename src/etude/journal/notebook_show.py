"""What a notebook displays: tables as escaped HTML, and charts of the report as pictures that stand alone."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate

from markupsafe import Markup

from etude.journal.charts import WIDTH, Figure, label
from etude.journal.html import asset, element

# In the charts' own units, which are pixels.
_MARGIN, _BETWEEN, _TITLE, _LINE = 12.0, 28.0, 26.0, 17.0
_LETTER = 6.3  # mean width of a letter of the charts' text
_SWATCH = 18.0
_SQUARES = ("right", "wrong")  # colours of cells, which have levels

_MEDIA = re.compile(r"@media[^{]*\{(?:[^{}]*\{[^{}]*\})*[^{}]*\}")
_COMMENT = re.compile(r"/\*.*?\*/", re.DOTALL)
_RULE = re.compile(r"([^{}]+)\{([^{}]*)\}")
_NOT_IN_XML = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")


@dataclass(frozen=True, slots=True)
class Table:
    """Rows under column names; a notebook shows it as a table, ``print`` as aligned text.

    >>> print(Table(("class", "images"), (("cat", "12"), ("<b>", "3"))))
    class  images
    cat    12
    <b>    3
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    def __str__(self) -> str:
        lines = [self.columns, *self.rows]
        widths = [max(len(line[place]) for line in lines) for place in range(len(self.columns))]
        told = ("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)
        return "\n".join(line.rstrip() for line in told)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """Return the table as HTML with every text escaped; Jupyter calls this."""
        style = "text-align: left; white-space: pre-wrap; max-width: 60ch; overflow-wrap: anywhere"

        def line(tag: str, cells: Sequence[str]) -> Markup:
            return element("tr", *(element(tag, _told(cell), style=style) for cell in cells))

        head = element("thead", line("th", self.columns))
        return str(element("table", head, element("tbody", *(line("td", row) for row in self.rows))))


@dataclass(frozen=True, slots=True)
class Sheet:
    """Charts beside each other with titles, legends and captions: one SVG on white that needs no other style.

    Args:
        figures: at least one.
        columns: how many stand beside each other.
    """

    figures: Sequence[Figure]
    columns: int = 2

    def __repr__(self) -> str:
        told = (". ".join(filter(None, (one.title, one.caption))) for one in self.figures)
        return "\n".join(told)

    def _repr_svg_(self) -> str:
        """Return the picture; Jupyter calls this."""
        drawn = [_with_words(one) for one in self.figures]
        rows = [drawn[start : start + self.columns] for start in range(0, len(drawn), self.columns)]
        wide = max(width for _, width, _ in drawn) + _BETWEEN
        tops = [*accumulate((max(tall for *_, tall in row) + _BETWEEN for row in rows), initial=_MARGIN)]
        parts = [
            element("g", chart, transform=f"translate({_MARGIN + place * wide:g} {top:g})")
            for row, top in zip(rows, tops[:-1], strict=True)
            for place, (chart, _, _) in enumerate(row)
        ]
        width, height = 2 * _MARGIN + wide * len(rows[0]) - _BETWEEN, tops[-1] - _BETWEEN + _MARGIN
        inner = Markup("").join(parts)
        ground = element("rect", width=width, height=height, fill="#fff")
        style = element("style", Markup(_style(frozenset(_classes_in(inner)))))
        box = {"viewBox": f"0 0 {width:g} {height:g}", "width": width, "height": height, "role": "img"}
        about = "; ".join(one.title for one in self.figures)
        space = "http://www.w3.org/2000/svg"
        picture = element("svg", style, ground, inner, xmlns=space, class_="etude", aria_label=about, **box)
        return _told(picture)


def _told(text: str) -> str:
    """Return ``text`` without what XML or UTF-8 cannot hold: control characters, and halves of surrogate pairs."""
    return _NOT_IN_XML.sub("\N{REPLACEMENT CHARACTER}", text).encode("utf-8", "backslashreplace").decode("utf-8")


def _with_words(figure: Figure) -> tuple[Markup, float, float]:
    """Return a chart below its title and legend and above its caption, with the width and the height of it all."""
    wide, tall = _size_of(figure.svg)
    room = max(wide, WIDTH)
    parts, top = [element("text", figure.title[:1].upper() + figure.title[1:], y=14, style="font-weight: 600")], _TITLE
    for line in _legend_lines(figure.legend, room):
        parts.append(element("g", *line, transform=f"translate(0 {top:g})"))
        top += _LINE
    parts.append(element("g", figure.svg, transform=f"translate(0 {top:g})"))
    top += tall
    for text in textwrap.wrap(figure.caption, int(room / _LETTER)):
        top += _LINE
        parts.append(label(0.0, top, text, class_="quiet"))
    return Markup("").join(parts), room, top


def _legend_lines(entries: Iterable[tuple[str, str]], room: float) -> list[list[Markup]]:
    """Return the entries of a legend in as few lines as ``room`` allows."""
    lines: list[list[Markup]] = []
    used = room
    for color, name in entries:
        wide = _SWATCH + _LETTER * len(name) + 16
        if used + wide > room:
            lines.append([])
            used = 0.0
        lines[-1] += [_swatch(color, used), label(used + _SWATCH, 11, name)]
        used += wide
    return lines


def _swatch(color: str, left: float) -> Markup:
    if color == "plan":
        return element("line", x1=left, x2=left + 12, y1=6, y2=6, class_="line plan")
    kind = f"cell {color}-6" if color in _SQUARES else f"fill {color}"
    return element("rect", x=left, y=1, width=12, height=10, rx=2, class_=kind)


def _size_of(svg: str) -> tuple[float, float]:
    found = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)
    if found is None:
        raise ValueError("a chart tells its size as viewBox='0 0 WIDTH HEIGHT'")
    return float(found[1]), float(found[2])


def _classes_in(svg: str) -> set[str]:
    return {name for names in re.findall(r' class="([^"]*)"', svg) for name in names.split()}


@cache
def _style(classes: frozenset[str]) -> str:
    """Return the report's rules for these classes and for the charts' text, in its colours for a light ground.

    They hold inside a picture of class ``etude`` only: a notebook that is turned into a page shares one style. Colours
    are written out, since few programs besides browsers know variables.
    """
    css = _COMMENT.sub("", _MEDIA.sub("", asset("page.css")))
    colors = dict(re.findall(r"--([\w-]+): ([^;]+);", css))
    kept: list[str] = []
    for selectors, body in _RULE.findall(css):
        own = [one.strip() for one in selectors.split(",") if _is_about(one.strip(), classes)]
        if own:
            body = re.sub(r"var\(--([\w-]+)\)", lambda found: colors[found[1]], body)
            scoped = ", ".join(".etude " + one.removeprefix("svg ") for one in own)  # the picture is the svg element
            kept.append(scoped + f" {{{body.strip()}}}")
    return "\n".join(kept)


def _is_about(selector: str, classes: frozenset[str]) -> bool:
    if selector.startswith("svg text"):
        return True
    first = re.match(r"\.([\w-]+)", selector)
    return first is not None and first[1] in classes
