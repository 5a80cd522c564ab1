"""Image lists in CSV, TSV and Parquet tables: reading them as text and finding the columns that matter."""

from __future__ import annotations

import csv
import math
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import compress
from pathlib import Path

import numpy as np

from etude.core.errors import EtudeError, listed, nearest
from etude.core.files import reading
from etude.core.text import counted
from etude.data.compact import Texts
from etude.data.walk import is_folder, is_image_name, visible_entries

_IMAGE_NAMES = ("image", "images", "img", "file", "filename", "file_name", "filepath", "file_path", "path")
_IMAGE_NAMES += ("image_path", "image_name", "image_id", "image_file", "id", "name")
_SAMPLED = 50  # cells looked at to judge a column; the survey looks at every file later


class ImageFolder:
    """A folder in which a table's names are looked up: file names, paths, or ids without a suffix."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._names_by_stem: dict[str, dict[str, list[str]]] = {}

    def place(self, name: str) -> Path:
        """Return the file that ``name`` means, or where it should be when it is missing.

        Raises:
            EtudeError: an id without a suffix fits several files.
        """
        if is_image_name(name) and "\\" not in name:
            return self.root / name  # the usual case costs no look at the disk
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
            fitting = [] if is_image_name(spelling) else self._fitting(spelling)
            if fitting:
                return [path.parent / file_name for file_name in fitting]
        return []

    def _fitting(self, name: str) -> list[str]:
        inner, stem = os.path.split(name)
        if inner not in self._names_by_stem:
            self._names_by_stem[inner] = _by_stem(self.root / inner)
        return self._names_by_stem[inner].get(stem, [])


def find_image_column(
    table: Path, columns: Mapping[str, Sequence[str | None]], taken: set[str], image_root: Path | None
) -> tuple[str, ImageFolder]:
    """Return the column that names the images and the folder its names start from.

    A column qualifies when most of its cells look like image files or are found as such. Among several, a usual
    name (``image``, ``file``, ``id``, ...) decides.

    Args:
        table: the table's path, named in errors; names start from its folder or a folder beside it.
        columns: name to cells.
        taken: columns that are known to hold something else.
        image_root: the folder that names start from, when the user gave it.

    Raises:
        EtudeError: no column, or more than one, qualifies.
    """
    fitting: dict[str, list[ImageFolder]] = {}
    for name, cells in columns.items():
        sampled = _sampled(cells)
        if name in taken or not sampled:
            continue
        folders, found = _best_folders(table, sampled, image_root)
        named = sum(is_image_name(cell) for cell in sampled)
        if named > 0.9 * len(sampled) or found > 0.5 * len(sampled):
            fitting[name] = folders
    usual = [name for name in fitting if name.strip().lower() in _IMAGE_NAMES]
    chosen = list(fitting) if len(fitting) == 1 else usual
    if len(chosen) == 1:
        return chosen[0], _only(fitting[chosen[0]], table, columns[chosen[0]])
    if fitting:
        raise EtudeError(
            f"{table} has several columns that may name the images ({listed(fitting)}); "
            f"choose one, such as --image-column {next(iter(fitting))}"
        )
    where = image_root or f"{table.parent} and the folders in it"
    raise EtudeError(
        f"no column of {table} ({listed(columns, 12)}) names image files found in {where}; "
        "name the column with --image-column, and the folder of the images with --image-root"
    )


def folder_for(table: Path, cells: Sequence[str | None], image_root: Path | None) -> ImageFolder:
    """Return the folder that the names in ``cells`` start from.

    Raises:
        EtudeError: two folders beside the table fit equally well.
    """
    return _only(_best_folders(table, _sampled(cells), image_root)[0], table, cells)


def _best_folders(table: Path, names: list[str], image_root: Path | None) -> tuple[list[ImageFolder], int]:
    """Return the folders in which most names are found, and how many are.

    The table's own folder comes first; those beside the table are looked at only when it has none of the names.
    """
    own = ImageFolder(image_root or table.parent)
    found = _count_found(own, names)
    if found or image_root is not None:
        return [own], found
    beside = [ImageFolder(Path(entry.path)) for entry in visible_entries(table.parent) if is_folder(entry)]
    counts = [_count_found(folder, names) for folder in beside]
    most = max(counts, default=0)
    best = [folder for folder, count in zip(beside, counts, strict=True) if count == most]
    return (best, most) if most else ([own], 0)


def _count_found(folder: ImageFolder, names: list[str]) -> int:
    return sum(bool(folder.find(name)) for name in names)


def _only(folders: list[ImageFolder], table: Path, cells: Sequence[str | None]) -> ImageFolder:
    if len(folders) == 1:
        return folders[0]
    places = listed(sorted(str(folder.root) for folder in folders), 3)
    example = next(cell for cell in cells if cell)
    raise EtudeError(
        f"the images that {table} names, such as {example!r}, are found in several folders ({places}); "
        "say which with --image-root"
    )


def _sampled(cells: Sequence[str | None]) -> list[str]:
    """Return some cells from all over a column; the first rows alone may not be typical."""
    step = max(1, len(cells) // _SAMPLED)
    return [cell for cell in cells[::step][:_SAMPLED] if cell]


def _by_stem(folder: Path) -> dict[str, list[str]]:
    if not folder.is_dir():
        return {}
    names: dict[str, list[str]] = {}
    for entry in visible_entries(folder):
        if is_image_name(entry.name):
            names.setdefault(os.path.splitext(entry.name)[0], []).append(entry.name)
    return {stem: sorted(fitting) for stem, fitting in names.items()}


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


_TABLE_SUFFIXES = frozenset({".csv", ".tsv", ".parquet"})
_LABEL_NAMES = ("label", "labels", "class", "class_name", "target", "category", "y", "diagnosis", "species")


@dataclass(frozen=True)
class Columns:
    """The columns a user asked for; None lets the table decide.

    ``split`` is auto, none, or the column that names the validation rows.
    """

    image: str | None = None
    label: str | None = None
    weight: str | None = None
    split: str = "auto"


@dataclass(frozen=True)
class Table:
    """A table as text.

    Attributes:
        path: where it was read from.
        columns: name to (N,) cells, None for an empty one.
        rows: (N,) places of the rows in the file, counted from 0, where some of them were left out.
    """

    path: Path
    columns: dict[str, list[str | None]]
    rows: np.ndarray | None = None

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), []))

    def take(self, used: np.ndarray) -> Table:
        """Return the rows where ``used`` (N,) bool is true."""
        columns = {name: [*compress(cells, used)] for name, cells in self.columns.items()}
        return Table(self.path, columns, np.flatnonzero(used))

    def number(self, row: int) -> int:
        """Return which row of the file this one is, counted from 1."""
        return 1 + (row if self.rows is None else int(self.rows[row]))


@dataclass(frozen=True)
class Rows:
    """The rows of a table.

    Attributes:
        root: the folder that the images' names start from.
        ids: as written.
        names: the file of each id, relative to ``root`` or absolute.
        labels: where asked for.
        weights: where asked for.
        split: which rows validate, where a column says so.
        groups: columns whose equal cells may belong together.
        note: for the screen.
    """

    root: Path
    ids: list[str]
    names: list[str]
    labels: list[str] | None
    weights: list[float] | None
    split: GivenSplit | None
    groups: dict[str, list[str]]
    note: str


def is_table(path: Path) -> bool:
    """Whether the name of ``path`` ends like a table that can be read.

    >>> is_table(Path("train.CSV")), is_table(Path("train.xlsx"))
    (True, False)
    """
    return path.suffix.lower() in _TABLE_SUFFIXES


def read_rows(
    path: Path, asked: Columns, *, image_root: Path | None, labelled: bool, warn: Warn = warnings.warn
) -> Rows:
    """Read the rows of a table of images; of a labelled one without its test rows.

    Raises:
        EtudeError: the table is damaged or empty, a column is missing or ambiguous, a cell that is needed is empty,
            or none of the named files exists.
    """
    table = read_table(path)
    for name, option in ((asked.image, "image"), (asked.label, "label"), (asked.weight, "weight")):
        if name is not None and name not in table.columns:
            known = list(table.columns)
            raise EtudeError(
                f"--{option}-column {name!r} is not in {path}; its columns are {listed(known, 12)}."
                f"{nearest(name, known)}"
            )
    label_name = asked.label or (_named_label_column(table, asked) if labelled else None)
    taken = {name for name in (asked.image, label_name, asked.weight) if name}
    split = None
    if labelled:
        split, used = find_split(path, table.columns, taken, asked.split, warn)
        table = table if used.all() else table.take(used)
        taken |= {split.column} if split else set()
    else:
        taken |= {name for name in table.columns if name.strip().lower() in _LABEL_NAMES}
    if asked.image is not None:
        image_name, folder = asked.image, folder_for(path, table.columns[asked.image], image_root)
    else:
        image_name, folder = find_image_column(path, table.columns, taken, image_root)
    ids = _filled(table, image_name, "image name")
    note = f"image column {image_name!r}"
    if not labelled:
        return Rows(folder.root, ids, _names(path, folder, ids), None, None, None, {}, note)
    taken.add(image_name)
    label_name = label_name or _only_other_column(table, taken, image_name)
    labels = _filled(table, label_name, "label", ids)
    return Rows(
        root=folder.root,
        ids=ids,
        names=_names(path, folder, ids),
        labels=labels,
        weights=_weights(table, asked.weight, ids) if asked.weight else None,
        split=split,
        groups=find_groups(table.columns, {*taken, label_name}, labels),
        note=f"{note}, label column {label_name!r}" + (f", split column {split.column!r}" if split else ""),
    )


def read_table(path: Path) -> Table:
    """Read a .csv, .tsv or .parquet file; every cell stays text, so ``007`` is not 7.

    Raises:
        EtudeError: the file is damaged, empty, or has no rows.
    """
    if path.suffix.lower() == ".parquet":
        with reading(path, "a readable Parquet file"):
            columns = _read_parquet(path)
    else:
        with reading(path, "a well-formed table", "save it as UTF-8 text and check its quotes"):
            columns = _read_separated(path)
    table = Table(path, columns)
    if not len(table):
        raise EtudeError(f"{path} has no rows; it needs a header line and one row for each image")
    return table


def _read_separated(path: Path) -> dict[str, list[str | None]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter=_separator(path, file.readline()), strict=True)
        file.seek(0)
        header = next(reader, [])
        _check_header(path, header)
        cells: list[list[str | None]] = [[] for _ in header]
        for row in reader:
            if not row:
                continue
            if len(row) != len(header):
                raise EtudeError(
                    f"line {reader.line_num:,} of {path} has {len(row)} fields, but its header has {len(header)}; "
                    "put quotes around a value that contains the separator"
                )
            for column, cell in zip(cells, row, strict=True):
                column.append(cell or None)
    # A column without a name is the row index that pandas writes; it says nothing about the images.
    return {name: column for name, column in zip(header, cells, strict=True) if name}


def _separator(path: Path, header: str) -> str:
    """Spreadsheets of some countries write ``;`` into .csv files; the header line shows it."""
    if path.suffix.lower() == ".tsv":
        return "\t"
    return max(",;\t", key=lambda mark: len(next(csv.reader([header], delimiter=mark), [])))


def _check_header(path: Path, header: list[str]) -> None:
    if not any(header):
        raise EtudeError(f"{path} is empty; it needs a header line and one row for each image")
    repeated = sorted({name for name in header if name and header.count(name) > 1})
    if repeated:
        raise EtudeError(f"{path} has several columns named {listed(repeated)}; rename them until each is unique")


def _read_parquet(path: Path) -> dict[str, list[str | None]]:
    import polars as pl  # here, because it takes a tenth of a second and folders do not need it

    with path.open("rb") as file:  # not by its name, which need not be UTF-8
        frame = pl.read_parquet(file)
    columns: dict[str, list[str | None]] = {}
    for series in frame.iter_columns():
        if series.dtype.is_nested() or series.dtype in (pl.Binary, pl.Object):
            continue  # bytes and structures are neither names nor labels
        if series.dtype.is_float():
            series = series.fill_nan(None)
        columns[series.name] = [cell or None for cell in series.cast(pl.String).to_list()]
    if not columns:
        raise EtudeError(
            f"{path} has no column of names or labels (its columns hold {listed(map(str, frame.dtypes))}); "
            "etude reads image files that a table names, not images stored inside the table"
        )
    return columns


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
    others = [name for name in others if name.strip().lower() not in SPLIT_NAMES] or others
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
    blank = [row for row, cell in enumerate(cells) if cell is None or not cell.strip()]
    if blank:
        where = f" (image {ids[blank[0]]!r})" if ids else ""
        raise EtudeError(
            f"{table.path} has no {what} in column {name!r} for {len(blank):,} of its {counted(len(cells), 'row')}, "
            f"first in row {table.number(blank[0]):,}{where}; fill it in or remove such rows"
        )
    return [cell for cell in cells if cell is not None]


def _weights(table: Table, name: str, ids: Sequence[str]) -> list[float]:
    weights: list[float] = []
    for row, cell in enumerate(_filled(table, name, "weight", ids)):
        try:
            weight = float(cell)
        except ValueError:
            weight = math.nan
        if not (math.isfinite(weight) and weight > 0):
            raise EtudeError(
                f"row {table.number(row):,} of {table.path} (image {ids[row]!r}) has the weight {cell!r} in column "
                f"{name!r}; weights are numbers above 0"
            )
        weights.append(weight)
    return weights


def _names(table: Path, folder: ImageFolder, ids: list[str]) -> list[str]:
    root, inside = folder.root, f"{folder.root}{os.sep}"
    names = [str(folder.place(name)).removeprefix(inside) for name in ids]
    if not any((root / name).is_file() for name in names):  # stops at the first file: costs nothing when all is well
        raise EtudeError(
            f"none of the {counted(len(ids), 'image')} that {table} names exists (the first would be "
            f"{root / names[0]}); give the folder that the names start from with --image-root, or another "
            "--image-column"
        )
    return names
