"""Unlabelled images and teachers as a user gives them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import etude as package
from etude.core.paired import Gain
from etude.core.predictions import Predictions
from etude.study.unlabelled import rounds
from etude.study.unlabelled.guards import Decision
from picture_folders import picture, write_classes, write_flat

PLAIN = ("--recipe", "quick", "--set", "model.feature_size=32")
# Whether neighbours help is a matter of luck with so few images: on its own predictions a head always trains.
QUICK = (*PLAIN, "--set", "unlabeled.method=rounds", "--set", "unlabeled.neighbours=0")
SMALL = (
    'stages=["finetune"]',
    "train.epochs=2",
    "train.batch_size=8",
    "train.checkpoint_every=0.001s",
    "unlabeled.length=8st",
    "predict.tta=1",
)


def words(*settings: str) -> list[str]:
    return [word for setting in settings for word in ("--set", setting)]


def record_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "run.json").read_text(encoding="utf-8"))


def sentence_of(ended: Any) -> str:
    assert ended.code == 2, ended.out
    assert len(ended.err.strip().splitlines()) == 1
    return ended.err


@pytest.fixture
def images(tmp_path: Path) -> tuple[object, ...]:
    """The words of a run on 24 labelled images and 30 unlabelled ones, 6 of them to be predicted."""
    write_classes(tmp_path / "train")
    write_flat(tmp_path / "more", count=24)
    (tmp_path / "test").mkdir()
    for number in range(6):
        picture(number % 2, 5_000 + number, 24).save(tmp_path / "test" / f"t{number:03d}.png")
    return ("fit", tmp_path / "train", "--unlabeled", tmp_path / "more", "--test", tmp_path / "test")


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The folder of runs that several tests look at, and how each ended."""
    return tmp_path_factory.mktemp("kept"), {}


@pytest.fixture
def left_alone(etude, tmp_path: Path, kept) -> Callable[..., Any]:
    """Return a function that makes a run in the folder of that name, or copies the one that another test has made."""
    folder, ends = kept

    def make(name: str, out: str, *run: object) -> Any:
        if name not in ends:
            ends[name] = etude(*run, "--out", out)
            shutil.copytree(tmp_path / out, folder / name)
        else:
            shutil.copytree(folder / name, tmp_path / out)
        return ends[name]

    return make


@pytest.fixture
def decide(monkeypatch: pytest.MonkeyPatch):
    """``decide(True, False)``: the first student is kept, the second is not, whatever validation says."""

    def settle(*answers: bool) -> None:
        left = list(answers)

        def compare(*_: object, keep_at: float, context: object) -> Decision:
            chance = 0.99 if left.pop(0) else 0.01
            return Decision(Gain(0.1, 0.0, 0.2, chance), (0.5, 0.7), (0.6, 0.6), 5, keep_at)

        monkeypatch.setattr(rounds, "compare_student", compare)

    return settle


def test_rounds_on_a_head(etude, images, tmp_path, decide, left_alone):
    """Only the students that were kept count; what the run says of each round has figures."""
    decide(True, False)
    ended = etude(*images, *QUICK, "--out", "run")
    assert ended.code == 0, ended.err
    record = record_of(tmp_path / "run")
    assert [(one["name"], one["kept"]) for one in record["rounds"]] == [("round 1", True), ("round 2", False)]
    assert record["result"]["kept"] == ["round 1"]
    assert record["unlabelled"]["of"] == {"unlabeled": 24, "test": 6}
    assert [stage["name"] for stage in record["stages"] if stage["name"].startswith("round")] == ["round 1", "round 2"]
    told = " ".join(ended.out.split())
    assert "24 images and the 6 to predict; pseudo-labels in up to 3 rounds, 70.0% of the weight labelled" in told
    assert "round 2 thrown away: log loss 0.7000 → 0.6000" in told
    assert "30 of 30 images, mean weight" in told
    assert len(Predictions.load(tmp_path / "run" / "test.npz")) == 6
    assert left_alone("plain", "plain", *images[:2], *images[4:], *PLAIN).code == 0
    before, after = (Predictions.load(tmp_path / name / "valid.npz") for name in ("plain", "run"))
    assert before.ids == after.ids
    assert not np.array_equal(before.logits, after.logits)


def test_a_run_whose_only_round_is_thrown_away_is_the_run_without(etude, images, tmp_path, decide, left_alone):
    decide(False)
    assert etude(*images, *QUICK, "--out", "run").code == 0
    assert left_alone("plain", "plain", *images[:2], *images[4:], *PLAIN).code == 0
    for name in ("model.safetensors", "valid.npz", "test.npz", "submission.csv"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes(), name


@pytest.mark.parametrize("start", ["fresh", "warm"])
def test_rounds_of_fine_tuning_are_mixed_and_predict_again(etude, images, tmp_path, decide, start):
    decide(True, True, False)
    settings = words(*SMALL, f"unlabeled.start={start}")
    ended = etude(*images, "--recipe", "pseudo-label", *settings, "--out", "run")
    assert ended.code == 0, ended.err
    record = record_of(tmp_path / "run")
    notes = {stage["name"]: stage["notes"] for stage in record["stages"]}
    assert [notes[f"round {k}"]["steps"] for k in (1, 2, 3)] == [8, 8, 8]
    assert notes["round 1"]["labelled share"] == 0.7
    assert record["result"]["kept"] == ["round 2"]
    assert not list((tmp_path / "run").rglob("checkpoints"))
    assert {"round-1/timeline.png", "round-2/history.csv"} <= {one["name"] for one in record["artefacts"]}
    assert etude("predict", "run", tmp_path / "test", "--out", "again.npz").code == 0
    first, again = (Predictions.load(tmp_path / name) for name in ("run/test.npz", "again.npz"))
    np.testing.assert_array_equal(first.logits, again.logits)


def test_online_pseudo_labels(images, tmp_path, decide, left_alone):
    decide(True)
    ended = left_alone("consistency", "run", *images, "--recipe", "consistency", *words(*SMALL))
    assert ended.code == 0, ended.err
    record = record_of(tmp_path / "run")
    assert [one["name"] for one in record["rounds"]] == ["online"]
    assert record["result"]["kept"] == ["online"]
    notes = {stage["name"]: stage["notes"] for stage in record["stages"]}
    assert notes["online"]["labelled share"] == pytest.approx(19 / 49)
    assert "online pseudo-labels, 38.8% of each batch labelled" in " ".join(ended.out.split())
    with (tmp_path / "run" / "online" / "history.csv").open() as file:
        assert "unlabeled_weight" in file.readline()


@pytest.mark.slow
@pytest.mark.parametrize(("recipe", "steps"), [("pseudo-label", 5 + 8 + 4), ("consistency", 5 + 4)])
def test_stopped_in_a_round_and_resumed_there(etude, images, tmp_path, decide, stop_at, left_alone, recipe, steps):
    """Stopped in round 2: the stages before are not trained again, and the end is that of a run left alone."""
    run = (*images, "--recipe", recipe, *words(*SMALL))
    decide(True, True, True)
    assert left_alone(recipe, "whole", *run).code == 0
    decide(True, True, True)
    stop_at(steps)
    assert etude(*run, "--out", "run").code == 130
    decide(True, True, True)
    begun = stop_at(0)
    ended = etude(*run, "--out", "run", "--resume")
    assert ended.code == 0, ended.err
    assert 0 < begun[0] <= 4
    assert len(begun) <= (8 - begun[0]) + (8 if recipe == "pseudo-label" else 0)
    for name in ("model.safetensors", "valid.npz", "test.npz"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert record_of(tmp_path / "run")["rounds"] == record_of(tmp_path / "whole")["rounds"]


@pytest.mark.parametrize(("settings", "stage"), [((*PLAIN, *QUICK[-2:]), "round 1"), (words(*SMALL), "online")])
def test_every_recipe_learns_from_unlabelled_images(etude, images, tmp_path, decide, settings, stage):
    decide(True, False)
    ended = etude(*images, *settings, "--out", "run")
    assert ended.code == 0, ended.err
    record = record_of(tmp_path / "run")
    assert record["rounds"][0]["name"] == stage
    assert record["result"]["kept"] == [stage]


def test_folds_judge_for_themselves(etude, images, tmp_path, decide):
    decide(True, False, False)
    assert etude(*images, *QUICK, "--folds", 2, "--out", "run").code == 0
    record = record_of(tmp_path / "run")
    names = ["round 1 (fold 1/2)", "round 2 (fold 1/2)", "round 1 (fold 2/2)"]
    assert [(one["name"], one["kept"]) for one in record["rounds"]] == list(
        zip(names, [True, False, False], strict=True)
    )
    assert record["result"]["kept"] == ["round 1", "head"]


def test_changed_unlabelled_images_are_refused_by_a_resumed_run(etude, images, tmp_path, stop_at):
    run = (*images, "--recipe", "pseudo-label", *words(*SMALL), "--out", "run")
    stop_at(7)
    assert etude(*run).code == 130
    stop_at(0)
    picture(0, 9_999, 24).save(tmp_path / "more" / "new.png")
    assert "the unlabelled images have changed since run was begun" in sentence_of(etude(*run, "--resume"))
    (tmp_path / "more" / "new.png").unlink()
    assert etude(*run, "--resume").code == 0


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (("--unlabeled", "more", "--set", "unlabeled.method=off"), "images that unlabeled.method=off leaves unused"),
        (("--recipe", "consistency"), "recipe 'consistency' learns from images without labels, and there are none"),
        (
            ("--recipe", "pseudo-label", "--test", "test", "--set", "unlabeled.use_test=false"),
            "unlabeled.use_test=false leaves the test images out",
        ),
        (
            ("--recipe", "quick", "--set", "unlabeled.method=online", "--unlabeled", "more"),
            "--set unlabeled.method=head works on a head alone",
        ),
        (("--recipe", "distill"), "recipe 'distill' learns from a teacher, and there is none: give a run"),
        (("--recipe", "quick", "--teacher", "run"), "recipe 'quick' fine-tunes no network that --teacher could teach"),
        (("--recipe", "consistency", "--unlabeled", "more", "--teacher", "x"), "--teacher and unlabeled.method=online"),
        (("--teacher", "nowhere"), "--teacher nowhere does not exist"),
        (("--unlabeled", "nowhere", "--recipe", "pseudo-label"), "nowhere does not exist"),
        (
            ("--unlabeled", "train", "--recipe", "pseudo-label", "--set", SMALL[0]),
            "every unlabelled image is also among the labelled",
        ),
    ],
)
def test_mistakes_are_one_sentence(etude, images, given, told):
    assert told in sentence_of(etude("fit", "train", *given, *words(*SMALL[1:]), "--out", "never"))


def test_a_student_learns_from_a_run_and_on_unlabelled_images(etude, images, tmp_path):
    alone = etude(*images[:2], *words(*SMALL), "--out", "teacher")
    assert alone.code == 0, alone.err
    ended = etude(*images, "--teacher", "teacher", *words(*SMALL), "--out", "student")
    assert ended.code == 0, ended.err
    record = record_of(tmp_path / "student")
    notes = {stage["name"]: stage["notes"] for stage in record["stages"]}
    assert notes["fine-tune"]["steps"] == round((19 + 30) * 2 / 8)
    said = Predictions.load(tmp_path / "student" / "teacher" / "unlabeled.npz")
    assert len(said) == 24
    own = package.load(tmp_path / "teacher").predict(tmp_path / "more", cache=tmp_path / "cache").predictions
    np.testing.assert_allclose(said.probabilities(), own.probabilities(), atol=1e-5)
    assert record["warnings"] == []


def test_from_python(images, tmp_path, monkeypatch, decide):
    monkeypatch.setenv("ETUDE_CACHE", str(tmp_path / "cache"))
    decide(True, False)
    settings = {"unlabeled.method": "rounds", "unlabeled.threshold": [0.1, 0.1]}
    run = package.fit(
        tmp_path / "train", unlabeled=tmp_path / "more", recipe="quick", settings=settings,
        out=tmp_path / "run", quiet=True,
    )  # fmt: skip
    assert run.record["result"]["kept"] == ["round 1"]
    assert run.record["unlabelled"]["of"] == {"unlabeled": 24}
