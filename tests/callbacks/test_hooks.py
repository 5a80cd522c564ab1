from __future__ import annotations

from typing import Any

import pytest
import torch

from etude.callbacks.clock import Clock
from etude.callbacks.hooks import Hooks
from etude.timeline import Constant, Linear, Phase, Timeline

TIMELINE = Timeline((Phase("up", 0.5, lr=Linear(0.0, 0.8), augment=0.5), Phase("down", 0.5, lr=Constant(0.2))))


class Diary:
    """Four hooks that write down their name, number and logs."""

    def __init__(self) -> None:
        self.entries: list[tuple[str, int, dict[str, Any]]] = []
        self.hooks = Hooks(*(self._hook(name) for name in ("epoch begin", "epoch end", "batch begin", "batch end")))

    def _hook(self, name: str) -> Any:
        return lambda number, logs: self.entries.append((name, number, logs))

    def of(self, name: str) -> list[tuple[int, dict[str, Any]]]:
        return [(number, logs) for entry, number, logs in self.entries if entry == name]


def test_hooks_are_called_in_keras_order(fit_images, image_module):
    diary = Diary()
    fit_images(image_module(), [diary.hooks], steps=8)
    epoch = lambda number: [  # noqa: E731
        ("epoch begin", number),
        *((name, step) for step in range(4 * number, 4 * number + 4) for name in ("batch begin", "batch end")),
        ("epoch end", number),
    ]
    assert [(name, number) for name, number, _ in diary.entries] == epoch(0) + epoch(1)


def test_losses_of_batches_and_their_mean_over_the_epoch(fit_images, image_module):
    diary = Diary()
    fit_images(image_module(), [diary.hooks], steps=8)
    losses = [logs["loss"] for _, logs in diary.of("batch end")]
    assert len(set(losses)) == 8
    assert [logs["loss"] for _, logs in diary.of("epoch end")] == pytest.approx(
        [sum(losses[:4]) / 4, sum(losses[4:]) / 4]
    )
    assert not any("loss" in logs for name in ("epoch begin", "batch begin") for _, logs in diary.of(name))


def test_logs_hold_what_was_logged_and_validated(fit_images, image_module):
    diary = Diary()
    trainer = fit_images(image_module(), [diary.hooks], steps=8)
    for _, logs in diary.of("batch end"):
        assert logs["train_loss"] == pytest.approx(logs["loss"])
    (_, first), (_, last) = diary.of("epoch end")
    assert last["valid_loss"] == float(trainer.callback_metrics["valid_loss"])
    assert first["valid_loss"] != last["valid_loss"]


def test_logs_hold_the_clocks_moment(fit_images, image_module):
    diary = Diary()
    fit_images(image_module(), [Clock(TIMELINE), diary.hooks], steps=8)
    expected = [0.1, 0.3, 0.5, 0.7, 0.2, 0.2, 0.2, 0.2]  # by hand, the middles of eight steps
    for name in ("batch begin", "batch end"):
        assert [logs["lr"] for _, logs in diary.of(name)] == pytest.approx(expected)
        assert [logs["phase"] for _, logs in diary.of(name)] == ["up"] * 4 + ["down"] * 4
        assert ["augment" in logs for _, logs in diary.of(name)] == [True] * 4 + [False] * 4
    assert [logs["progress"] for _, logs in diary.of("epoch begin")] == [0.0625, 0.5625]
    assert [logs["progress"] for _, logs in diary.of("epoch end")] == [0.4375, 0.9375]


def test_without_a_clock_there_is_no_moment(fit_images, image_module):
    diary = Diary()
    fit_images(image_module(), [diary.hooks], steps=4)
    assert not any({"phase", "progress", "lr"} & set(logs) for _, _, logs in diary.entries)


def test_every_value_is_plain(fit_images, image_module):
    diary = Diary()
    fit_images(image_module(), [Clock(TIMELINE), diary.hooks], steps=4)
    values = [value for _, _, logs in diary.entries for value in logs.values()]
    assert values
    assert all(isinstance(value, float | int | str) for value in values)


def test_accumulated_batches_share_their_step(fit_images, image_module):
    diary = Diary()
    fit_images(image_module(), [diary.hooks], steps=2, accumulate_grad_batches=2)
    for name in ("batch begin", "batch end"):
        assert [number for number, _ in diary.of(name)] == [0, 0, 1, 1]


def test_an_update_can_be_made_during_training(fit_images, image_module):
    module = image_module()
    fit_images(module, [Hooks(on_batch_end=lambda step, logs: torch.nn.init.zeros_(module.head.weight))], steps=2)
    assert not module.head.weight.any()


def test_one_hook_alone_is_enough_and_a_step_without_a_loss_is_fine(fit_images, image_module):
    class Skipping(image_module):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor | None:
            return None if batch_idx % 2 else super().training_step(batch, batch_idx)

    losses: list[dict[str, Any]] = []
    fit_images(Skipping(), [Hooks(on_epoch_end=lambda epoch, logs: losses.append(logs))], steps=-1, max_epochs=1)
    assert losses[0]["loss"] > 0.0
