"""What a finished run becomes on an MLflow server: names and values, made from the run's folder alone, without MLflow.

Folds, rounds with unlabelled images, and runs that are part of the run (the arms of an ablation) become runs below it.
"""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from etude.core.errors import EtudeError
from etude.journal.quantities import file_size
from etude.journal.record_read import FILE_NAME, read_run
from etude.journal.report_folder import read_history

LARGEST_FILE = 50_000_000
"""Bytes of a file above which it is not sent: weights of large networks, features of very many images."""

FILES = (
    *(FILE_NAME, "report.html", "notebook.ipynb", "history.csv", "timeline.png", "lr_find.png", "health.json"),
    *("bad_files.csv", "submission.csv", "valid.npz", "test.npz", "model.json", "model.safetensors"),
    *("ablation.json", "lift.png", "best.toml"),
)
"""What is sent of a folder, where it is there."""

_STATUS = {"finished": "FINISHED", "failed": "FAILED"}  # else KILLED
_OF_FOLD = re.compile(r"(.*) \(fold (\d+)/\d+\)")
_TRAINED = "fine-tune"  # the stage whose curves stand in history.csv
_NOT_IN_NAMES = re.compile(r"[^\w.\- ]")
_LONGEST_VALUE = 5000  # characters; of tags, and a little more of params, by the limits of MLflow's REST interface
_PLACE = ("step", "seconds")  # columns of history.csv that say where a row stands


@dataclass(frozen=True, slots=True)
class Point:
    """One value of a metric; ``at`` counts milliseconds since 1970."""

    name: str
    value: float
    step: int
    at: int


@dataclass(frozen=True, slots=True)
class MlflowPlan:
    """One run of MLflow's.

    Args:
        name: as its lists show it.
        status: FINISHED, FAILED or KILLED.
        started: milliseconds since 1970.
        ended: likewise.
        params: settings as they were used, and facts of the data; texts.
        metrics: a point for each row of each curve, and one for each final score.
        tags: texts by name.
        files: that are sent.
        left_out: those that are too large, with their sizes.
        parts: the runs below it.
    """

    name: str
    status: str
    started: int
    ended: int
    params: dict[str, str] = field(default_factory=dict)
    metrics: tuple[Point, ...] = ()
    tags: dict[str, str] = field(default_factory=dict)
    files: tuple[Path, ...] = ()
    left_out: tuple[str, ...] = ()
    parts: tuple[MlflowPlan, ...] = ()

    def all(self) -> Iterator[MlflowPlan]:
        """Yield the run and everything below it."""
        yield self
        for part in self.parts:
            yield from part.all()


def plan_of(folder: Path, name: str = "") -> MlflowPlan:
    """Return what the run in ``folder`` becomes; ``name`` is that of the folder where it is empty.

    Raises:
        EtudeError: the folder holds no run, the run is still at work, or what it has written is damaged.
    """
    record = read_run(folder)
    if (state := record["state"]) == "running":
        raise EtudeError(f"{folder} is still at work: send it when it has ended")
    started = _milliseconds(record["started"])
    ended = _milliseconds(record["ended"]) if record["ended"] else started + round(1000 * record["seconds"])
    stages, rounds = _by_fold(record["stages"]), _by_fold(record.get("rounds") or ())
    folds = sorted((place for place in folder.glob("fold-*") if place.is_dir()), key=_number_of)
    span = started, ended
    parts = [
        _fold(place, stages.get(_number_of(place), []), rounds.get(_number_of(place), []), span) for place in folds
    ]
    parts += [_round(folder, entry, stages[0], span) for entry in rounds[0]]
    below = (plan_of(place, place.relative_to(folder).as_posix()) for place in _runs_below(folder, record["id"]))
    result = {key: value for key, value in (record.get("result") or {}).items() if key in ("accuracy", "log_loss")}
    final = _points({**result, "seconds": record["seconds"]}, 0, ended)
    files, left_out = _files(folder)
    return MlflowPlan(
        name=name or folder.resolve().name,
        status=_STATUS.get(state, "KILLED"),
        started=started,
        ended=ended,
        params=_params(record),
        metrics=(*final, *_stage_points(stages[0], span), *_curves(folder, stages[0], _TRAINED, span)),
        tags=_tags(record, state),
        files=files,
        left_out=left_out,
        parts=(*parts, *below),
    )


def _fold(
    folder: Path, stages: Sequence[dict[str, Any]], rounds: Sequence[dict[str, Any]], span: tuple[int, int]
) -> MlflowPlan:
    """Return what one fold of a cross-validation becomes, with its rounds below it; ``span`` is that of the run."""
    files, left_out = _files(folder)
    return MlflowPlan(
        folder.name,
        "FINISHED",
        *_span(stages, span),
        params={"fold": str(_number_of(folder))},
        metrics=(*_stage_points(stages, span), *_curves(folder, stages, _TRAINED, span)),
        tags={"etude.kind": "fold"},
        files=files,
        left_out=left_out,
        parts=tuple(_round(folder, entry, stages, span) for entry in rounds),
    )


def _round(folder: Path, entry: dict[str, Any], stages: Sequence[dict[str, Any]], span: tuple[int, int]) -> MlflowPlan:
    """Return what a round with unlabelled images becomes: what it is judged by, its scores and its curves."""
    name = str(entry["name"])
    own = [stage for stage in stages if stage["name"] == name]
    place = folder / name.replace(" ", "-")
    files, left_out = _files(place)
    started, ended = _span(own, span)
    plain = {_clean(key): value for key, value in entry.items() if key != "name" and not isinstance(value, dict | list)}
    scores = {key: value for stage in own for key, value in {**stage["scores"], "seconds": stage["seconds"]}.items()}
    return MlflowPlan(
        name,
        "FINISHED",
        started,
        ended,
        params={key: _written(value) for key, value in plain.items() if not _is_number(value)},
        metrics=(*_points({**plain, **scores}, 0, ended), *_curves(place, own, name, span)),
        tags={"etude.kind": "round"},
        files=files,
        left_out=left_out,
    )


def _params(record: Mapping[str, Any]) -> dict[str, str]:
    """Return the settings as the run resolved them, or as asked where it did not come so far, and its data in short."""
    plan, data = record.get("plan") or {}, record.get("data") or {}
    classes, folds = data.get("classes"), data.get("folds")
    facts = {
        **{"recipe": record["recipe"], "seed": record["seed"], "device": plan.get("device")},
        **{"images": data.get("images"), "classes": None if classes is None else len(classes)},
        **{"fingerprint": data.get("fingerprint"), "folds": None if folds is None else len(folds)},
        **{name: (record.get("architecture") or {}).get(name) for name in ("parameters", "flops")},
    }
    known = {key: value for key, value in facts.items() if value is not None}
    settings = plan.get("resolved") or record["settings"]
    return {_clean(key): _written(value) for key, value in {**settings, **known}.items()}


def _tags(record: Mapping[str, Any], state: str) -> dict[str, str]:
    command, git = shlex.join(map(str, record["command"])), record["environment"].get("git") or {}
    found = {
        **{"etude.id": record["id"], "etude.kind": record["kind"], "etude.state": state},
        **{"etude.ended": str(record["ended"]), "etude.tags": " ".join(record["tags"])},
        **{"etude.version": str(record["environment"].get("etude") or ""), "etude.error": str(record["error"] or "")},
        **{"mlflow.source.name": command, "mlflow.source.type": "LOCAL"},
        "mlflow.source.git.commit": str(git.get("commit") or ""),
        "mlflow.note.content": "\n".join(f"- {note['at']}: {note['text']}" for note in record["notes"]),
    }
    return {key: _shortened(value) for key, value in found.items() if value}


def _stage_points(stages: Iterable[dict[str, Any]], span: tuple[int, int]) -> Iterator[Point]:
    """Yield the seconds and the scores of each stage, as ``stages/NAME/SCORE``."""
    for stage in stages:
        place, ended = f"stages/{_clean(stage['name'])}", _span([stage], span)[1]
        values = {"seconds": stage["seconds"], **stage["scores"]}
        values |= {"kept": int(stage["kept"])} if "kept" in stage else {}
        yield from _points({f"{place}/{_clean(key)}": value for key, value in values.items()}, 0, ended)


def _curves(folder: Path, stages: Sequence[dict[str, Any]], trained: str, span: tuple[int, int]) -> Iterator[Point]:
    """Yield the rows of the folder's ``history.csv``, which the stage ``trained`` wrote."""
    if not (folder / "history.csv").is_file():
        return
    began = _span([stage for stage in stages if stage["name"] == trained], span)[0]
    for row in read_history(folder / "history.csv"):
        step, seconds = (row.get(name) for name in _PLACE)
        if isinstance(step, float) and isinstance(seconds, float):
            values = {_clean(key): value for key, value in row.items() if key not in _PLACE}
            yield from _points(values, int(step), began + round(1000 * seconds))


def _points(values: Mapping[str, Any], step: int, at: int) -> list[Point]:
    """Return a point for each value that is a finite number."""
    return [Point(name, float(value), step, at) for name, value in values.items() if _is_number(value)]


def _by_fold(entries: Iterable[dict[str, Any]]) -> dict[int, list[dict[str, Any]]]:
    """Return stages or rounds by the number of the fold that their names end with, without it; 0 for none."""
    found: dict[int, list[dict[str, Any]]] = {0: []}
    for entry in entries:
        named = _OF_FOLD.fullmatch(str(entry["name"]))
        plain = entry if named is None else {**entry, "name": named[1]}
        found.setdefault(0 if named is None else int(named[2]), []).append(plain)
    return found


def _span(stages: Sequence[dict[str, Any]], otherwise: tuple[int, int]) -> tuple[int, int]:
    """Return when the first of the stages began and the last one ended; without any, what is given for that."""
    spans = [(_milliseconds(stage["started"]), 1000 * stage["seconds"]) for stage in stages]
    if not spans:
        return otherwise
    return min(began for began, _ in spans), round(max(began + took for began, took in spans))


def _files(folder: Path) -> tuple[tuple[Path, ...], tuple[str, ...]]:
    """Return what is sent of a folder, and what is too large for that."""
    sizes = {folder / name: (folder / name).stat().st_size for name in FILES if (folder / name).is_file()}
    large = tuple(f"{path.name} ({file_size(size)})" for path, size in sizes.items() if size > LARGEST_FILE)
    return tuple(path for path, size in sizes.items() if size <= LARGEST_FILE), large


def _runs_below(folder: Path, parent: str) -> list[Path]:
    """Return the folders of the runs that are part of the run with the id ``parent``."""
    inner = sorted(file.parent for file in folder.rglob(FILE_NAME) if file.parent != folder)
    return [place for place in inner if read_run(place)["parent"] == parent]


def _number_of(fold: Path) -> int:
    number = fold.name.removeprefix("fold-")
    return int(number) if number.isdecimal() else 0


def _milliseconds(time: str) -> int:
    try:
        return round(1000 * datetime.fromisoformat(time).timestamp())
    except ValueError:
        raise EtudeError(f"the record of the run is damaged: {time!r} is no time") from None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _clean(name: str) -> str:
    """Return a name as MLflow takes it: letters, digits, spaces and . - _ only, 250 of them at most."""
    return _NOT_IN_NAMES.sub("_", name)[:250]


def _written(value: Any) -> str:
    return _shortened(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST_VALUE else f"{text[: _LONGEST_VALUE - 1]}…"
