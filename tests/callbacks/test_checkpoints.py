"""Ctrl-C and SIGTERM wait for a checkpoint, but not for long and only once."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import etude.compat  # noqa: F401  (before lightning)

import lightning.pytorch as pl
import pytest
import torch

from etude.callbacks import Checkpoints, checkpoints

NUMBERS = (signal.SIGINT, signal.SIGTERM)


class AtStep(pl.Callback):
    """Does something in the middle of a step, and counts the steps that ended."""

    def __init__(self, step: int, work: Callable[[], object]) -> None:
        self.step, self.work, self.ended = step, work, 0

    def on_before_backward(self, trainer: pl.Trainer, *rest: Any) -> None:
        if trainer.global_step == self.step:
            self.work()

    def on_train_batch_end(self, trainer: pl.Trainer, *rest: Any) -> None:
        self.ended = trainer.global_step


@pytest.fixture
def interruptible(fit_images, image_module, tmp_path):
    """Return a function that trains 8 steps with something done within one; it returns the steps that ended, < 0 if
    it was stopped.
    """

    def run(step: int, work: Callable[[], object], **options: Any) -> int:
        at = AtStep(step, work)
        saved = Checkpoints(tmp_path / "saved", **options)
        before = [signal.getsignal(number) for number in NUMBERS]
        try:
            fit_images(image_module(), [at, saved], enable_checkpointing=True)
        except (SystemExit, KeyboardInterrupt):
            at.ended *= -1
        assert signal.getsignal(signal.SIGTERM) == before[1]
        assert signal.getsignal(signal.SIGINT) in (before[0], signal.SIG_IGN)  # Lightning leaves Ctrl-C off after one
        signal.signal(signal.SIGINT, before[0])
        return at.ended

    return run


def step_of(folder: Path) -> int:
    return torch.load(folder / "saved" / "last.ckpt", weights_only=True)["global_step"]


def interrupt() -> None:
    signal.raise_signal(signal.SIGINT)


def test_the_step_is_finished_and_saved(interruptible, tmp_path):
    assert interruptible(1, interrupt) == -2
    assert step_of(tmp_path) == 2


def test_a_step_that_a_validation_follows_is_passed_over(interruptible, tmp_path):
    assert interruptible(3, interrupt) == -5
    assert step_of(tmp_path) == 5


def test_the_second_one_acts_at_once_also_while_a_checkpoint_is_written(interruptible, tmp_path, monkeypatch):
    assert interruptible(1, lambda: (interrupt(), interrupt())) == -1

    def save(*given: Any, **more: Any) -> None:
        interrupt()
        pytest.fail("the second one came too late")

    monkeypatch.setattr(pl.Trainer, "save_checkpoint", save)
    assert interruptible(1, interrupt) == -2
    assert not list(tmp_path.glob("saved/*"))


def test_a_step_or_a_checkpoint_that_takes_long_is_not_waited_for(interruptible, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "_PATIENCE", 0.05)
    assert interruptible(1, lambda: (interrupt(), time.sleep(60))) == -1
    assert not list(tmp_path.glob("saved/*"))


def test_after_the_last_step_it_comes_when_training_has_ended(interruptible, monkeypatch):
    waiting: list[threading.Timer] = []
    monkeypatch.setattr(threading.Timer, "start", lambda timer: waiting.append(timer))
    assert interruptible(7, interrupt) == -8
    assert waiting[0].finished.is_set()  # it will send nothing more


def test_a_training_that_nothing_stops_leaves_no_handler(interruptible):
    assert interruptible(100, interrupt) == 8


def test_signals_are_left_to_others_where_that_is_asked(interruptible, tmp_path):
    assert interruptible(1, interrupt, at_stop=False) == -1
    assert not list(tmp_path.glob("saved/*"))
