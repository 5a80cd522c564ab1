"""CSV, TSV and Parquet files as text, with the places of their rows for messages."""

from __future__ import annotations

import csv
from dataclasses import dataclass, field
from pathlib import Path

from etude.core.errors import EtudeError, listed, nearest
from etude.core.files import reading

Row = list[str]

SUFFIXES = (".csv", ".tsv", ".parquet")


@dataclass(frozen=True)
class Table:
    """A table as text.

    Args:
        header: names of the columns.
        rows: as many cells each as the header.
        lines: where each row stands in its file, counted from 1.
    """

    path: Path
    header: Row
    rows: list[Row]
    lines: list[int] = field(repr=False)

    def place(self, row: int) -> str:
        """Return where a row stands, in words."""
        return f"line {self.lines[row]:,} of {self.path}"

    def column(self, position: int) -> list[str]:
        """Return the cells of one column."""
        return [row[position] for row in self.rows]

    def position(self, name: str, option: str) -> int:
        """Return where the column ``name`` stands, which the user gave as ``option``."""
        if name not in self.header:
            hint = nearest(name, self.header)
            raise EtudeError(
                f"{option} {name!r} is not in {self.path}; its columns are {listed(self.header, 8)}.{hint}"
            )
        return self.header.index(name)


def read_table(path: Path) -> Table:
    """Read a ``.csv``, ``.tsv`` or ``.parquet`` file as text.

    Raises:
        EtudeError: it cannot be read, has no rows, or a row or the header is not as it must be.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise EtudeError(f"{path} is no table that can be read: give a file that ends in {', '.join(SUFFIXES)}")
    if path.suffix.lower() == ".parquet":
        with reading(path, "a readable Parquet file"):
            table = _read_parquet(path)
    else:
        with reading(path, "a well-formed table", "save it as UTF-8 text and check its quotes"):
            table = _read_separated(path)
    if not table.rows:
        raise EtudeError(f"{path} has no rows; it needs a header line and one row for each image")
    if repeated := sorted({name for name in table.header if table.header.count(name) > 1}):
        raise EtudeError(f"{path} has several columns named {listed(repeated)}; rename them until each is unique")
    return table


def _read_separated(path: Path) -> Table:
    with path.open(encoding="utf-8-sig", newline="") as file:
        first = file.readline()
        file.seek(0)
        mark = _separator(path, first)
        reader = csv.reader(file, delimiter=mark, strict=True)
        rows = [(reader.line_num, row) for row in reader if row]
    header = rows[0][1] if rows else []
    for line, row in rows[1:]:
        if len(row) != len(header):
            raise EtudeError(f"line {line:,} of {path} has {len(row)} fields, but its header has {len(header)}")
    return Table(path, header, [row for _, row in rows[1:]], [line for line, _ in rows[1:]])


def _separator(path: Path, header: str) -> str:
    """Spreadsheets of some countries write ``;`` into .csv files; the header line shows it."""
    if path.suffix.lower() == ".tsv":
        return "\t"
    return max(",;\t", key=lambda mark: sum(len(cells) for cells in csv.reader([header], delimiter=mark)))


def _read_parquet(path: Path) -> Table:
    import polars as pl  # here, because it takes a tenth of a second and CSVs do not need it

    with path.open("rb") as file:  # not by its name, which need not be UTF-8
        frame = pl.read_parquet(file)
    text = frame.cast(pl.String).fill_null("")
    rows = [[str(cell) for cell in row] for row in text.iter_rows()]
    return Table(path, frame.columns, rows, list(range(1, len(rows) + 1)))
