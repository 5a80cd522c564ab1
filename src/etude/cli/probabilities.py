"""What ``etude refine`` and ``etude blend`` share: predictions read from runs and tables, and written again."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from etude.core.predictions import Predictions
    from etude.core.submission import Unreadable
    from etude.refine.tables import Source

Warn = Callable[[str], object]


@dataclass(frozen=True, slots=True)
class Written:
    """Where and how predictions are to be written.

    Args:
        out: a .csv or .npz file.
        probabilities: a column a class, else the predicted class, .csv only; None: what the sample asks for, and
            probabilities without one.
        sample: a sample submission to follow; .csv only.
        positive: the class whose probability one column is to hold; .csv only.
    """

    out: Path
    probabilities: bool | None = None
    sample: Path | None = None
    positive: str | None = None

    @property
    def path(self) -> Path:
        """The file, with ``~`` expanded: the shell leaves --out=~/FILE as it is."""
        return Path(os.path.expanduser(self.out))


def check_out(written: Written) -> None:
    """Refuse what cannot be written, before any work.

    Raises:
        EtudeError: the ending is unknown, or an option does not go with it.
    """
    from etude.core.errors import EtudeError

    ending = written.path.suffix.lower()
    if ending not in (".csv", ".npz"):
        raise EtudeError(f"--out is {written.path}; give a file that ends in .csv or .npz")
    asked = written.probabilities is False or written.sample is not None or written.positive is not None
    if ending == ".npz" and asked:
        raise EtudeError(
            f"--out is {written.path}, and an .npz file follows no --no-probabilities, --positive or "
            "--sample-submission: give a .csv"
        )


def write_out(written: Written, source: Source, predictions: Predictions, of: Sequence[Path], warn: Warn) -> None:
    """Write the predictions whole, or not at all.

    Args:
        source: the predictions that these were made from; a single column is written as it has it.
        of: files and folders that were read; rows of a sample for images that their runs could not read are filled.

    Raises:
        EtudeError: they do not fit the sample submission, or the place cannot be written.
    """
    from etude.core.submission import write_submission

    if written.path.suffix.lower() == ".npz":
        predictions.save(written.path)
        return
    single = source.columns is not None and written.sample is None
    wished = written.sample is None if written.probabilities is None else written.probabilities
    id_column, column = source.columns if source.columns is not None else ("id", None)
    write_submission(
        written.path,
        predictions,
        probabilities=wished and not (single and source.holds == "labels"),
        id_column=id_column,
        label_column=column,
        sample=written.sample,
        positive=written.positive or (source.positive if single and wished else None),
        unreadable=_unreadable(of),
        warn=warn,
    )


def _unreadable(paths: Sequence[Path]) -> Unreadable | None:
    """Return the images that a run among these paths could not read, with its class counts."""
    from etude.core.submission import Unreadable
    from etude.data.sources import read_bad_ids
    from etude.journal.record import read_run

    for path in map(expanded, paths):
        folder = path if path.is_dir() else path.parent
        if (folder / "bad_files.csv").is_file() and (folder / "run.json").is_file():
            counts = (read_run(folder).get("data") or {}).get("classes") or {}
            return Unreadable(read_bad_ids(folder / "bad_files.csv"), counts)
    return None


def expanded(path: Path) -> Path:
    """Return ``path`` with ``~`` expanded."""
    return Path(os.path.expanduser(path))


def file_of(given: Path, name: str, trust: bool = False) -> Path:
    """Return ``given``, or the file ``name`` in it when it is a run's folder.

    Args:
        given: a file or a folder.
        name: of the file in the folder.
        trust: take it also where it is not the one that the run wrote.

    Raises:
        EtudeError: the folder has no such file, or one that has changed since the run wrote it.
    """
    from etude.core.errors import EtudeError
    from etude.journal.runs import verify

    path = expanded(given)
    if not path.is_dir():
        return path
    if not (path / name).is_file():
        raise EtudeError(f"{given} holds no {name}: give the folder of a finished run, or a file of predictions")
    if not trust:
        verify(path, [name])
    return path / name


def training_file(valid: Path, given: Path | None, trust: bool = False) -> Path | None:
    """Return the file of the training images' features: ``given``, or the ``train.npz`` of the run ``valid``, or None.

    Raises:
        EtudeError: ``given`` is a folder without it.
    """
    if given is not None:
        return file_of(given, "train.npz", trust)
    return file_of(valid, "train.npz", trust) if (expanded(valid) / "train.npz").is_file() else None


def labelled_and_target(
    valid: Path,
    target: Path | None,
    labels: Path | None,
    *,
    id_column: str | None,
    label_column: str | None,
    positive: str | None,
    warn: Warn,
    trust: bool = False,
) -> tuple[Predictions, Source]:
    """Read the labelled predictions and those to refine, their classes in the same order.

    Raises:
        EtudeError: a file cannot be read, there are no labels, or the classes differ.
    """
    from etude.core.errors import EtudeError
    from etude.refine.tables import in_classes, read_source, with_classes, with_labels

    if target is None and not expanded(valid).is_dir():
        raise EtudeError(
            f"there is nothing to refine: give the predictions of other images after {valid} (--target FILE)"
        )
    paths = [file_of(valid, "valid.npz", trust), file_of(valid if target is None else target, "test.npz", trust)]
    own = None if labels is not None else label_column
    sources = [
        read_source(path, id_column=id_column, label_column=column, warn=warn)
        for path, column in zip(paths, (own, None), strict=True)
    ]
    for path, source in zip(paths, sources, strict=True):
        if source.holds == "labels":
            raise EtudeError(
                f"{path} holds a label for each id and no probabilities, so there is nothing to refine: give a column "
                "of probabilities for each class (etude blend takes files of labels, by majority vote)"
            )
    source, aim = in_classes(sources, paths, positive)
    labelled = source.predictions
    if labels is not None:
        labelled = with_labels(labelled, expanded(labels), label_column=label_column, warn=warn)
    if labelled.labels is None or not (labelled.labels >= 0).any():
        raise EtudeError(
            f"{valid} holds no labels to learn from: give them with --labels FILE, a table of ids and labels"
        )
    return labelled, replace(aim, predictions=with_classes(aim.predictions, labelled.classes, str(paths[1])))
