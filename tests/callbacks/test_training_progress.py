from __future__ import annotations

import etude.compat  # noqa: F401  (before lightning)

import lightning.pytorch as pl
import pytest

from etude.callbacks import TrainingProgress


class Recording:
    """A progress, and its own bar, that writes down what happens."""

    def __init__(self) -> None:
        self.events: list[object] = []

    def bar(self, name: str, total: int, unit: str = "images") -> Recording:
        self.events.append(("open", name, total, unit))
        return self

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
