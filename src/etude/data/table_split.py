"""Columns of a table that say which rows validate, and columns whose rows may belong together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from etude.core.errors import EtudeError, listed, nearest
from etude.data.compact import Texts
from etude.data.wording import counted

Warn = Callable[[str], object]
Cells = Sequence[str | None]

PARTS = {
    **dict.fromkeys(("train", "training", "trn"), "train"),
    **dict.fromkeys(("valid", "validation", "val", "dev"), "valid"),
    **dict.fromkeys(("test", "testing", "publictest", "privatetest"), "test"),
    **dict.fromkeys(("unlabeled", "unlabelled"), "unlabeled"),
}
"""What parts of a data set are called, in lower case, and which part that is."""

_TRAIN, _TEST = -1, -2  # rows that only train, and rows that do not even that
_FLAGS = {"true": True, "yes": True, "t": True, "y": True, "false": False, "no": False, "f": False, "n": False}
_FLAGS |= {"1": True, "1.0": True, "0": False, "0.0": False}
_FLAG_NAMES = ("is_valid", "is_validation", "is_val", "isvalid", "validation", "val")
_PART_NAMES = ("split", "subset", "partition", "set", "usage")
_FOLD_NAMES = ("fold", "folds", "kfold", "cv_fold", "fold_id")
SPLIT_NAMES = (*_PART_NAMES, *_FLAG_NAMES, *_FOLD_NAMES)
_MOST_FOLDS = 20
_GROUPS = ("patient", "subject", "group", "case", "site", "person", "animal", "slide", "lesion", "scene", "video")
_GROUPS += ("camera", "donor", "plate", "batch", "study", "series", "session", "location", "hospital", "center")


@dataclass(frozen=True)
class GivenSplit:
    """The validation rows that a table's column names.

    Attributes:
        column: its name.
        fold_of: (N,) int64, the split in which each row validates, -1 for rows that train in all of them.
        folds: what the column calls its folds; empty where it only tells training from validation.
    """

    column: str
    fold_of: np.ndarray
    folds: tuple[str, ...] = ()

    def take(self, rows: np.ndarray) -> GivenSplit:
        """Return the split of the rows at these positions."""
        return replace(self, fold_of=self.fold_of[rows])

    def pairs(self, all_folds: bool) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return (training rows, validation rows) of every fold, or of the first alone."""
        numbers = range(len(self.folds)) if all_folds else range(1)
        return [(np.flatnonzero(self.fold_of != fold), np.flatnonzero(self.fold_of == fold)) for fold in numbers]

    @property
    def described(self) -> str:
        """For the plan, such as ``"by column 'is_valid'"``."""
        if not self.folds:
            return f"by column {self.column!r}"
        return f"fold {self.folds[0]!r} of column {self.column!r}; --folds {len(self.folds)} trains on each"


def find_split(
    table: Path, columns: Mapping[str, Cells], taken: set[str], asked: str, warn: Warn
) -> tuple[GivenSplit | None, np.ndarray]:
    """Return the split that a column of the table gives, and which rows (N,) bool are for training or validation.

    A column that is called ``split``, ``is_valid``, ``fold`` or alike is used when its cells are what its name says:
    names of parts, true and false, or a few whole numbers. Rows that are marked as test rows are left out.

    Args:
        table: its path, for messages.
        columns: name to cells.
        taken: columns that are known to hold something else.
        asked: ``auto``, ``none``, or the name of the column.
        warn: is given a sentence about rows that are left out, and columns that are not used.

    Raises:
        EtudeError: the column that was asked for is missing or says nothing of the kind, or no row is left to train on.
    """
    rows = len(next(iter(columns.values())))
    if asked == "none":
        return None, np.ones(rows, bool)
    if asked != "auto" and asked not in columns:
        raise EtudeError(
            f"data.split_column is {asked!r}, which is no column of {table}: give auto, none or one of "
            f"{listed(columns, 12)}.{nearest(asked, columns)}"
        )
    named = [name for name in columns if name not in taken and name.strip().lower() in SPLIT_NAMES]
    named.sort(key=lambda name: SPLIT_NAMES.index(name.strip().lower()))
    found: GivenSplit | None = None
    for name in named if asked == "auto" else [asked]:
        read = _read_column(name, columns[name], any_name=asked != "auto")
        if read is None:
            values = sorted({cell for cell in columns[name] if cell})
            told = f"column {name!r} of {table} names no validation rows (its values are {listed(values, 3)})"
            if asked != "auto":
                raise EtudeError(f"{told}: give train, valid and test, true and false, or a few whole numbers")
            warn(f"{told}, so it is not used")
        elif found is not None:
            warn(f"column {name!r} of {table} is not used, since column {found.column!r} names the validation rows")
        else:
            found = read
    if found is None:
        return None, np.ones(rows, bool)
    return _without_test_rows(table, found, warn)


def find_groups(columns: Mapping[str, Cells], taken: set[str], labels: Sequence[str]) -> dict[str, list[str]]:
    """Return the columns whose equal cells may belong together, such as ``patient_id``: named so, and with repeats.

    A column that has one value a label, such as ``class_id``, names classes and no groups.
    """
    found: dict[str, list[str]] = {}
    for name, cells in columns.items():
        word = name.strip().lower()
        grouped = word.endswith("_id") or word.removesuffix("id").rstrip("_") in _GROUPS
        if name in taken or word in SPLIT_NAMES or not grouped:
            continue
        values = [cell or "" for cell in cells]
        distinct = set(values)
        if 1 < len(distinct) < len(values) and len(set(zip(labels, values, strict=True))) > len(set(labels)):
            found[name] = values
    return found


def shared_groups(values: Texts, train: np.ndarray, valid: np.ndarray) -> tuple[int, int]:
    """Return how many values of the validation rows training rows have too, and how many there are; blanks left out."""
    trained, validated = ({values[row] for row in rows.tolist()} - {""} for rows in (train, valid))
    return len(trained & validated), len(validated)


def _read_column(name: str, cells: Cells, *, any_name: bool) -> GivenSplit | None:
    """Return the split of a column, test rows still in it (-2); None when its cells are not what its name says."""
    word, texts = name.strip().lower(), [(cell or "").strip().lower() for cell in cells]
    distinct = set(texts) - {""}
    if distinct and distinct <= set(PARTS):
        number = {"valid": 0, "test": _TEST, "unlabeled": _TEST}
        return GivenSplit(name, np.array([number.get(PARTS.get(text, ""), _TRAIN) for text in texts]))
    if (any_name or word in _FLAG_NAMES) and distinct and distinct <= set(_FLAGS):
        return GivenSplit(name, np.array([0 if _FLAGS.get(text) else _TRAIN for text in texts]))
    whole = {text: text.removesuffix(".0") for text in distinct}
    if (any_name or word in _FOLD_NAMES) and all(text.lstrip("-").isdecimal() for text in whole.values()):
        folds = sorted(set(whole.values()), key=int)
        if 2 <= len(folds) <= _MOST_FOLDS:
            place = {text: folds.index(short) for text, short in whole.items()}
            return GivenSplit(name, np.array([place.get(text, _TRAIN) for text in texts]), tuple(folds))
    return None


def _without_test_rows(table: Path, found: GivenSplit, warn: Warn) -> tuple[GivenSplit | None, np.ndarray]:
    used = found.fold_of != _TEST
    if not used.all():
        warn(
            f"{counted(int((~used).sum()), 'row')} of {table} marked as test or unlabelled in column {found.column!r} "
            "neither train nor validate: give images to predict with --test"
        )
    kept = found.take(np.flatnonzero(used))
    if not found.folds and not (kept.fold_of == _TRAIN).any():
        raise EtudeError(
            f"column {found.column!r} of {table} leaves no row to train on: mark some for training, or do not use "
            "the column, by --set data.split_column=none"
        )
    if (kept.fold_of == _TRAIN).all():
        warn(f"column {found.column!r} of {table} marks no row for validation, so a share of them is held out")
        return None, used
    return kept, used
