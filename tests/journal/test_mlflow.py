"""Runs on an MLflow server: what they become, and a real server with its SQLite store that has them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.error import URLError
from urllib.request import urlopen

import pytest

import recorded_runs
from etude.core.errors import EtudeError
from etude.journal import mlflow as mlflow_plan
from etude.journal.mlflow import MlflowPlan, check_server, log_to_mlflow, plan_of
from etude.journal.notebook import write_notebook
from etude.journal.record import read_run
from etude.journal.report.report import write_report
from etude.journal.runs import add_note, set_tags
from etude.journal.screen import Screen
from etude.study.diagnostics import export_run
from etude.study.run.request import Request
from etude.study.run.session import Session
from picture_folders import write_classes
from recorded_runs import edit_record, opened, write_killed_run
from run_folders import write_run

if TYPE_CHECKING:
    from mlflow import MlflowClient

NOBODY = "http://127.0.0.1:9"  # the port that discards
HISTORY = (
    "epoch,step,seconds,phase,lr,train_loss,valid_accuracy\n1,10,2.5,grow,0.1,0.9,0.5\n2,20,5.0,finish,0.01,,0.75\n"
)


def values_of(plan: MlflowPlan) -> dict[str, float]:
    return {point.name: point.value for point in plan.metrics}


def write_parts(folder: Path) -> Path:
    """Write a cross-validation with a round on one of its folds, and an arm below it."""
    record = opened(folder)
    for number in (1, 2):
        with record.stage(f"fine-tune (fold {number}/2)") as stage:
            stage.score("accuracy", 0.7 + number / 10)
        (folder / f"fold-{number}").mkdir()
        (folder / f"fold-{number}" / "history.csv").write_text(HISTORY)
    with record.stage("round 1 (fold 2/2)") as stage:
        stage.score("accuracy", 0.95)
    (folder / "fold-2" / "round-1").mkdir()
    (folder / "fold-2" / "round-1" / "history.csv").write_text(HISTORY)
    entry = {"name": "round 1 (fold 2/2)", "gain": 0.05, "kept": True, "pseudo_labels": "9 of 10", "histogram": [1]}
    record.set("rounds", [entry])
    record.set("result", {"accuracy": 0.9, "log_loss": 0.3, "models": ["fold-1", "fold-2"]})
    record.close("finished")
    recorded_runs.write_run(folder / "arms" / "bare", parent=record.id)
    recorded_runs.write_run(folder / "guest")  # somebody's, and no part of it
    return folder


# --- what a run becomes ----------------------------------------------------------------------------------------------


def test_settings_are_those_that_were_used(tmp_path: Path):
    params = plan_of(write_run(tmp_path / "run", seed=7)).params
    assert params["train.lr"] == "0.001"
    assert params["data.fit"] == "squash"
    assert params["train.epochs"] == "8"
    assert (params["seed"], params["recipe"], params["classes"], params["fingerprint"]) == ("7", "default", "3", "c880")


def test_curves_keep_steps_and_times(tmp_path: Path):
    folder = write_run(tmp_path / "run")
    edit_record(folder, started="2026-01-01T00:00:00+00:00")
    plan = plan_of(folder)
    curve = [point for point in plan.metrics if point.name == "valid_accuracy"]
    assert [point.step for point in curve] == [*range(50, 401, 50)]
    (began,) = {point.at - 100 * point.step for point in curve}  # a step takes a tenth of a second
    stage = next(stage for stage in read_run(folder)["stages"] if stage["name"] == "fine-tune")
    assert began == mlflow_plan._milliseconds(stage["started"])
    assert {point.name for point in plan.metrics if point.step}.isdisjoint({"step", "seconds", "phase"})
    assert plan.started == 1767225600000


def test_final_scores_and_stages_are_metrics(tmp_path: Path):
    found = values_of(plan_of(write_run(tmp_path / "run")))
    record = read_run(tmp_path / "run")
    assert found["accuracy"] == record["result"]["accuracy"]
    assert found["seconds"] == record["seconds"]
    assert found["stages/head/accuracy"] == 0.8
    assert found["stages/fine-tune/seconds"] == record["stages"][1]["seconds"]


def test_folds_rounds_and_parts_stand_below(tmp_path: Path):
    plan = plan_of(write_parts(tmp_path / "run"))
    assert [part.name for part in plan.parts] == ["fold-1", "fold-2", "arms/bare"]
    first, second, arm = plan.parts
    assert values_of(first)["stages/fine-tune/accuracy"] == pytest.approx(0.8)
    assert values_of(second)["valid_accuracy"] == 0.75
    assert [point.step for point in second.metrics if point.name == "train_loss"] == [10]  # the other cell is empty
    (pseudo,) = second.parts
    assert pseudo.name == "round 1"
    assert values_of(pseudo).items() >= {"gain": 0.05, "accuracy": 0.95, "valid_accuracy": 0.75}.items()
    assert pseudo.params == {"kept": "true", "pseudo_labels": "9 of 10"}
    assert arm.tags["etude.id"] == read_run(tmp_path / "run" / "arms" / "bare")["id"]
    assert "stages/fine-tune/accuracy" not in values_of(plan)
    assert len([*plan.all()]) == 5


def test_notes_tags_and_code_are_tags(tmp_path: Path):
    folder = write_run(tmp_path / "run", tags=["baseline"])
    set_tags(folder, ["a:b"])
    add_note(folder, "more dropout")
    tags = plan_of(folder).tags
    assert tags["etude.tags"] == "baseline a:b"
    assert tags["mlflow.note.content"].endswith(": more dropout")
    assert tags["mlflow.source.name"] == "etude fit 'train /'"


def test_names_and_values_are_made_as_mlflow_takes_them(tmp_path: Path):
    folder = recorded_runs.write_run(
        tmp_path / "run", settings={"a[0]/b": "x" * 9000, "none": None, "deep": [{"lr": 1}]}
    ).folder
    params = plan_of(folder).params
    assert len(params["a_0__b"]) == 5000
    assert params["a_0__b"].endswith("x…")
    assert params["deep"] == '[{"lr": 1}]'
    assert params["none"] == "null"


def test_large_files_are_left_out_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = write_run(tmp_path / "run")
    size = (folder / "valid.npz").stat().st_size
    assert {path.name for path in plan_of(folder).files} >= {"run.json", "history.csv", "valid.npz", "model.json"}
    monkeypatch.setattr(mlflow_plan, "LARGEST_FILE", size - 1)
    plan = plan_of(folder)
    assert "valid.npz" not in {path.name for path in plan.files}
    assert any(told.startswith("valid.npz (") for told in plan.left_out)


def test_runs_that_did_not_finish_say_so(tmp_path: Path):
    write_killed_run(tmp_path / "killed")
    opened(tmp_path / "failed").close("failed", "no images")
    opened(tmp_path / "busy")
    killed, failed = plan_of(tmp_path / "killed"), plan_of(tmp_path / "failed")
    assert (killed.status, failed.status, failed.tags["etude.error"]) == ("KILLED", "FAILED", "no images")
    assert killed.ended >= killed.started
    with pytest.raises(EtudeError, match="busy is still at work"):
        plan_of(tmp_path / "busy")


# --- before there is a server ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "uri", ["", "here", "localhost:5000", "ftp://host", "http://", "http://host:port", "http://[x"]
)
def test_what_is_no_address_is_refused(uri: str):
    with pytest.raises(EtudeError, match="is not the address of an MLflow server"):
        check_server(uri)


def test_an_address_with_a_password_is_refused_and_not_repeated():
    with pytest.raises(EtudeError, match="MLFLOW_TRACKING_PASSWORD") as refused:
        check_server("https://me:secret@host")
    assert "secret" not in str(refused.value)


def test_a_server_that_is_away_is_one_sentence(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(EtudeError, match=r"no MLflow server takes runs at http://127.0.0.1:9 \(Connection refused\)"):
        check_server(NOBODY)
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "0"
    assert "MLFLOW_DISABLE_TELEMETRY" not in os.environ


def test_without_the_extra_it_says_how_to_install_it(etude: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    ended = etude("fit", tmp_path / "nothing", "--mlflow", NOBODY)
    assert ended.code == 2
    assert "pip install 'etude[mlflow]'" in ended.err
    assert not (tmp_path / "runs").exists()


def test_mlflow_is_not_imported_before_it_is_needed():
    code = "import sys, etude.journal.mlflow, etude.cli.journal; sys.exit('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_server_that_dies_costs_the_run_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    record = recorded_runs.write_run(tmp_path / "my run")
    before = read_run(record.folder)
    export_run(Session(Request(tmp_path, mlflow=NOBODY), record, Screen()))
    after = read_run(record.folder)
    (warning,) = after.pop("warnings")
    assert after == {key: value for key, value in before.items() if key != "warnings"}
    assert f"etude journal send '{tmp_path}/my run' --mlflow {NOBODY}" in warning["text"]
    assert warning["text"] in capsys.readouterr().out
    assert "not on the MLflow server" in (record.folder / "report.html").read_text()
    assert (record.folder / "notebook.ipynb").is_file()


# --- a real server ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of an MLflow server with a SQLite store."""
    folder = tmp_path_factory.mktemp("mlflow")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    words += ["--backend-store-uri", f"sqlite:///{folder}/store.db", "--artifacts-destination", str(folder / "files")]
    said = (folder / "said.txt").open("wb")
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    process = subprocess.Popen(
        [sys.executable, "-m", "mlflow", *words], cwd=folder, env={**os.environ, **quiet}, stdout=said, stderr=said,
        start_new_session=True,
    )  # fmt: skip
    try:
        wait_for(f"http://127.0.0.1:{port}/health", process, folder / "said.txt")
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)
        said.close()


def wait_for(address: str, process: subprocess.Popen[bytes], said: Path) -> None:
    for _ in range(6000):
        assert process.poll() is None, said.read_text()
        try:
            with urlopen(address, timeout=5):
                return
        except (URLError, ConnectionError, TimeoutError):
            time.sleep(0.1)
    raise AssertionError(said.read_text())


@pytest.fixture
def client(server: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> MlflowClient:
    """A client of the server; what the test sends goes to an experiment of its own."""
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", request.node.name)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=server)


def runs_of(client: MlflowClient, test: str) -> list[Any]:
    experiment = client.get_experiment_by_name(test)
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id]))


@pytest.mark.slow
def test_params_metrics_tags_and_files_arrive(client: MlflowClient, server: str, tmp_path: Path):
    folder = write_run(tmp_path / "run", tags=["baseline"])
    write_report(folder)
    write_notebook(folder)
    plan, sent = plan_of(folder), log_to_mlflow(folder, server)
    run = client.get_run(sent.run_id)
    assert (run.info.run_name, run.info.status) == ("run", "FINISHED")
    assert (run.info.start_time, run.info.end_time) == (plan.started, plan.ended)
    assert run.data.params == plan.params
    assert run.data.metrics == pytest.approx(values_of(plan))
    assert run.data.tags.items() >= plan.tags.items()
    curve = client.get_metric_history(sent.run_id, "valid_loss")
    assert [(one.step, one.timestamp, one.value) for one in curve] == [
        (one.step, one.at, pytest.approx(one.value)) for one in plan.metrics if one.name == "valid_loss"
    ]
    assert {file.path for file in client.list_artifacts(sent.run_id)} == {path.name for path in plan.files}
    got = client.download_artifacts(sent.run_id, "report.html", str(tmp_path))
    assert Path(got).read_bytes() == (folder / "report.html").read_bytes()
    assert sent.text == f"sent to MLflow: {server}/#/experiments/{run.info.experiment_id}/runs/{sent.run_id}"


@pytest.mark.slow
def test_what_is_part_of_a_run_is_nested(client: MlflowClient, server: str, tmp_path: Path):
    sent = log_to_mlflow(write_parts(tmp_path / "run"), server)
    runs = {run.info.run_id: run for run in runs_of(client, "test_what_is_part_of_a_run_is_nested")}
    above = {run.info.run_name: run.data.tags.get("mlflow.parentRunId") for run in runs.values()}
    named = {run.info.run_name: run.info.run_id for run in runs.values()}
    assert above == {
        **{"run": None, "fold-1": named["run"], "fold-2": named["run"]},
        **{"round 1": named["fold-2"], "arms/bare": named["run"]},
    }
    assert (sent.run_id, sent.runs) == (named["run"], 5)
    assert "with 4 below it" in sent.text
    assert [one.step for one in client.get_metric_history(named["fold-1"], "lr")] == [10, 20]
    assert runs[named["arms/bare"]].data.params["train.lr"] == "0.1"
    assert {run.info.status for run in runs.values()} == {"FINISHED"}


@pytest.mark.slow
def test_a_run_is_there_once_however_often_it_is_sent(client: MlflowClient, server: str, tmp_path: Path):
    folder, test = write_parts(tmp_path / "run"), "test_a_run_is_there_once_however_often_it_is_sent"
    first = log_to_mlflow(folder, server)
    add_note(folder, "best so far")
    again = log_to_mlflow(folder, server)
    assert (again.run_id, again.is_new, len(runs_of(client, test))) == (first.run_id, False, 5)
    assert "best so far" in client.get_run(first.run_id).data.tags["mlflow.note.content"]
    client.update_run(first.run_id, status="RUNNING")  # as an attempt that was cut off leaves it
    whole = log_to_mlflow(folder, server)
    assert (whole.is_new, whole.run_id != first.run_id, len(runs_of(client, test))) == (True, True, 5)
    edit_record(folder, ended="2031-01-01T00:00:00+00:00")  # resumed since
    assert log_to_mlflow(folder, server).is_new
    assert len(runs_of(client, test)) == 5


@pytest.mark.slow
def test_a_deleted_experiment_is_one_sentence(client: MlflowClient, server: str, tmp_path: Path):
    folder = recorded_runs.write_run(tmp_path / "run").folder
    log_to_mlflow(folder, server)
    client.delete_experiment(runs_of(client, "test_a_deleted_experiment_is_one_sentence")[0].info.experiment_id)
    with pytest.raises(EtudeError, match="was deleted on the MLflow server"):
        log_to_mlflow(folder, server)


@pytest.mark.slow
def test_more_than_one_request_holds(client: MlflowClient, server: str, tmp_path: Path):
    settings = {f"many.{number}": number for number in range(250)}
    folder = recorded_runs.write_run(tmp_path / "run", settings=settings).folder
    rows = "\n".join(f"{step},{step},{1 / (step + 1)}" for step in range(700))
    (folder / "history.csv").write_text(f"step,seconds,train_loss\n{rows}\n")
    run_id = log_to_mlflow(folder, server).run_id
    assert client.get_run(run_id).data.params["many.249"] == "249"
    assert len(client.get_metric_history(run_id, "train_loss")) == 700


@pytest.mark.slow
def test_fit_and_journal_send_as_a_user_calls_them(etude: Any, client: MlflowClient, server: str, tmp_path: Path):
    train = write_classes(tmp_path / "train")
    ended = etude("fit", train, "--recipe", "quick", "--out", "runs/first", "--mlflow", server)
    assert ended.code == 0, ended.err
    (run,) = runs_of(client, "test_fit_and_journal_send_as_a_user_calls_them")
    assert f"sent to MLflow: {server}/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}" in ended.out
    record = json.loads((tmp_path / "runs" / "first" / "run.json").read_text())
    assert run.data.metrics["accuracy"] == record["result"]["accuracy"]
    assert {"report.html", "run.json", "valid.npz", "model.safetensors", "notebook.ipynb"} <= {
        file.path for file in client.list_artifacts(run.info.run_id)
    }
    told = etude("journal", "send", "first", "--mlflow", server)
    assert (told.code, told.err, "MLflow had this run" in told.out) == (0, "", True)
    shutil.copytree(tmp_path / "runs" / "first", tmp_path / "runs" / "copy")
    edit_record(tmp_path / "runs" / "copy", id="0123456789")
    assert "sent to MLflow" in etude("journal", "send", "copy", "--mlflow", server).out
    assert len(runs_of(client, "test_fit_and_journal_send_as_a_user_calls_them")) == 2
