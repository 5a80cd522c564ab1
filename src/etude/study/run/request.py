"""What a user asks of a run, checked before anything is read."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from etude.core.errors import EtudeError
from etude.core.files import explained_write
from etude.data.sources import ImageSet, read_labelled, read_unlabelled
from etude.journal.mlflow import check_server
from etude.journal.runs import checked_tag
from etude.recipe.settings import DataSettings

Warn = Callable[[str], object]


@dataclass(frozen=True, slots=True)
class Columns:
    """Where a table keeps what; None means: found automatically."""

    image: str | None = None
    label: str | None = None
    weight: str | None = None
    image_root: Path | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """The arguments of ``etude fit``.

    Args:
        train: class folders or a table.
        valid: labelled validation images; excludes ``folds``.
        test: images to predict at the end.
        unlabeled: images without labels that training may use; with a recipe that does.
        teachers: runs, or files of probabilities, that a student learns from.
        folds: number of folds, or None for a hold-out.
        sample: a stratified sample to start with, such as ``"10%"`` or ``"500"``.
        resume: go on with a run that was stopped, in ``out`` or the newest unfinished one below ``runs/``.
        sample_submission: a file whose ids, columns and order the submission must follow.
        probabilities: write probabilities in place of labels.
        positive: the class whose probability the submission's one column holds.
        command: the command line, for the record.
        tags: words to find the run by.
        parent: id of the run that this one is part of.
        mlflow: address of an MLflow server that gets the run when it has finished.
    """

    train: Path
    valid: Path | None = None
    test: Path | None = None
    unlabeled: Path | None = None
    teachers: Sequence[Path] = ()
    folds: int | None = None
    recipe: str = "default"
    settings: Sequence[str] = ()
    sample: str | None = None
    seed: int = 0
    out: Path | None = None
    cache: Path | None = None
    columns: Columns = field(default_factory=Columns)
    sample_submission: Path | None = None
    probabilities: bool = False
    positive: str | None = None
    resume: bool = False
    command: Sequence[str] = ()
    tags: Sequence[str] = ()
    parent: str | None = None
    mlflow: str | None = None

    def __post_init__(self) -> None:
        for name in ("train", "valid", "test", "unlabeled", "out", "cache", "sample_submission"):
            given = getattr(self, name)
            if given is not None:  # the shell leaves --out=~/FOLDER as it is, and Python every ~
                object.__setattr__(self, name, Path(os.path.expanduser(given)))
        object.__setattr__(self, "teachers", tuple(Path(os.path.expanduser(given)) for given in self.teachers))

    def check(self) -> None:
        """Refuse arguments that contradict each other.

        Raises:
            EtudeError: with one sentence on what to change.
        """
        if self.folds is not None and self.valid is not None:
            raise EtudeError("--folds makes its own validation images, so it cannot go with --valid; give one of them")
        if self.folds is not None and self.folds < 2:
            raise EtudeError(f"--folds is {self.folds}; give 2 or more, or leave it out for a single hold-out")
        if self.sample_submission is not None and self.test is None:
            raise EtudeError("--sample-submission needs --test with the images that the submission is about")
        if self.positive is not None and self.test is None:
            raise EtudeError("--positive needs --test with images whose probability of that class is to be written")
        if self.seed < 0:
            raise EtudeError(f"--seed is {self.seed}; give 0 or a positive whole number")
        for tag in self.tags:
            checked_tag(tag)
        if self.mlflow is not None:
            check_server(self.mlflow)

    def read_train(self, settings: DataSettings, warn: Warn) -> ImageSet:
        """Read the labelled training images."""
        columns = self.columns
        return read_labelled(
            self.train,
            image_column=columns.image,
            label_column=columns.label,
            weight_column=columns.weight,
            image_root=columns.image_root,
            split_column=settings.split_column,
            spelling=settings.labels,
            warn=warn,
        )

    def read_valid(self, classes: Sequence[str], settings: DataSettings, warn: Warn) -> ImageSet | None:
        """Read the validation images, whose labels must be among ``classes``."""
        if self.valid is None:
            return None
        table = self.valid.is_file()
        columns = self.columns if table else Columns()
        return read_labelled(
            self.valid,
            image_column=columns.image,
            label_column=columns.label,
            image_root=columns.image_root,
            split_column="none",
            classes=classes,
            spelling=settings.labels,
            warn=warn,
        )

    def read_test(self) -> ImageSet | None:
        """Read the images to predict."""
        return None if self.test is None else read_unlabelled(self.test)

    def read_unlabelled(self) -> ImageSet | None:
        """Read the images without labels that training may use."""
        return None if self.unlabeled is None else read_unlabelled(self.unlabeled)


def lr_settings(lr: str | float | None) -> list[str]:
    """Return the settings that ``--lr`` stands for: a number, or ``auto`` for a search before training.

    Raises:
        EtudeError: it is neither.

    >>> lr_settings("auto"), lr_settings("3e-4"), lr_settings(None)
    (['train.find_lr=true'], ['train.lr=0.0003'], [])
    """
    if lr is None:
        return []
    if lr == "auto":
        return ["train.find_lr=true"]
    try:
        return [f"train.lr={float(lr)}"]
    except ValueError:
        raise EtudeError(f"--lr is {lr!r}; give a number such as 1e-3, or auto to search for it") from None


def run_folders(train: Path) -> Iterator[Path]:
    """Yield ``runs/NAME``, ``runs/NAME-2`` and so on, named after the training data, without end."""
    name = train.stem if train.suffix.lower() in (".csv", ".tsv", ".parquet") else train.resolve().name
    for number in itertools.count(1):
        yield Path("runs") / (name if number == 1 else f"{name}-{number}")


def claim_run_folder(train: Path) -> Path:
    """Make and return the first of the run folders that is free.

    Two runs that start at once get two folders: making a folder that is already there fails.
    """
    for folder in run_folders(train):
        with explained_write(folder):
            try:
                folder.mkdir(parents=True)
                break
            except FileExistsError:
                continue
    return folder
