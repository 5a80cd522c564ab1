from __future__ import annotations

import csv
import os
import signal
from pathlib import Path

import etude.compat  # noqa: F401  (before lightning)

import numpy as np
import pytest
import torch

from etude.core.errors import EtudeError, Terminated
from etude.recipe import load_recipe
from etude.recipe.timeline import resolved_run
from etude.timeline import Pace, RunSize
from etude.training.fit import validation_interval
from etude.training.optimizer import build_optimizer
from etude.training.task import DivergedError
from training.digits import WHOLE_SIZES, KillAt, Killed, network, task, train


def test_training_follows_its_plan(tmp_path: Path):
    one = task(tmp_path, "progressive", ["augment.cutmix=1.0"])
    _, done = train(one)
    timeline, size = resolved_run(one.recipe, len(one.train.rows))
    steps = size.steps
    assert done.steps == steps == 20  # two epochs of ten batches
    assert done.timeline == timeline
    assert [row["step"] for row in done.happened] == [*range(steps)]
    sizes = [row["image_size"] for row in done.happened]
    assert (sizes[0], sizes[-1]) == (12, 20)
    assert [row["cutmix"] for row in done.happened][:: steps - 1] == [1.0, 0.0]
    with (tmp_path / "history.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["6", "12", "18"]
    assert [row["epoch"] for row in rows] == ["0.6", "1.2", "1.8"]


def test_training_learns(tmp_path: Path):
    _, done = train(task(tmp_path, "default", ["train.epochs=12", "augment.mixup=0", *WHOLE_SIZES]))
    losses = [row["valid_loss"] for row in done.history]
    assert losses[-1] < 0.7 * losses[0]


def test_scheduled_smoothing_goes_before_the_constant_and_leaves_validation_alone(tmp_path: Path):
    """With all of the mass spread evenly there is nothing to learn, and the training loss stays at ln 10 or above."""
    plain = train(task(tmp_path / "plain", "default", ["augment.mixup=0"]))[1]
    smooth = train(task(tmp_path / "smooth", "default", ["augment.mixup=0", "train.label_smoothing=0.9"]))[1]
    assert smooth.history[-1]["train_loss"] > plain.history[-1]["train_loss"] + 0.2
    assert smooth.history[0]["valid_loss"] != plain.history[0]["valid_loss"]


def test_averaged_weights_get_statistics_of_their_own(tmp_path: Path):
    one = task(tmp_path, "default", ["train.swa=true", "train.ema=0"])
    model, _ = train(one)
    first = next(module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d))
    inputs: list[torch.Tensor] = []
    handle = first.register_forward_pre_hook(lambda module, given: inputs.append(given[0]))
    with torch.no_grad():
        images = torch.from_numpy(one.train.gather(one.train.rows, 28))
        model.eval()(one.preprocessing.to_input(images))
    handle.remove()
    torch.testing.assert_close(first.running_mean, inputs[0].mean((0, 2, 3)), atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(first.running_var, inputs[0].var((0, 2, 3)), atol=1e-4, rtol=1e-3)


def test_weights_that_are_no_numbers_are_told(tmp_path: Path):
    with pytest.raises(DivergedError, match=r"training diverged.*train\.lr=1e\+30.*lower it"):
        train(task(tmp_path, "default", ["train.lr=1e30", "train.clip=0", "train.optimizer=sgd"]))


class Asked(KillAt):
    """The system asks the process to end in the middle of the training."""

    def advance(self, count: int = 1) -> None:
        try:
            super().advance(count)
        except Killed:
            self.images = 10**9
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("handled", [False, True])
def test_a_request_to_end_is_a_stop(tmp_path: Path, handled: bool):
    """Lightning alone would end the process with code 0."""

    def stop(number: int, frame: object) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, stop if handled else signal.SIG_DFL)
    try:
        with pytest.raises(Terminated):
            train(task(tmp_path), Asked(3, 16))
        assert signal.getsignal(signal.SIGTERM) == (stop if handled else signal.SIG_DFL)
    finally:
        signal.signal(signal.SIGTERM, before)


def test_minutes_need_a_pace(tmp_path: Path):
    with pytest.raises(EtudeError, match="time of a step"):
        train(task(tmp_path, "default", ["timeline.length=2m"]))
    _, done = train(task(tmp_path, "default", ["timeline.length=3s"], pace=Pace(0.3, 20)))
    assert 9 <= done.steps <= 20  # ten steps at full size, more where they are smaller


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ((), 200),  # ten looks at a hundred epochs of twenty steps
        (("train.validate_every=50st",), 50),
        (("train.validate_every=1st",), 2),  # a checkpoint needs a step that no look follows
        (("train.validate_every=3ep",), 60),
        (("train.validate_every=5000st",), 2000),
        (("timeline.preset=plateau",), 20),  # a plateau is counted in looks, so there is one an epoch
    ],
)
def test_validation_comes_at_the_asked_interval(settings: tuple[str, ...], expected: int):
    recipe = load_recipe("default", ["train.epochs=100", *settings])
    timeline, size = resolved_run(recipe, 640)
    steps = size.steps
    assert validation_interval(recipe, timeline, steps, RunSize(steps, 20.0)) == expected


def test_the_last_look_falls_on_the_end_of_the_run_or_before():
    recipe = load_recipe("default", [])
    for images in (250, 500, 1970):
        timeline, size = resolved_run(recipe, images)
        steps = size.steps
        interval = validation_interval(recipe, timeline, steps, RunSize(steps, images / 32))
        assert steps - steps // interval * interval < 8, images


PHASES = """
[[timeline.phases]]
name = "first"
length = 0.5
lr = 1.0
dropout = 0.4

[[timeline.phases]]
name = "last"
length = 0.5
lr = { curve = "linear", start = 1.0, end = 0.0 }
dropout = 0.0
"""


def test_phases_of_ones_own_may_have_any_names_and_schedule_dropout(tmp_path: Path):
    (tmp_path / "own.toml").write_text(PHASES)
    own = str(tmp_path / "own.toml")
    one = task(tmp_path, own, ["train.swa=true"], presets=False)
    _, done = train(one)
    assert [row["dropout"] for row in done.happened][:: done.steps - 1] == [0.4, 0.0]
    averaged, plain = train(one)[0], train(task(tmp_path, own, ["train.ema=0"], presets=False))[0]
    assert not torch.equal(averaged.head.weight, plain.head.weight)


def test_more_processes_than_were_started_are_refused(tmp_path: Path):
    with pytest.raises(EtudeError, match="2 processes.*start them with torchrun"):
        train(task(tmp_path, processes=2))


@pytest.mark.parametrize("kind", ["adamw", "adam", "sgd", "lars", "lamb"])
def test_every_optimizer_takes_the_layer_wise_groups_and_a_step(kind: str):
    settings = load_recipe("default", [f"train.optimizer={kind}"]).train
    model = network()
    optimizer = build_optimizer(model, settings)
    assert {group["lr_scale"] for group in optimizer.param_groups} == {settings.layer_decay, 1.0}
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model(torch.randn(4, 1, 28, 28)).square().sum().backward()
    optimizer.step()
    changed = [name for name, value in model.named_parameters() if not torch.equal(value, before[name])]
    assert "head.weight" in changed
    assert all(np.isfinite(value.detach().numpy()).all() for value in model.parameters())
