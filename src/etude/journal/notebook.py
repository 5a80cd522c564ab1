"""``notebook.ipynb``: a finished run to look at and to go on from, cell by cell; it runs as it stands.

A notebook is small JSON (the format of github.com/jupyter/nbformat, version 4.5), so it is written without a library.
It holds no word of the run itself: what it shows it reads, through :class:`RunView`, from the folder that it lies in.
"""

from __future__ import annotations

import base64
import re
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from markupsafe import Markup

from etude.core.errors import EtudeError
from etude.core.files import write_json
from etude.core.predictions import Predictions
from etude.core.text import duration, percent, points, short_number
from etude.journal.report import tables
from etude.journal.report.advice import advice_of
from etude.journal.report.charts import Figure
from etude.journal.report.curves import curve_figures, schedule_of
from etude.journal.report.folder import RunFolder
from etude.journal.report.gallery import Album, Picture
from etude.journal.report.html import asset, kind_of, macro, render
from etude.journal.report.scores import Evaluated, calibration_figure, class_rows, matrix_figure, scores_of
from etude.journal.runs import FILE_NAME, read_run

NAME = "notebook.ipynb"

_MOST_GUESSES = 5
_PATHS = ("train", "valid", "test", "unlabeled", "cache", "image_root", "sample_submission")
_DARK = re.compile(r"@media[^{]*\{(?:[^{}]*\{[^{}]*\})*[^{}]*\}")
_NOT_IN_XML = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")

T = TypeVar("T")


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
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        padded = ("  ".join(map(str.ljust, line, widths)) for line in lines)
        return "\n".join(line.rstrip() for line in padded)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        columns, *rows = ([*map(_clean, row)] for row in (self.columns, *self.rows))
        return macro("notebook.html.j2", "table", columns, rows)


@dataclass(frozen=True, slots=True)
class Sheet:
    """Charts side by side, each a picture that needs no other style, with title, legend and caption."""

    figures: Sequence[Figure]

    def __repr__(self) -> str:
        return "\n".join(". ".join(filter(None, (one.title, one.caption))) for one in self.figures)

    def _repr_html_(self) -> str:
        css = _DARK.sub("", asset("charts.css"))
        colors = dict(re.findall(r"--([\w-]+): ([^;]+);", css))
        style = Markup("<style>{}</style>").format(Markup(css))
        charts: list[tuple[Any, ...]] = []
        for one in self.figures:
            svg = (
                str(one.svg)
                .replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
                .replace(">", f">{style}", 1)
            )
            source = f"data:image/svg+xml;base64,{base64.b64encode(_clean(svg).encode()).decode()}"
            legend = [(colors[color], name) for color, name in one.legend]
            title = _clean(one.title[:1].upper() + one.title[1:])
            charts.append((title, legend, source, _clean(one.title), _clean(one.caption)))
        return macro("notebook.html.j2", "sheet", charts)


@dataclass(frozen=True, slots=True)
class Pictures:
    """Images with their label and what was predicted."""

    pictures: Sequence[Picture]

    def __repr__(self) -> str:
        return "\n".join(one.described for one in self.pictures)

    def _repr_html_(self) -> str:
        shown = [
            (one.source, _clean(one.described), _clean(one.label), _clean(one.guess), percent(one.confidence))
            for one in self.pictures
        ]
        return macro("notebook.html.j2", "pictures", shown)


def _clean(text: str) -> str:
    """Return ``text`` without what XML or UTF-8 cannot hold: control characters, and halves of surrogate pairs."""
    return _NOT_IN_XML.sub("\N{REPLACEMENT CHARACTER}", text).encode("utf-8", "backslashreplace").decode("utf-8")


class NoRunHereError(EtudeError):
    """A notebook was started in a folder that holds no run; Jupyter shows the sentence without a traceback."""

    def _render_traceback_(self) -> list[str]:
        return [str(self)]


class RunView:
    """The parts of a run's report, one by one, for a notebook or for Python.

    What the run has not made raises an EtudeError; what is damaged of its files is a warning.

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
        """Open the run in the working folder: where Jupyter opens a notebook is where the notebook lies."""
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
        """Return the settings that differ from the recipe's, as requested and as used."""
        return self.settings(only_changed=True)

    def settings(self, only_changed: bool = False) -> Table:
        """Return every setting, as requested and as used."""
        found = [(section, one) for section, group in tables.settings_of(self.record).items() for one in group]
        rows = [
            (one.name if section == "recipe" else f"{section}.{one.name}", one.requested, one.used)
            for section, one in found
            if one.changed or not only_changed
        ]
        return Table(("setting", "requested", "used"), rows)

    def data(self) -> Table:
        """Return what the run was trained on, and how its images were prepared."""
        return Table(("data", ""), tables.data_facts(self.record))

    def environment(self) -> Table:
        """Return the machine, the versions, and the state of the code."""
        return Table(("environment", ""), tables.environment_facts(self.record))

    def architecture(self) -> Table:
        """Return the network in numbers, with what an image goes through before it."""
        return Table(("network", ""), self._architecture().facts)

    def layers(self) -> Table:
        """Return the parts of the network with their parameters."""
        rows = [(name, f"{tensors:,}", f"{count:,}") for name, tensors, count in self._architecture().parts]
        return Table(("part", "tensors", "parameters"), rows)

    def stages(self) -> Table:
        """Return what each stage took, reached, and gained over what was kept before; accuracy in points."""
        rows = [
            (
                step.name if step.count == 1 else f"{step.name} × {step.count}",
                step.state if step.kept or step.state != "finished" else f"{step.state}, not kept",
                *(duration(step.seconds), "" if step.accuracy is None else percent(step.accuracy, 2)),
                *(points(step.gained), "" if step.log_loss is None else short_number(step.log_loss), step.notes),
            )
            for step in tables.steps_of(self.record)
        ]
        return Table(("stage", "state", "time", "accuracy", "gain", "log loss", "notes"), rows)

    def rounds(self) -> Table:
        """Return the rounds with unlabelled images."""
        return Table(*self._made(tables.rounds_table(self.record), "rounds with unlabelled images"))

    def timeline(self) -> Sheet:
        """Return every scheduled quantity over the run, as planned and as it ran."""
        found = schedule_of(self._run)
        return Sheet(self._made(found and found.figures, "timeline of quantities that change"))

    def curves(self) -> Sheet:
        """Return the curves of training."""
        return Sheet(self._made(curve_figures(self._run.models), "training curves"))

    def scores(self) -> Table:
        """Return the scores on the validation images with their 95% intervals."""
        rows = [
            (one.name, *(percent(x, 2) if one.is_share else short_number(x) for x in (one.value, one.low, one.high)))
            for one in scores_of(self._evaluated())
        ]
        return Table(("score", "value", "from", "to"), rows)

    def confusions(self) -> Sheet:
        """Return the confusion matrix of the validation images."""
        return Sheet([matrix_figure(self._evaluated())])

    def classes(self) -> Table:
        """Return the scores of each class, the weakest first."""
        rows = [
            (
                *(row.name, f"{row.images:,}", percent(row.recall), f"{percent(row.low)} to {percent(row.high)}"),
                *map(percent, (row.precision, row.f1)),
                "" if row.confused is None else f"{row.confused[0]} × {row.confused[1]:,}",
            )
            for row in class_rows(self._evaluated())
        ]
        return Table(("class", "images", "recall", "95% interval", "precision", "F1", "predicted as"), rows)

    def errors(self) -> Pictures:
        """Return the most confident errors, as the run's gallery shows them."""
        run = self._run
        album = self._made(run.gallery and Album(run.gallery, [one for one in (run.valid,) if one], ()), "gallery")
        return Pictures([picture for group in album.shown("confident_errors") for picture in group])

    def advice(self) -> Table:
        """Return what to do next, the most worthwhile first."""
        return Table(("what to do next", "command"), [(one.text, one.command) for one in advice_of(self._run)])

    def asked(self) -> dict[str, Any]:
        """Return what the run was asked for, as ``etude.fit`` takes it, with whole paths."""
        asked = dict(self._made(self.record.get("request"), "record of what it was asked for"))
        start = Path(asked.pop("cwd"))
        for name, given in asked.items():
            if given is not None and (name in _PATHS or (name == "recipe" and given.endswith(".toml"))):
                asked[name] = str(start / given)
        return asked | {"teachers": [str(start / one) for one in asked.get("teachers") or ()]}

    def calibration(self) -> Sheet:
        """Return the reliability diagram with the expected calibration error."""
        return Sheet([calibration_figure(self._evaluated())])

    def example(self) -> Path:
        """Write a validation image, as small as the gallery holds it, into a new temporary folder; return the file."""
        gallery = self._run.gallery
        samples = self._made(gallery and gallery.groups.get("samples"), "gallery of validation images")
        assert gallery is not None
        picture = gallery.thumbnail(samples[0][0])
        file = Path(tempfile.mkdtemp(prefix="etude-")) / f"example.{kind_of(picture).removeprefix('image/')}"
        file.write_bytes(picture)
        return file

    def guesses(self, predictions: Predictions) -> Table:
        """Return the most probable classes of each image of ``predictions``."""
        shares, rows = predictions.probabilities(), list[tuple[str, str, str]]()
        for name, own in zip(predictions.ids, shares, strict=True):
            best = np.argsort(-own, kind="stable")[:_MOST_GUESSES].tolist()
            rows += [(name, predictions.classes[k], percent(float(own[k]), 2)) for k in best]
        return Table(("image", "class", "probability"), rows)

    def _architecture(self) -> tables.Architecture:
        return self._made(tables.architecture_of(self._run), "model")

    def _evaluated(self) -> Evaluated:
        valid = self._run.valid
        return self._made(None if valid is None else Evaluated.of(valid), "labelled validation predictions")

    def _made(self, found: T | None, what: str) -> T:
        if not found:
            raise EtudeError(f"{self.folder} holds no {what}: this run has not made them, or they were removed")
        return found


def write_notebook(folder: Path) -> Path:
    """Write ``notebook.ipynb`` into a run's folder, with cells for what the run has made, and return its path."""
    record = read_run(folder)
    made = {
        **{name: record.get(name) for name in ("rounds", "timelines", "request")},
        **{name: (folder / f"{name}.npz").is_file() for name in ("valid", "gallery")},
    }
    for name, file in (("models", "model.json"), ("histories", "history.csv")):
        made[name] = [*folder.glob(file), *folder.glob(f"fold-*/{file}")]
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    cells: list[dict[str, Any]] = []
    for number, text in enumerate(render("notebook.txt.j2", made).split("%% ")[1:], 1):
        words, _, source = text.strip().partition("\n")
        kind, folded = words.split()[0], words.endswith(" folded")
        shown = {"collapsed": True, "jupyter": {"outputs_hidden": True}} if folded else {}
        cell = {
            "id": f"cell-{number}",
            "cell_type": kind,
            "metadata": shown,
            "source": source.splitlines(keepends=True),
        }
        cells.append(cell | ({"execution_count": None, "outputs": []} if kind == "code" else {}))
    path = folder / NAME
    write_json(path, {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5})
    return path
