from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from etude.core.context import Context
from etude.models.modes import Mode, likely_mode
from etude.recipe import ImageFacts, load_recipe, resolve
from etude.study.run import plan as study_mode
from etude.study.run.plan import Plan, Speed, settle_mode

CPU = torch.device("cpu")
PROBED = Mode("fp32", "contiguous", 1)


class Session(SimpleNamespace):
    """As much of a session as the choice of a mode asks for."""

    def __init__(self, begun: Mode | None = None) -> None:
        super().__init__(screen=None, context=Context(cache=Path("cache")))
        self.record = self
        self.written: dict[str, Any] = {}
        self.begun_mode: Callable[[], Mode | None] = lambda: begun

    def set(self, section: str, value: Any) -> None:
        self.written[section] = value


@pytest.fixture
def probes(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the probe was called with, in its place; images take 10 ms in any mode."""
    asked: list[dict[str, Any]] = []

    def probe(module: Any, size: int, batch_size: int, channels: int, device: Any, **more: Any) -> tuple[Mode, str]:
        asked.append({"size": size, "batch_size": batch_size, **more})
        return PROBED, "bf16 left out: why"

    monkeypatch.setattr(study_mode, "probe_mode", probe)
    monkeypatch.setattr(study_mode, "measure_speed", lambda backbone, size, mode: Speed(size, 0.003, 0.01))
    return asked


def recipe(*settings: str) -> Any:
    return resolve(load_recipe("default", settings), ImageFacts(median_side=300, channels=3))


def settled(session: Any, *settings: str, device: torch.device = CPU, folds: int = 1) -> tuple[Plan, str]:
    backbone: Any = SimpleNamespace(module=None, in_channels=3)
    plan = Plan(recipe(*settings), labelled=1250, train=1000, valid=250, folds=folds)
    return settle_mode(session, plan, backbone, device)


def test_a_short_training_is_not_worth_a_probe(probes):
    session = Session()
    plan, reason = settled(session, "train.epochs=8")  # 8,000 images of 10 ms: 80 s
    assert plan.mode == likely_mode(CPU)
    assert plan.mode is not None
    assert reason == plan.mode.in_words()
    assert not probes
    assert not session.written


def test_a_long_training_runs_in_the_probed_mode(probes):
    session = Session()
    plan, reason = settled(session, "train.epochs=30", "train.batch_size=64")
    assert plan.mode == PROBED
    assert reason == "fp32, contiguous, 1 thread; bf16 left out: why"
    assert (probes[0]["size"], probes[0]["batch_size"]) == (224, 64)
    assert session.written["probe"]["mode"] == PROBED.as_dict()


def test_folds_count(probes):
    settled(Session(), "train.epochs=8", folds=5)
    assert len(probes) == 1


def test_on_a_gpu_the_memory_is_always_probed(probes):
    settled(Session(), "train.epochs=1", device=torch.device("cuda"))
    assert len(probes) == 1


def test_what_the_user_has_set_is_handed_on(probes):
    settled(Session(), "train.epochs=30", "train.precision=fp32", "train.threads=3", "train.micro_batch=8")
    asked = probes[0]["asked"]
    assert (asked.precision, asked.memory_format, asked.threads, asked.micro_batch) == ("fp32", None, 3, 8)


def test_a_resumed_run_keeps_its_mode(probes):
    begun = Mode("fp32", "channels_last", 7, 4)
    plan, reason = settled(Session(begun), "train.epochs=30")
    assert plan.mode == begun
    assert reason == "fp32, channels_last, 7 threads, 4 images at a time, as this run began"
    assert not probes


def test_the_largest_batch_of_a_growing_plan_is_probed(probes):
    settled(Session(), "train.epochs=30", "train.batch_size=32", "timeline.batch_growth=4")
    assert probes[0]["batch_size"] == 128


@pytest.mark.parametrize(
    ("name", "settings", "expected"),
    [
        ("quick", (), {"store", "features", "head", "head on all images", "predict test", "diagnostics"}),
        ("quick", ("head.refit=never",), {"store", "features", "head", "predict test", "diagnostics"}),
        ("default", (), {"symmetry", "fine-tune", "TTA"}),
        ("default", ("augment.policy=none",), {"fine-tune"}),
        ("pseudo-label", ('stages=["head"]',), {"unlabelled images", "TTA"}),
    ],
)
def test_the_plan_names_what_is_to_come(name: str, settings: tuple[str, ...], expected: set[str]):
    speed, own = Speed(224, 0.003, 0.01), resolve(load_recipe(name, settings), ImageFacts(300, 3))
    training = speed if "finetune" in own.stages else None
    plan = Plan(own, 1250, 1000, 250, test=100, unlabelled=500, features=speed, training=training, head_weights=10_000)
    stages = dict(plan.seconds())
    assert expected <= set(stages)
    assert name != "quick" or set(stages) == expected
    assert all(seconds >= 0 for seconds in stages.values())
    assert ("symmetry" in stages) == ("TTA" in stages and not settings) or "pseudo" in name


def test_a_frozen_network_sees_each_view_of_an_unlabelled_image_once():
    own = resolve(load_recipe("pseudo-label", ['stages=["head"]', "unlabeled.use_test=false"]), ImageFacts(300, 3))
    plan = Plan(own, 1250, 1000, 250, unlabelled=500, features=Speed(224, 1.0, 3.0), head_weights=10)
    assert dict(plan.seconds())["unlabelled images"] == pytest.approx(4 * 500 + 3 * 250, rel=0.01)
