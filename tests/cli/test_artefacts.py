"""Files of a run that are not those that it wrote are refused by every command that reads them."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import etude as library
from etude.core.errors import EtudeError
from etude.core.predictions import Predictions
from etude.models.classifier import load_model, save_model
from picture_folders import write_classes, write_flat

WORDS = ("--set", 'stages=["finetune"]', "--set", "train.epochs=1", "--set", "predict.train_features=always")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with images, and two runs on them, one of them with folds."""
    folder = tmp_path_factory.mktemp("made")
    train, test = write_classes(folder / "train", count=6), write_flat(folder / "test", count=4)
    settings = {"stages": ["finetune"], "train.epochs": 1, "predict.train_features": "always"}
    for name, folds in (("run", None), ("folds", 2)):
        places = {"out": folder / name, "cache": folder / "cache"}
        library.fit(train, test=test, folds=folds, settings=settings, quiet=True, **places)
    return folder


@pytest.fixture
def place(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a copy of it, the current folder."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def flip(path: Path, where: float = 0.9) -> None:
    """Flip one bit."""
    content = bytearray(path.read_bytes())
    content[int(where * len(content))] ^= 16
    path.write_bytes(content)


def edit_card(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    card = json.loads(path.read_text())
    change(card)
    path.write_text(json.dumps(card))


def reverse_classes(path: Path) -> None:
    edit_card(path, lambda card: card["classes"].reverse())


def darken(path: Path) -> None:
    edit_card(path, lambda card: card["preprocessing"].update(mean=[0.9, 0.9, 0.9]))


def train_another(path: Path) -> None:
    """Write the weights of another model of the same shape."""
    model, card = load_model(path.parent)
    model.head.weight.data.mul_(-1)
    save_model(path.parent, model, card)


CHANGES = [
    ("model.safetensors", flip),
    ("model.safetensors", train_another),
    ("model.json", reverse_classes),
    ("model.json", darken),
]


def refused(ended: Any, name: str) -> None:
    assert ended.code == 2, ended.out
    assert len(ended.err.strip().splitlines()) == 1
    assert name in ended.err
    assert "--trust" in ended.err


@pytest.mark.parametrize("run", ["run", "folds"])
@pytest.mark.parametrize(("name", "change"), CHANGES)
def test_a_model_that_is_not_the_runs_own_predicts_only_where_it_is_trusted(etude, place, run, name, change):
    name = name if run == "run" else f"fold-2/{name}"
    change(place / run / name)
    words = ("predict", run, "test", "--out", "p.csv")
    refused(etude(*words), f"{run}/{name}")
    assert not (place / "p.csv").exists()
    assert etude(*words, "--trust").code == 0
    assert (place / "p.csv").exists()


def test_a_run_as_it_was_written_predicts_without_a_word(etude, place):
    for run in ("run", "folds"):
        ended = etude("predict", run, "test", "--out", f"{run}.csv")
        assert (ended.code, ended.err) == (0, "")
        assert "hash" not in ended.out
    assert (place / "run.csv").read_bytes() == (place / "run" / "submission.csv").read_bytes()


def test_library_calls_verify_too(place):
    reverse_classes(place / "run" / "model.json")
    run = library.load("run")
    for _ in range(2):  # a refusal is not forgotten
        with pytest.raises(EtudeError, match=r"model\.json"):
            run.predict("test")
    assert library.load("run", trust=True).classes == ("striped", "round")
    shutil.copy("run/test.npz", "run/valid.npz")
    with pytest.raises(EtudeError, match=r"valid\.npz"):
        run.validation()


@pytest.mark.parametrize("name", ["valid.npz", "test.npz", "train.npz"])
def test_predictions_of_a_run_that_are_others(etude, place, name):
    """The file itself is whole, so that only the run's record can tell."""
    held = Predictions.load(place / "run" / name)
    held.take(range(len(held))[::-1]).save(place / "run" / name)
    words = [("refine", "run", "--out", "p.csv", "--steps", "temperature")]
    words += [] if name == "train.npz" else [("blend", "run", "run", "--out", "p.csv")]
    for one in words:
        refused(etude(*one), f"run/{name}")
        assert etude(*one, "--trust").code == 0


@pytest.mark.parametrize(("name", "change"), CHANGES[1:3])
def test_a_teacher_that_is_not_the_runs_own(etude, place, name, change):
    change(place / "run" / name)
    refused(etude("fit", "train", "--teacher", "run", *WORDS, "--out", "student"), f"run/{name}")


def test_runs_are_not_compared_by_the_predictions_of_others(etude, place):
    shutil.copytree("run", "other")
    assert "valid.npz" not in etude("journal", "compare", "run", "other").out
    Predictions.load("other/valid.npz").take([1, 0]).save("other/valid.npz")
    assert "other/valid.npz" in etude("journal", "compare", "run", "other").out.replace("\n", "")


def test_a_run_without_hashes_predicts_with_a_warning(etude, place):
    """As runs of earlier versions, and runs whose record was lost in part."""
    record = json.loads((place / "run" / "run.json").read_text())
    (place / "run" / "run.json").write_text(json.dumps({**record, "artefacts": []}))
    ended = etude("predict", "run", "test", "--out", "p.csv")
    assert ended.code == 0
    assert ended.out.count("model.json") == 1


def test_a_folder_of_predictions_that_is_no_run_needs_no_hashes(etude, place):
    os.remove("run/run.json")
    assert etude("refine", "run", "--out", "p.csv", "--steps", "temperature").code == 0


def test_a_model_kept_on_the_way_has_its_hashes_when_the_run_is_killed(etude, place, monkeypatch):
    """Killed between the hash of one model and that of the next, the run predicts by what it has kept."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    words = ("fit", "train", *WORDS, "--out", "killed")
    with monkeypatch.context() as patch:
        patch.setattr("etude.study.run.job.finish", stop)
        assert etude(*words).code == 130
    assert "hash" not in etude("predict", "killed", "test", "--out", "p.csv").out
    flip(place / "killed" / "model.safetensors")
    refused(etude("predict", "killed", "test", "--out", "p.csv"), "killed/model.safetensors")

    own = save_model

    def half(folder: Path, model: Any, card: Any) -> None:
        own(folder, model, card)
        raise KeyboardInterrupt

    monkeypatch.setattr("etude.models.classifier.save_model", half)
    assert etude(*words, "--resume").code == 130
    assert etude("predict", "killed", "test", "--out", "p.csv").code == 0
