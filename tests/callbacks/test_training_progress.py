from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from etude.callbacks import TrainingProgress


class Recording:
    """A progress that writes down what happens to its bars."""

    def __init__(self) -> None:
        self.events: list[object] = []

    @contextmanager
    def bar(self, name: str, total: int, unit: str = "images") -> Iterator[object]:
        self.events.append(("open", name, total, unit))
        try:
            yield lambda count=1: self.events.append(count)
        finally:
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
