"""A run's folder as a report reads it: the record, and the other files; what is damaged is named."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from safetensors import safe_open

from etude.core.errors import EtudeError
from etude.core.files import read_checked_json, reading
from etude.core.predictions import Predictions
from etude.journal.index import DAMAGED, RunSummary, read_runs
from etude.journal.report.gallery import Gallery
from etude.journal.report.html import kind_of
from etude.journal.runs import fold_folders, read_run

_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")

Row = dict[str, Any]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Model:
    folder: str  # its name within that of the run; "." is the run itself
    card: dict[str, Any] = field(default_factory=dict)  # model.json
    tensors: dict[str, list[int]] = field(default_factory=dict)  # shapes of trained weights
    history: tuple[Row, ...] = ()


@dataclass(frozen=True, slots=True)
class RunFolder:
    path: Path
    record: dict[str, Any]
    models: tuple[Model, ...]
    valid: Predictions | None
    test: Predictions | None
    gallery: Gallery | None
    health: dict[str, Any] | None
    timeline_png: bytes | None
    problems: tuple[str, ...]  # a sentence for each file that could not be read
    children: tuple[RunSummary, ...] = ()  # runs that are part of this one, and damaged ones
    ablation: dict[str, Any] | None = None
    lift_png: bytes | None = None

    @classmethod
    def read(cls, path: Path) -> RunFolder:
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

        names = [".", *(fold.name for _, fold in fold_folders(path))]
        models: list[Model] = []
        for name in names:
            card = whole(f"{name}/model.json", read_checked_json) or {}
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
            health=whole("health.json", read_checked_json),
            timeline_png=whole("timeline.png", _read_picture),
            children=tuple(run for run in read_runs(path) if run.parent == record["id"] or run.state == DAMAGED),
            ablation=whole("ablation.json", read_checked_json),
            lift_png=whole("lift.png", _read_picture),
            problems=tuple(problems),
        )


def read_history(path: Path) -> tuple[Row, ...]:
    """Return the rows of a ``history.csv``: numbers as floats, texts as they are, empty cells left out."""
    with reading(path, "a well-formed table"), path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if any(None in row for row in rows):
        raise EtudeError(f"{path} has a row with more cells than columns: it was damaged")
    return tuple({name: _number(cell) for name, cell in row.items() if cell} for row in rows)


def read_shapes(path: Path) -> dict[str, list[int]]:
    with reading(path, "a readable safetensors file"), safe_open(path, "np") as file:
        shapes = {name: list(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 (no dict)
    return {name: shape for name, shape in shapes.items() if not name.endswith(_BUFFERS)}


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
