"""``etude fit --budget``."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from etude.callbacks import Clock
from etude.core.errors import EtudeError
from etude.study.run import job
from etude.study.run.budget import NO_LIMIT, Budget, budget_seconds
from etude.training.task import DivergedError
from picture_folders import write_classes, write_flat

LONG = ("--budget", "2h", "--set", "train.epochs=2000", "--set", "model.feature_size=32")


ALONE = ("--set", "stages=finetune")


def record_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "run.json").read_text())


@pytest.fixture
def signals(monkeypatch: pytest.MonkeyPatch) -> dict[int, int]:
    """Return a dict of the signals that come at steps of training, counted over all networks."""
    own, at, begun = Clock.on_train_batch_start, dict[int, int](), list[int]()

    def start(self: Clock, trainer: Any, *rest: Any) -> None:
        begun.append(trainer.global_step)
        if (number := at.get(len(begun))) is not None:
            os.kill(os.getpid(), number)
        own(self, trainer, *rest)

    monkeypatch.setattr(Clock, "on_train_batch_start", start)
    return at


def test_time_that_is_left_goes_into_further_networks(etude, tmp_path):
    train, test = write_classes(tmp_path / "train", count=20), write_flat(tmp_path / "test")
    words = ("--budget", "10m", "--set", "train.epochs=4", *ALONE)
    ended = etude("fit", train, "--test", test, "--out", "run", *words)
    assert ended.code == 0, ended.err
    record = record_of(tmp_path / "run")
    assert (record["budget"]["seconds"], record["budget"]["changes"]) == (600.0, {})
    assert record["seconds"] < 600
    names = [stage["name"] for stage in record["stages"]]
    assert [name for name in names if "fine-tune" in name] == ["fine-tune", *(f"fine-tune {n}" for n in (2, 3, 4))]
    assert "budget" in ended.out + ended.err
    assert etude("predict", "run", test, "--out", "p.csv").code == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_ends_the_run_with_what_it_has(etude, tmp_path, signals, number):
    signals[5] = number
    train, test = write_classes(tmp_path / "train"), write_flat(tmp_path / "test")
    handlers = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)]
    ended = etude("fit", train, "--test", test, "--out", "run", *LONG)
    assert ended.code == 0, ended.err
    assert [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)] == handlers
    record = record_of(tmp_path / "run")
    stages = {stage["name"]: stage for stage in record["stages"]}
    assert stages["fine-tune"]["notes"]["steps"] < 15
    assert "fine-tune 2" not in stages
    assert record["state"] == "finished"
    assert any("by hand" in warning["text"] for warning in record["warnings"])
    assert {"report.html", "submission.csv", "model.safetensors"} <= {
        path.name for path in (tmp_path / "run").iterdir()
    }


def test_a_second_stop_is_one_and_the_run_can_be_gone_on_with(etude, tmp_path, signals):
    signals |= {5: signal.SIGINT, 6: signal.SIGINT}
    train = write_classes(tmp_path / "train")
    assert etude("fit", train, "--out", "run", *LONG).code == 130
    assert record_of(tmp_path / "run")["state"] == "interrupted"
    other = etude("fit", train, "--out", "run", "--resume", *LONG[2:], "--budget", "3h")
    assert other.code == 2
    assert "--budget" in other.err
    signals[12] = signal.SIGTERM
    ended = etude("fit", train, "--out", "run", "--resume", *LONG)
    assert ended.code == 0, ended.err
    assert record_of(tmp_path / "run")["state"] == "finished"


def test_a_stop_within_folds_ends_all_of_them(etude, tmp_path, signals):
    signals[5] = signal.SIGINT
    ended = etude("fit", write_classes(tmp_path / "train"), "--folds", "3", "--out", "run", *LONG)
    assert ended.code == 0, ended.err
    record = record_of(tmp_path / "run")
    assert (record["state"], len(record["result"]["kept"])) == ("finished", 3)


def test_a_run_that_is_gone_on_with_keeps_networks_that_were_trained(etude, tmp_path, monkeypatch):
    train, words = write_classes(tmp_path / "train"), ("--budget", "10m", "--set", "train.epochs=4", *ALONE)

    def stop(*given: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("etude.study.run.job.finish", stop)
        assert etude("fit", train, "--out", "run", *words).code == 130
    monkeypatch.setattr(Budget, "left", lambda budget: -1.0)  # all of it was used up
    ended = etude("fit", train, "--out", "run", "--resume", *words)
    assert ended.code == 0, ended.err
    names = [stage["name"] for stage in record_of(tmp_path / "run")["stages"]]
    assert [name for name in names if "fine-tune" in name] == ["fine-tune", *(f"fine-tune {n}" for n in (2, 3, 4))]


def test_a_later_network_that_diverges_is_left_out(etude, tmp_path, monkeypatch):
    own, begun = job.finetune_candidate, list[str]()

    def diverging(*given: Any, **more: Any) -> Any:
        begun.append(more["stage"])
        if len(begun) == 2:
            raise DivergedError("training diverged")
        return own(*given, **more)

    monkeypatch.setattr(job, "finetune_candidate", diverging)
    train, words = write_classes(tmp_path / "train"), ("--set", 'stages=["finetune"]', "--set", "train.networks=3")
    ended = etude("fit", train, "--out", "run", *words, "--set", "train.epochs=2")
    assert ended.code == 0, ended.err
    assert begun == ["finetune", "fine-tune 2"]


def test_a_further_network_that_a_stop_cuts_short_is_left_out(etude, tmp_path, signals):
    signals[16 + 3] = signal.SIGINT  # the first network takes 16 steps
    train, test = write_classes(tmp_path / "train", count=20), write_flat(tmp_path / "test")
    words = ("--budget", "10m", *ALONE, "--set", "train.epochs=4", "--set", "train.batch_size=8")
    ended = etude("fit", train, "--test", test, "--out", "run", *words)
    assert ended.code == 0, ended.err
    record = record_of(tmp_path / "run")
    networks = {stage["name"]: stage for stage in record["stages"] if "fine-tune" in stage["name"]}
    assert [networks[name]["kept"] for name in ("fine-tune", "fine-tune 2")] == [True, False]
    assert (len(networks), networks["fine-tune"]["notes"]["steps"]) == (2, 16)
    assert record["result"]["models"] == ["."]


def test_unlabelled_images_have_their_part_of_the_time(etude, tmp_path):
    train, more = write_classes(tmp_path / "train", count=20), write_flat(tmp_path / "more", count=12)
    words = ("--recipe", "consistency", "--unlabeled", more, "--budget", "2m", "--set", "train.epochs=2")
    ended = etude("fit", train, "--out", "run", *words, "--set", "unlabeled.length=4st", *LONG[4:])
    assert ended.code == 0, ended.err
    names = [stage["name"] for stage in record_of(tmp_path / "run")["stages"]]
    assert "online" in names
    assert "fine-tune 2" not in names


@pytest.mark.parametrize("given", ["10", "0s", "3s", "2ep", "soon", "-5m", "1000h"])
def test_what_is_no_time_is_refused(etude, tmp_path, given):
    ended = etude("fit", write_classes(tmp_path / "train", count=3), f"--budget={given}", "--out", "run")
    assert ended.code == 2
    assert "--budget" in ended.err
    assert "10m" in ended.err
    assert not (tmp_path / "run").exists()


def test_a_budget_counts_down_from_when_the_command_began():
    now = [100.0]
    budget = Budget(budget_seconds("2m"), began=90.0, clock=lambda: now[0])
    first = budget.left()
    now[0] += 30.0
    assert first - budget.left() == pytest.approx(30.0)
    assert first < 110.0
    budget.enough = True
    assert budget.left() < 0
    assert not NO_LIMIT.is_limited
    with pytest.raises(EtudeError):
        budget_seconds("")
