"""How far a run is: resumed, continued and repeated runs, and those whose batches are not the optimiser's steps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import etude.compat  # noqa: F401  (before lightning)

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler, ModelCheckpoint
from torch.utils.data import DataLoader, TensorDataset

from etude.callbacks import AugmentRamp, Clock, History, Hooks, ProgressiveResize
from etude.core.errors import EtudeError
from etude.timeline import Constant, Linear, Phase, Plateau, Timeline

FALL = Timeline((Phase("fall", 1.0, lr=Linear(1.0, 0.0)),))


class Recording(pl.LightningModule):
    """Writes down the learning rate that each batch sees; validation logs the next of ``scores``."""

    def __init__(self, scores: tuple[float, ...] = ()) -> None:
        super().__init__()
        self.layer, self.rates, self.scores = torch.nn.Linear(2, 1), list[float](), list(scores)

    def loss(self, batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
        self.rates.append(self.trainer.optimizers[0].param_groups[0]["lr"])
        return self.layer(batch[0]).square().mean()

    def training_step(self, batch: tuple[torch.Tensor, ...], batch_idx: int) -> torch.Tensor | None:
        return self.loss(batch)

    def validation_step(self, batch: tuple[torch.Tensor, ...], batch_idx: int) -> None:
        if batch_idx == 0:
            self.score = self.scores.pop(0) if self.scores else 0.0
        self.log("score", self.score)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=1.0)


class Manual(Recording):
    """Steps two optimisers at every ``every``-th batch."""

    def __init__(self, optimizers: int = 2, every: int = 1) -> None:
        super().__init__()
        self.automatic_optimization, self.count, self.every = False, optimizers, every

    def training_step(self, batch: tuple[torch.Tensor, ...], batch_idx: int) -> None:
        self.manual_backward(self.loss(batch))
        if (batch_idx + 1) % self.every == 0:
            for optimizer in [self.optimizers()] if self.count == 1 else self.optimizers():  # type: ignore[union-attr]
                optimizer.step()

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(self.parameters(), lr=1.0) for _ in range(self.count)]


def batches(count: int = 4) -> DataLoader[Any]:
    return DataLoader(TensorDataset(torch.zeros(2 * count, 2)), batch_size=2)


Train = Callable[..., pl.Trainer]


@pytest.fixture
def train(tmp_path: Path) -> Train:
    """``train(module, callbacks, max_epochs=2, ...)`` trains on 4 batches an epoch; ``valid`` validates too."""

    def run(
        module: pl.LightningModule,
        callbacks: list[pl.Callback],
        count: int = 4,
        valid: bool = False,
        ckpt_path: Path | None = None,
        **settings: Any,
    ) -> pl.Trainer:
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
        saving = any(isinstance(callback, ModelCheckpoint) for callback in callbacks)
        settings = quiet | {"enable_checkpointing": saving, "num_sanity_val_steps": 0} | settings
        trainer = pl.Trainer(callbacks=callbacks, default_root_dir=tmp_path, **settings)
        trainer.fit(module, batches(count), batches(1) if valid else None, ckpt_path=ckpt_path)
        return trainer

    return run


def saving(folder: Path, **settings: Any) -> ModelCheckpoint:
    return ModelCheckpoint(folder, filename="saved", **settings)


def falling(steps: int, first: int = 0) -> Any:
    """The rates of ``FALL`` in a run of so many steps, from one of them on: its middles."""
    return pytest.approx([1.0 - (step + 0.5) / steps for step in range(first, steps)])


@pytest.mark.parametrize("unit", ["max_epochs", "max_steps"])
def test_a_run_resumed_with_more_to_do_follows_the_longer_plan(unit: str, train: Train, tmp_path: Path):
    short, long = (
        ({"max_epochs": 2}, {"max_epochs": 4}) if unit == "max_epochs" else ({"max_steps": 8}, {"max_steps": 16})
    )
    train(Recording(), [Clock(FALL), saving(tmp_path)], **short)
    resumed, clock = Recording(), Clock(FALL)
    train(resumed, [clock], ckpt_path=tmp_path / "saved.ckpt", **long)
    assert resumed.rates == falling(16, first=8)
    assert clock.steps == 16
    assert [row["step"] for row in clock.happened] == [*range(16)]


def test_a_run_resumed_within_an_epoch_goes_on(train: Train, tmp_path: Path):
    train(Recording(), [Clock(FALL), saving(tmp_path, every_n_train_steps=6)], max_epochs=2)
    resumed = Recording()
    train(resumed, [Clock(FALL)], ckpt_path=tmp_path / "saved.ckpt", max_epochs=2)
    assert resumed.rates == falling(8, first=6)


def test_a_trainer_that_goes_on_follows_the_longer_plan(train: Train):
    module, history = Recording(), History()
    trainer = train(module, [Clock(FALL), history], max_epochs=2, valid=True)
    trainer.fit_loop.max_epochs = 4
    trainer.fit(module, batches(), batches(1))
    assert module.rates[8:] == falling(16, first=8)
    assert [row["step"] for row in history.rows] == [4, 8, 12, 16]


def test_given_steps_hold_whatever_the_checkpoint_says(train: Train, tmp_path: Path):
    train(Recording(), [Clock(FALL, 8), saving(tmp_path)], max_epochs=2)
    resumed = Recording()
    train(resumed, [Clock(FALL, 32)], ckpt_path=tmp_path / "saved.ckpt", max_epochs=4)
    assert resumed.rates == pytest.approx([1.0 - (step + 0.5) / 32 for step in range(8, 16)])


IN_EPOCHS = Timeline((Phase("first", "1ep", lr=1.0), Phase("rest", 1.0, lr=Linear(1.0, 0.0))))


def test_one_clock_serves_several_fits(train: Train):
    clock, history = Clock(IN_EPOCHS), History()
    for epochs, count in ((2, 4), (4, 2), (3, 5)):
        module = Recording()
        train(module, [clock, history], max_epochs=epochs, count=count, valid=True)
        rest = [1.0 - (step + 0.5) / (count * (epochs - 1)) for step in range(count * (epochs - 1))]
        assert module.rates == pytest.approx([1.0] * count + rest)
        assert clock.steps == len(clock.happened) == epochs * count
        assert [row["step"] for row in history.rows] == [count * (epoch + 1) for epoch in range(epochs)]


def plateau(reductions: int | None) -> Timeline:
    watch = Plateau("score", patience=0, factor=0.5, reductions=reductions)
    return Timeline((Phase("hold", 0.75, lr=1.0, plateau=watch), Phase("finish", 0.25, lr=0.25)))


def test_plateaus_of_one_fit_are_forgotten_in_the_next(train: Train):
    clock = Clock(plateau(None))
    for _ in range(2):
        module = Recording((1.0, 2.0, 0.5, 0.25))
        train(module, [clock], max_epochs=4, valid=True)
        assert module.rates == [1.0] * 8 + [0.5] * 4 + [0.125] * 4
        assert [event.progress for event in clock.timeline.events] == [0.5]


def test_plateaus_stay_at_their_steps_in_a_longer_run(train: Train, tmp_path: Path):
    train(Recording((1.0, 2.0, 0.5)), [Clock(plateau(None)), saving(tmp_path)], max_epochs=4, valid=True)
    resumed, clock = Recording((-1.0, -2.0)), Clock(plateau(None))
    train(resumed, [clock], ckpt_path=tmp_path / "saved.ckpt", max_epochs=8, valid=True)
    # Halved after 8 steps; the phase that watches ends after 24 of 32.
    assert resumed.rates == [0.5] * 8 + [0.125] * 8
    assert [event.progress for event in clock.timeline.events] == [8 / 32]


def test_an_ended_phase_stays_ended_and_a_finished_run_takes_no_more_steps(train: Train, tmp_path: Path):
    module = Recording((1.0, 2.0, 0.0, 0.0))
    trainer = train(module, [Clock(plateau(0)), saving(tmp_path)], max_epochs=4, valid=True)
    assert (trainer.global_step, module.rates) == (12, [1.0] * 8 + [0.25] * 4)
    again = Recording()
    train(again, [Clock(plateau(0))], max_epochs=4, valid=True, ckpt_path=tmp_path / "saved.ckpt")
    assert again.rates == []


def test_plateaus_that_do_not_fit_the_new_plan_are_refused(train: Train, tmp_path: Path):
    watch = Plateau("score", patience=0)
    late = Timeline((Phase("start", 0.5, lr=1.0), Phase("hold", 0.5, lr=1.0, plateau=watch)))
    train(Recording((0.0, 0.0, 1.0, 2.0)), [Clock(late), saving(tmp_path)], max_epochs=4, valid=True)
    with pytest.raises(EtudeError, match="run of 16 steps .* plan of 80 steps .*'hold'"):
        train(Recording(), [Clock(late)], max_epochs=20, valid=True, ckpt_path=tmp_path / "saved.ckpt")


@pytest.mark.parametrize(
    "make",
    [lambda: Manual(2), lambda: Manual(1), lambda: Manual(1, every=2), Recording],
    ids=["two optimisers", "one", "every second batch", "automatic"],
)
def test_every_batch_has_its_share_of_epochs_however_the_module_steps(make: Callable[[], Recording], train: Train):
    module = make()
    clock = Clock(IN_EPOCHS)
    train(module, [clock], max_epochs=2)
    assert module.rates == pytest.approx([1.0] * 4 + [0.875, 0.625, 0.375, 0.125])
    assert clock.moment is not None
    assert clock.moment.progress == 7.5 / 8


def test_limited_steps_of_two_optimisers_are_counted_as_the_trainer_does(train: Train):
    module = Manual(2)
    train(module, [Clock(FALL)], max_steps=16)
    assert module.rates == pytest.approx([1.0 - (2 * batch + 0.5) / 16 for batch in range(8)])
    both = Manual(2)
    train(both, [Clock(FALL)], max_steps=8, max_epochs=2)
    assert both.rates == pytest.approx([1.0 - (2 * batch + 0.5) / 8 for batch in range(4)])


def test_epochs_are_alike_under_a_scheduler_of_accumulation(train: Train):
    for callbacks in ([Clock(FALL)], [GradientAccumulationScheduler({0: 1, 2: 4}), Clock(FALL)]):
        scheduler = [] if len(callbacks) == 2 else [GradientAccumulationScheduler({0: 1, 2: 4})]
        module = Recording()
        trainer = train(module, [*callbacks, *scheduler], max_epochs=4)
        assert trainer.global_step == 10
        assert module.rates == pytest.approx([1.0 - (step + 0.5) / 16 for step in range(8)] + [0.375] * 4 + [0.125] * 4)


def test_a_last_step_of_fewer_batches_counts(train: Train):
    module = Recording()
    train(module, [Clock(IN_EPOCHS)], count=5, max_epochs=3, accumulate_grad_batches=2)
    rest = [1.0 - (step + 0.5) / 6 for step in range(6)]
    assert module.rates == pytest.approx([1.0] * 5 + [rest[step] for step in (0, 0, 1, 1, 2, 3, 3, 4, 4, 5)])


def test_epochs_are_alike_when_loaders_are_reloaded_with_other_batches(train: Train, tmp_path: Path):
    class Reloading(Recording):
        def train_dataloader(self) -> DataLoader[Any]:
            return batches((4, 8, 2)[self.trainer.current_epoch])

    module = Reloading()
    trainer = pl.Trainer(
        max_epochs=3, callbacks=[Clock(FALL)], reload_dataloaders_every_n_epochs=1, logger=False, accelerator="cpu",
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(module)
    expected = [(epoch + (batch + 0.5) / count) / 3 for epoch, count in enumerate((4, 8, 2)) for batch in range(count)]
    assert module.rates == pytest.approx([1.0 - progress for progress in expected])


def test_tricks_without_a_clock_follow_the_same_share(fit_images, image_module):
    class TwoSteps(image_module):
        automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> None:
            self.manual_backward(super().training_step(batch, batch_idx))
            for optimizer in self.optimizers():  # type: ignore[union-attr]
                optimizer.step()

        def configure_optimizers(self) -> Any:
            return [torch.optim.SGD(self.parameters(), lr=0.01) for _ in range(2)]

    module, ramp = TwoSteps(), AugmentRamp()
    module.automatic_optimization = False
    fit_images(module, [ProgressiveResize(hold=0.5, finish=0.25, multiple=4), ramp], steps=-1, max_epochs=2)
    assert [images.shape[-1] for images, _ in module.seen] == [8] * 4 + [12, 16, 16, 16]


def test_a_trial_of_a_few_batches_takes_a_plan_in_epochs_and_steps(train: Train):
    plans = (
        IN_EPOCHS,
        Timeline((Phase("warmup", "500st", lr=1.0), Phase("rest", "3ep", lr=0.5))),
        Timeline((Phase("all", 1.0, lr=1.0, plateau=Plateau("score", patience=5)),)),
    )
    for plan in plans:
        clock = Clock(plan)
        trainer = train(Recording(), [clock], fast_dev_run=True, valid=True)
        assert (trainer.global_step, clock.steps) == (1, 1)
    # The same Clock then runs the whole plan.
    clock, module = Clock(IN_EPOCHS), Recording()
    train(Recording(), [clock], fast_dev_run=True)
    train(module, [clock], max_epochs=2)
    assert module.rates == pytest.approx([1.0] * 4 + [0.875, 0.625, 0.375, 0.125])


@pytest.mark.parametrize("settings", [{"limit_train_batches": 2}, {"overfit_batches": 2}, {"limit_train_batches": 0.5}])
def test_epochs_of_fewer_batches_are_shorter(settings: dict[str, Any], train: Train):
    module = Recording()
    train(module, [Clock(IN_EPOCHS)], max_epochs=3, **settings)
    assert module.rates == pytest.approx([1.0] * 2 + [0.875, 0.625, 0.375, 0.125])


def test_hooks_see_the_moment_of_their_step(train: Train):
    seen: list[tuple[str, int, float]] = []
    hooks = Hooks(
        on_epoch_begin=lambda epoch, logs: seen.append(("epoch", epoch, logs["progress"])),
        on_batch_begin=lambda step, logs: seen.append(("begin", step, logs["progress"])),
        on_batch_end=lambda step, logs: seen.append(("end", step, logs["progress"])),
        on_epoch_end=lambda epoch, logs: seen.append(("epoch", epoch, logs["progress"])),
    )
    train(Manual(2), [Clock(FALL), hooks], max_epochs=2, count=2)
    assert [progress for *_, progress in seen] == [p / 8 for p in (1, 1, 1, 3, 3, 3, 5, 5, 5, 7, 7, 7)]


class Dying(pl.Callback):
    def on_train_batch_end(self, trainer: pl.Trainer, *arguments: Any) -> None:
        raise RuntimeError("the cable fell out")


def test_a_clock_of_a_failed_fit_starts_afresh(train: Train):
    clock, module = Clock(IN_EPOCHS), Recording()
    with pytest.raises(RuntimeError, match="cable"):
        train(Recording(), [clock, Dying()], max_epochs=7)
    train(module, [clock], max_epochs=2)
    assert module.rates == pytest.approx([1.0] * 4 + [0.875, 0.625, 0.375, 0.125])


def test_constant_lengths_in_steps_are_of_the_whole_run(train: Train):
    plan = Timeline((Phase("first", "6st", lr=Constant(1.0)), Phase("rest", 1.0, lr=Constant(0.5))))
    module = Recording()
    train(module, [Clock(plan)], max_epochs=3, count=4)
    assert module.rates == [1.0] * 6 + [0.5] * 6
