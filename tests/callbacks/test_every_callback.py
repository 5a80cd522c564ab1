"""A user's plain LightningModule with tuple batches, trained with each callback in one line of use."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import etude.compat  # noqa: F401  (before lightning)

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.data import Dataset

from etude.callbacks.augment import AugmentRamp
from etude.callbacks.averaging import EMA, SWA
from etude.callbacks.base import ORDER, arrange, place_of
from etude.callbacks.clock import Clock
from etude.callbacks.distill import Distill
from etude.callbacks.history import History, TrainingProgress
from etude.callbacks.hooks import Hooks
from etude.callbacks.mixup import CutMix, LabelSmoothing, MixUp
from etude.callbacks.pseudo_labels import PseudoLabels
from etude.callbacks.resize import ProgressiveResize
from etude.callbacks.time_limit import TimeLimit
from etude.core.context import Silent
from etude.timeline import Shape, preset

# The images of these tests are all labelled; test_pseudo_labels has others.
pytestmark = pytest.mark.filterwarnings("ignore:PseudoLabels saw no unlabelled image")

Make = Callable[[], pl.Callback]


def some_teacher() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(3, 3))


ALONE: dict[str, Make] = {
    "Clock": lambda: Clock(preset("default", Shape(0.05, 8, 16, size_multiple=8))),
    "ProgressiveResize": ProgressiveResize,
    "PseudoLabels": PseudoLabels,
    "AugmentRamp": AugmentRamp,
    "MixUp": MixUp,
    "CutMix": CutMix,
    "LabelSmoothing": LabelSmoothing,
    "Distill": lambda: Distill([some_teacher()], share=0.5),
    "EMA": EMA,
    "History": History,
    "Hooks": lambda: Hooks(on_epoch_end=lambda epoch, logs: None),
    "TrainingProgress": lambda: TrainingProgress(Silent(), steps=8, batch_size=6),
}
BESIDE_A_CLOCK: dict[str, Make] = {name: make for name, make in ALONE.items() if name != "Clock"} | {
    "SWA": SWA,
    "TimeLimit": lambda: TimeLimit(1e6),
}


def lightnings_own(folder: Path) -> list[pl.Callback]:
    return [
        EarlyStopping("valid_loss", patience=99),
        LearningRateMonitor("step"),
        ModelCheckpoint(folder, filename="best", monitor="valid_loss"),
        ModelCheckpoint(folder, filename="{step}", every_n_train_steps=5, save_top_k=-1),
    ]


def check_trained(module: pl.LightningModule, trainer: pl.Trainer) -> None:
    assert trainer.global_step == 8
    assert all(bool(torch.isfinite(parameter).all()) for parameter in module.parameters())
    assert "on_after_batch_transfer" not in vars(module)
    for images, labels in module.validated:  # type: ignore[union-attr]
        assert (images.shape, labels.dtype) == ((6, 3, 16, 16), torch.int64)


def test_the_table_holds_every_callback():
    places = {place_of(make()) for make in (*ALONE.values(), *BESIDE_A_CLOCK.values())}
    assert places == set(ORDER) - {"checkpoints"}


@pytest.mark.parametrize("make", ALONE.values(), ids=ALONE)
def test_alone(make: Make, fit_images, image_module):
    module = image_module()
    before = module.head.weight.detach().clone()
    check_trained(module, fit_images(module, [make()]))
    assert not torch.equal(module.head.weight, before)


@pytest.mark.parametrize("make", BESIDE_A_CLOCK.values(), ids=BESIDE_A_CLOCK)
def test_beside_a_clock_and_lightnings_own(make: Make, fit_images, image_module, tmp_path: Path):
    module, clock = image_module(), ALONE["Clock"]()
    logger = TensorBoardLogger(tmp_path, name="tb", version="")
    callbacks = [clock, make(), *lightnings_own(tmp_path)]
    settings = {"logger": logger, "enable_checkpointing": True, "log_every_n_steps": 1}
    trainer = fit_images(module, callbacks, **settings)
    check_trained(module, trainer)
    assert (tmp_path / "best.ckpt").is_file()
    assert list((tmp_path / "tb").glob("events*"))
    assert isinstance(clock, Clock)
    assert clock.moment == clock.moment_at(7)
    resumed = image_module()
    callbacks = [ALONE["Clock"](), make(), *lightnings_own(tmp_path)]
    check_trained(resumed, fit_images(resumed, callbacks, ckpt_path=tmp_path / "step=5.ckpt", **settings))
    assert len(resumed.seen) == 3


def test_all_together(fit_images, image_module, tmp_path: Path):
    module, history = image_module(), History(tmp_path / "history.csv")
    # These would make the finish phase's labels dense too; their own tests put them beside the mixing ones.
    dense = ("LabelSmoothing", "Distill")
    callbacks = [make() for name, make in ALONE.items() if name not in ("History", *dense)]
    logger = TensorBoardLogger(tmp_path, name="tb", version="")
    trainer = fit_images(
        module,
        arrange([*reversed(callbacks), history, *lightnings_own(tmp_path)]),
        logger=logger,
        enable_checkpointing=True,
        log_every_n_steps=1,
    )
    check_trained(module, trainer)
    assert [row["step"] for row in history.rows] == [4, 8]
    assert {images.shape[2] for images, _ in module.seen} == {8, 16}
    # Mixed in warmup and grow, labels as they are in the finish phase: the last 20% of eight steps.
    assert [labels.is_floating_point() for _, labels in module.seen] == [True] * 6 + [False] * 2


class AnyBatches(Dataset[Any]):
    """24 images, of each four the last unlabelled, as tuples, lists or dicts."""

    def __init__(self, kind: str, labelled: bool) -> None:
        generator = torch.Generator().manual_seed(0)
        self.kind, self.images, self.labels = kind, torch.rand(24, 3, 16, 16, generator=generator), torch.arange(24) % 3
        if not labelled:
            self.labels[3::4] = -1

    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> Any:
        image, label = self.images[index], self.labels[index]
        return {"tuple": (image, label), "list": [image, label], "dict": {"image": image, "target": label}}[self.kind]


def reading(image_module: type[pl.LightningModule]) -> pl.LightningModule:
    class Reading(image_module):
        """Reads batches of any kind; a weight, where there is one, is each image's share of the loss."""

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            parts = (batch["image"], batch["target"]) if isinstance(batch, dict) else batch
            weight = batch.get("weight") if isinstance(batch, dict) else None
            loss = torch.nn.functional.cross_entropy(self(parts[0]), parts[1], reduction="none")
            return loss.mean() if weight is None else (loss * weight).mean()

    torch.manual_seed(0)
    return Reading()


@pytest.mark.parametrize(("precision", "kind"), [("32-true", "dict"), ("bf16-true", "tuple"), ("64-true", "list")])
@pytest.mark.parametrize("name", BESIDE_A_CLOCK)
def test_a_second_fit_and_a_resumed_one_end_with_the_same_weights(
    name: str, kind: str, precision: Any, fit_images, image_module, tmp_path: Path
):
    callbacks = [ALONE["Clock"](), BESIDE_A_CLOCK[name]()]
    data = AnyBatches(kind, labelled=name != "PseudoLabels")
    settings = {"data": data, "precision": precision, "limit_val_batches": 0, "enable_checkpointing": True}
    saving = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=4, save_top_k=-1)
    first, second, resumed = (reading(image_module) for _ in range(3))
    fit_images(first, [*callbacks, saving], **settings)
    fit_images(second, callbacks, **settings)
    fit_images(resumed, callbacks, ckpt_path=tmp_path / "step=4.ckpt", **settings)
    near = 1e-6 if precision == "64-true" else 0.0  # Lightning itself loads the weights by way of float32
    for weights in zip(first.parameters(), second.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(weights[0], weights[1])
        torch.testing.assert_close(weights[0], weights[2], rtol=0.0, atol=near)
