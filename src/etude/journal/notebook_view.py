"""A run as its notebook looks at it: each part of the report as a table or a picture that a cell displays."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from etude.core.errors import EtudeError
from etude.core.predictions import Predictions
from etude.journal.html import kind_of
from etude.journal.notebook_show import Sheet, Table
from etude.journal.quantities import duration, percent, points, short_number
from etude.journal.record_read import FILE_NAME
from etude.journal.report_classes import calibration_figure, matrix_figure
from etude.journal.report_curves import curve_figures, schedule_of
from etude.journal.report_folder import RunFolder
from etude.journal.report_scores import Judged, class_rows, scores_of
from etude.journal.report_steps import steps_of
from etude.journal.report_tables import (
    Architecture,
    Setting,
    architecture_of,
    data_facts,
    environment_facts,
    rounds_table,
    settings_of,
)

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
