"""The loss of stage 2 on batches that hold a teacher's probabilities."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import etude.compat  # noqa: F401  (before lightning)

import lightning.pytorch as pl
import pytest
import torch

from etude.callbacks import Clock
from etude.functional.distill import distillation_loss
from etude.functional.mix import cross_entropy, smoothed
from etude.timeline import Phase, Timeline, Triangular
from etude.training.batches import smoothing as smoothing_of
from etude.training.module import FineTune
from training.digits import network, task


def some_batch(**more: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return four digits' worth of noise, the last of them without a label."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (4, 28, 28, 1), dtype=torch.uint8, generator=generator)
    target = torch.eye(10)[:4]
    target[3] = 0.0
    return {"image": images, "target": target, "weight": torch.tensor([1.0, 0.5, 1.0, 1.0]), **more}


class OneBatch:
    """A loader of a single batch; a list would be several loaders to Lightning."""

    def __init__(self, batch: dict[str, torch.Tensor]) -> None:
        self.batch = batch

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        yield self.batch


def loss_and_logits(
    folder: Path, batch: dict[str, torch.Tensor], smoothing: float, *settings: str
) -> tuple[float, torch.Tensor]:
    """Return the loss of one training step, and the logits that it was made of."""
    clock = Clock(Timeline((Phase("all", 1.0, lr=0.0, label_smoothing=smoothing),)), steps=1)
    told: list[torch.Tensor] = []
    model = network()
    model.register_forward_hook(lambda layer, given, logits: told.append(logits.detach()))
    one = replace(task(folder, "default", settings), valid=None)
    trainer = pl.Trainer(
        max_steps=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[clock, *smoothing_of(one, clock.timeline)],
    )  # fmt: skip
    trainer.fit(FineTune(model, one, clock), OneBatch(batch))
    return trainer.callback_metrics["train_loss"].item(), told[0]


def test_a_scheduled_smoothing_has_its_callback_however_short_it_is(tmp_path: Path):
    short = Timeline((Phase("all", 1.0, lr=0.0, label_smoothing=Triangular(0.0, 0.2, cycle=1 / 64)),))
    assert len(smoothing_of(task(tmp_path, "default"), short)) == 1
    assert smoothing_of(task(tmp_path, "default"), Timeline((Phase("all", 1.0, lr=0.0),))) == []


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_without_a_teacher_it_is_the_plain_loss(tmp_path: Path, smoothing: float):
    batch = some_batch()
    loss, logits = loss_and_logits(tmp_path, batch, smoothing)
    assert loss == pytest.approx(cross_entropy(logits, smoothed(batch["target"], smoothing), batch["weight"]).item())


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_with_a_teacher_it_is_distillation_and_no_label_is_made_up(tmp_path: Path, smoothing: float):
    teacher = torch.randn(4, 10, generator=torch.Generator().manual_seed(1)).softmax(1)
    batch = some_batch(teacher=teacher)
    loss, logits = loss_and_logits(tmp_path, batch, smoothing, "distill.temperature=3", "distill.weight=0.4")
    target = smoothed(batch["target"], smoothing)
    target[3] = 0.0
    assert loss == pytest.approx(distillation_loss(logits, target, batch["weight"], teacher, 3.0, 0.4).item(), rel=1e-5)


def test_a_mixture_is_smoothed_by_its_labelled_part(tmp_path: Path):
    teacher = torch.full((4, 10), 0.1)
    batch = some_batch(teacher=teacher)
    batch["target"] = batch["target"] * 0.75
    loss, logits = loss_and_logits(tmp_path, batch, 0.2, "distill.temperature=1", "distill.weight=0.25")
    expected = smoothed(torch.eye(10)[:4], 0.2) * torch.tensor([0.75, 0.75, 0.75, 0.0])[:, None]
    found = distillation_loss(logits, expected, batch["weight"], batch["teacher"], 1.0, 0.25)
    assert loss == pytest.approx(found.item(), rel=1e-5)
