from __future__ import annotations

from pathlib import Path
from typing import Any

import etude.compat  # noqa: F401  (before lightning)

import lightning.pytorch as pl
import pytest
from lightning.pytorch.callbacks import ModelCheckpoint

from etude.callbacks import Clock, TimeLimit
from etude.core.errors import EtudeError
from etude.timeline import Constant, Linear, Phase, Timeline

# Of 40 steps: 4, 26 and 10.
PLAN = Timeline((
    Phase("warmup", 0.1, lr=Linear(0.0, 1.0)),
    Phase("hold", 0.65, lr=Constant(1.0)),
    Phase("fall", 0.25, lr=Linear(1.0, 0.0)),
))  # fmt: skip


class Slow(pl.Callback):
    """A watch that goes on by so many seconds a step and a validation; images four times as large take as long."""

    def __init__(self, step: float = 1.0, validation: float = 0.0) -> None:
        self.time, self.step, self.validation = 0.0, step, validation

    def __call__(self) -> float:
        return self.time

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, idx: int) -> None:
        clock = next(one for one in trainer.callbacks if isinstance(one, Clock))  # type: ignore[attr-defined]
        self.time += self.step * (((clock.moment and clock.moment.image_size) or 16) / 16) ** 2

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.time += 0.0 if trainer.sanity_checking else self.validation


def trained(fit, module: pl.LightningModule, seconds: Any, slow: Slow, plan: Timeline = PLAN, **more: Any) -> Clock:
    clock = Clock(plan)
    fit(module, [clock, TimeLimit(seconds, now=slow), slow], steps=40, **more)
    return clock


def test_a_training_in_time_is_left_alone(fit, plain_module):
    module = plain_module()
    assert not trained(fit, module, 41.0, Slow()).timeline.events
    assert len(module.rates) == 40


@pytest.mark.parametrize(("seconds", "steps"), [(30.0, 30), (16.5, 16), (15.0, 15)])
def test_a_slow_training_ends_in_time_and_its_rate_falls_as_planned(fit, plain_module, seconds, steps):
    module, slow = plain_module(), Slow()
    clock = trained(fit, module, seconds, slow)
    assert len(module.rates) == steps
    assert slow.time <= seconds
    assert [rates[1] for rates in module.rates[-10:]] == pytest.approx([1 - (step + 0.5) / 10 for step in range(10)])
    assert [(event.kind, event.phase) for event in clock.timeline.events] == [("end", "hold")]


def test_what_is_too_short_for_the_last_phase_is_cut_within_it(fit, plain_module):
    module, slow = plain_module(), Slow()
    trained(fit, module, 8.0, slow)
    assert slow.time == 8.0
    assert module.rates[-1][1] < 1.0


def test_larger_images_to_come_take_longer(fit, plain_module):
    first, last = (Phase(name, 0.5, lr=1.0, image_size=size) for name, size in (("small", 16), ("large", 32)))
    slow = Slow()
    trained(fit, plain_module(), 90.0, slow, Timeline((first, last), size_multiple=16))  # as planned: 20 + 80 seconds
    assert slow.time == 90.0


def test_validations_to_come_count(fit, plain_module):
    slow = Slow(validation=4.0)  # after every 4 steps
    clock = trained(fit, plain_module(), 60.0, slow, valid=True)
    assert clock.timeline.events
    assert 50.0 <= slow.time <= 64.0


def test_a_function_can_end_training_at_once(fit, plain_module):
    module, slow = plain_module(), Slow()
    trained(fit, module, lambda: 0.0 if slow.time >= 20 else 100.0, slow)
    assert 20 <= len(module.rates) <= 22


def test_a_resumed_training_has_the_time_that_was_left(fit_images, image_module, tmp_path: Path):
    saving = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=8, save_top_k=-1)
    settings = {"limit_val_batches": 0, "enable_checkpointing": True, "steps": 40}
    slow, whole = Slow(), Clock(PLAN)
    fit_images(image_module(), [whole, TimeLimit(30.0, now=slow), slow, saving], **settings)
    slow, resumed = Slow(), Clock(PLAN)
    callbacks = [resumed, TimeLimit(30.0, now=slow), slow]
    fit_images(image_module(), callbacks, ckpt_path=tmp_path / "step=8.ckpt", **settings)
    assert resumed.timeline == whole.timeline
    assert slow.time == 22.0


def test_without_a_clock_it_is_refused(fit, plain_module):
    with pytest.raises(EtudeError, match="Clock"):
        fit(plain_module(), [TimeLimit(60.0)])
