"""``etude ablate`` as a user calls it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from etude.core.errors import EtudeError
from etude.core.metrics import score_of
from etude.core.predictions import Predictions
from etude.core.seeds import rng_for
from etude.journal.record import RunRecord
from etude.recipe import flat, load_recipe
from etude.study.ablation import runs as ablation_runs
from etude.study.ablation.runs import Cost
from etude.study.run.request import Request
from etude.training.task import DivergedError
from picture_folders import picture, write_classes
from recorded_runs import code_of, forked

SMALL = ("--set", 'stages=["finetune"]', "--set", "train.epochs=1", "--set", "predict.tta=1")
TWO = ("--tricks", "mixup,ema", "--seeds", "2", *SMALL)
ARMS = ("full", "without-mixup", "without-ema")
IMAGES = 200  # that a pretended run validates on


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write_classes(tmp_path / "train", count=10)


@dataclass
class Runs:
    """The runs that have begun since the last look; ``stop_after``: Ctrl-C comes when so many have been trained."""

    begun: list[str] = field(default_factory=list)
    stop_after: int = 0

    def counted(self, train: Callable[[Any, Any], Path]) -> Callable[[Any, Any], Path]:
        def run(request: Any, screen: Any) -> Path:
            self.begun.append(f"{request.out.parent.name}/{request.out.name}")
            folder = train(request, screen)
            if len(self.begun) == self.stop_after:
                record = json.loads((folder / "run.json").read_text())  # as a kill -9 leaves it, late in the run
                (folder / "run.json").write_text(json.dumps({**record, "state": "running", "pid": 2**22 + 1}))
                raise KeyboardInterrupt
            return folder

        return run

    def until(self, number: int) -> None:
        self.begun.clear()
        self.stop_after = number


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> Runs:
    """Count real runs, and stop them."""
    runs = Runs()
    monkeypatch.setattr(ablation_runs, "fit", runs.counted(ablation_runs.fit))
    return runs


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> Runs:
    """Train nothing: MixUp gains 20 points and everything else nothing. Speeds are not measured either."""
    runs = Runs()
    monkeypatch.setattr(ablation_runs, "fit", runs.counted(pretended_fit))
    monkeypatch.setattr("etude.study.ablation.ablate.costs_of", lambda recipes, subject: ({}, 0.0))
    return runs


def pretended_fit(request: Request, screen: object) -> Path:
    recipe, folder = load_recipe(request.recipe, request.settings), request.out
    assert folder is not None
    rng = rng_for(request.seed, f"pretended, ema {recipe.train.ema}, mixup {recipe.augment.mixup}")
    labels = np.arange(IMAGES) % 2
    right = rng.random(IMAGES) < (0.9 if recipe.augment.mixup else 0.7)
    chosen = np.where(right, labels, 1 - labels)
    ids = tuple(f"{request.seed}-{row}" for row in range(IMAGES))
    valid = Predictions(ids, ("round", "striped"), 2.0 * np.eye(2)[chosen][None], labels=labels)
    record = RunRecord.open(
        folder, command=request.command, recipe=recipe.name, settings=flat(recipe), changed={}, seed=request.seed,
        resume=request.resume,
    )  # fmt: skip
    with record.stage("fine-tune"):
        valid.save(folder / "valid.npz")
    right_share, loss = score_of(valid)
    record.set("result", {"accuracy": right_share, "log_loss": -loss})
    record.close("finished")
    return folder


def record_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "run.json").read_text())


def found_in(folder: Path) -> dict[str, Any]:
    """What ablation.json holds, without the seconds, which differ from run to run, and the place."""
    found = json.loads((folder / "ablation.json").read_text())
    for entry in (*found["tricks"], *found["arms"]):
        del entry["seconds"]
    return {**found, "folder": None}


@pytest.mark.slow
def test_a_killed_ablation_goes_on_and_ends_with_what_each_trick_bought(etude, images, tmp_path, trained):
    trained.until(2)
    assert etude("ablate", images, *TWO, "--out", "abl").code == 130
    folder, arms = tmp_path / "abl", tmp_path / "abl" / "arms"
    assert record_of(folder)["state"] == "interrupted"
    trained.until(0)
    ended = etude("ablate", images, *TWO, "--out", "abl", "--resume")
    assert ended.code == 0, ended.err
    assert trained.begun[0] == "without-mixup/seed-0"
    parent = record_of(folder)
    assert (parent["kind"], parent["state"]) == ("ablate", "finished")
    assert [stage["name"] for stage in parent["stages"]] == [f"{arm}, seed {k}" for k in (0, 1) for arm in ARMS]
    assert {"ablation.json", "lift.png", "lift.svg", "best.toml"} == {one["name"] for one in parent["artefacts"]}
    runs = {(arm, seed): record_of(arms / arm / f"seed-{seed}") for arm in ARMS for seed in (0, 1)}
    for (arm, seed), run in runs.items():
        assert (run["parent"], run["state"], run["seed"]) == (parent["id"], "finished", seed)
        assert run["command"][:2] == ["etude", "fit"]
        assert run["settings"]["train.ema"] == (0.0 if arm == "without-ema" else 0.98)
    assert len({run["id"] for run in runs.values()}) == 6
    notes = [stage["notes"] for run in runs.values() for stage in run["stages"] if stage["name"] == "store"]
    assert sum(not note["reused"] for note in notes) == 1  # one store for all
    held_out = {
        seed: {Predictions.load(arms / arm / f"seed-{seed}" / "valid.npz").ids for arm in ARMS} for seed in (0, 1)
    }
    assert [len(splits) for splits in held_out.values()] == [1, 1]  # one split a seed
    assert held_out[0] != held_out[1]
    assert load_recipe(str(folder / "best.toml")).train.epochs == 1


def test_the_files_and_the_table_say_the_same(etude, images, tmp_path, pretended):
    ended = etude("ablate", images, "--tricks", "mixup,ema", "--seeds", "4", *SMALL, "--out", "abl")
    assert ended.code == 0, ended.err
    found = found_in(tmp_path / "abl")
    assert [arm["name"] for arm in found["arms"]] == list(ARMS)
    assert {one["trick"]: one["verdict"] for one in found["tricks"]} == {"mixup": "helps", "ema": "cannot tell"}
    mean = {arm["name"]: sum(arm["accuracy"]) / 4 for arm in found["arms"]}
    for one in found["tricks"]:
        assert one["low"] <= one["gain"] <= one["high"]
        assert one["gain"] == pytest.approx(mean[one["with"]] - mean[one["without"]])
    best = load_recipe(str(tmp_path / "abl" / "best.toml"))
    assert (best.augment.mixup, best.train.ema, best.train.epochs) == (0.2, 0.98, 1)
    assert record_of(tmp_path / "abl")["result"]["best"] == {"augment.mixup": 0.2}
    assert "3 arms × 4 seeds = 12" in ended.out
    rows = [line.split() for line in ended.out.splitlines()]
    assert next(row for row in rows if row[:1] == ["mixup"])[1] == f"{100 * found['tricks'][0]['gain']:+.2f}"


def test_the_table_fits_80_columns(etude, images, pretended):
    ended = etude("ablate", images, *TWO, "--mode", "both", "--out", "abl")
    lines = ended.out.splitlines()
    rows = [line for line in lines if line.strip().startswith(("trick ", "mixup", "ema", "─"))]
    assert len(rows) >= 2 * 4
    assert all(len(line) <= 80 for line in rows)
    assert sum(line.strip().startswith("mixup ") for line in lines) == 2
    assert "add-one-in: what each trick adds alone" in ended.out


def test_json_alone_is_printed(etude, images, tmp_path, pretended):
    ended = etude("ablate", images, *TWO, "--out", "abl", "--json")
    assert json.loads(ended.out) == json.loads((tmp_path / "abl" / "ablation.json").read_text())
    assert "Ablation of recipe" in ended.err


def test_a_stopped_ablation_ends_as_one_that_was_not(etude, images, tmp_path, pretended):
    assert etude("ablate", images, *TWO, "--out", "whole").code == 0
    pretended.until(4)
    assert etude("ablate", images, *TWO, "--out", "abl").code == 130
    pretended.until(0)
    ended = etude("resume", "abl")
    assert ended.code == 0, ended.err
    assert pretended.begun == ["full/seed-1", "without-mixup/seed-1", "without-ema/seed-1"]
    assert found_in(tmp_path / "abl") == found_in(tmp_path / "whole")
    assert (tmp_path / "abl" / "best.toml").read_bytes() == (tmp_path / "whole" / "best.toml").read_bytes()


def test_other_labels_are_no_part_of_the_same_ablation(etude, images, pretended):
    pretended.until(2)
    assert etude("ablate", images, *TWO, "--out", "abl").code == 130
    (images / "round" / "000.png").rename(images / "striped" / "a.png")
    (images / "striped" / "000.png").rename(images / "round" / "000.png")
    ended = etude("ablate", images, *TWO, "--out", "abl", "--resume")
    assert ended.code == 2
    assert "have changed since abl was begun" in ended.err


def test_two_ablations_in_one_folder(etude, images, tmp_path, pretended, monkeypatch):
    """The second is refused, and so it is once the first has written its record."""
    codes: list[int] = []

    def plan(*given: object) -> None:
        for words in (("--out", "abl"), ("--out", "abl", "--resume")):
            child = forked(lambda words=words: os._exit(etude("ablate", images, *TWO, *words).code))
            codes.append(code_of(child))

    monkeypatch.setattr("etude.study.ablation.ablate.show_design", plan)
    assert etude("ablate", images, *TWO, "--out", "abl").code == 0
    assert codes == [2, 2]
    assert record_of(tmp_path / "abl")["state"] == "finished"


def test_seeds_are_added_to_a_finished_ablation_and_the_rest_is_remembered(etude, images, tmp_path, pretended):
    assert etude("ablate", images, *TWO, "--mode", "add-one-in", "--metric", "log_loss", "--out", "abl").code == 0
    pretended.until(0)
    ended = etude("ablate", images, *SMALL, "--seeds", "3", "--out", "abl", "--resume")
    assert ended.code == 0, ended.err
    assert pretended.begun == ["bare/seed-2", "with-mixup/seed-2", "with-ema/seed-2"]
    found = found_in(tmp_path / "abl")
    assert (found["metric"], found["seeds"]) == ("log_loss", [0, 1, 2])
    assert "log loss saved" in ended.out
    pretended.until(0)
    assert etude("ablate", images, *SMALL, "--metric", "accuracy", "--out", "abl", "--resume").code == 0
    assert pretended.begun == []  # another metric needs no training
    assert found_in(tmp_path / "abl")["metric"] == "accuracy"


def test_the_newest_unfinished_one_is_found(etude, images, tmp_path, pretended):
    pretended.until(2)
    assert etude("ablate", images, *TWO).code == 130
    pretended.until(0)
    assert etude("ablate", images, *TWO, "--resume").code == 0
    assert pretended.begun[0] == "without-mixup/seed-0"
    assert record_of(tmp_path / "runs" / "ablate-train")["state"] == "finished"


def sentence_of(ended: Any) -> str:
    assert ended.code == 2, ended.out
    assert len(ended.err.strip().splitlines()) == 1, ended.err
    assert ended.err.startswith("etude: ")
    return ended.err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--tricks", "mixupp"), "Did you mean 'mixup'"),
        (("--tricks", "ema,swa"), "shares a setting"),
        (("--tricks", "ema", "--recipe", "quick"), "the same with and without 'ema'"),
        (("--tricks", "mixup", "--seeds", "1"), "give 2 or more"),
        (("--tricks", "mixup", "--mode", "leave"), "--mode is 'leave'"),
        (("--tricks", "mixup", "--budget", "soon"), "--budget is 'soon'"),
        (("--tricks", "mixup", "--budget", "3ep"), "--budget is '3ep'"),
        (("--tricks", "mixup", "--budget", "2s"), "--budget 2 s is too short: 2 arms by 3 seeds"),
        (("--tricks", "mixup", "--metric", "auc"), "no mean over images"),
        (("--tricks", "mixup", "--set", "train.lrr=1"), "Did you mean 'train.lr'"),
        (("--resume",), "no unfinished run"),
        (("--resume", "--out", "nowhere"), "holds no run to resume"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_mistake_ends_in_one_sentence_and_leaves_nothing(etude, images, tmp_path, words, told):
    assert told in sentence_of(etude("ablate", images, *words))
    assert not (tmp_path / "runs").exists()


def test_other_settings_or_images_are_not_mixed_with_what_is_there(etude, images, pretended):
    pretended.until(2)
    assert etude("ablate", images, *TWO, "--out", "abl").code == 130
    pretended.until(0)
    other = etude("ablate", images, *TWO, "--set", "train.lr=0.1", "--out", "abl", "--resume")
    assert "was begun with train.lr" in sentence_of(other)
    other = etude("ablate", images, *SMALL, "--tricks", "mixup,clip", "--out", "abl", "--resume")
    assert other.code == 0, other.err  # of its arms those that are there are taken over
    assert "full/seed-0" not in pretended.begun
    picture(0, 999, 24).save(images / "round" / "new.png")
    pretended.until(0)
    changed = etude("ablate", images, *SMALL, "--seeds", "3", "--out", "abl", "--resume")
    assert "have changed since abl was begun" in sentence_of(changed)
    assert pretended.begun == []


def test_a_budget_shortens_the_runs_and_says_so(etude, images, tmp_path, monkeypatch, pretended):
    costs = {arm: Cost(1.0, 100.0) for arm in ARMS}
    monkeypatch.setattr("etude.study.ablation.ablate.costs_of", lambda recipes, subject: (costs, 0.0))
    words = ("--set", 'stages=["finetune"]', "--set", "train.epochs=4", "--tricks", "mixup,ema", "--seeds", "2")
    ended = etude("ablate", images, *words, "--budget", "5m", "--out", "abl")
    assert json.loads((tmp_path / "abl" / "run.json").read_text())["ablation"]["budget"] == "5m"
    assert ended.code == 0, ended.err
    assert "3 arms × 2 seeds = 6 of 1.9 epochs" in ended.out
    assert record_of(tmp_path / "abl" / "arms" / "full" / "seed-0")["settings"]["train.epochs"] == 1.9
    assert load_recipe(str(tmp_path / "abl" / "best.toml")).train.epochs == 4  # the recipe keeps its own


def test_seeds_end_early_where_time_does(etude, images, tmp_path, monkeypatch, pretended):
    ticks = iter(range(0, 10_000, 60))
    clock = SimpleNamespace(monotonic=lambda: float(next(ticks)))  # a minute passes whenever somebody looks
    monkeypatch.setattr(ablation_runs, "time", clock)
    ended = etude("ablate", images, "--tricks", "mixup", "--seeds", "5", *SMALL, "--budget", "1m", "--out", "abl")
    assert ended.code == 0, ended.err
    assert "2 of 5 seeds fit" in ended.out
    assert found_in(tmp_path / "abl")["seeds"] == [0, 1]


def test_an_arm_that_diverges_is_left_out(etude, images, tmp_path, monkeypatch, pretended):
    own = ablation_runs.fit

    def fit(request: Any, screen: Any) -> Path:
        if "without-ema" in str(request.out) and request.seed == 1:
            raise DivergedError("the loss was no number")
        return own(request, screen)

    monkeypatch.setattr(ablation_runs, "fit", fit)
    ended = etude("ablate", images, *TWO, "--out", "abl")
    assert ended.code == 0, ended.err
    assert "left out: without-ema, since the loss was no number" in ended.out
    found = found_in(tmp_path / "abl")
    assert [one["trick"] for one in found["tricks"]] == ["mixup"]
    assert found["failed"] == {"without-ema": "the loss was no number"}


def test_an_ablation_is_tagged_and_sent_as_a_whole(etude, images, tmp_path, pretended, monkeypatch):
    sent: list[Path] = []
    monkeypatch.setattr("etude.journal.mlflow.check_server", lambda uri: None)  # it dies after that
    monkeypatch.setattr("etude.study.diagnostics.log_to_mlflow", lambda folder, uri: refused(sent, folder))
    words = (*TWO, "--out", "abl", "--tag", "first-look", "--mlflow", "http://127.0.0.1:9")
    ended = etude("ablate", images, *words)
    assert ended.code == 0, ended.err
    assert sent == [Path("abl")]
    again = "etude journal send abl --mlflow http://127.0.0.1:9"
    (warning,) = (one["text"] for one in record_of(tmp_path / "abl")["warnings"])
    assert again in warning
    listed = etude("journal", "list", "--runs", tmp_path, "--tag", "first-look", "--json")
    assert [one["kind"] for one in json.loads(listed.out)] == ["ablate"]
    monkeypatch.setattr(
        "etude.study.diagnostics.log_to_mlflow", lambda folder, uri: SimpleNamespace(text="it is there")
    )
    more = etude("ablate", images, *words, "--resume", "--tag", "second-look")
    assert more.code == 0, more.err
    assert "it is there" in more.out + more.err
    assert record_of(tmp_path / "abl")["state"] == "finished"


def refused(sent: list[Path], folder: Path) -> None:
    sent.append(folder)
    raise EtudeError("nobody answers")
