"""Submission files: a CSV with one row an image, checked against the competition's sample before a byte is written."""

from __future__ import annotations

import csv
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from etude.core.errors import EtudeError, listed, nearest
from etude.core.files import reading, replacing
from etude.core.ids import match_ids, positive_class, spelled_as, spellings
from etude.core.predictions import Predictions
from etude.core.tables import csv_rows

Row = list[str]
Warn = Callable[[str], object]


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Ids of images that cannot be read, and the class counts whose shares fill their rows of a submission."""

    ids: Sequence[str]
    counts: Mapping[str, int]


def write_submission(
    path: Path | str,
    predictions: Predictions,
    *,
    probabilities: bool = False,
    id_column: str = "id",
    label_column: str | None = None,
    sample: Path | str | None = None,
    positive: str | None = None,
    unreadable: Unreadable | None = None,
    warn: Warn = warnings.warn,
) -> None:
    """Write ``id,label`` rows, or with ``probabilities`` ``id,<one column a class>`` rows, as UTF-8 CSV.

    With a ``sample`` submission its columns and the order of its rows are followed exactly. Its first column holds
    the ids, found as :func:`~etude.core.ids.match_ids` does. Columns named as the classes are their probabilities. One
    more column is the label; or the probability of one class, where it holds fractions in the sample or
    ``probabilities`` is set. Texts are written as they are, quoted where CSV needs it; probabilities have nine
    significant digits.

    Without a sample, ``label_column`` is by default ``label``, or the positive class. ``positive`` is the class whose
    probability the one column holds; by default, in a sample, the class that the column is named after, or 1, true, yes
    or positive of two classes. ``unreadable`` fills the rows that the sample has for images that cannot be read;
    ``warn`` receives a sentence about those, and about labels of the sample that are no classes. EtudeError where the
    sample and the predictions do not have the same ids or columns; nothing is written then.
    """
    if sample is None:
        classes = predictions.classes if probabilities else None
        header = [id_column, *(classes or [label_column or "label"])]
        if positive is not None:
            classes = (checked_positive(positive, predictions.classes),)
            header = [id_column, label_column or positive]
        if repeated := _repeated(header):
            raise EtudeError(f"the submission would have two columns named {listed(repeated)}: rename the id column")
        ids = list(predictions.ids)
    else:
        wanted = _read_sample(Path(sample))
        header, ids = wanted.header, wanted.ids
        classes = _classes_of(wanted, predictions.classes, probabilities, positive, warn)
        known = set(predictions.ids)
        more = [name for name in dict.fromkeys(unreadable.ids if unreadable else ()) if name not in known]
        rows = _rows_in_order(wanted, predictions.ids, more)
        filled = [name for name, row in zip(ids, rows, strict=True) if row >= len(predictions)]
        if unreadable is not None and filled:
            predictions = _filled(predictions, more, unreadable.counts)
            warn(
                f"{len(filled):,} of {len(ids):,} rows of {path} are of images that cannot be read "
                f"({listed(filled, 3)}): filled by the class shares of the labelled images"
            )
        predictions = predictions.take(rows)
    columns: list[list[str]]
    if classes is None:
        columns = [[predictions.classes[position] for position in predictions.predicted()]]
    else:
        table, positions = predictions.probabilities(), map(predictions.classes.index, classes)
        columns = [[f"{value:.9g}" for value in table[:, position]] for position in positions]
    _write_rows(Path(path), [header, *([name, *cells] for name, *cells in zip(ids, *columns, strict=True))])


def check_sample(
    sample: Path | str,
    ids: Sequence[str],
    classes: Sequence[str],
    *,
    probabilities: bool = False,
    positive: str | None = None,
    unreadable: Sequence[str] = (),
    warn: Warn = warnings.warn,
) -> str:
    """Refuse before the work what :func:`write_submission` would refuse after; return what it will write, in words."""
    wanted = _read_sample(Path(sample))
    held = _classes_of(wanted, tuple(classes), probabilities, positive, warn)
    _rows_in_order(wanted, tuple(ids), unreadable)
    if held is None:
        return f"column {wanted.header[1]!r} holds the predicted label"
    if len(held) == 1:
        return f"column {wanted.header[1]!r} holds the probability of class {held[0]!r}"
    return "each column holds the probability of its class"


def checked_positive(positive: str, classes: Sequence[str]) -> str:
    """Return ``positive`` if it is a class; EtudeError otherwise."""
    if positive not in classes:
        raise EtudeError(
            f"--positive is {positive!r}, which is no class of the model: give one of {listed(classes)}."
            f"{nearest(positive, classes)}"
        )
    return positive


@dataclass(frozen=True)
class _Sample:
    path: Path
    header: Row
    ids: Row
    cells: Row  # of the second column


def _repeated(names: Sequence[str]) -> list[str]:
    return [name for name, count in Counter(names).items() if count > 1]


def _read_sample(path: Path) -> _Sample:
    with reading(path, "a well-formed CSV", "give the sample submission as it was published"):
        rows = csv_rows(path, errors="surrogateescape")
    if len(rows) < 2 or len(rows[0][1]) < 2:
        raise EtudeError(
            f"the sample submission {path} must have a header with an id column and at least one column more, "
            f"separated by commas, and at least one row; its header is {rows[0][1] if rows else []}"
        )
    header = rows[0][1]
    for line, row in rows[1:]:
        if len(row) != len(header):
            raise EtudeError(f"the sample submission {path} has {len(row)} cells in line {line}, not {len(header)}")
    found = _Sample(path, header, [row[0] for _, row in rows[1:]], [row[1] for _, row in rows[1:]])
    for what, names in (("column", header), ("id", found.ids)):
        if repeated := _repeated(names):
            raise EtudeError(f"the sample submission {path} names the same {what} more than once: {listed(repeated)}")
    return found


def _classes_of(
    sample: _Sample, classes: tuple[str, ...], probabilities: bool, positive: str | None, warn: Warn
) -> tuple[str, ...] | None:
    """Return the classes whose probabilities the sample's columns hold, in order; None for one column of labels."""
    columns = spelled_as(sample.header[1:], classes)
    if set(columns) == set(classes):
        if positive is not None:
            raise EtudeError(
                f"--positive {positive!r} has no meaning for the sample submission {sample.path}, which has a column "
                "for each class: leave it out"
            )
        return columns
    if len(columns) == 1:
        return _single_column(sample, columns[0], classes, probabilities, positive, warn)
    missing = [name for name in columns if name not in classes]
    extra = [name for name in classes if name not in columns]
    raise EtudeError(
        f"the sample submission {sample.path} must have one label column or one column a class after its ids: "
        f"{len(missing)} of its columns are no class of the model ({listed(missing)}), "
        f"{len(extra)} classes have no column ({listed(extra)})"
    )


def _single_column(
    sample: _Sample, column: str, classes: tuple[str, ...], probabilities: bool, positive: str | None, warn: Warn
) -> tuple[str] | None:
    """One column is the label (None), or the probability of ``positive``, of the class it is named after, or of "1"."""
    cells = {cell.strip() for cell in sample.cells} - {""}
    # A column named after a class and filled with a number holds its probability, even where the number is a class too.
    filled = column in classes and len(cells.intersection(classes)) < 2 and all(map(_is_number, cells))
    if positive is None and not probabilities and not filled and not _holds_fractions(cells, classes):
        _compare_labels(sample, cells, classes, warn)
        return None
    chosen = positive or (column if column in classes else positive_class(classes))
    if chosen is None:
        raise EtudeError(
            f"column {sample.header[1]!r} of the sample submission {sample.path} asks for the probability of one "
            f"class, and it is not clear of which: name it with --positive, one of {listed(classes)}, or fill the "
            "column with class names to get labels"
        )
    return (checked_positive(chosen, classes),)


def _compare_labels(sample: _Sample, cells: set[str], classes: tuple[str, ...], warn: Warn) -> None:
    """Labels in the sample that are no classes: one may be there to fill the column, several are another column's."""
    unknown = sorted(cells.difference(classes).difference(spellings(cells, classes)))
    if not unknown:
        return
    found = f"column {sample.header[1]!r} of the sample submission {sample.path} holds {listed(unknown, 3)}"
    known = f"no class of the model, which knows {listed(classes)}"
    if len(unknown) == len(cells) > 1:
        raise EtudeError(
            f"{found}, {known}: they may come from another label column, which --label-column chooses when training; "
            "or fill the column with class names"
        )
    warn(f"{found}, {known}: the submission will hold these")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _holds_fractions(cells: set[str], classes: tuple[str, ...]) -> bool:
    """Whether all are numbers, one of them no integer as it is written: an integer may well stand for a class.

    Where there are more than two classes and they are numbers, any number may be a label.
    """
    if not cells or not all(map(_is_number, cells)) or cells <= set(classes):
        return False
    if len(classes) > 2 and all(map(_is_number, classes)):
        return False
    return any(not cell.lstrip("+-").isdigit() for cell in cells)


def _rows_in_order(sample: _Sample, ours: tuple[str, ...], unreadable: Sequence[str]) -> list[int]:
    """Return, for each row of the sample, the position of its id in ``ours``, followed by the unreadable ones."""
    match = match_ids(ours, sample.ids)
    if match.missing and unreadable:  # only then, since their ids may be those of other images but for the folders
        match = match_ids((*ours, *unreadable), sample.ids)
    known = set(unreadable)
    extra = [name for name in match.extra if name not in known]
    if match.missing or extra:
        parts: list[str] = []
        if match.missing:
            missing = f"{len(match.missing):,} of its {len(sample.ids):,} ids"
            parts.append(f"{missing} have no prediction ({listed(match.missing)})")
        if extra:
            parts.append(f"{len(extra):,} of {len(ours):,} predictions are not in it ({listed(extra)})")
        raise EtudeError(
            f"the sample submission {sample.path} and the predictions have different ids: {' and '.join(parts)}; "
            "nothing was written, so predict exactly the images that the sample names"
        )
    return match.rows


def _filled(predictions: Predictions, more: Sequence[str], counts: Mapping[str, int]) -> Predictions:
    """Return the predictions followed by rows for ``more`` images, which hold the class shares."""
    known = [counts.get(name, 0) for name in predictions.classes]
    shares = Predictions.from_probabilities(
        more, predictions.classes, [known if any(known) else [1] * len(known)] * len(more)
    )
    logits = np.broadcast_to(shares.logits, (len(predictions.logits), *shares.logits.shape[1:]))
    return Predictions(
        (*predictions.ids, *more), predictions.classes, np.concatenate([predictions.logits, logits], axis=1)
    )


def _write_rows(path: Path, rows: Sequence[Row]) -> None:
    # surrogateescape: a file name that is not UTF-8 is written with the bytes it has on disk.
    with (
        replacing(path) as temporary,
        temporary.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file,
    ):
        plain = csv.writer(file, lineterminator="\n")
        quoted = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_ALL)
        for row in rows:
            # The writer quotes only its own line end, yet a reader takes a bare carriage return for one too.
            (quoted if any("\r" in cell for cell in row) else plain).writerow(row)
