"""What the figures share: colours that the colour-blind can tell apart, and whole files as PNG or SVG."""

from __future__ import annotations

from pathlib import Path

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from etude.core.errors import EtudeError
from etude.core.files import replacing

# From Okabe & Ito's palette; the light blue is their blue towards white, to lie quietly below the dark one.
INK = "#222222"
QUIET = "#6B7280"
LINE = "#0072B2"
PLAN = "#9CC7E4"
ACTUAL = "#0B2545"
MARK = "#D55E00"
SHADES = ("#EDF2F8", "#F8F2E6")
GRID = "#FFFFFF"

DPI = 100
_FORMATS = (".png", ".svg")


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of ``width`` by ``height`` inches, 100 pixels an inch, that can measure its texts."""
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def check_figure_path(path: Path) -> None:
    """Raise EtudeError unless ``path`` ends in .png or .svg."""
    if path.suffix.lower() not in _FORMATS:
        raise EtudeError(
            f"the figure {path} cannot be drawn as {path.suffix or 'a file without ending'!r}: "
            "give a name that ends in .png or .svg"
        )


def save_figure(figure: Figure, path: Path) -> None:
    """Write the figure whole or not at all; the same figure gives the same bytes.

    Raises:
        EtudeError: the name does not end in .png or .svg, or the place cannot be written.
    """
    check_figure_path(path)
    kind = path.suffix.lower()[1:]
    dated = {"Date": None} if kind == "svg" else None  # else matplotlib writes the time into the file
    with replacing(path) as temporary, matplotlib.rc_context({"svg.hashsalt": "etude"}):
        figure.savefig(temporary, format=kind, dpi=DPI, metadata=dated)
