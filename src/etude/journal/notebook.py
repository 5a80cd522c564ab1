"""``notebook.ipynb``: a finished run to look at and to go on from, cell by cell; it runs as it stands.

A notebook is small JSON (the format of github.com/jupyter/nbformat, version 4.5), so it is written without a library.
It holds no word of the run itself: what it shows it reads from the folder that it lies in.
"""

from __future__ import annotations

import re
import tempfile
import textwrap
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from etude.core.errors import EtudeError
from etude.core.files import write_json
from etude.core.predictions import Predictions
from etude.core.text import duration, percent, points, short_number
from etude.journal.report.charts import WIDTH, Figure, label
from etude.journal.report.classes import calibration_figure, matrix_figure
from etude.journal.report.curves import curve_figures, schedule_of
from etude.journal.report.folder import RunFolder
from etude.journal.report.html import asset, element, kind_of
from etude.journal.report.scores import Judged, class_rows, scores_of
from etude.journal.report.tables import (
    Architecture,
    Setting,
    architecture_of,
    data_facts,
    environment_facts,
    rounds_table,
    settings_of,
    steps_of,
)
from etude.journal.runs import FILE_NAME, read_run

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


_MOST_GUESSES = 5


class NoRunHereError(EtudeError):
    """A notebook was started in a folder that holds no run; Jupyter shows the sentence without a traceback."""

    def _render_traceback_(self) -> list[str]:
        return [str(self)]


class RunView:
    """The parts of a run's report, one by one, for a notebook or for Python.

    Args:
        folder: the run's folder.

    Raises:
        EtudeError: the folder holds no run, or its record is damaged.

    Example::

        view = RunView("runs/first")
        view.stages()  # a table
        view.confusions()  # a picture
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self._run = RunFolder.read(self.folder)
        for problem in self._run.problems:
            warnings.warn(problem, stacklevel=2)

    def __repr__(self) -> str:
        return f"RunView({str(self.folder)!r})"

    @classmethod
    def here(cls) -> RunView:
        """Open the run in the working folder: where Jupyter opens a notebook is where the notebook lies.

        Raises:
            EtudeError: no run is there.
        """
        here = Path.cwd()
        if not (here / FILE_NAME).is_file():
            raise NoRunHereError(
                f"{here} holds no {FILE_NAME}: this notebook shows the run in whose folder it lies, so open it there, "
                "or enter that folder first with %cd"
            )
        return cls(here)

    @property
    def record(self) -> dict[str, Any]:
        """The content of ``run.json``."""
        return self._run.record

    def changed(self) -> Table:
        """Return the settings that differ from the recipe's, as asked for and as used."""
        return self._settings(lambda one: one.changed)

    def settings(self) -> Table:
        """Return every setting, as asked for and as used."""
        return self._settings(lambda one: True)

    def data(self) -> Table:
        """Return what the run was trained on, and how its images were prepared."""
        return Table(("data", ""), data_facts(self.record))

    def environment(self) -> Table:
        """Return the machine, the versions, and the state of the code."""
        return Table(("environment", ""), environment_facts(self.record))

    def architecture(self) -> Table:
        """Return the network in numbers, with what an image goes through before it.

        Raises:
            EtudeError: the run holds no model.
        """
        return Table(("network", ""), self._architecture().facts)

    def layers(self) -> Table:
        """Return the parts of the network with their parameters.

        Raises:
            EtudeError: the run holds no model.
        """
        rows = [(name, f"{tensors:,}", f"{count:,}") for name, tensors, count in self._architecture().parts]
        return Table(("part", "tensors", "parameters"), rows)

    def stages(self) -> Table:
        """Return what each stage took, reached, and gained over what was kept before; accuracy in points."""
        rows = [
            (
                step.name if step.count == 1 else f"{step.name} × {step.count}",
                step.state if step.kept or step.state != "finished" else f"{step.state}, not kept",
                duration(step.seconds),
                "" if step.accuracy is None else percent(step.accuracy, 2),
                points(step.gained),
                "" if step.log_loss is None else short_number(step.log_loss),
                step.notes,
            )
            for step in steps_of(self.record)
        ]
        return Table(("stage", "state", "time", "accuracy", "gain", "log loss", "notes"), rows)

    def rounds(self) -> Table:
        """Return the rounds with unlabelled images.

        Raises:
            EtudeError: there were none.
        """
        found = rounds_table(self.record)
        if found is None:
            raise self._lacks("rounds with unlabelled images")
        return Table(*found)

    def timeline(self) -> Sheet:
        """Return every scheduled quantity over the run, as planned and as it ran.

        Raises:
            EtudeError: nothing was scheduled, or the plan cannot be read.
        """
        found = schedule_of(self._run)
        if found is None or not found.figures:
            raise self._lacks("timeline of quantities that change")
        return Sheet(found.figures)

    def curves(self) -> Sheet:
        """Return the curves of training.

        Raises:
            EtudeError: there are none, since no network was trained.
        """
        found = curve_figures(self._run.models)
        if not found:
            raise self._lacks("training curves")
        return Sheet(found)

    def scores(self) -> Table:
        """Return the scores on the validation images with their 95% intervals.

        Raises:
            EtudeError: the run holds no labelled validation predictions; so for what follows.
        """
        rows = [
            (one.name, *(percent(x, 2) if one.is_share else short_number(x) for x in (one.value, one.low, one.high)))
            for one in scores_of(self._judged())
        ]
        return Table(("score", "value", "from", "to"), rows)

    def confusions(self) -> Sheet:
        """Return the confusion matrix of the validation images."""
        return Sheet([matrix_figure(self._judged())])

    def classes(self) -> Table:
        """Return how each class fares, the weakest first."""
        rows = [
            (
                *(row.name, f"{row.images:,}"),
                *(percent(row.recall), f"{percent(row.low)} to {percent(row.high)}", percent(row.precision)),
                *(percent(row.f1), "" if row.taken_for is None else f"{row.taken_for[0]} × {row.taken_for[1]:,}"),
            )
            for row in class_rows(self._judged())
        ]
        return Table(("class", "images", "recall", "95% interval", "precision", "F1", "taken for"), rows)

    def calibration(self) -> Sheet:
        """Return the reliability diagram with the expected calibration error."""
        return Sheet([calibration_figure(self._judged())])

    def example(self) -> Path:
        """Return a file with one of the run's validation images, as small as the gallery holds it, to try things with.

        The file stands in a new temporary folder.

        Raises:
            EtudeError: the run holds no gallery.
        """
        gallery = self._run.gallery
        samples = [] if gallery is None else gallery.groups.get("samples", [])
        if gallery is None or not samples:
            raise self._lacks("gallery of validation images")
        picture = gallery.thumbnail(samples[0][0])
        file = Path(tempfile.mkdtemp(prefix="etude-")) / f"example.{kind_of(picture).removeprefix('image/')}"
        file.write_bytes(picture)
        return file

    def guesses(self, predictions: Predictions) -> Table:
        """Return the most probable classes of each image of ``predictions``."""
        shares = predictions.probabilities()
        order = np.argsort(-shares, axis=1, kind="stable")[:, :_MOST_GUESSES]
        rows = [
            (name, predictions.classes[k], percent(float(shares[row, k]), 2))
            for row, name in enumerate(predictions.ids) for k in order[row].tolist()
        ]  # fmt: skip
        return Table(("image", "class", "probability"), rows)

    def _settings(self, is_wanted: Callable[[Setting], bool]) -> Table:
        rows = [
            (one.name if section == "recipe" else f"{section}.{one.name}", one.asked, one.used)
            for section, group in settings_of(self.record).items() for one in group if is_wanted(one)
        ]  # fmt: skip
        return Table(("setting", "asked for", "used"), rows)

    def _architecture(self) -> Architecture:
        found = architecture_of(self._run)
        if found is None:
            raise self._lacks("model")
        return found

    def _judged(self) -> Judged:
        judged = None if self._run.valid is None else Judged.of(self._run.valid)
        if judged is None:
            raise self._lacks("labelled validation predictions")
        return judged

    def _lacks(self, what: str) -> EtudeError:
        return EtudeError(f"{self.folder} holds no {what}: this run has not made them, or they were removed")


NAME = "notebook.ipynb"

_FORMAT = {"nbformat": 4, "nbformat_minor": 5}
_KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}

Cell = dict[str, Any]


def write_notebook(folder: Path) -> Path:
    """Write ``notebook.ipynb`` into a run's folder and return its path.

    It has cells for what the run has made by now: settings, data, network, stages, timeline, curves, validation scores,
    and a prediction. Run it with Jupyter, opened in that folder.

    Raises:
        EtudeError: the folder holds no run, its record is damaged, or the file cannot be written.
    """
    cells = [*_numbered(_cells(folder, read_run(folder)))]
    metadata = {"kernelspec": _KERNEL, "language_info": {"name": "python"}}
    path = folder / NAME
    write_json(path, {"cells": cells, "metadata": metadata, **_FORMAT})
    return path


def _cells(folder: Path, record: dict[str, Any]) -> Iterator[Cell]:
    """Yield the cells; those about what the run has not made are left out."""
    yield from _opening()
    yield _text("## Settings", "What differs from the recipe, then every setting, as asked for and as used.")
    yield _code("view.changed()")
    yield _code("view.settings()")
    yield _text("## Data and preprocessing", "The images, their split, and what is done to each.")
    yield _code("view.data()")
    models = [*folder.glob("model.json"), *folder.glob("fold-*/model.json")]
    if models:
        yield _text("## Network", "Its size and its cost, what an image goes through before it, and its parts.")
        yield _code("view.architecture()")
        yield _code("view.layers()")
    yield _text("## Stages", "A gain is in points of accuracy, over what was kept before.")
    yield _code("view.stages()")
    if record.get("rounds"):
        yield _code("view.rounds()")
    if record.get("timelines"):
        yield _text("## Timeline", "Every quantity that was scheduled, as planned and as it ran.")
        yield _code("view.timeline()")
    if [*folder.glob("history.csv"), *folder.glob("fold-*/history.csv")]:
        yield _text("## Curves")
        yield _code("view.curves()")
    if (folder / "valid.npz").is_file():
        yield from _validation()
    if models and (folder / "gallery.npz").is_file():
        yield from _prediction()
    yield _text("## Where it ran")
    yield _code("view.environment()")


def _opening() -> Iterator[Cell]:
    yield _text(
        "# A run of etude",
        "This notebook reads the run in the folder that it lies in. Run all cells from the top; `report.html` beside it"
        " tells more at a glance.",
    )
    yield _code(
        "import warnings",
        "",
        "# Libraries that bring bars of their own for notebooks ask for another package; nothing here shows them.",
        'warnings.filterwarnings("ignore", message="IProgress not found")',
        "",
        "import etude",
        "from etude.journal.notebook import RunView",
        "",
        "view = RunView.here()",
        "run = etude.load(view.folder)",
        "run",
    )


def _validation() -> Iterator[Cell]:
    yield _text("## Validation", "None of these images was trained on. Intervals hold 95%.")
    yield _code("view.scores()")
    yield _code("view.confusions()")
    yield _code("view.classes()")
    yield _code("view.calibration()")
    yield _text(
        "The predictions themselves: `probabilities()` is an array with a row an image and a column a class, and "
        "`labels` holds positions in `classes`."
    )
    yield _code("valid = run.validation()", "valid.probabilities().shape, valid.classes[:5]")


def _prediction() -> Iterator[Cell]:
    yield _text(
        "## Predict an image",
        "Here it is one of the validation images, as small as the run's gallery holds it, so its probabilities may "
        "differ a little from those above. Give your own instead: an image, a folder, or a table.",
    )
    yield _code("images = view.example()", "prediction = run.predict(images)", "view.guesses(prediction.predictions)")
    yield _text('`prediction.to_csv("submission.csv")` writes the labels of all of them.')


def _text(*paragraphs: str) -> Cell:
    return {"cell_type": "markdown", "metadata": {}, "source": _lines("\n\n".join(paragraphs))}


def _code(*lines: str) -> Cell:
    empty = {"execution_count": None, "outputs": []}
    return {"cell_type": "code", "metadata": {}, "source": _lines("\n".join(lines)), **empty}


def _lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)


def _numbered(cells: Iterator[Cell]) -> Iterator[Cell]:
    """Give each cell the id that the format asks for."""
    for number, cell in enumerate(cells, 1):
        yield {"id": f"cell-{number}", **cell}
