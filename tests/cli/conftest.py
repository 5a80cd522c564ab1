"""What several tests of commands share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from etude.callbacks import Clock


@pytest.fixture
def stop_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[int]]:
    """Return a function that lets Ctrl-C come at the n-th step of fine-tuning from now; 0: never.

    It returns the list of the steps that have begun since.
    """
    own, begun = Clock.on_train_batch_start, list[int]()
    limit = 0

    def start(self: Clock, trainer: Any, *rest: Any) -> None:
        if self.timeline.phases[0].name != "range test":
            begun.append(trainer.global_step)
        if limit and len(begun) == limit:
            raise KeyboardInterrupt
        own(self, trainer, *rest)

    def set_limit(step: int) -> list[int]:
        nonlocal limit
        limit = step
        begun.clear()
        return begun

    monkeypatch.setattr(Clock, "on_train_batch_start", start)
    return set_limit
