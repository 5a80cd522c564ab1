"""Sending finished runs to an MLflow server (the extra ``etude[mlflow]``); a server that is away costs a run nothing.

MLflow is imported when a run is to be sent, not before. Source of the interface: mlflow.org/docs/latest, MlflowClient.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from etude.core.errors import EtudeError
from etude.journal.mlflow_plan import MlflowPlan, plan_of

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

EXPERIMENT = "etude"
"""The experiment that runs go to where ``$MLFLOW_EXPERIMENT_NAME`` names no other."""

_ROOT = "etude.root"  # tag of a run and of everything below it: the id in run.json of the uppermost
_PARENT = "mlflow.parentRunId"
_MOST = 100  # params, tags or metrics in one request, as MLflow allows
_PAGE = 1000
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


@dataclass(frozen=True, slots=True)
class Sent:
    """What came of sending a run.

    Args:
        address: of its page.
        run_id: MLflow's.
        is_new: whether it was sent now; else the server had it, and its tags and notes were brought up to date.
        runs: how many, those below it included.
        left_out: files that are too large, with their sizes.
    """

    address: str
    run_id: str
    is_new: bool
    runs: int
    left_out: tuple[str, ...]

    @property
    def told(self) -> str:
        """Everything in words."""
        if not self.is_new:
            return f"MLflow had this run; its tags and notes are up to date: {self.address}"
        below = f", with {self.runs - 1} below it" if self.runs > 1 else ""
        large = f"; too large to send: {', '.join(self.left_out)}" if self.left_out else ""
        return f"sent to MLflow{below}: {self.address}{large}"


def check_server(uri: str) -> None:
    """Ask the MLflow server at ``uri`` for a word.

    Raises:
        EtudeError: ``uri`` is no address of a server or tells a user's name, MLflow is not installed, or no server
            answers.
    """
    with _server(uri) as client:
        client.search_experiments(max_results=1)


def log_to_mlflow(folder: Path, uri: str) -> Sent:
    """Send the run in ``folder``, which has ended, to the MLflow server at ``uri``.

    Settings become params, the rows of ``history.csv`` and the final scores metrics, notes and tags become tags, and
    the files of :data:`~etude.journal.mlflow_plan.FILES` up to 50 MB artefacts; folds, rounds and parts become runs
    below it. It goes to the experiment ``etude``, or to that of ``$MLFLOW_EXPERIMENT_NAME``. A run is on the server
    once: what an earlier attempt has left half-done, or was sent before the run was resumed, is replaced.

    Raises:
        EtudeError: as :func:`check_server` and :func:`~etude.journal.mlflow_plan.plan_of`.
    """
    plan = plan_of(folder)
    with _server(uri) as client:
        experiment = _experiment(client, os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT)
        known = [*_known(client, experiment, plan.tags["etude.id"])]
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
    """Make the run and those below it, and return its id; it ends last, so that one that has ended is whole.

    Args:
        above: tags that say what it is part of.
    """
    run = client.create_run(experiment, start_time=plan.started, tags={**plan.tags, **above}, run_name=plan.name)
    run_id = run.info.run_id
    _log_batches(client, run_id, "params", plan.params.items())
    _log_batches(client, run_id, "metrics", [(one.name, one.value, one.at, one.step) for one in plan.metrics])
    for path in plan.files:
        client.log_artifact(run_id, str(path))
    for part in plan.parts:
        _log(client, experiment, part, {_ROOT: above[_ROOT], _PARENT: run_id})
    client.set_terminated(run_id, plan.status, plan.ended)
    return run_id


def _log_batches(client: MlflowClient, run_id: str, kind: str, values: Iterable[tuple[Any, ...]]) -> None:
    """Write params, metrics or tags, as few at a time as MLflow takes."""
    from mlflow.entities import Metric, Param, RunTag

    made = [{"params": Param, "metrics": Metric, "tags": RunTag}[kind](*value) for value in values]
    for start in range(0, len(made), _MOST):
        client.log_batch(run_id, synchronous=True, **{kind: made[start : start + _MOST]})


def _experiment(client: MlflowClient, name: str) -> str:
    """Return the id of the experiment, which is made where it is not there."""
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


def _known(client: MlflowClient, experiment: str, run: str) -> Iterator[Run]:
    """Yield what the server holds of the run with that id and of everything below it."""
    page: Any = client.search_runs([experiment], f"tags.`{_ROOT}` = '{run}'", max_results=_PAGE)
    yield from page
    while page.token:
        page = client.search_runs([experiment], f"tags.`{_ROOT}` = '{run}'", max_results=_PAGE, page_token=page.token)
        yield from page


def _is_whole(run: Run, plan: MlflowPlan) -> bool:
    """Whether this is the uppermost run, all of it was sent, and it has not been resumed since."""
    tags = run.data.tags
    return _PARENT not in tags and run.info.status != "RUNNING" and tags.get("etude.ended") == plan.tags["etude.ended"]


@contextmanager
def _server(uri: str) -> Generator[MlflowClient]:
    """Yield a client; what MLflow and the network raise becomes one sentence."""
    _refuse_other_addresses(uri)
    with _manners():
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


def _refuse_other_addresses(uri: str) -> None:
    try:
        parts = urlsplit(uri)
        known = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0  # a port is a number
    except ValueError:
        known = False
    if not known:
        raise EtudeError(
            f"{uri!r} is no address of an MLflow server: give one such as http://127.0.0.1:5000, where `mlflow server` "
            "answers"
        )
    if parts.username is not None:
        raise EtudeError(
            "the address of the MLflow server holds a user's name, and the record of the run would keep it: leave it "
            "out, and set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        )


@contextmanager
def _manners() -> Generator[None]:
    given = {name: value for name, value in _MANNERS.items() if name not in os.environ}
    os.environ.update(given)
    try:
        yield
    finally:
        for name in given:
            os.environ.pop(name, None)


def _cause(error: BaseException) -> str:
    """Return what lies at the bottom of an error: the system's word for it, else the first line of its own."""
    below: BaseException | None = error
    while below is not None:
        if isinstance(below, OSError) and below.errno is not None and below.strerror:
            return below.strerror
        below = below.__cause__ or below.__context__
    first = str(error).partition("\n")[0]
    return first if len(first) <= _LONGEST_CAUSE else f"{first[: _LONGEST_CAUSE - 1]}…"
