"""Sending finished runs to an MLflow server (the extra ``etude[mlflow]``); a server that is away costs a run nothing.

MLflow is imported when a run is to be sent, not before. Source of the interface: mlflow.org/docs/latest, MlflowClient.
"""

from __future__ import annotations

import json
import math
import os
import re
import shlex
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from etude.core.errors import EtudeError
from etude.core.text import file_size, shortened
from etude.journal.report.folder import read_history
from etude.journal.runs import FILE_NAME, fold_folders, read_run

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

LARGEST_FILE = 50_000_000  # bytes; weights of large networks and features of very many images are not sent
FILES = (
    *(FILE_NAME, "report.html", "notebook.ipynb", "history.csv", "timeline.png", "lr_find.png", "health.json"),
    *("bad_files.csv", "submission.csv", "valid.npz", "test.npz", "model.json", "model.safetensors"),
    *("ablation.json", "lift.png", "best.toml"),
)
_STATUS = {"finished": "FINISHED", "failed": "FAILED"}  # else KILLED
_OF_FOLD = re.compile(r"(.*) \(fold (\d+)/\d+\)")
_TRAINED = "fine-tune"  # the stage whose curves stand in history.csv
_NOT_IN_NAMES = re.compile(r"[^\w.\- ]")
_LONGEST_VALUE = 5000  # characters; of tags, and a little more of params, by the limits of MLflow's REST interface
_PLACE = ("step", "seconds")  # columns of history.csv that say where a row belongs
_EXPERIMENT = "etude"
_ROOT = "etude.root"  # tag of a run and of everything below it: the id in run.json of the uppermost
_PARENT = "mlflow.parentRunId"
_MOST, _MOST_RUNS = 100, 50_000  # params, tags or metrics in one request, and runs in one answer, as MLflow allows
_LONGEST_CAUSE = 200
# What MLflow would otherwise do by itself: wait for minutes for a server that is away, report its use to its makers,
# print addresses and bars among ours. Whoever has set one of these keeps it.
_MANNERS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}

Entries = Sequence[dict[str, Any]]


class Point(NamedTuple):
    """One value of a metric, in the order of mlflow.entities.Metric; ``at`` counts milliseconds since 1970."""

    name: str
    value: float
    at: int
    step: int


@dataclass(frozen=True, slots=True)
class MlflowPlan:
    """What a run, or a part of one, becomes on the server; times are milliseconds since 1970."""

    folder: Path
    name: str
    status: str  # FINISHED, FAILED or KILLED
    started: int
    ended: int
    params: dict[str, str] = field(default_factory=dict)
    metrics: tuple[Point, ...] = ()
    tags: dict[str, str] = field(default_factory=dict)
    parts: tuple[MlflowPlan, ...] = ()  # runs below it

    @property
    def files(self) -> list[Path]:
        return [path for path in self._present() if path.stat().st_size <= LARGEST_FILE]

    @property
    def left_out(self) -> list[str]:
        large = [path for path in self._present() if path.stat().st_size > LARGEST_FILE]
        return [f"{path.name} ({file_size(path.stat().st_size)})" for path in large]

    def _present(self) -> list[Path]:
        return [self.folder / name for name in FILES if (self.folder / name).is_file()]

    def all(self) -> Iterator[MlflowPlan]:
        yield self
        for part in self.parts:
            yield from part.all()


def plan_of(folder: Path, name: str = "") -> MlflowPlan:
    record = read_run(folder)
    if (state := record["state"]) == "running":
        raise EtudeError(f"{folder} is still at work: send it when it has ended")
    started = _milliseconds(record["started"])
    ended = _milliseconds(record["ended"]) if record["ended"] else started + round(1000 * record["seconds"])
    span = started, ended
    stages, rounds = _by_fold(record["stages"]), _by_fold(record.get("rounds") or ())
    parts = [
        _fold(place, number, stages.get(number, []), rounds.get(number, []), span)
        for number, place in fold_folders(folder)
    ]
    parts += [_round(folder, entry, stages[0], span) for entry in rounds[0]]
    inner = sorted(file.parent for file in folder.rglob(FILE_NAME) if file.parent != folder)
    own = (place for place in inner if read_run(place)["parent"] == record["id"])
    below = [plan_of(place, place.relative_to(folder).as_posix()) for place in own]
    result = {key: value for key, value in (record.get("result") or {}).items() if key in ("accuracy", "log_loss")}
    final = _points({**result, "seconds": record["seconds"]}, 0, ended)
    return MlflowPlan(
        *(folder, name or folder.resolve().name, _STATUS.get(state, "KILLED"), started, ended, _params(record)),
        metrics=(*final, *_stage_points(stages[0], span), *_curves(folder, stages[0], _TRAINED, span)),
        tags=_tags(record, state),
        parts=(*parts, *below),
    )


def _fold(folder: Path, number: int, stages: Entries, rounds: Entries, span: tuple[int, int]) -> MlflowPlan:
    return MlflowPlan(
        *(folder, folder.name, "FINISHED", *_span(stages, span), {"fold": str(number)}),
        metrics=(*_stage_points(stages, span), *_curves(folder, stages, _TRAINED, span)),
        tags={"etude.kind": "fold"},
        parts=tuple(_round(folder, entry, stages, span) for entry in rounds),
    )


def _round(folder: Path, entry: dict[str, Any], stages: Entries, span: tuple[int, int]) -> MlflowPlan:
    name = str(entry["name"])
    own = [stage for stage in stages if stage["name"] == name]
    place = folder / name.replace(" ", "-")
    started, ended = _span(own, span)
    plain = {_clean(key): value for key, value in entry.items() if key != "name" and not isinstance(value, dict | list)}
    scores = {key: value for stage in own for key, value in {**stage["scores"], "seconds": stage["seconds"]}.items()}
    params = {key: _written(value) for key, value in plain.items() if not _is_number(value)}
    metrics = (*_points({**plain, **scores}, 0, ended), *_curves(place, own, name, span))
    return MlflowPlan(place, name, "FINISHED", started, ended, params, metrics, {"etude.kind": "round"})


def _params(record: Mapping[str, Any]) -> dict[str, str]:
    plan, data = record.get("plan") or {}, record.get("data") or {}
    counts = {name: None if (held := data.get(name)) is None else len(held) for name in ("classes", "folds")}
    facts = {
        **{"recipe": record["recipe"], "seed": record["seed"], "device": plan.get("device"), **counts},
        **{name: data.get(name) for name in ("images", "fingerprint")},
        **{name: (record.get("architecture") or {}).get(name) for name in ("parameters", "flops")},
    }
    settings = plan.get("resolved") or record["settings"]
    known = {key: value for key, value in facts.items() if value is not None}
    return {_clean(key): _written(value) for key, value in {**settings, **known}.items()}


def _tags(record: Mapping[str, Any], state: str) -> dict[str, str]:
    command, git = shlex.join(map(str, record["command"])), record["environment"].get("git") or {}
    around, notes = record["environment"], [f"- {note['at']}: {note['text']}" for note in record["notes"]]
    found = {
        **{f"etude.{key}": str(record[key] or "") for key in ("id", "kind", "error")},
        "etude.ended": str(record["ended"]),  # of a killed run too: another one is another attempt
        **{"etude.state": state, "etude.tags": " ".join(record["tags"]), "etude.version": around.get("etude") or ""},
        **{"mlflow.source.name": command, "mlflow.source.type": "LOCAL", "mlflow.note.content": "\n".join(notes)},
        "mlflow.source.git.commit": git.get("commit") or "",
    }
    return {key: shortened(str(value), _LONGEST_VALUE) for key, value in found.items() if value}


def _stage_points(stages: Iterable[dict[str, Any]], span: tuple[int, int]) -> Iterator[Point]:
    for stage in stages:
        place, ended = f"stages/{_clean(stage['name'])}", _span([stage], span)[1]
        values = {"seconds": stage["seconds"], **stage["scores"]}
        values |= {"kept": int(stage["kept"])} if "kept" in stage else {}
        yield from _points({f"{place}/{_clean(key)}": value for key, value in values.items()}, 0, ended)


def _curves(folder: Path, stages: Entries, trained: str, span: tuple[int, int]) -> Iterator[Point]:
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
    return [Point(name, float(value), at, step) for name, value in values.items() if _is_number(value)]


def _by_fold(entries: Iterable[dict[str, Any]]) -> dict[int, list[dict[str, Any]]]:
    """Return stages or rounds by the number of the fold that their names end with, without it; 0 for none."""
    found: dict[int, list[dict[str, Any]]] = {0: []}
    for entry in entries:
        named = _OF_FOLD.fullmatch(str(entry["name"]))
        plain = entry if named is None else {**entry, "name": named[1]}
        found.setdefault(0 if named is None else int(named[2]), []).append(plain)
    return found


def _span(stages: Entries, otherwise: tuple[int, int]) -> tuple[int, int]:
    """Return when the first stage began and the last one ended; without any, ``otherwise``."""
    spans = [(_milliseconds(stage["started"]), 1000 * stage["seconds"]) for stage in stages]
    if not spans:
        return otherwise
    return min(began for began, _ in spans), round(max(began + took for began, took in spans))


def _milliseconds(time: str) -> int:
    try:
        return round(1000 * datetime.fromisoformat(time).timestamp())
    except ValueError:
        raise EtudeError(f"the record of the run is damaged: {time!r} is not a time") from None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _clean(name: str) -> str:
    """Return a name as MLflow takes it: letters, digits, spaces and . - _ only, 250 of them at most."""
    return _NOT_IN_NAMES.sub("_", name)[:250]


def _written(value: Any) -> str:
    return shortened(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False), _LONGEST_VALUE)


@dataclass(frozen=True, slots=True)
class Sent:
    address: str
    run_id: str
    is_new: bool  # else the server had it, and its tags and notes were brought up to date
    runs: int  # those below it included
    left_out: tuple[str, ...]

    @property
    def text(self) -> str:
        if not self.is_new:
            return f"MLflow had this run; its tags and notes are up to date: {self.address}"
        below = f", with {self.runs - 1} below it" if self.runs > 1 else ""
        large = f"; too large to send: {', '.join(self.left_out)}" if self.left_out else ""
        return f"sent to MLflow{below}: {self.address}{large}"


def check_server(uri: str) -> None:
    with _server(uri) as client:
        client.search_experiments(max_results=1)


def log_to_mlflow(folder: Path, uri: str) -> Sent:
    """Send the run in ``folder``, which has ended, to the MLflow server at ``uri``.

    Settings become params, ``history.csv`` and the final scores metrics, notes and tags become tags, files up to 50 MB
    artefacts; folds, rounds and parts become runs below it, in the experiment ``etude`` or
    ``$MLFLOW_EXPERIMENT_NAME``. A run is on the server once: what an earlier attempt has left half-done, or was sent
    before the run was resumed, is replaced.
    """
    plan = plan_of(folder)
    with _server(uri) as client:
        experiment = _experiment(client, os.environ.get("MLFLOW_EXPERIMENT_NAME") or _EXPERIMENT)
        below = f"tags.`{_ROOT}` = '{plan.tags['etude.id']}'"
        known = client.search_runs([experiment], below, max_results=_MOST_RUNS)
        whole = next((run for run in known if _is_whole(run, plan)), None)
        if whole is None:
            for run in known:
                client.delete_run(run.info.run_id)
            run_id = _log(client, experiment, plan, {_ROOT: plan.tags["etude.id"]})
        else:
            run_id = whole.info.run_id
            _log_batches(client, run_id, "tags", plan.tags.items())
    address = f"{uri.rstrip('/')}/#/experiments/{experiment}/runs/{run_id}"
    every = [*plan.all()]
    return Sent(address, run_id, whole is None, len(every), tuple(name for one in every for name in one.left_out))


def _log(client: MlflowClient, experiment: str, plan: MlflowPlan, above: dict[str, str]) -> str:
    """Make the run and those below it, and return its id; it ends last, so that one that has ended is whole."""
    run = client.create_run(experiment, start_time=plan.started, tags={**plan.tags, **above}, run_name=plan.name)
    run_id = run.info.run_id
    _log_batches(client, run_id, "params", plan.params.items())
    _log_batches(client, run_id, "metrics", plan.metrics)
    for path in plan.files:
        client.log_artifact(run_id, str(path))
    for part in plan.parts:
        _log(client, experiment, part, {_ROOT: above[_ROOT], _PARENT: run_id})
    client.set_terminated(run_id, plan.status, plan.ended)
    return run_id


def _log_batches(client: MlflowClient, run_id: str, kind: str, values: Iterable[tuple[Any, ...]]) -> None:
    from mlflow.entities import Metric, Param, RunTag

    made = [{"params": Param, "metrics": Metric, "tags": RunTag}[kind](*value) for value in values]
    for start in range(0, len(made), _MOST):
        client.log_batch(run_id, synchronous=True, **{kind: made[start : start + _MOST]})


def _experiment(client: MlflowClient, name: str) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return client.create_experiment(name)
        except MlflowException:  # made by another run in between, or refused
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage != "active":
        raise EtudeError(
            f"the experiment {name!r} was deleted on the MLflow server: restore it there, or set "
            "MLFLOW_EXPERIMENT_NAME to another one"
        )
    return found.experiment_id


def _is_whole(run: Run, plan: MlflowPlan) -> bool:
    """Whether this is the uppermost run, all of it was sent, and it has not been resumed since."""
    tags = run.data.tags
    return _PARENT not in tags and run.info.status != "RUNNING" and tags.get("etude.ended") == plan.tags["etude.ended"]


@contextmanager
def _server(uri: str) -> Generator[MlflowClient]:
    """Yield a client; what MLflow and the network raise becomes one sentence."""
    _refuse_other_addresses(uri)
    given = {name: value for name, value in _MANNERS.items() if name not in os.environ}
    os.environ.update(given)
    try:
        try:
            from mlflow import MlflowClient
            from mlflow.exceptions import MlflowException
        except ImportError:
            raise EtudeError(
                "sending runs to MLflow needs its client, which is not installed: pip install 'etude[mlflow]'"
            ) from None
        try:
            yield MlflowClient(tracking_uri=uri)
        except (MlflowException, OSError) as error:
            raise EtudeError(
                f"no MLflow server takes runs at {uri} ({_cause(error)}): start one there with `mlflow server`, or "
                "give another address"
            ) from error
    finally:
        for name in given:
            os.environ.pop(name, None)


def _refuse_other_addresses(uri: str) -> None:
    try:
        parts = urlsplit(uri)
        known = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0  # a port is a number
    except ValueError:
        known = False
    if not known:
        raise EtudeError(
            f"{uri!r} is not the address of an MLflow server: give one such as http://127.0.0.1:5000, where "
            "`mlflow server` answers"
        )
    if parts.username is not None:
        raise EtudeError(
            "the address of the MLflow server holds a user's name, and the record of the run would keep it: leave it "
            "out, and set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        )


def _cause(error: BaseException) -> str:
    """Return what lies at the bottom of an error: the system's word for it, else the first line of its own."""
    below: BaseException | None = error
    while below is not None:
        if isinstance(below, OSError) and below.errno is not None and below.strerror:
            return below.strerror
        below = below.__cause__ or below.__context__
    return shortened(str(error).partition("\n")[0], _LONGEST_CAUSE)
