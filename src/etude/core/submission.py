"""Submission files: a CSV with one row an image, checked against the competition's sample before a byte is written."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from etude.core.errors import EtudeError, listed
from etude.core.files import reading, replacing
from etude.core.predictions import Predictions

Row = list[str]


def write_submission(
    path: Path | str,
    predictions: Predictions,
    *,
    probabilities: bool = False,
    id_column: str = "id",
    label_column: str = "label",
    sample: Path | str | None = None,
) -> None:
    """Write ``id,label`` rows, or with ``probabilities`` ``id,<one column a class>`` rows, as UTF-8 CSV.

    With a ``sample`` submission its columns and the order of its rows are followed exactly. Its first column holds
    the ids, found exactly as they are, else without suffix, else without folders, else with neither. One more column
    is the label; columns named as the classes are their probabilities. Texts are written as they are, quoted where
    CSV needs it; probabilities have nine significant digits.

    Raises:
        EtudeError: the sample and the predictions do not have the same ids or columns; nothing is written then.

    >>> import tempfile
    >>> one = Predictions.from_probabilities(["a.jpg"], ["cat", "dog"], [[0.25, 0.75]])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_submission(f"{folder}/s.csv", one)
    ...     Path(f"{folder}/s.csv").read_text().splitlines()
    ['id,label', 'a.jpg,dog']
    """
    if sample is None:
        header = [id_column, *(predictions.classes if probabilities else [label_column])]
        if repeated := _repeated(header):
            raise EtudeError(f"the submission would have two columns named {listed(repeated)}: rename the id column")
        ids = list(predictions.ids)
    else:
        wanted = _read_sample(Path(sample))
        probabilities = _sample_asks_probabilities(wanted, predictions.classes, probabilities)
        predictions = predictions.take(_rows_in_order(wanted, predictions.ids))
        header, ids = wanted.header, wanted.ids
    columns = _probability_columns(predictions, header[1:]) if probabilities else [_label_column(predictions)]
    _write_rows(Path(path), [header, *([name, *cells] for name, *cells in zip(ids, *columns, strict=True))])


def check_sample(
    sample: Path | str, ids: Sequence[str], classes: Sequence[str], *, probabilities: bool = False
) -> None:
    """Check before the work what :func:`write_submission` would refuse after it.

    Raises:
        EtudeError: the sample and the ids or classes do not fit.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(f"{folder}/s.csv").write_text("id,label\\na,cat\\n")
    ...     check_sample(f"{folder}/s.csv", ["a.png"], ["cat", "dog"])
    """
    wanted = _read_sample(Path(sample))
    _sample_asks_probabilities(wanted, tuple(classes), probabilities)
    _rows_in_order(wanted, tuple(ids))


@dataclass(frozen=True)
class _Sample:
    path: Path
    header: Row
    rows: list[Row]

    @property
    def ids(self) -> list[str]:
        return [row[0] for row in self.rows]


def _repeated(names: Sequence[str]) -> list[str]:
    return [name for name, count in Counter(names).items() if count > 1]


def _read_sample(path: Path) -> _Sample:
    with (
        reading(path, "a well-formed CSV", "give the sample submission as it was published"),
        path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file,
    ):
        reader = csv.reader(file, strict=True)
        rows = [(reader.line_num, row) for row in reader if row]
    if len(rows) < 2 or len(rows[0][1]) < 2:
        raise EtudeError(
            f"the sample submission {path} must have a header with an id column and at least one column more, "
            f"parted by commas, and at least one row; its header is {rows[0][1] if rows else []}"
        )
    header = rows[0][1]
    for line, row in rows[1:]:
        if len(row) != len(header):
            raise EtudeError(f"the sample submission {path} has {len(row)} cells in line {line}, not {len(header)}")
    found = _Sample(path, header, [row for _, row in rows[1:]])
    for what, names in (("column", header), ("id", found.ids)):
        if repeated := _repeated(names):
            raise EtudeError(f"the sample submission {path} names the same {what} more than once: {listed(repeated)}")
    return found


def _sample_asks_probabilities(sample: _Sample, classes: tuple[str, ...], wished: bool) -> bool:
    columns = sample.header[1:]
    if set(columns) == set(classes):
        return True
    if len(columns) == 1:
        return _single_column_is_probability(sample, classes, wished)
    missing = [name for name in columns if name not in classes]
    extra = [name for name in classes if name not in columns]
    raise EtudeError(
        f"the sample submission {sample.path} must have one label column or one column a class after its ids: "
        f"{len(missing)} of its columns are no class of the model ({listed(missing)}), "
        f"{len(extra)} classes have no column ({listed(extra)})"
    )


def _single_column_is_probability(sample: _Sample, classes: tuple[str, ...], wished: bool) -> bool:
    """One column is the label, or the probability of the class it is named after; which, a float does not tell."""
    column = sample.header[1]
    if wished and column in classes:
        return True
    if wished or (_hold_fractions(row[1] for row in sample.rows) and not all(map(_is_number, classes))):
        raise EtudeError(
            f"column {column!r} of the sample submission {sample.path} seems to ask for one probability, and it is "
            f"not said of which class: in a copy of the sample rename it to one of {listed(classes)} and "
            "give that with --probabilities, or fill the column with class names to get labels"
        )
    return False


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _hold_fractions(texts: Iterable[str]) -> bool:
    """Whether all are numbers and one has a decimal point: an integer may well stand for a class."""
    texts = list(texts)
    return all(map(_is_number, texts)) and any("." in text for text in texts)


def _path_of(name: str) -> PurePosixPath:
    return PurePosixPath(name.replace("\\", "/"))


def _same(name: str) -> str:
    return name


def _without_suffix(name: str) -> str:
    return str(_path_of(name).with_suffix("")) if _path_of(name).name else name


def _file_name(name: str) -> str:
    return _path_of(name).name


def _stem(name: str) -> str:
    return _path_of(name).stem


# How an id of ours and an id of the sample may come to be the same text, from the strictest way on.
_WAYS: tuple[tuple[Callable[[str], str], Callable[[str], str]], ...] = (
    (_same, _same),
    (_without_suffix, _same),
    (_file_name, _file_name),
    (_stem, _file_name),
    (_stem, _stem),
)


def _rows_in_order(sample: _Sample, ours: tuple[str, ...]) -> list[int]:
    """Return, for each row of the sample, the position of its id in ``ours``."""
    closest: tuple[int, list[str], list[str]] | None = None
    for own_key, sample_key in _WAYS:
        own_keys, sample_keys = [own_key(name) for name in ours], [sample_key(name) for name in sample.ids]
        position = {key: index for index, key in enumerate(own_keys)}
        wanted = set(sample_keys)
        missing = [name for name, key in zip(sample.ids, sample_keys, strict=True) if key not in position]
        extra = [name for name, key in zip(ours, own_keys, strict=True) if key not in wanted]
        unambiguous = len(position) == len(ours) and len(wanted) == len(sample_keys)
        if unambiguous and not missing and not extra:
            return [position[key] for key in sample_keys]
        if unambiguous and (closest is None or len(missing) + len(extra) < closest[0]):
            closest = (len(missing) + len(extra), missing, extra)
    assert closest is not None  # the first way compares unique ids, so it is never ambiguous
    raise EtudeError(_mismatch(sample, len(ours), closest[1], closest[2]))


def _mismatch(sample: _Sample, count: int, missing: list[str], extra: list[str]) -> str:
    parts: list[str] = []
    if missing:
        parts.append(f"{len(missing):,} of its {len(sample.rows):,} ids have no prediction ({listed(missing)})")
    if extra:
        parts.append(f"{len(extra):,} of {count:,} predictions are not in it ({listed(extra)})")
    return (
        f"the sample submission {sample.path} and the predictions have different ids: {' and '.join(parts)}; "
        "nothing was written, so predict exactly the images that the sample names"
    )


def _label_column(predictions: Predictions) -> list[str]:
    return [predictions.classes[position] for position in predictions.predicted()]


def _probability_columns(predictions: Predictions, classes: Sequence[str]) -> list[list[str]]:
    table = predictions.probabilities()
    positions = [predictions.classes.index(name) for name in classes]
    return [[f"{value:.9g}" for value in table[:, position]] for position in positions]


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
