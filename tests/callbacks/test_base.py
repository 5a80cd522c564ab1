"""Hooks that a callback leaves empty cost a step nothing; those of a user's subclass work as ever."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import etude.compat  # noqa: F401  (before lightning)

import lightning.pytorch as pl
import pytest

from etude.callbacks import EMA, Checkpoints, Clock, History, MixUp, TrainingProgress
from etude.core.context import Silent
from etude.timeline import Phase, Timeline

CLOCK = Timeline((Phase("all", 1.0, lr=0.1),))


class Counting(Clock):
    """A user's own: it fills a hook that the Clock leaves empty, and calls the Clock's all the same."""

    def __init__(self) -> None:
        super().__init__(CLOCK)
        self.backwards = 0

    def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_after_backward(trainer, pl_module)
        self.backwards += 1


class Looking(pl.Callback):
    """Notes during training whether Lightning will call a hook of another callback; step ``fail_at`` raises."""

    def __init__(self, other: pl.Callback, fail_at: int = -1) -> None:
        self.other, self.fail_at, self.called = other, fail_at, set[bool]()

    def on_train_batch_start(self, trainer: pl.Trainer, *arguments: Any) -> None:
        self.called.add(callable(self.other.on_after_backward))
        if trainer.global_step == self.fail_at:
            raise RuntimeError("the cable fell out")


KINDS = {"Clock": lambda: Clock(CLOCK), "History": History, "EMA": EMA, "MixUp": MixUp}
KINDS |= {"Checkpoints": lambda: Checkpoints("."), "Progress": lambda: TrainingProgress(Silent(), 8, 5)}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("fail_at", [-1, 2])
def test_empty_hooks_of_a_step_are_passed_over_while_training(kind, fail_at: int, fit_images, image_module):
    callback = kind()
    looking = Looking(callback, fail_at)
    with nullcontext() if fail_at < 0 else pytest.raises(RuntimeError, match="cable"):
        callbacks = [looking, callback] if isinstance(callback, Checkpoints) else [callback, looking]
        fit_images(image_module(), callbacks, enable_checkpointing=True)
    assert looking.called == {False}
    callback.on_after_backward(pl.Trainer(logger=False, accelerator="cpu"), image_module())


def test_a_callback_that_another_one_calls_keeps_its_hooks(fit_images, image_module):
    class Forwarding(pl.Callback):
        def __init__(self, inner: pl.Callback) -> None:
            self.inner = inner

        def setup(self, *arguments: Any, **more: Any) -> None:
            self.inner.setup(*arguments, **more)

        def on_after_backward(self, *arguments: Any) -> None:
            self.inner.on_after_backward(*arguments)

    assert fit_images(image_module(), [Forwarding(EMA())]).global_step == 8


def test_a_subclass_may_fill_them(fit, plain_module):
    counting = Counting()
    fit(plain_module(), [counting], steps=8)
    assert counting.backwards == 8


def test_a_function_put_on_the_callback_is_called(fit, plain_module):
    clock, seen = Clock(CLOCK), list[Any]()
    clock.on_after_backward = lambda trainer, module: seen.append(module)  # type: ignore[method-assign]
    fit(plain_module(), [clock], steps=8)
    assert len(seen) == 8
