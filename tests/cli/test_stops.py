"""A run that is stopped, killed or begun twice at any moment; its training is stood for by a file."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from etude.api import fit as etude_fit
from etude.journal import record
from etude.journal.runs import is_complete, read_run
from etude.study import diagnostics
from etude.study.run import job, prepare, start
from picture_folders import write_classes
from recorded_runs import code_of, forked

Moments = Callable[[str, Callable[[], object]], None]
AFTER_TRAINING = ("clear_leftovers", "report", "export_run", "end of export_run")
DONE = {"trained", "run.json", "report.html", "notebook.ipynb"}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write_classes(tmp_path / "train", count=3)


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch, images: Path) -> Moments:
    """Let training be a line in a file; return a function that does something when a run comes to a moment."""
    doing: dict[str, Callable[[], object]] = {}

    def passing(name: str, own: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **more: Any) -> Any:
            doing.pop(name, lambda: None)()
            result = own(*given, **more)
            doing.pop(f"end of {name}", lambda: None)()
            return result

        return call

    class Job:
        def __init__(self, session: Any, prepared: Any) -> None:
            self.session = session

        def run(self) -> None:
            with self.session.stage("fine-tune"), (self.session.folder / "trained").open("a") as file:
                doing.pop("training", lambda: None)()
                file.write("once\n")

    for name in ("read_sources", "clear_leftovers", "report"):
        monkeypatch.setattr(start, name, passing(name, getattr(start, name)))
    monkeypatch.setattr(diagnostics, "export_run", passing("export_run", diagnostics.export_run))
    checked = passing("check of the folder", record._content_to_go_on_with)
    monkeypatch.setattr(record, "_content_to_go_on_with", checked)
    monkeypatch.setattr(prepare, "prepare", passing("prepare", lambda *given: None))
    monkeypatch.setattr(job, "Job", Job)
    return doing.__setitem__


def stop_by(number: int) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("moment", AFTER_TRAINING)
def test_killed_after_training_the_rest_is_made_without_training_again(etude, tmp_path, at, moment):
    def run() -> None:
        at(moment, stop_by(signal.SIGKILL))
        etude("fit", "train", "--out", "run")

    assert code_of(forked(run)) == -signal.SIGKILL
    assert read_run(tmp_path / "run")["state"] == "finished"
    assert not is_complete(read_run(tmp_path / "run"))
    assert etude("fit", "train", "--resume").code == 2  # without --out it looks below runs/
    ended = etude("fit", "train", "--out", "run", "--resume")
    assert ended.code == 0, ended.err
    assert names_in(tmp_path / "run") == DONE
    assert (tmp_path / "run" / "trained").read_text() == "once\n"
    assert "finished" in (tmp_path / "run" / "report.html").read_text()
    assert is_complete(read_run(tmp_path / "run"))
    assert etude("fit", "train", "--out", "run", "--resume").code == 2
    assert etude("fit", "train", "--out", "whole").code == 0
    assert names_in(tmp_path / "whole") == DONE


def test_a_finished_run_of_an_older_etude_is_complete(etude, tmp_path, at):
    assert etude("fit", "train", "--out", "run").code == 0
    content = json.loads((tmp_path / "run" / "run.json").read_text())
    content.pop("reported")
    (tmp_path / "run" / "run.json").write_text(json.dumps(content))
    assert "finished" in etude("fit", "train", "--out", "run", "--resume").err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("moment", ["read_sources", "prepare", "training", *AFTER_TRAINING])
def test_a_stop_ends_in_a_sentence_and_can_be_gone_on_from(etude, tmp_path, at, moment, number, code):
    handlers = [signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)]
    at(moment, stop_by(number))
    ended = etude("fit", "train", "--out", "run")
    assert (ended.code, len(ended.err.strip().splitlines())) == (code, 1)
    assert ended.err.startswith("etude: ")
    assert [signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)] == handlers
    if moment == "read_sources":
        assert not (tmp_path / "run").exists()
        return
    assert ended.err.endswith("etude resume run\n")
    state = read_run(tmp_path / "run")["state"]
    assert state == ("finished" if moment in AFTER_TRAINING else "interrupted")
    assert etude("resume", "run").code == 0
    assert names_in(tmp_path / "run") == DONE


def test_a_finished_run_is_named_with_its_report(etude, tmp_path, at):
    assert etude("fit", "train", "--out", "run").code == 0
    before = (tmp_path / "run" / "run.json").read_bytes()
    ended = etude("resume", "run")
    assert (ended.code, ended.err) == (0, "")
    assert "run/report.html" in ended.out
    assert (tmp_path / "run" / "run.json").read_bytes() == before


def test_a_run_that_cannot_be_gone_on_with_is_refused_in_a_sentence(etude, images, tmp_path, at):
    at("training", stop_by(signal.SIGINT))
    table = write_table(images)
    assert etude("fit", table, *TABLE, "--out", "a run").code == 130
    file = tmp_path / "a run" / "run.json"
    kept = json.loads(file.read_text())
    others: dict[str, dict[str, Any]] = {
        "--resume --out 'a run' (etude fit": {key: value for key, value in kept.items() if key != "request"},
        f"{tmp_path}/gone.csv": {**kept, "request": {**kept["request"], "train": "gone.csv"}},
        "can be resumed": {**kept, "request": {**kept["request"], "train": 5}},
        "no setting": {**kept, "request": {**kept["request"], "settings": {"train.epoch": 5}}},
    }
    for words, content in others.items():
        file.write_text(json.dumps(content))
        ended = etude("resume", "a run")
        assert (ended.code, len(ended.err.splitlines())) == (2, 1), words
        assert words in ended.err
        assert json.loads(file.read_text()) == content
    file.write_text(json.dumps(kept))
    table.rename(tmp_path / "moved.csv")
    assert str(table) in etude("resume", "a run").err
    (tmp_path / "moved.csv").rename(table)
    assert etude("resume", "a run").code == 0


def test_a_run_from_python_is_resumed_by_the_command(etude, images, tmp_path, at):
    at("training", stop_by(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        etude_fit("train", settings={"train.lr": 0.5}, tags=["one"], folds=2, out="run", quiet=True)
    assert etude("resume", "run").code == 0
    record = read_run(tmp_path / "run")
    assert (record["state"], record["settings"]["train.lr"], record["tags"]) == ("finished", 0.5, ["one"])
    assert record["command"] == ["etude.fit", "train"]


def test_a_stop_that_a_library_turns_into_an_error_of_its_own_is_a_stop(etude, at):
    def importing() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except KeyboardInterrupt:
            raise ImportError("numpy.core failed to import") from None

    at("read_sources", importing)
    ended = etude("fit", "train", "--out", "run")
    assert (ended.code, len(ended.err.strip().splitlines())) == (143, 1)


def test_what_the_caller_ignores_stays_ignored(etude, tmp_path, at):
    """As a shell's background processes ignore Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        at("training", stop_by(signal.SIGINT))
        assert etude("fit", "train", "--out", "run").code == 0
    finally:
        signal.signal(signal.SIGINT, before)


def test_the_second_of_two_starts_is_refused_and_leaves_the_first_alone(etude, tmp_path, at):
    codes: list[int] = []

    def again() -> None:
        commands = (run, (*run, "--resume"), ("resume", "run"))
        others = [forked(lambda words=words: os._exit(etude(*words).code)) for words in commands]
        codes.extend(code_of(other) for other in others)

    run = ("fit", "train", "--out", "run")
    at("training", again)
    assert etude(*run).code == 0
    assert codes == [2, 2, 2]
    assert (tmp_path / "run" / "trained").read_text() == "once\n"
    assert names_in(tmp_path / "run") == DONE


@pytest.mark.parametrize("resumed", [False, True])
def test_of_runs_that_start_at_once_one_works(etude, tmp_path, at, resumed):
    """Each process has long looked at the folder when the first begins to write there."""
    run = ("fit", "train", "--out", "run")
    if resumed:
        at("training", stop_by(signal.SIGINT))
        assert etude(*run).code == 130
        run = (*run, "--resume")
    at("end of check of the folder", lambda: time.sleep(2))
    children = [forked(lambda: os._exit(etude(*run).code)) for _ in range(4)]
    codes = [code_of(child) for child in children]
    assert sorted(codes) == [0, 2, 2, 2]
    assert (tmp_path / "run" / "trained").read_text() == "once\n"
    assert is_complete(read_run(tmp_path / "run"))


def write_table(folder: Path, **changes: list[str]) -> Path:
    columns = {"file": [f"{name}/{k:03d}.png" for name in ("round", "striped") for k in range(3)]}
    columns |= {"label": ["round"] * 3 + ["striped"] * 3, "other": ["a", "b"] * 3, "weight": ["1"] * 6, **changes}
    rows = [",".join(columns), *map(",".join, zip(*columns.values(), strict=True))]
    (folder / "t.csv").write_text("\n".join(rows))
    return folder / "t.csv"


TABLE = ("--image-column", "file", "--label-column", "label", "--weight-column", "weight")


@pytest.mark.parametrize(
    ("changes", "column", "words"),
    [
        ({"label": ["round", "round", "striped", "round", "striped", "striped"]}, "label", ["labels"]),
        ({"label": ["round"] * 3 + ["dotted"] * 3}, "label", ["classes", "labels"]),
        ({}, "other", ["classes", "labels", "'label'", "'other'"]),
        ({"weight": ["1"] * 5 + ["2"]}, "label", ["weights"]),
    ],
)
def test_other_labels_are_refused(etude, images, at, changes, column, words):
    run = ("fit", write_table(images), *TABLE, "--out", "run")
    at("training", stop_by(signal.SIGINT))
    assert etude(*run).code == 130
    before = (images.parent / "run" / "run.json").read_bytes()
    write_table(images, **changes)
    again = [column if word == "label" else word for word in run]
    ended = etude(*again, "--resume")
    assert (ended.code, len(ended.err.splitlines())) == (2, 1)
    assert all(word in ended.err for word in (*words, "run", "--resume"))
    assert (images.parent / "run" / "run.json").read_bytes() == before
    write_table(images)
    assert etude(*run, "--resume").code == 0


def test_other_labels_of_validation_images_are_refused(etude, images, at):
    valid = write_classes(images.parent / "valid", count=2)
    run = ("fit", images, "--valid", valid, "--out", "run")
    at("training", stop_by(signal.SIGINT))
    assert etude(*run).code == 130
    (valid / "round" / "000.png").rename(valid / "striped" / "009.png")
    assert "validation labels" in etude(*run, "--resume").err
    assert "validation labels" in etude("fit", images, "--out", "run", "--resume").err
    (valid / "striped" / "009.png").rename(valid / "round" / "000.png")
    assert etude(*run, "--resume").code == 0


def test_a_run_without_fingerprints_of_labels_is_gone_on_with(etude, images, at):
    at("training", stop_by(signal.SIGINT))
    assert etude("fit", images, "--out", "run").code == 130
    content = json.loads(Path("run/run.json").read_text())
    content.pop("inputs")
    Path("run/run.json").write_text(json.dumps(content))
    (images / "round" / "000.png").rename(images / "striped" / "009.png")
    assert etude("fit", images, "--out", "run", "--resume").code == 0


@pytest.mark.each("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_after_the_end_changes_nothing(number):
    """While libraries unload, which takes a second with torch; what is registered first runs last."""
    late = f"import atexit, os; atexit.register(lambda: os.kill(os.getpid(), {int(number)}))"
    code = f"{late}\nimport sys\nfrom etude.cli.main import main\nsys.argv = ['etude', 'recipe', 'list']\nmain()"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "quick" in ended.stdout
