"""CSV, TSV and Parquet tables as text, with the place of each row for error messages."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress
from pathlib import Path

from etude.core.errors import EtudeError, listed, nearest
from etude.core.files import reading

SUFFIXES = (".csv", ".tsv", ".parquet")


@dataclass(frozen=True)
class Table:
    """A table as text."""

    path: Path
    columns: dict[str, list[str]]  # name to (N,) cells, "" for an empty one; a first column without a name is ""
    places: Sequence[str]  # (N,) where each row is in the file, such as "line 7"

    def __len__(self) -> int:
        return len(self.places)

    def place(self, row: int) -> str:
        """Return where a row is, with the file's name."""
        return f"{self.places[row]} of {self.path}"

    def take(self, used: Sequence[bool]) -> Table:
        """Return the rows where ``used`` (N,) is true."""
        columns = {name: [*compress(cells, used)] for name, cells in self.columns.items()}
        return Table(self.path, columns, [*compress(self.places, used)])

    def checked(self, name: str, option: str) -> str:
        """Return the column that the user named with ``option``; refuse a name that is no column."""
        if name not in self.columns:
            raise EtudeError(
                f"{option} {name!r} is not in {self.path}; its columns are {listed(self.columns, 12)}."
                f"{nearest(name, self.columns)}"
            )
        return name


def is_table(path: Path) -> bool:
    """Whether the name of ``path`` ends like a table that can be read."""
    return path.suffix.lower() in SUFFIXES


def read_table(path: Path) -> Table:
    """Read a .csv, .tsv or .parquet file; every cell stays text, so ``007`` is not 7."""
    if not is_table(path):
        raise EtudeError(f"{path} is no table that can be read: give a file that ends in {', '.join(SUFFIXES)}")
    if path.suffix.lower() == ".parquet":
        with reading(path, "a readable Parquet file"):
            table = _read_parquet(path)
    else:
        with reading(path, "a well-formed table", "save it as UTF-8 text and check its quotes"):
            table = _read_separated(path)
    if not len(table):
        raise EtudeError(f"{path} has no rows; it needs a header line and one row for each image")
    return table


def csv_rows(
    path: Path, separator: str = ",", errors: str = "strict", strict: bool = True
) -> list[tuple[int, list[str]]]:
    """Return the rows of a text file with the line that each ends in; the csv module knows lines, Polars does not."""
    with path.open(encoding="utf-8-sig", errors=errors, newline="") as file:
        reader = csv.reader(file, delimiter=separator, strict=strict)
        return [(reader.line_num, row) for row in reader if row]


def _read_separated(path: Path) -> Table:
    (_, header), *rows = csv_rows(path, _separator(path)) or [(0, list[str]())]
    if not any(header):
        raise EtudeError(f"{path} is empty and has no rows; it needs a header line and one row for each image")
    for line, row in rows:
        if len(row) != len(header):
            raise EtudeError(
                f"line {line:,} of {path} has {len(row)} fields, but its header has {len(header)}; "
                "put quotes around a value that contains the separator"
            )
    if repeated := sorted({name for name in header if name and header.count(name) > 1}):
        raise EtudeError(f"{path} has several columns named {listed(repeated)}; rename them until each is unique")
    # The first column may have no name (the row index that pandas writes); others without one say nothing.
    columns = {name: [row[at] for _, row in rows] for at, name in enumerate(header) if name or not at}
    return Table(path, columns, [f"line {line:,}" for line, _ in rows])


def _separator(path: Path) -> str:
    """Spreadsheets of some countries write ``;`` into .csv files; the header line shows it."""
    if path.suffix.lower() == ".tsv":
        return "\t"
    with path.open(encoding="utf-8-sig", newline="") as file:
        header = file.readline()
    return max(",;\t", key=lambda mark: len(next(csv.reader([header], delimiter=mark), list[str]())))


def _read_parquet(path: Path) -> Table:
    import polars as pl  # here, because it takes a tenth of a second and other files do not need it

    with path.open("rb") as file:  # not by its name, which need not be UTF-8
        frame = pl.read_parquet(file)
    columns: dict[str, list[str]] = {}
    for series in frame.iter_columns():
        if series.dtype.is_nested() or series.dtype == pl.Object:
            continue  # structures are neither names, labels nor numbers
        if series.dtype.is_float():
            series = series.fill_nan(None)
        try:
            columns[series.name] = series.cast(pl.String).fill_null("").to_list()
        except pl.exceptions.PolarsError:
            continue  # bytes that are no text, such as images
    if not columns:
        raise EtudeError(
            f"{path} has no column of names or labels (its columns hold {listed(map(str, frame.dtypes))}); "
            "etude reads image files that a table names, not images stored inside the table"
        )
    return Table(path, columns, [f"row {row:,}" for row in range(1, len(frame) + 1)])
