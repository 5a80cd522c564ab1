"""What a user asks of a run: every option of the commands that read training images, declared and documented once.

``etude fit``, ``ablate``, ``lr-find`` and ``doctor`` take these classes as their options, and ``etude.fit`` the same
names. This module is light: ``--help`` imports it.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from etude.core.errors import EtudeError
from etude.core.files import explained_write

if TYPE_CHECKING:
    from etude.core.context import Context
    from etude.data.sources import ImageSet
    from etude.recipe.settings import DataSettings

Train = Annotated[Path, Parameter(help="Folder with one sub-folder a class, or a CSV, TSV or Parquet table.")]
Flag = Annotated[bool, Parameter(negative="", show_default=False)]
Words = Annotated[Sequence[str], Parameter(negative="", show_default=False)]


@dataclass(frozen=True, kw_only=True)
class Options:
    """What every command takes that reads training images."""

    recipe: str = "default"
    """quick (seconds), default, pseudo-label, consistency, distill, a timeline such as one-cycle, or a TOML file."""
    settings: Annotated[Words, Parameter(name="--set")] = ()
    """Change a setting, such as ``--set train.lr=0.001``; may be repeated. ``etude settings`` lists them all."""
    epochs: float | None = None
    """Short for train.epochs: passes over the training images."""
    size: int | None = None
    """Image side in pixels that training ends at, and that validation, prediction and features have. Short for
    timeline.start_size, timeline.final_size and model.feature_size together."""
    batch_size: int | None = None
    """Short for train.batch_size: images a step."""
    backbone: str | None = None
    """Short for model.backbone: any timm name, tiny, or auto by image size."""
    sample: str | None = None
    """Start small: a stratified sample such as 10% or 500."""
    seed: int = 0
    """Of everything random."""
    cache: Path | None = None
    """Folder of decoded images and features; by default ~/.cache/etude."""
    image_column: str | None = None
    """The table's column of images, when it is not found automatically."""
    label_column: str | None = None
    """The table's column of labels, when it is not found automatically."""
    image_root: Path | None = None
    """Folder that the table's image names start from."""

    def __post_init__(self) -> None:
        for name in _PATHS & {one.name for one in fields(self)}:
            if (given := getattr(self, name)) is not None:  # the shell leaves --out=~/FOLDER as it is, Python every ~
                object.__setattr__(self, name, Path(os.path.expanduser(given)))
        object.__setattr__(self, "sample", None if self.sample is None else str(self.sample))
        short = {name: given for name in ("lr", *_SHORT) if (given := getattr(self, name, None)) is not None}
        if short:
            from etude.recipe.load import changes_of

            changes = lr_settings(short.get("lr"))
            changes |= changes_of(f"{key}={value}" for name, value in short.items() for key in _SHORT.get(name, ()))
            object.__setattr__(self, "settings", self.changes | changes)
        for name in short:  # they are settings now
            object.__setattr__(self, name, None)

    @property
    def changes(self) -> dict[str, Any]:
        """The settings that are changed, by dotted name."""
        from etude.recipe.load import changes_of

        return changes_of(self.settings or ())

    def check(self) -> None:
        """Refuse what cannot be, as far as the options alone tell."""
        if self.seed < 0:
            raise EtudeError(f"--seed is {self.seed}; give 0 or a positive whole number")

    def request(self, train: Path, command: Sequence[str] = ()) -> Request:
        return Request(train, command=command, **{one.name: getattr(self, one.name) for one in fields(self)})


@dataclass(frozen=True, kw_only=True)
class TrainingOptions(Options):
    """What every command takes that leaves a run."""

    valid: Path | None = None
    """Labelled validation images; by default a fifth of TRAIN is held out."""
    out: Path | None = None
    """The run's folder; by default a new one below runs/."""
    resume: Flag = False
    """Continue the run in --out (or the newest unfinished one on TRAIN) where it was stopped."""
    tags: Annotated[Words, Parameter(name="--tag")] = ()
    """A word to find the run by with ``etude journal list --tag``; may be repeated."""
    weight_column: str | None = None
    """A column of weights for training."""
    mlflow: str | None = None
    """Address of an MLflow server, such as http://127.0.0.1:5000, that gets the run when it has finished."""
    quiet: Flag = False
    """Show warnings only."""


@dataclass(frozen=True, kw_only=True)
class FitOptions(TrainingOptions):
    """The options of ``etude fit``."""

    test: Path | None = None
    """Images to predict at the end, into submission.csv."""
    unlabeled: Path | None = None
    """Images without labels to learn from, with the test images; for the recipes pseudo-label and consistency."""
    teachers: Annotated[Sequence[Path], Parameter(name="--teacher", negative="", show_default=False)] = ()
    """A run, or a file of probabilities, that the network learns from; may be repeated."""
    budget: str | None = None
    """Time for the whole run, such as 90s, 10m or 2h: what the recipe does is chosen to fit, and more networks are
    trained where time is left. Ctrl-C ends the run with what it has."""
    folds: int | None = None
    """Train that many models by cross-validation and average them."""
    lr: float | str | None = None
    """Peak learning rate: a number, or auto to search for it first."""
    cache_limit: str | None = None
    """Most disk space for the decoded images, such as 20GB; by default half of what is free."""
    labels: str | None = None
    """tidy (labels that differ only by outer spaces or Unicode form are one class) or strict; by default tidy."""
    sample_submission: Path | None = None
    """A CSV whose ids, columns and order the submission must follow."""
    probabilities: Flag = False
    """Write one column of probabilities a class instead of a label."""
    positive: str | None = None
    """Write the probability of this class alone; by default 1, true, yes or positive, if the sample has fractions."""

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "settings", self.settings or ())
        object.__setattr__(self, "teachers", tuple(Path(os.path.expanduser(given)) for given in self.teachers))


@dataclass(frozen=True)
class Request(FitOptions):
    """What is asked of one run."""

    train: Path  # class folders or a table
    command: Sequence[str] = ()  # the command line, for the record
    parent: str | None = None  # id of the run that this one is part of

    def check(self) -> None:
        from etude.journal.runs import checked_tag
        from etude.study.run.budget import budget_seconds

        super().check()
        if self.budget is not None:
            budget_seconds(self.budget)
        if self.folds is not None and self.valid is not None:
            raise EtudeError("--folds makes its own validation images, so it cannot go with --valid; give one of them")
        if self.folds is not None and self.folds < 2:
            raise EtudeError(f"--folds is {self.folds}; give 2 or more, or leave it out for a single hold-out")
        if self.sample_submission is not None and self.test is None:
            raise EtudeError("--sample-submission needs --test with the images that the submission is about")
        if self.positive is not None and self.test is None:
            raise EtudeError("--positive needs --test with images whose probability of that class is to be written")
        for tag in self.tags:
            checked_tag(tag)
        if self.mlflow is not None:
            from etude.journal.mlflow import check_server  # and what makes reports

            check_server(self.mlflow)

    def as_record(self) -> dict[str, Any]:
        """Return what ``run.json`` keeps to resume the run by; relative paths start from ``cwd``."""
        kept = {one.name: getattr(self, one.name) for one in fields(self) if one.name not in _NOT_KEPT}
        return {
            "cwd": str(Path.cwd()),
            **json.loads(json.dumps({**kept, "settings": self.changes}, default=str)),
        }

    def read_train(self, settings: DataSettings, context: Context) -> ImageSet:
        names = ("image_column", "label_column", "weight_column", "image_root")
        return self._read(self.train, names, settings, context, split_column=settings.split_column)

    def read_valid(self, classes: Sequence[str], settings: DataSettings, context: Context) -> ImageSet | None:
        """Read the validation images, whose labels must be among ``classes``."""
        if self.valid is None:
            return None
        names = ("image_column", "label_column", "image_root") if self.valid.is_file() else ()
        return self._read(self.valid, names, settings, context, split_column="none", classes=classes)

    def _read(
        self, path: Path, columns: Sequence[str], settings: DataSettings, context: Context, **more: Any
    ) -> ImageSet:
        from etude.data.sources import read_labelled

        given = {name: getattr(self, name) for name in columns}
        return read_labelled(path, spelling=settings.labels, context=context, **given, **more)


_SHORT = {
    "epochs": ["train.epochs"],
    "size": ["timeline.start_size", "timeline.final_size", "model.feature_size"],
    "batch_size": ["train.batch_size"],
    "backbone": ["model.backbone"],
    "cache_limit": ["data.cache_limit"],
    "labels": ["data.labels"],
}
"""The settings that an option is short for; as ``--lr`` it goes before a ``--set`` of the same."""

_NOT_KEPT = {"out", "resume", "tags", "quiet", "command", "parent"}  # other than when it began, or in the record itself
_PATHS = {"train", "valid", "test", "unlabeled", "out", "cache", "image_root", "sample_submission"}


def documented(options: type[Options] = FitOptions, indent: int = 0) -> str:
    """Return the options with their documentation, a paragraph each, for a docstring."""
    from docstring_parser import parse_from_object

    known = [field for kind in reversed(options.__mro__[:-1]) for field in parse_from_object(kind).params]
    first, rest = " " * indent, " " * (indent + 4)
    return "\n".join(
        fill(f"{one.arg_name}: {one.description}", 120, initial_indent=first, subsequent_indent=rest) for one in known
    )


def lr_settings(lr: str | float | None) -> dict[str, Any]:
    """Return the settings that ``--lr`` stands for: a number, or ``auto`` for a search before training."""
    if lr is None:
        return {}
    if lr == "auto":
        return {"train.find_lr": True}
    try:
        return {"train.lr": float(lr)}
    except ValueError:
        raise EtudeError(f"--lr is {lr!r}; give a number such as 1e-3, or auto to search for it") from None


def data_name(train: Path) -> str:
    return train.stem if train.suffix.lower() in (".csv", ".tsv", ".parquet") else train.resolve().name


def run_folders(train: Path) -> Iterator[Path]:
    """Yield ``runs/NAME``, ``runs/NAME-2`` and so on, named after the training data, without end."""
    name = data_name(train)
    yield Path("runs") / name
    yield from (Path("runs") / f"{name}-{number}" for number in itertools.count(2))


def claim_run_folder(train: Path) -> Path:
    """Make and return the first of the run folders that is free; two runs that start at once get two."""
    for folder in run_folders(train):
        with explained_write(folder), suppress(FileExistsError):
            folder.mkdir(parents=True)
            return folder
    raise AssertionError("there is always another number")
