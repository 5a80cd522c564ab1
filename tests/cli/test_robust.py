"""Odd places, odd files and half-broken runs: one sentence each, and nothing said that is not true."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest

from picture_folders import picture, write_classes, write_flat

QUICK = ("--recipe", "quick", "--set", "model.feature_size=32")


def sentence_of(ended) -> str:
    assert ended.code == 2, ended.out
    assert len(ended.err.strip().splitlines()) == 1
    assert ended.err.startswith("etude: ")
    return ended.err


def edit_record(run: Path, **changes: object) -> None:
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**record, **changes}))


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kept")


@pytest.fixture
def finished(etude, tmp_path, kept) -> Path:
    """A finished run in ``run``, its images and its cache, made once."""
    if not (kept / "run").is_dir():
        write_flat(tmp_path / "test")
        assert etude("fit", write_classes(tmp_path / "train"), *QUICK, "--out", "run").code == 0
        shutil.copytree(tmp_path, kept, dirs_exist_ok=True)
    shutil.copytree(kept, tmp_path, dirs_exist_ok=True)
    return tmp_path / "run"


def test_plan_tells_the_split_that_is_made(etude, tmp_path):
    """Two images a class: one of each must train and one validate, whatever a fifth of all would be."""
    write_classes(tmp_path / "train", [f"c{k}" for k in range(6)], count=2)
    ended = etude("fit", tmp_path / "train", *QUICK, "--out", "run")
    assert ended.code == 0, ended.err
    assert "6 to train on, 6 to validate" in ended.out
    assert ended.err == ""  # nothing that a library wants to say


def test_class_readable_only_among_given_validation_images(etude, tmp_path):
    train, valid = write_classes(tmp_path / "train", ["round"]), write_classes(tmp_path / "valid")
    (train / "striped").mkdir()
    (train / "striped" / "a.png").write_text("not an image")
    ended = etude("fit", train, "--valid", valid, *QUICK, "--out", "run")
    assert "only class 'round' has readable training images" in sentence_of(ended)
    assert "striped/a.png" in (tmp_path / "run" / "bad_files.csv").read_text()


def test_folder_of_a_run_that_failed_at_once_can_be_used_again(etude, tmp_path):
    train = write_classes(tmp_path / "train")
    assert etude("fit", train, *QUICK, "--folds", 30, "--out", "run").code == 2
    assert etude("fit", train, *QUICK, "--folds", 3, "--out", "run").code == 0
    assert "is not empty" in sentence_of(etude("fit", train, *QUICK, "--out", "run"))


def test_sample_submission_that_names_an_image_without_a_file_is_told_before_training(etude, tmp_path):
    train, test = write_classes(tmp_path / "train"), write_flat(tmp_path / "test", count=2)
    (tmp_path / "s.csv").write_text("id,label\nt000.png,round\nt001.png,round\nabsent.png,round\n")
    ended = etude("fit", train, "--test", test, "--sample-submission", "s.csv", *QUICK, "--out", "run")
    assert "'absent.png'" in sentence_of(ended)
    assert not (tmp_path / "run").exists()


def test_coloured_test_images_of_a_grey_model_are_told(etude, tmp_path):
    for kind, name in enumerate(("a", "b")):
        (tmp_path / "train" / name).mkdir(parents=True)
        for k in range(6):
            picture(kind, k, 24).convert("L").save(tmp_path / "train" / name / f"{k}.png")
    ended = etude("fit", tmp_path / "train", "--test", write_flat(tmp_path / "test"), *QUICK, "--out", "run")
    assert ended.code == 0
    assert "taken as grey" in ended.out


def test_home_folder_is_understood_where_the_shell_leaves_it(etude, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    write_flat(tmp_path / "test")
    train = write_classes(tmp_path / "train")
    assert etude("fit", train, *QUICK, "--out", "~/run", "--cache", "~/cache").code == 0
    assert etude("predict", "~/run", "test", "--out", "~/p.csv", "--cache", "~/cache").code == 0
    assert {path.name for path in (tmp_path / "home").iterdir()} == {"run", "cache", "p.csv"}
    assert not (tmp_path / "~").exists()


@pytest.mark.parametrize("place", ["folder.csv", "x" * 300 + ".csv", "file/p.csv"])
def test_predictions_cannot_be_written_there(etude, finished, tmp_path, place):
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "file").touch()
    assert "cannot be written" in sentence_of(etude("predict", "run", "test", "--out", place))
    assert not list(tmp_path.glob(".*.tmp"))


def test_run_folder_with_an_impossible_name(etude, tmp_path):
    ended = etude("fit", write_classes(tmp_path / "train"), *QUICK, "--out", "x" * 300)
    assert "cannot be written" in sentence_of(ended)


def test_full_disk_while_the_model_is_saved(etude, finished, tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, before[1]))  # what the system allows a file to grow to
    try:
        ended = etude("fit", "train", *QUICK, "--out", "second")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "the disk is full" in sentence_of(ended)
    assert {path.name for path in (tmp_path / "second").iterdir()} == {"run.json", "report.html"}


def test_saved_model_is_as_readable_as_any_other_file(finished):
    assert (finished / "model.safetensors").stat().st_mode == (finished / "model.json").stat().st_mode


def test_predicting_with_a_run_that_did_not_finish_is_told(etude, finished):
    edit_record(finished, state="interrupted", result=None)
    ended = etude("predict", "run", "test", "--out", "p.csv")
    assert ended.code == 0
    assert "run did not finish (it is interrupted)" in ended.out


@pytest.mark.parametrize("words", [("--probabilities",), ("--sample-submission", "s.csv")])
def test_npz_follows_no_submission(etude, finished, words):
    assert "give a .csv" in sentence_of(etude("predict", "run", "test", "--out", "p.npz", *words))


def test_demo_with_a_wrong_recipe_leaves_nothing(etude, tmp_path):
    assert "Did you mean 'quick'?" in sentence_of(etude("demo", "--recipe", "quik"))
    assert list(tmp_path.iterdir()) == []


def test_reader_of_the_output_that_goes_away_is_recorded(tmp_path):
    train = write_classes(tmp_path / "train")
    command = [sys.executable, "-m", "etude", "fit", str(train), *QUICK, "--out", str(tmp_path / "run")]
    reading, writing = os.pipe()
    os.close(reading)
    ended = subprocess.run(
        command, env={**os.environ, "ETUDE_CACHE": str(tmp_path / "cache")}, stdout=writing, stderr=subprocess.PIPE
    )
    os.close(writing)
    assert ended.returncode == 141
    assert b"Traceback" not in ended.stderr
    assert "Broken pipe" in json.loads((tmp_path / "run" / "run.json").read_text())["error"]


def test_sizes_between_the_multiples_are_told_and_used_throughout(etude, tmp_path):
    train = write_classes(tmp_path / "train", side=64)
    settings = ("timeline.start_size=50", "timeline.final_size=70", "model.feature_size=32", "train.epochs=0.5")
    ended = etude("fit", train, "--out", "run", *(word for each in settings for word in ("--set", each)))
    assert ended.code == 0, ended.err
    assert "timeline.start_size 50 becomes 64 and timeline.final_size 70 becomes 64" in ended.out
    resolved = json.loads((tmp_path / "run" / "run.json").read_text())["plan"]["resolved"]
    assert (resolved["timeline.start_size"], resolved["timeline.final_size"]) == (64, 64)


def test_steps_of_one_image_cannot_train_batch_norm(etude, tmp_path):
    words = ("--set", "train.batch_size=1", "--set", "timeline.final_size=8", "--set", "timeline.start_size=8")
    assert "train.batchnorm=keep" in sentence_of(
        etude("fit", write_classes(tmp_path / "train"), "--out", "run", *words)
    )


@pytest.mark.parametrize(
    "problem",
    [
        MemoryError(),
        OSError(12, "Cannot allocate memory"),
        OSError(5, "Input/output error", "store.bin"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
        ImportError("libx.so: failed to map segment from shared object"),
    ],
)
def test_what_the_system_refuses_ends_in_one_sentence(etude, monkeypatch, problem):
    monkeypatch.setattr("etude.cli.main.app", Mock(side_effect=problem))
    sentence_of(etude("journal", "list"))


def test_a_fault_of_etude_keeps_its_traceback_and_says_what_it_is(etude, monkeypatch):
    monkeypatch.setattr("etude.cli.main.app", Mock(side_effect=KeyError("size")))
    with pytest.raises(KeyError) as caught:
        etude("journal", "list")
    assert "report" in caught.value.__notes__[0]
