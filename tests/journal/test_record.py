from __future__ import annotations

import errno
import hashlib
import json
import os
import platform
import shutil
import threading
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from etude.core.errors import EtudeError
from etude.journal import record as record_module
from etude.journal.record import RunRecord, read_run
from etude.journal.runs import verify
from recorded_runs import edit_record, opened


def test_an_open_record_says_what_was_asked_and_where(tmp_path: Path):
    opened(tmp_path / "runs" / "first", extra={"gpus": ["H100"]})
    run = read_run(tmp_path / "runs" / "first")
    assert (run["schema_version"], run["state"], run["ended"], run["error"]) == (2, "running", None, None)
    assert run["command"] == ["etude", "fit", "train"]
    assert (run["recipe"], run["seed"], run["changed"]) == ("quick", 3, {"data.fit": "crop"})
    assert run["settings"] == {"data": {"fit": "crop"}}
    assert (run["pid"], run["host"]) == (os.getpid(), platform.node())
    assert (run["kind"], run["parent"], run["tags"], run["notes"]) == ("fit", None, [], [])
    assert datetime.fromisoformat(run["started"]).utcoffset().total_seconds() == 0
    assert run["environment"]["gpus"] == ["H100"]
    assert run["environment"]["packages"]["numpy"] == np.__version__


def test_every_call_is_on_disk_at_once(tmp_path: Path):
    record = opened(tmp_path)
    with record.stage("features") as stage:
        assert read_run(tmp_path)["stages"][0]["state"] == "running"
        stage.score("valid_accuracy", np.float32(0.5))
        stage.note("images", np.int64(7))
        running = read_run(tmp_path)["stages"][0]
        assert (running["scores"], running["notes"]) == ({"valid_accuracy": 0.5}, {"images": 7})
    ended = read_run(tmp_path)["stages"][0]
    assert (ended["name"], ended["state"]) == ("features", "finished")
    assert ended["seconds"] >= 0
    record.set("data", {"images": 10, "folder": Path("train"), "means": np.array([0.5, 1.5])})
    assert read_run(tmp_path)["data"] == {"images": 10, "folder": "train", "means": [0.5, 1.5]}
    record.warn("3 files are bad")
    assert [warning["text"] for warning in read_run(tmp_path)["warnings"]] == ["3 files are bad"]
    record.close("finished")
    assert read_run(tmp_path)["state"] == "finished"
    assert read_run(tmp_path)["seconds"] >= ended["seconds"]
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


@pytest.mark.parametrize(
    ("error", "state", "told"),
    [
        (ValueError("bad shape"), "failed", "ValueError: bad shape"),
        (EtudeError("the disk is full"), "failed", "the disk is full"),
        (KeyboardInterrupt(), "interrupted", "KeyboardInterrupt"),
    ],
)
def test_an_exception_ends_its_stage_and_passes_on(tmp_path: Path, error: BaseException, state: str, told: str):
    record = opened(tmp_path)
    with pytest.raises(type(error)), record.stage("head"):
        raise error
    record.close(state, error)
    run = read_run(tmp_path)
    assert (run["stages"][0]["state"], run["stages"][0]["error"]) == (state, told)
    assert (run["state"], run["error"]) == (state, told)


def test_a_full_disk_is_told_as_what_stopped_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    record = opened(tmp_path)

    def full(path: Path, value: Any) -> None:
        raise OSError(errno.ENOSPC, f"{path} does not fit")

    def store() -> None:
        with record.stage("store"):
            monkeypatch.setattr(record_module, "write_json", full)
            raise EtudeError("the store does not fit")

    with pytest.raises(EtudeError, match="the store does not fit"):
        store()
    record.close("failed", "the store does not fit")
    with pytest.raises(OSError, match=r"run.json does not fit"):
        record.close("finished")


@pytest.mark.parametrize("state", ["failed", "interrupted"])
def test_a_run_that_failed_with_nothing_makes_room_for_the_corrected_command(tmp_path: Path, state: str):
    opened(tmp_path).close(state, "no images")
    for name in ("report.html", "bad_files.csv"):
        (tmp_path / name).touch()
    if state == "failed":
        assert opened(tmp_path).folder == tmp_path
        assert [path.name for path in tmp_path.iterdir()] == ["run.json"]
        return
    with pytest.raises(EtudeError, match="is not empty"):
        opened(tmp_path)
    assert len(list(tmp_path.iterdir())) == 3


def test_a_folder_in_use_is_refused_and_left_alone(tmp_path: Path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(EtudeError, match=r"is not empty: choose another --out"):
        opened(tmp_path)
    with pytest.raises(EtudeError, match=r"is not a run: it holds no run.json"):
        opened(tmp_path, resume=True)
    with pytest.raises(EtudeError, match="is a file, and a run needs a folder"):
        opened(tmp_path / "thesis.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_resumed_run_lists_each_stage_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    clock = [100.0]
    monkeypatch.setattr(record_module.time, "perf_counter", lambda: clock[0])
    first = opened(tmp_path, tags=["baseline"])
    first.set("data", {"images": 10})
    with first.stage("lr-find"):
        clock[0] += 1
    with first.stage("features") as features:
        clock[0] += 5
        features.score("accuracy", 0.1)
    killed = first.stage("fine-tune")
    killed.__enter__().note("steps", 7)
    clock[0] += 20
    first.warn("the disk is nearly full")  # the last word of the killed process
    clock[0] += 1000
    before = read_run(tmp_path)
    again = opened(tmp_path, resume=True, command=["etude", "fit", "--resume"], kind="ablate", tags=["other"])
    assert [stage["state"] for stage in read_run(tmp_path)["stages"]] == ["finished", "finished", "interrupted"]
    with again.stage("features") as features:
        clock[0] += 2
        features.score("accuracy", 0.2)
    assert features.seconds == 7
    with again.stage("fine-tune"):
        clock[0] += 30
    again.close("finished")
    run = read_run(tmp_path)
    told = [(stage["name"], stage["state"], stage["seconds"], stage["attempts"]) for stage in run["stages"]]
    assert told == [("lr-find", "finished", 1, 1), ("features", "finished", 7, 2), ("fine-tune", "finished", 50, 2)]
    assert run["stages"][1]["scores"] == {"accuracy": 0.2}
    assert run["stages"][2]["notes"] == {}
    assert (run["id"], run["kind"], run["tags"]) == (before["id"], "fit", ["baseline"])
    assert run["data"] == {"images": 10}
    assert run["command"] == ["etude", "fit", "--resume"]
    assert len(run["resumed"]) == 1
    assert run["seconds"] >= before["seconds"]


def test_a_stage_that_comes_twice_in_one_run_is_listed_twice(tmp_path: Path):
    record = opened(tmp_path)
    for _ in range(2):
        with record.stage("round"):
            pass
    assert [(stage["name"], stage["attempts"]) for stage in read_run(tmp_path)["stages"]] == [("round", 1)] * 2


def test_a_stage_tells_its_seconds_while_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    clock = [0.0]
    monkeypatch.setattr(record_module.time, "perf_counter", lambda: clock[0])
    record = opened(tmp_path)
    with record.stage("fine-tune") as stage:
        clock[0] = 3
        stage.note("steps", 1)
        clock[0] = 4
        assert read_run(tmp_path)["stages"][0]["seconds"] == 3
    assert read_run(tmp_path)["stages"][0]["seconds"] == 4


def test_a_stage_that_says_nothing_is_written_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(record_module, "_HEARTBEAT", 0.005)
    record = opened(tmp_path / "run")
    with record.stage("fine-tune") as stage:
        for _ in range(2000):
            if read_run(tmp_path / "run")["stages"][0]["seconds"] > 0.02:
                break
            time.sleep(0.005)
        for number in range(200):  # while it beats
            stage.note(f"step {number}", number)
        assert len(read_run(tmp_path / "run")["stages"][0]["notes"]) == 200
        assert read_run(tmp_path / "run")["stages"][0]["seconds"] > 0.02
    shutil.rmtree(tmp_path / "run")  # as a search for the learning rate does
    time.sleep(0.05)
    assert not (tmp_path / "run").exists()
    assert [thread.name for thread in threading.enumerate() if thread.name == "etude record"] == []


def test_runs_nest_by_the_id_of_their_parent(tmp_path: Path):
    study = opened(tmp_path / "study", kind="ablate", tags=["mixup"])
    opened(tmp_path / "study" / "arm-1", parent=study.id)
    parent, part = read_run(tmp_path / "study"), read_run(tmp_path / "study" / "arm-1")
    assert (parent["kind"], parent["tags"], part["parent"]) == ("ablate", ["mixup"], parent["id"])
    assert part["id"] != parent["id"]
    with pytest.raises(EtudeError, match="'two words' cannot be a tag"):
        opened(tmp_path / "other", tags=["two words"])
    assert not (tmp_path / "other").exists()


def of_schema_1(folder: Path, stages: list[dict[str, Any]]) -> dict[str, Any]:
    """Turn the record in ``folder`` into one of schema 1."""
    content = json.loads((folder / "run.json").read_text())
    for key in ("id", "kind", "parent", "tags", "notes", "host"):
        del content[key]
    content |= {"schema_version": 1, "stages": stages}
    (folder / "run.json").write_text(json.dumps(content))
    return content


def test_a_record_of_schema_1_is_read_as_one_of_today(tmp_path: Path):
    opened(tmp_path).close("interrupted")
    stage = {
        "name": "fine-tune",
        "state": "interrupted",
        "started": "2025-01-01T00:00:00+00:00",
        "scores": {},
        "notes": {},
    }
    later = {**stage, "state": "finished", "started": "2025-01-02T00:00:00+00:00", "seconds": 3.0}
    old = of_schema_1(tmp_path, [{**stage, "seconds": None}, {**stage, "seconds": 2.0}, later])
    run = read_run(tmp_path)
    assert run["schema_version"] == 2
    assert run["stages"] == [{**later, "seconds": 5.0, "attempts": 3}]
    assert (run["kind"], run["parent"], run["tags"], run["notes"], run["host"]) == ("fit", None, [], [], None)
    assert len(run["id"]) == 10
    assert run["id"] == read_run(tmp_path)["id"]
    assert {key: run[key] for key in ("settings", "started", "command")} == {
        key: old[key] for key in ("settings", "started", "command")
    }
    opened(tmp_path, resume=True, command=["other"])
    assert read_run(tmp_path)["id"] == run["id"]
    assert json.loads((tmp_path / "run.json").read_text())["schema_version"] == 2


def test_resuming_nothing_starts_a_run(tmp_path: Path):
    opened(tmp_path / "new", resume=True)
    assert read_run(tmp_path / "new")["resumed"] == []


def test_artefacts_are_named_measured_and_hashed(tmp_path: Path):
    record = opened(tmp_path / "run")
    (tmp_path / "run" / "tb").mkdir()
    inside, outside = tmp_path / "run" / "tb" / "events", tmp_path / "submission.csv"
    inside.write_bytes(b"x" * 5)
    outside.write_bytes(b"id,label\n")
    record.artefact(inside)
    record.artefact(outside)
    inside.write_bytes(b"y" * 6)
    record.artefact(inside)
    entries = {entry["name"]: entry for entry in read_run(tmp_path / "run")["artefacts"]}
    assert set(entries) == {"tb/events", str(outside.resolve())}
    assert entries["tb/events"]["bytes"] == 6
    assert entries["tb/events"]["blake2b"] == hashlib.blake2b(b"y" * 6, digest_size=16).hexdigest()


JSON_LIKE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=())),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(exclude_categories=())), inner),
    max_leaves=10,
)


@given(JSON_LIKE)
def test_any_value_is_written_as_standard_json(tmp_path_factory: pytest.TempPathFactory, value: Any):
    record = RunRecord(tmp_path_factory.mktemp("json"), {"id": "0", "seconds": 0.0, "stages": []})
    record.set("value", value)

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    written = json.loads((record.folder / "run.json").read_text(encoding="utf-8"), parse_constant=refuse)
    if isinstance(value, float) and not np.isfinite(value):
        assert written["value"] is None
    elif isinstance(value, bool | int | float | None):
        assert written["value"] == value
    else:
        assert len(written["value"]) >= len(value)


def test_what_json_can_not_hold_is_refused(tmp_path: Path):
    record = opened(tmp_path)
    with pytest.raises(TypeError, match="not object"):
        record.set("data", {"images": object()})
    with pytest.raises(ValueError, match="'stages' is written by the record itself"):
        record.set("stages", [])
    with pytest.raises(ValueError, match="not 'done'"):
        record.close("done")
    assert read_run(tmp_path)["state"] == "running"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("{", "is not valid JSON"),
        ("[]", "is not the record of a run"),
        ('{"state": "finished"}', "is not the record of a run"),
        ('{"schema_version": 3}', r"newer etude \(schema 3"),
        ('{"schema_version": 2}', "is damaged: it lacks 'id', 'kind', "),
        ('{"schema_version": 1}', "is damaged: it lacks 'state'"),
    ],
)
def test_a_record_that_is_none(tmp_path: Path, content: str, sentence: str):
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(EtudeError, match=sentence):
        read_run(tmp_path)


def test_a_record_in_an_unknown_state_is_damaged(tmp_path: Path):
    opened(tmp_path)
    edit_record(tmp_path, state="dancing")
    with pytest.raises(EtudeError, match="a known state"):
        read_run(tmp_path)


@pytest.mark.each(
    "changes",
    [
        {"stages": {}},
        {"stages": ["head"]},
        {"stages": [{"name": "head", "state": "finished"}]},
        {"result": []},
        {"seconds": "long"},
        {"parent": 3},
        {"schema_version": 1, "stages": [3]},
        {"schema_version": 1, "stages": [{"name": "head", "seconds": "long"}]},
    ],
)
def test_what_no_run_writes_is_named(tmp_path: Path, changes: dict[str, Any]):
    opened(tmp_path)
    edit_record(tmp_path, **changes)
    with pytest.raises(EtudeError, match=f"is damaged: what it says of '{list(changes)[-1]}'"):
        read_run(tmp_path)


def test_a_folder_that_is_no_run(tmp_path: Path):
    with pytest.raises(EtudeError, match="is not a folder"):
        read_run(tmp_path / "nothing")
    with pytest.raises(EtudeError, match=r"holds no run.json"):
        read_run(tmp_path)


HEAD = {"name": "head", "state": "finished", "started": "", "seconds": 1, "attempts": 1, "notes": {}}


@pytest.mark.parametrize(
    "changes",
    [
        {"stages": [{**HEAD, "scores": {"accuracy": {}}}]},
        {"result": {"log_loss": []}},
        {"result": {"validation_images": "x"}},
        {"environment": {"memory_bytes": "many"}},
        {"plan": {"resolved": True}},
        {"data": {"folds": -1}},
    ],
)
def test_a_part_that_lists_and_comparisons_read_is_damaged(tmp_path: Path, changes: dict[str, Any]):
    opened(tmp_path)
    edit_record(tmp_path, **changes)
    with pytest.raises(EtudeError, match=next(iter(changes))):
        read_run(tmp_path)


def test_a_file_has_no_hash_while_it_is_written_anew(tmp_path: Path):
    record, file = opened(tmp_path), tmp_path / "model.json"

    def names() -> list[str]:
        return [entry["name"] for entry in read_run(tmp_path)["artefacts"]]

    with record.writing(file):
        file.write_text("1")
    assert names() == ["model.json"]
    assert verify(tmp_path, ["model.json", "absent.npz"]) == []

    def stop() -> None:
        with record.writing(file):
            file.write_text("2")
            raise KeyError

    with pytest.raises(KeyError):
        stop()
    assert names() == []
    assert verify(tmp_path, ["model.json"]) == ["model.json"]
