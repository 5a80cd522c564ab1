"""A run's folder as a report reads it: the record, and whatever else is there; what is damaged is named."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from etude.core.errors import EtudeError
from etude.core.files import read_json, reading
from etude.core.predictions import Predictions
from etude.journal.index import DAMAGED, RunSummary, read_runs
from etude.journal.report.gallery import Gallery
from etude.journal.report.html import kind_of
from etude.journal.runs import read_run

_LARGEST_HEADER = 100_000_000  # bytes that a safetensors file may spend on names and shapes
_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")

Row = dict[str, Any]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Model:
    """One trained model of the run.

    Args:
        folder: its folder's name within the run's; "." is the run's own.
        card: its ``model.json``.
        tensors: trained weights by name with their shapes; buffers such as batch norm statistics are left out.
        history: rows of its ``history.csv``; numbers as floats, empty cells left out.
    """

    folder: str
    card: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, list[int]] = field(default_factory=dict)
    history: tuple[Row, ...] = ()


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Everything a report is made of.

    Args:
        path: the folder.
        record: the content of ``run.json``.
        models: one, or one a fold.
        valid: labelled predictions of the validation images, or None.
        test: predictions of the test images, or None.
        gallery: the pictures, or None.
        health: the content of ``health.json``, or None.
        timeline_png: the picture of the timeline, or None.
        problems: a sentence for each file that could not be read.
        children: the runs below this one that are part of it, and those of which nobody can tell.
        ablation: the content of ``ablation.json``, or None.
        lift_png: the chart of what an ablation found, or None.
    """

    path: Path
    record: dict[str, Any]
    models: tuple[Model, ...]
    valid: Predictions | None
    test: Predictions | None
    gallery: Gallery | None
    health: dict[str, Any] | None
    timeline_png: bytes | None
    problems: tuple[str, ...]
    children: tuple[RunSummary, ...] = ()
    ablation: dict[str, Any] | None = None
    lift_png: bytes | None = None

    @classmethod
    def read(cls, path: Path) -> RunFolder:
        """Read the folder; files that are absent are None, those that are damaged are also told in ``problems``.

        Raises:
            EtudeError: the folder holds no run, or its record is damaged.
        """
        record, problems = read_run(path), list[str]()

        def whole(name: str, read: Callable[[Path], T]) -> T | None:
            file = path / name
            if not file.is_file():
                return None
            try:
                return read(file)
            except EtudeError as error:
                problems.append(str(error))
            return None

        names = [".", *sorted((p.name for p in path.glob("fold-*") if p.is_dir()), key=_fold_number)]
        models: list[Model] = []
        for name in names:
            card = whole(f"{name}/model.json", _read_table) or {}
            tensors = whole(f"{name}/model.safetensors", read_shapes) or {}
            history = whole(f"{name}/history.csv", read_history) or ()
            if card or tensors or history:
                models.append(Model(name, card, tensors, history))
        return cls(
            path=path,
            record=record,
            models=tuple(models),
            valid=whole("valid.npz", Predictions.load),
            test=whole("test.npz", Predictions.load),
            gallery=whole("gallery.npz", Gallery.load),
            health=whole("health.json", _read_table),
            timeline_png=whole("timeline.png", _read_picture),
            children=tuple(run for run in read_runs(path) if run.parent == record["id"] or run.state == DAMAGED),
            ablation=whole("ablation.json", _read_table),
            lift_png=whole("lift.png", _read_picture),
            problems=tuple(problems),
        )


def read_history(path: Path) -> tuple[Row, ...]:
    """Return the rows of a ``history.csv``: numbers as floats, texts as they are, empty cells left out.

    Raises:
        EtudeError: it is not text, or a row has more cells than columns.
    """
    with reading(path, "a well-formed table"), path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if any(None in row for row in rows):
        raise EtudeError(f"{path} has a row with more cells than columns: it was damaged")
    return tuple({name: _number(cell) for name, cell in row.items() if cell} for row in rows)


def read_shapes(path: Path) -> dict[str, list[int]]:
    """Return the weights' shapes by name from the header of a safetensors file; buffers are left out.

    The header is a length (8 bytes, little endian) and JSON; the weights themselves are not read. Source: the format
    of github.com/huggingface/safetensors.

    Raises:
        EtudeError: the header is damaged.
    """
    with reading(path, "a readable safetensors file"), path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(min(length, _LARGEST_HEADER)))
        shapes = {name: list(map(int, one["shape"])) for name, one in header.items() if name != "__metadata__"}
    return {name: shape for name, shape in shapes.items() if not name.endswith(_BUFFERS)}


def _read_table(path: Path) -> dict[str, Any]:
    content = read_json(path)
    if not isinstance(content, dict):
        raise EtudeError(f"{path} holds no table of names and values: it was damaged or written by something else")
    return content


def _read_picture(path: Path) -> bytes:
    with reading(path, "a readable picture"):
        content = path.read_bytes()
    try:
        kind_of(content)
    except EtudeError as error:
        raise EtudeError(f"{path}: {error}") from None
    return content


def _number(cell: str) -> float | str:
    try:
        return float(cell)
    except ValueError:
        return cell


def _fold_number(name: str) -> tuple[int, str]:
    number = name.removeprefix("fold-")
    return (int(number) if number.isdecimal() else 0, name)
