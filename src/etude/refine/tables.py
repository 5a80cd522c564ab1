"""Tables of probabilities from any tool: CSV, TSV or Parquet with an id and one column a class, as ``Predictions``."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from etude.core.errors import EtudeError, listed, nearest
from etude.core.ids import match_ids, positive_class, spelled_as, spellings
from etude.core.metrics import FloatArray, IntArray
from etude.core.predictions import Predictions
from etude.core.submission import checked_positive
from etude.core.tables import Table, read_table
from etude.refine.base import difference, with_columns

Warn = Callable[[str], object]
ID_NAMES = ("id", "image_id", "image", "file", "filename", "file_name", "name", "path", "key")
LABEL_NAMES = ("label", "labels", "class", "class_name", "target", "category", "y", "truth")
_OFF = 1e-3  # sums farther from one than this are worth a word


@dataclass(frozen=True, slots=True)
class Source:
    """Predictions, one-hot where the file holds labels, and how the file holds them."""

    predictions: Predictions
    holds: Literal["classes", "probability", "labels"] = "classes"  # a column a class, or a single column
    columns: tuple[str, str] | None = None  # names of the columns of ids and of the single one

    @property
    def positive(self) -> str | None:
        """The class whose probability a single column holds."""
        return self.predictions.classes[1] if self.holds == "probability" else None


def read_source(
    path: Path | str, *, id_column: str | None = None, label_column: str | None = None, warn: Warn = warnings.warn
) -> Source:
    """Read predictions as :func:`read_probabilities`, or a table with a label for each id and no probabilities."""
    path = Path(path)
    if path.suffix.lower() == ".npz":
        return Source(Predictions.load(path))
    return _source(read_table(path), id_column, label_column, warn)


def in_classes(sources: Sequence[Source], paths: Sequence[Path | str], positive: str | None = None) -> list[Source]:
    """Return the sources with the same classes, as far as those with single columns go.

    A single column holds the probability of ``positive``, or of the class that it is named after, or of 1, true, yes.
    """
    whole = next((source.predictions.classes for source in sources if source.holds == "classes"), None)
    labels = [name for source in sources if source.holds == "labels" for name in source.predictions.classes]
    known = spellings(labels)
    classes = whole or tuple(sorted({known.get(name, name) for name in labels})) or ("0", "1")
    return [_in_classes(source, path, classes, positive) for source, path in zip(sources, paths, strict=True)]


def read_probabilities(
    path: Path | str,
    *,
    labels: Path | str | None = None,
    id_column: str | None = None,
    label_column: str | None = None,
    classes: Sequence[str] = (),
    warn: Warn = warnings.warn,
) -> Predictions:
    """Read predictions from an ``.npz`` of etude, or probabilities from a table of any other tool.

    A table has a header: a column of ids (named ``id`` or similarly, else the first), perhaps one of labels, and one
    column of probabilities a class, named after it, or a single one, with the probability of one of two classes. Rows
    whose sum is not one are divided by it.

    Args:
        path: ``.npz``, ``.csv``, ``.tsv`` or ``.parquet``.
        labels: a table with ids and labels; ids that it lacks stay unlabelled.
        id_column: name of the ids' column; found by its name when None.
        label_column: name of the labels' column, in the table or the file of labels.
        classes: the two classes of a single column, as in :func:`in_classes`; by default 0 and 1.
        warn: receives a sentence about sums that are not one, and about ids without a label.

    Raises:
        EtudeError: the file cannot be read, or a cell is no probability; its line and column are named.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(f"{folder}/p.csv").write_text("id,cat,dog,label\\na,.25,.75,dog\\n")
    ...     one = read_probabilities(f"{folder}/p.csv")
    >>> one.classes, one.probabilities().round(2).tolist(), one.labels.tolist()
    (('cat', 'dog'), [[0.25, 0.75]], [1])
    """
    own = None if labels is not None else label_column
    source = read_source(path, id_column=id_column, label_column=own, warn=warn)
    if source.holds == "labels":
        raise EtudeError(
            f"{path} holds a label for each id and no probabilities, which are needed here: give one column of "
            "probabilities for each class (etude blend takes files of labels, by majority vote)"
        )
    if source.holds == "probability" and classes:
        source = _in_classes(source, path, tuple(classes), None)
    found = source.predictions
    return found if labels is None else with_labels(found, labels, label_column=label_column, warn=warn)


def with_labels(
    predictions: Predictions, labels: Path | str, *, label_column: str | None = None, warn: Warn = warnings.warn
) -> Predictions:
    """Return ``predictions`` with the labels that a table, or an ``.npz`` of etude, gives to their ids."""
    known = _labels_by_id(Path(labels), label_column)
    match = match_ids(list(known), predictions.ids, folders=False)
    if len(match.missing) == len(predictions):
        raise EtudeError(
            f"{labels} has a label for none of the {len(predictions):,} predicted images: it names "
            f"{listed(known, 2)}, and the predictions {listed(predictions.ids, 2)}; write the ids the same way in both"
        )
    if missing := match.missing:
        warn(f"{len(missing):,} of {len(predictions):,} images have no label in {labels} ({listed(missing, 2)})")
    texts = list(known.values())
    cells = [texts[row] if row >= 0 else None for row in match.rows]
    found = _positions(cells, predictions.ids, predictions.classes, str(labels))
    return replace(predictions, labels=found)


def with_classes(predictions: Predictions, classes: tuple[str, ...], where: str) -> Predictions:
    """Return ``predictions`` with their columns in the order of ``classes``; ``where`` is for messages."""
    if predictions.classes == classes:
        return predictions
    names = spelled_as(predictions.classes, classes)
    if parts := difference(classes, names):
        raise EtudeError(f"the classes of {where} are not those of the labelled predictions: it {parts}")
    return with_columns(predictions, [names.index(name) for name in classes], classes)


def _source(table: Table, id_column: str | None, label_column: str | None, warn: Warn) -> Source:
    id_name, others = _split_off_ids(table, id_column)
    ids = table.columns[id_name]
    label_name = _label_name(table, others, label_column)
    classes = [name for name in others if name != label_name]
    if len(classes) < 2:
        single = classes[0] if classes else label_name
        if single is None:
            raise EtudeError(
                f"{table.path} must have a column of probabilities for each class next to its ids, one of two classes, "
                "or one of labels, and has none"
            )
        return _single(table, id_name, single)
    values = _values(table, ids, classes)
    off = np.abs(values.sum(1) - 1.0) > _OFF
    if off.any():
        first = int(np.argmax(off))
        warn(
            f"the probabilities of {int(off.sum()):,} of {len(ids):,} images in {table.path} do not sum to one (the "
            f"first is {ids[first]!r}, {values[first].sum():.4g}): each row was divided by its sum"
        )
    labels = None if label_name is None else _positions(table.columns[label_name], ids, classes, str(table.path))
    return Source(Predictions.from_probabilities(ids, classes, values, labels))


def _single(table: Table, id_name: str, name: str) -> Source:
    """Read the one column of a table next to its ids: probabilities when one is a fraction, and otherwise labels."""
    ids, cells = table.columns[id_name], [cell.strip() for cell in table.columns[name]]
    columns, values = (id_name, name), _numbers(cells)
    whole = not (values % 1).any() and (
        values.max(initial=0.0) > 1 or all(cell.lstrip("+-").isdigit() for cell in cells)
    )
    if not whole and not np.isnan(values).any():
        if (outside := (values < 0) | (values > 1)).any():
            row = int(np.argmax(outside))
            raise EtudeError(
                f"{_place(table, row, ids)} has {cells[row]!r} in column {name!r}: the probability of one of two "
                "classes is a number from 0 to 1"
            )
        both = np.stack([1 - values, values], axis=1)
        return Source(Predictions.from_probabilities(ids, ("0", "1"), both), "probability", columns)
    if "" in cells:
        raise EtudeError(f"{_place(table, cells.index(''), ids)} has an empty cell in column {name!r}: fill it in")
    classes, which = np.unique(cells, return_inverse=True)
    one_hot = np.eye(len(classes))[which]
    return Source(Predictions.from_probabilities(ids, classes.tolist(), one_hot), "labels", columns)


def _in_classes(source: Source, path: Path | str, classes: tuple[str, ...], positive: str | None) -> Source:
    predictions = source.predictions
    if source.holds == "classes" or source.columns is None:
        return source
    if source.holds == "labels":
        known = spellings(predictions.classes, classes)
        names = [known.get(name, name) for name in predictions.classes]
        if unknown := [name for name in names if name not in classes]:
            raise EtudeError(
                f"{path} holds the label {unknown[0]!r}, and the other models' classes are {listed(classes)}."
                f"{nearest(unknown[0], classes)}"
            )
        table = predictions.probabilities() @ (np.array(names)[:, None] == np.array(classes))
        return replace(source, predictions=Predictions.from_probabilities(predictions.ids, classes, table))
    named = spelled_as([source.columns[1]], classes)[0]
    positive = positive or (named if named in classes else positive_class(classes))
    if len(classes) != 2 or positive is None:
        raise EtudeError(
            f"{path} holds one column, {source.columns[1]!r}, and it is not clear of which class it is the probability "
            f"({listed(classes)}): with two classes name it with --positive, with more give a column for each"
        )
    other = next(name for name in classes if name != checked_positive(positive, classes))
    return replace(source, predictions=replace(predictions, classes=(other, positive)))


def _split_off_ids(table: Table, wanted: str | None) -> tuple[str, list[str]]:
    """Return the column of ids, and the names of the others; a column without a name is a row index."""
    names = {name.strip().lower(): name for name in reversed(table.columns)}
    usual = next((names[name] for name in ID_NAMES if name in names), next(iter(table.columns)))
    id_name = usual if wanted is None else table.checked(wanted, "--id-column")
    ids = Counter(table.columns[id_name])
    if repeated := [name for name, count in ids.items() if count > 1]:
        raise EtudeError(f"{table.path} has several rows for {listed(repeated)}: keep one row for each image")
    return id_name, [name for name in table.columns if name and name != id_name]


def _label_name(table: Table, others: Sequence[str], wanted: str | None) -> str | None:
    """Return the column of labels: one so named, unless its cells are numbers and no class is called so."""
    if wanted is not None:
        return table.checked(wanted, "--label-column")
    for name in _label_names(others):
        cells = [cell for cell in table.columns[name] if cell.strip()]
        if np.isnan(_numbers(cells)).any() or not {*others}.difference({name}).isdisjoint(cells):
            return name
    return None


def _label_names(names: Sequence[str]) -> list[str]:
    return [name for name in names if name.strip().lower() in LABEL_NAMES]


def _values(table: Table, ids: Sequence[str], classes: Sequence[str]) -> FloatArray:
    values = np.stack([_numbers(table.columns[name]) for name in classes], axis=1)
    if (bad := ~(values >= 0)).any():
        row, column = map(int, np.argwhere(bad)[0])
        raise EtudeError(
            f"{_place(table, row, ids)} has {table.columns[classes[column]][row]!r} in column {classes[column]!r}: a "
            "probability is a number of zero or more, so if these are logits or logarithms, give their softmax"
        )
    if (empty := ~values.any(axis=1)).any():
        where = _place(table, int(np.argmax(empty)), ids)
        raise EtudeError(f"{where} gives every class a probability of zero: give at least one")
    return values


def _place(table: Table, row: int, ids: Sequence[str]) -> str:
    return f"{table.place(row)} (image {ids[row]!r})"


def _numbers(cells: Sequence[str]) -> FloatArray:
    """Return the cells as finite numbers, NaN where a cell is none."""

    def number(cell: str) -> float:
        try:
            return float(cell)
        except ValueError:
            return math.nan

    found = np.array([number(cell) for cell in cells])
    return np.where(np.isfinite(found), found, np.nan)


def _labels_by_id(path: Path, label_column: str | None) -> dict[str, str]:
    if path.suffix.lower() == ".npz":
        held = Predictions.load(path)
        if held.labels is None:
            raise EtudeError(f"{path} holds no labels: give a labelled .npz, or a table of ids and labels")
        return {
            name: held.classes[label] for name, label in zip(held.ids, held.labels.tolist(), strict=True) if label >= 0
        }
    table = read_table(path)
    id_name, others = _split_off_ids(table, None)
    likely = _label_names(others) or others
    if label_column is None and len(likely) != 1:
        raise EtudeError(f"it is not clear which column of {path} holds the labels: name it with --label-column")
    name = likely[0] if label_column is None else table.checked(label_column, "--label-column")
    pairs = zip(table.columns[id_name], table.columns[name], strict=True)
    return {image: cell for image, cell in pairs if cell.strip()}


def _positions(cells: Sequence[str | None], ids: Sequence[str], classes: Sequence[str], where: str) -> IntArray:
    position = {name: place for place, name in enumerate(classes)}
    position |= {text: position[name] for text, name in spellings({cell or "" for cell in cells}, classes).items()}
    found = np.full(len(cells), -1, np.int64)
    for row, cell in enumerate(cells):
        if cell is None or not cell.strip():
            continue
        if cell not in position:
            raise EtudeError(
                f"the label of {ids[row]!r} in {where} is {cell!r}, and the columns of probabilities are "
                f"{listed(classes)}: write labels as the columns are named.{nearest(cell, classes)}"
            )
        found[row] = position[cell]
    return found
