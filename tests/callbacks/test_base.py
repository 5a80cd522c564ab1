"""Hooks that a callback leaves empty cost a step nothing; those of a user's subclass work as ever."""

from __future__ import annotations

from typing import Any

import etude.compat  # noqa: F401  (before lightning)

import lightning.pytorch as pl
import pytest

from etude.callbacks import EMA, Clock, History
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


@pytest.mark.parametrize("kind", [lambda: Clock(CLOCK), History, EMA])
def test_empty_hooks_of_a_step_are_passed_over(kind, fit, plain_module):
    callback = kind()
    fit(plain_module(), [callback])
    assert callback.on_after_backward is None
    assert callable(callback.on_train_batch_end)
    assert callable(type(callback).on_after_backward)


def test_a_subclass_may_fill_them(fit, plain_module):
    counting = Counting()
    fit(plain_module(), [counting], steps=8)
    assert counting.backwards == 8


def test_a_function_put_on_the_callback_is_called(fit, plain_module):
    clock, seen = Clock(CLOCK), list[Any]()
    clock.on_after_backward = lambda trainer, module: seen.append(module)  # type: ignore[method-assign]
    fit(plain_module(), [clock], steps=8)
    assert len(seen) == 8
