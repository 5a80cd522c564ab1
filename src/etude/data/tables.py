"""Tables of images: which column names the image files, the labels, the validation rows and the groups."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from etude.core.context import Context
from etude.core.errors import EtudeError, listed, nearest
from etude.core.tables import Table, read_table
from etude.core.text import counted
from etude.data.compact import Texts
from etude.data.walk import is_folder, is_image_name, visible_entries

_IMAGE_NAMES = ("image", "images", "img", "file", "filename", "file_name", "filepath", "file_path", "path")
_IMAGE_NAMES += ("image_path", "image_name", "image_id", "image_file", "id", "name")
_LABEL_NAMES = ("label", "labels", "class", "class_name", "target", "category", "y", "diagnosis", "species")
_PART_NAMES = ("split", "subset", "partition", "set", "usage")
_FLAG_NAMES = ("is_valid", "is_validation", "is_val", "isvalid", "validation", "val")
_FOLD_NAMES = ("fold", "folds", "kfold", "cv_fold", "fold_id")
_SPLIT_NAMES = (*_PART_NAMES, *_FLAG_NAMES, *_FOLD_NAMES)
_GROUPS = ("patient", "subject", "group", "case", "site", "person", "animal", "slide", "lesion", "scene", "video")
_GROUPS += ("camera", "donor", "plate", "batch", "study", "series", "session", "location", "hospital", "center")

PARTS = {
    **dict.fromkeys(("train", "training", "trn"), "train"),
    **dict.fromkeys(("valid", "validation", "val", "dev"), "valid"),
    **dict.fromkeys(("test", "testing", "publictest", "privatetest"), "test"),
    **dict.fromkeys(("unlabeled", "unlabelled"), "unlabeled"),
}
"""Names of the parts of a dataset, in lower case, and which part each means."""
_FLAGS = {"true": True, "yes": True, "t": True, "y": True, "false": False, "no": False, "f": False, "n": False}
_FLAGS |= {"1": True, "1.0": True, "0": False, "0.0": False}
_TRAIN, _TEST = -1, -2  # rows that only train, and rows that do not even that
_MAX_FOLDS = 20
_SAMPLED = 50  # cells that decide about a column; the scan reads every file later


@dataclass(frozen=True)
class GivenSplit:
    """The validation rows that a table's column names."""

    column: str
    fold_of: np.ndarray  # (N,) int64, the split in which each row validates, -1 for rows that train in all of them
    folds: tuple[str, ...] = ()  # what the column calls its folds; empty where it only separates two parts

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


@dataclass(frozen=True)
class Columns:
    """The columns a user asked for, None to find them; ``split`` is auto, none, or the column's name."""

    image: str | None = None
    label: str | None = None
    weight: str | None = None
    split: str = "auto"


@dataclass(frozen=True)
class Rows:
    """The rows of a table of images; ``names`` are the files of the ids, relative to ``root`` or absolute."""

    root: Path
    ids: list[str]
    names: list[str]
    labels: list[str] | None
    weights: list[float] | None
    split: GivenSplit | None
    groups: dict[str, list[str]]
    note: str


def read_rows(
    path: Path, asked: Columns, *, image_root: Path | None, labelled: bool, context: Context = Context()
) -> Rows:
    """Read the rows of a table of images; of a labelled one without its test rows."""
    table = read_table(path)
    table = replace(table, columns={name: cells for name, cells in table.columns.items() if name})
    for name, option in ((asked.image, "image"), (asked.label, "label"), (asked.weight, "weight")):
        if name is not None:
            table.checked(name, f"--{option}-column")
    label_name = asked.label or (_named_label_column(table, asked) if labelled else None)
    taken = {name for name in (asked.image, label_name, asked.weight) if name}
    split = None
    if labelled:
        split, used = _find_split(table, taken, asked.split, context)
        table = table if used.all() else table.take(used.tolist())
        taken |= {split.column} if split else set()
    else:
        taken |= {name for name in table.columns if name.strip().lower() in _LABEL_NAMES}
    image_name, folder = _image_column(table, asked.image, taken, image_root)
    ids = _filled(table, image_name, "image name")
    names = _file_names(path, folder, ids)
    note = f"image column {image_name!r}"
    if not labelled:
        return Rows(folder.root, ids, names, None, None, None, {}, note)
    taken.add(image_name)
    label_name = label_name or _only_other_column(table, taken, image_name)
    labels = _filled(table, label_name, "label", ids)
    weights = _weights(table, asked.weight, ids) if asked.weight else None
    note += f", label column {label_name!r}" + (f", split column {split.column!r}" if split else "")
    groups = _find_groups(table, {*taken, label_name}, labels)
    return Rows(folder.root, ids, names, labels, weights, split, groups, note)


def stated_labels(path: Path, column: str | None) -> tuple[str, dict[str, str]]:
    """Return which column holds labels, by default the one that is named like it, and the label of each id there."""
    if (name := column or _named_label_column(read_table(path), Columns())) is None:
        return "", {}
    rows = read_rows(path, Columns(label=name, split="none"), image_root=None, labelled=True)
    return f"column {name!r} of {path.name}", dict(zip(rows.ids, rows.labels or (), strict=True))


def shared_groups(values: Texts, train: np.ndarray, valid: np.ndarray) -> tuple[int, int]:
    """Return how many values of the validation rows training rows have too, and how many there are; blanks left out."""
    trained, validated = ({values[row] for row in rows.tolist()} - {""} for rows in (train, valid))
    return len(trained & validated), len(validated)


class ImageFolder:
    """A folder in which a table's names are found: file names, paths, or ids without a suffix."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._names_by_stem: dict[str, dict[str, list[str]]] = {}

    def path_of(self, name: str) -> Path:
        """Return the file that ``name`` means, or where it should be when it is missing."""
        if is_image_name(name) and "\\" not in name:
            return self.root / name  # the usual case, without a look at the disk
        fitting = self.find(name)
        if len(fitting) > 1:
            names = listed(path.name for path in fitting)
            raise EtudeError(
                f"the id {name!r} fits several files in {fitting[0].parent}: {names}; write the whole file name"
            )
        return fitting[0] if fitting else self.root / name

    def find(self, name: str) -> list[Path]:
        """Return the existing files that ``name`` may mean; tables written on Windows have backslashes."""
        for spelling in dict.fromkeys((name, name.replace("\\", "/"))):
            path = self.root / spelling
            if os.path.isfile(path):
                return [path]
            if fitting := [] if is_image_name(spelling) else self._with_stem(spelling):
                return [path.parent / file_name for file_name in fitting]
        return []

    def _with_stem(self, name: str) -> list[str]:
        inner, stem = os.path.split(name)
        if inner not in self._names_by_stem:
            folder, names = self.root / inner, dict[str, list[str]]()
            for entry in visible_entries(folder) if folder.is_dir() else ():
                if is_image_name(entry.name):
                    names.setdefault(os.path.splitext(entry.name)[0], []).append(entry.name)
            self._names_by_stem[inner] = names
        return sorted(self._names_by_stem[inner].get(stem, []))


def _image_column(table: Table, asked: str | None, taken: set[str], image_root: Path | None) -> tuple[str, ImageFolder]:
    """Return the column that names the images and the folder its names start from.

    A column qualifies when most of its cells look like image files or are found as such. Among several, a usual
    name (``image``, ``file``, ``id``, ...) decides.
    """
    fitting: dict[str, list[ImageFolder]] = {}
    for name in [asked] if asked else [name for name in table.columns if name not in taken]:
        sampled = _sampled(table.columns[name])
        folders, found = _best_folders(table.path, sampled, image_root)
        named = sum(map(is_image_name, sampled))
        if asked or named > 0.9 * len(sampled) or found > 0.5 * len(sampled):
            fitting[name] = folders
    usual = [name for name in fitting if name.strip().lower() in _IMAGE_NAMES]
    chosen = list(fitting) if len(fitting) == 1 else usual
    if len(chosen) == 1:
        folders = fitting[chosen[0]]
        if len(folders) == 1:
            return chosen[0], folders[0]
        paths = listed(sorted(str(folder.root) for folder in folders), 3)
        example = next(cell for cell in table.columns[chosen[0]] if cell)
        raise EtudeError(
            f"the images that {table.path} names, such as {example!r}, are found in several folders ({paths}); "
            "choose one with --image-root"
        )
    if fitting:
        raise EtudeError(
            f"{table.path} has several columns that may name the images ({listed(fitting)}); "
            f"choose one, such as --image-column {next(iter(fitting))}"
        )
    where = image_root or f"{table.path.parent} and the folders in it"
    raise EtudeError(
        f"no column of {table.path} ({listed(table.columns, 12)}) names image files found in {where}; "
        "name the column with --image-column, and the folder of the images with --image-root"
    )


def _best_folders(table: Path, names: list[str], image_root: Path | None) -> tuple[list[ImageFolder], int]:
    """Return the folders in which most names are found, and how many are.

    The table's own folder comes first; those next to the table are searched only when it has none of the names.
    """

    def counted_in(folder: ImageFolder) -> int:
        return sum(bool(folder.find(name)) for name in names)

    own = ImageFolder(image_root or table.parent)
    found = {own: counted_in(own)}
    if not found[own] and image_root is None:
        others = (ImageFolder(Path(entry.path)) for entry in visible_entries(table.parent) if is_folder(entry))
        found |= {folder: counted_in(folder) for folder in others}
    most = max(found.values())
    return [folder for folder, count in found.items() if count == most and (most or folder is own)], most


def _sampled(cells: Sequence[str]) -> list[str]:
    """Return some cells from all over a column; the first rows alone may not be typical."""
    step = max(1, len(cells) // _SAMPLED)
    return [cell for cell in cells[::step][:_SAMPLED] if cell]


def _file_names(table: Path, folder: ImageFolder, ids: list[str]) -> list[str]:
    root, inside = folder.root, f"{folder.root}{os.sep}"
    names = [str(folder.path_of(name)).removeprefix(inside) for name in ids]
    if not any((root / name).is_file() for name in names):  # stops at the first file: costs nothing when all is well
        raise EtudeError(
            f"none of the {counted(len(ids), 'image')} that {table} names exists (the first would be "
            f"{root / names[0]}); give the folder that the names start from with --image-root, or another "
            "--image-column"
        )
    return names


def _find_split(table: Table, taken: set[str], asked: str, context: Context) -> tuple[GivenSplit | None, np.ndarray]:
    """Return the split that a column gives, and which rows (N,) bool are for training or validation.

    A column that is called ``split``, ``is_valid``, ``fold`` or similar is used when its cells are what its name says:
    names of parts, true and false, or a few whole numbers. Rows that are marked as test rows are left out.
    """
    path, columns = table.path, table.columns
    if asked not in ("none", "auto", *columns):
        raise EtudeError(
            f"data.split_column is {asked!r}, which is no column of {path}: give auto, none or one of "
            f"{listed(columns, 12)}.{nearest(asked, columns)}"
        )
    named = [name for name in columns if name not in taken and name.strip().lower() in _SPLIT_NAMES]
    named.sort(key=lambda name: _SPLIT_NAMES.index(name.strip().lower()))
    found: GivenSplit | None = None
    for name in {"auto": named, "none": []}.get(asked, [asked]):
        split = _split_of(name, columns[name], any_name=asked != "auto")
        if split is None:
            values = sorted({*columns[name]} - {""})
            problem = f"column {name!r} of {path} names no validation rows (its values are {listed(values, 3)})"
            if asked != "auto":
                raise EtudeError(f"{problem}: give train, valid and test, true and false, or a few whole numbers")
            context.warn(f"{problem}, so it is not used")
        elif found is not None:
            context.warn(
                f"column {name!r} of {path} is not used, since column {found.column!r} names the validation rows"
            )
        else:
            found = split
    return (None, np.ones(len(table), bool)) if found is None else _without_test_rows(path, found, context)


def _split_of(name: str, cells: Sequence[str], *, any_name: bool) -> GivenSplit | None:
    """Return the split of a column, test rows still in it (-2); None when its cells are not what its name says."""
    word, texts = name.strip().lower(), [cell.strip().lower() for cell in cells]
    distinct = set(texts) - {""}
    if distinct and distinct <= set(PARTS):
        number = {"valid": 0, "test": _TEST, "unlabeled": _TEST}
        return GivenSplit(name, np.array([number.get(PARTS.get(text, ""), _TRAIN) for text in texts]))
    if (any_name or word in _FLAG_NAMES) and distinct and distinct <= set(_FLAGS):
        return GivenSplit(name, np.array([0 if _FLAGS.get(text) else _TRAIN for text in texts]))
    whole = {text: text.removesuffix(".0") for text in distinct}
    if (any_name or word in _FOLD_NAMES) and all(text.lstrip("-").isdecimal() for text in whole.values()):
        folds = sorted(set(whole.values()), key=int)
        if 2 <= len(folds) <= _MAX_FOLDS:
            number = {text: folds.index(short) for text, short in whole.items()}
            return GivenSplit(name, np.array([number.get(text, _TRAIN) for text in texts]), tuple(folds))
    return None


def _without_test_rows(path: Path, found: GivenSplit, context: Context) -> tuple[GivenSplit | None, np.ndarray]:
    used = found.fold_of != _TEST
    if not used.all():
        context.warn(
            f"{counted(int((~used).sum()), 'row')} of {path} marked as test or unlabelled in column {found.column!r} "
            "neither train nor validate: give images to predict with --test"
        )
    kept = found.take(np.flatnonzero(used))
    if not found.folds and not (kept.fold_of == _TRAIN).any():
        raise EtudeError(
            f"column {found.column!r} of {path} leaves no row to train on: mark some for training, or do not use "
            "the column, by --set data.split_column=none"
        )
    if (kept.fold_of == _TRAIN).all():
        context.warn(f"column {found.column!r} of {path} marks no row for validation, so a share of them is held out")
        return None, used
    return kept, used


def _find_groups(table: Table, taken: set[str], labels: Sequence[str]) -> dict[str, list[str]]:
    """Return the columns whose equal cells may belong together, such as ``patient_id``: named so, and with repeats.

    A column that has one value a label, such as ``class_id``, names classes and no groups.
    """
    found: dict[str, list[str]] = {}
    for name, cells in table.columns.items():
        word = name.strip().lower()
        grouped = word.endswith("_id") or word.removesuffix("id").rstrip("_") in _GROUPS
        if name in taken or word in _SPLIT_NAMES or not grouped:
            continue
        if 1 < len(set(cells)) < len(cells) and len(set(zip(labels, cells, strict=True))) > len(set(labels)):
            found[name] = cells
    return found


def _named_label_column(table: Table, asked: Columns) -> str | None:
    """Return the one column that is named like a label, or None when no name says so."""
    named = [name for name in table.columns if name.strip().lower() in _LABEL_NAMES]
    named = [name for name in named if name not in (asked.image, asked.weight)]
    if len(named) > 1:
        raise EtudeError(
            f"{table.path} has several columns that may hold the label ({listed(named)}); "
            f"choose one, such as --label-column {named[0]}"
        )
    return named[0] if named else None


def _only_other_column(table: Table, taken: set[str], image_name: str) -> str:
    others = [name for name in table.columns if name not in taken]
    # A column that is named like a split and not used as one is the label only where there is no other.
    others = [name for name in others if name.strip().lower() not in _SPLIT_NAMES] or others
    if len(others) == 1:
        return others[0]
    if not others:
        raise EtudeError(f"{table.path} has an image column {image_name!r} but no label column; add a column of labels")
    raise EtudeError(
        f"it is not clear which column of {table.path} holds the label: besides the image column {image_name!r} it has "
        f"{listed(others, 12)}; choose one, such as --label-column {others[0]}"
    )


def _filled(table: Table, name: str, what: str, ids: Sequence[str] = ()) -> list[str]:
    """Return a column's cells when each has text; a blank label is a mistake to be fixed, not a class."""
    cells = table.columns[name]
    blank = [row for row, cell in enumerate(cells) if not cell.strip()]
    if blank:
        where = f" (image {ids[blank[0]]!r})" if ids else ""
        raise EtudeError(
            f"{table.path} has no {what} in column {name!r} for {len(blank):,} of its {counted(len(cells), 'row')}, "
            f"first in {table.places[blank[0]]}{where}; fill it in or remove such rows"
        )
    return cells


def _weights(table: Table, name: str, ids: Sequence[str]) -> list[float]:
    weights: list[float] = []
    for row, cell in enumerate(_filled(table, name, "weight", ids)):
        try:
            weight = float(cell)
        except ValueError:
            weight = math.nan
        if not (math.isfinite(weight) and weight > 0):
            raise EtudeError(
                f"{table.place(row)} (image {ids[row]!r}) has the weight {cell!r} in column {name!r}; weights are "
                "numbers above 0"
            )
        weights.append(weight)
    return weights
