"""Image lists in CSV, TSV and Parquet tables: reading them as text and finding the columns that matter."""

from __future__ import annotations

import csv
import math
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress
from pathlib import Path

import numpy as np

from etude.core.errors import EtudeError, listed, nearest
from etude.core.files import reading
from etude.data.table_images import ImageFolder, find_image_column, folder_for
from etude.data.table_split import SPLIT_NAMES, GivenSplit, Warn, find_groups, find_split
from etude.data.wording import counted

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
