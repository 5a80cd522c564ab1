"""What several tests of commands share."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

import pytest

from etude.callbacks import Clock


@pytest.fixture
def stop_at(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[int]]:
    """Return a function that stops a run at the n-th step of fine-tuning from now, within it or by a signal; 0: never.

    It returns the list of the steps that have begun since.
    """
    own, begun = Clock.on_train_batch_start, list[int]()
    limit, sent = 0, 0

    def start(self: Clock, trainer: Any, *rest: Any) -> None:
        if self.timeline.phases[0].name != "range test":
            begun.append(trainer.global_step)
        if limit and len(begun) == limit:
            if not sent:
                raise KeyboardInterrupt
            signal.raise_signal(sent)
        own(self, trainer, *rest)

    def set_limit(step: int, number: int = 0) -> list[int]:
        nonlocal limit, sent
        limit, sent = step, number
        begun.clear()
        return begun

    monkeypatch.setattr(Clock, "on_train_batch_start", start)
    return set_limit
