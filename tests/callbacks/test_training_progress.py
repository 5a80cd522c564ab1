from __future__ import annotations

import etude.compat  # noqa: F401  (before lightning)

import lightning.pytorch as pl
import pytest

from etude.callbacks import Clock, History, TrainingProgress
from etude.timeline import Shape, preset


class Recording:
    """A progress, and its own bar, that writes down what happens."""

    def __init__(self) -> None:
        self.events: list[object] = []
        self.lines: list[str] = []

    def bar(self, name: str, total: int, unit: str = "images") -> Recording:
        self.events.append(("open", name, total, unit))
        return self

    def say(self, text: str) -> None:
        self.lines.append(text)

    def __enter__(self) -> Recording:
        return self

    def __call__(self, count: int = 1) -> None:
        self.events.append(count)

    def __exit__(self, *exc: object) -> None:
        self.events.append("close")


def test_one_bar_advances_by_the_images_of_every_step(fit, plain_module):
    progress = Recording()
    fit(plain_module(), [TrainingProgress(progress, steps=8, batch_size=5, name="stage 2")], steps=8, valid=True)  # type: ignore[arg-type]
    assert progress.events == [("open", "stage 2", 40, "images"), *[5] * 8, "close"]


def test_the_bar_is_closed_once_when_training_dies(fit, plain_module):
    progress = Recording()
    with pytest.raises(RuntimeError, match="the cable fell out"):
        fit(plain_module(fail_at=3), [TrainingProgress(progress, steps=8, batch_size=5)])  # type: ignore[arg-type]
    assert progress.events == [("open", "fine-tune", 40, "images"), 5, 5, 5, "close"]


def test_a_second_run_opens_a_second_bar(fit, plain_module):
    progress = Recording()
    callback = TrainingProgress(progress, steps=2, batch_size=5)  # type: ignore[arg-type]
    for _ in range(2):
        fit(plain_module(), [callback], steps=2)
    assert progress.events == [("open", "fine-tune", 10, "images"), 5, 5, "close"] * 2


def test_closing_twice_closes_once(plain_module):
    progress, trainer, module = Recording(), pl.Trainer(logger=False, accelerator="cpu"), plain_module()
    callback = TrainingProgress(progress, steps=2, batch_size=5)  # type: ignore[arg-type]
    callback.on_train_start(trainer, module)
    callback.on_exception(trainer, module, KeyboardInterrupt())
    callback.on_train_end(trainer, module)
    callback.on_train_batch_end(trainer, module, None, None, 0)
    assert progress.events == [("open", "fine-tune", 10, "images"), "close"]


def test_a_line_for_each_validation_and_no_more_than_about_twenty(fit, plain_module):
    progress = Recording()
    clock = Clock(preset("default", Shape(peak_lr=1e-2, start_size=128, final_size=224)), steps=100_000)
    callbacks = [clock, History(epoch_steps=4), TrainingProgress(progress, steps=8, batch_size=5)]  # type: ignore[list-item]
    fit(plain_module(), callbacks[1:], steps=8, valid=True)
    head, *lines = progress.lines
    assert head.split()[:3] == ["epoch", "step", "px"]
    assert [line.split()[:2] for line in lines] == [["1/2", "4"], ["2/2", "8"]]
    assert "75.00%" in lines[1]
    assert ["best" in line for line in lines] == [True, False]
    progress.lines.clear()
    callbacks = [clock, History(epoch_steps=1e3), TrainingProgress(progress, steps=100, batch_size=5)]  # type: ignore[list-item]
    fit(plain_module(), callbacks, steps=100, per_epoch=1, valid=True)
    assert 20 <= len(progress.lines) <= 23
    assert progress.lines[-1].split()[1] == "100"
    assert all(len(line) <= 80 for line in progress.lines)
