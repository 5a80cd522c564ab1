"""What ``etude refine`` and ``etude blend`` share: their options, and how predictions are read and written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from etude.cli.common import AsJson, Quiet, checked_out, expanded, screen_for
from etude.core.errors import EtudeError
from etude.study.run.request import Flag

if TYPE_CHECKING:
    from etude.core.predictions import Predictions
    from etude.core.submission import Unreadable
    from etude.journal.screen import Screen
    from etude.refine.tables import Source


@dataclass(frozen=True, kw_only=True)
class ProbabilityOptions:
    """The options of commands that read predictions and write others."""

    out: Path
    """The file to write: .csv, or .npz."""
    labels: Path | None = None
    """A table of ids and labels for the labelled images, when the files do not hold them."""
    metric: str = "accuracy"
    """What decides: accuracy, balanced_accuracy, macro_f1, log_loss, auc, kappa, or map@k."""
    id_column: str | None = None
    """Name of the column of ids in tables, when it is not found by its name."""
    label_column: str | None = None
    """Name of the column of labels."""
    probabilities: bool | None = None
    """Write a column of probabilities a class, as by default without a sample submission, or the predicted class."""
    sample_submission: Path | None = None
    """A CSV whose ids, columns and order the file must follow."""
    positive: str | None = None
    """The class whose probability a single column holds, in the files that are read and in --out; by default that
    which the column is named after, or 1, true, yes or positive."""
    seed: int = 0
    """Of everything random."""
    as_json: AsJson = False
    trust: Flag = False
    """Read a run's files also where they have changed since the run wrote them: by hand, or by damage."""
    quiet: Quiet = False

    @cached_property
    def screen(self) -> Screen:
        return screen_for(as_json=self.as_json, quiet=self.quiet)

    def __post_init__(self) -> None:
        object.__setattr__(self, "out", expanded(self.out))

    def check_out(self) -> None:
        only = {"--no-probabilities": self.probabilities is False, "--positive": self.positive is not None}
        checked_out(self.out, {**only, "--sample-submission": self.sample_submission is not None})

    def file_of(self, given: Path, name: str) -> Path:
        """Return ``given``, or the file ``name`` in it when it is a run's folder."""
        from etude.journal.runs import verify

        path = expanded(given)
        if not path.is_dir():
            return path
        if not (path / name).is_file():
            raise EtudeError(f"{given} holds no {name}: give the folder of a finished run, or a file of predictions")
        if not self.trust:
            verify(path, [name])
        return path / name

    def read(self, paths: Sequence[Path], *, hard: bool = True) -> list[Source]:
        """Read files, their classes in one order; without ``hard`` all hold probabilities, the first with labels."""
        from etude.refine.tables import in_classes, read_source

        sources: list[Source] = []
        for path in paths:
            column = self.label_column if hard or (not sources and self.labels is None) else None
            sources.append(read_source(path, id_column=self.id_column, label_column=column, warn=self.screen.warn))
            if sources[-1].holds == "labels" and not hard:
                raise EtudeError(
                    f"{path} holds a label for each id and no probabilities, so there is nothing to refine: give a "
                    "column of probabilities for each class (etude blend takes files of labels, by majority vote)"
                )
        return in_classes(sources, paths, self.positive)

    def with_labels(self, predictions: Predictions) -> Predictions:
        from etude.refine.tables import with_labels

        if self.labels is None:
            return predictions
        return with_labels(predictions, expanded(self.labels), label_column=self.label_column, warn=self.screen.warn)

    def write(self, source: Source, predictions: Predictions, read: Sequence[Path]) -> None:
        """Write predictions made from ``source``; a sample's rows of unreadable images are filled, by ``read``."""
        from etude.core.submission import write_submission

        if self.out.suffix.lower() == ".npz":
            predictions.save(self.out)
            return
        single = source.columns is not None and self.sample_submission is None
        wanted = self.sample_submission is None if self.probabilities is None else self.probabilities
        id_column, column = source.columns if source.columns is not None else ("id", None)
        write_submission(
            self.out,
            predictions,
            probabilities=wanted and not (single and source.holds == "labels"),
            id_column=id_column,
            label_column=column,
            sample=self.sample_submission,
            positive=self.positive or (source.positive if single and wanted else None),
            unreadable=_unreadable(read),
            warn=self.screen.warn,
        )


def _unreadable(paths: Sequence[Path]) -> Unreadable | None:
    """Return the images that a run among these paths could not read, with its class counts."""
    from etude.core.submission import Unreadable
    from etude.journal.runs import FILE_NAME, read_run

    for path in map(expanded, paths):
        folder = path if path.is_dir() else path.parent
        if (folder / "bad_files.csv").is_file() and (folder / FILE_NAME).is_file():
            from etude.data.sources import read_bad_ids

            counts = (read_run(folder).get("data") or {}).get("classes") or {}
            return Unreadable(read_bad_ids(folder / "bad_files.csv"), counts)
    return None
