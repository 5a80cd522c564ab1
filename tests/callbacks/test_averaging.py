"""The averages are compared with ones worked out here from the weights of every step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import etude.compat  # noqa: F401  (before lightning)

import lightning.pytorch as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from etude.callbacks.averaging import EMA, SWA
from etude.callbacks.clock import Clock
from etude.core.errors import EtudeError
from etude.timeline import Phase, Timeline

State = dict[str, torch.Tensor]


def copy_of(module: nn.Module) -> State:
    return {name: value.clone() for name, value in module.state_dict().items()}


class Small(pl.LightningModule):
    """A network with everything that an average must tell apart; it remembers its state after each step."""

    def __init__(self, dtype: torch.dtype = torch.float32, fail_in_validation: bool = False) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.convolution = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 2)
        self.frozen = nn.Linear(2, 2).requires_grad_(False)
        self.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
        self.register_buffer("replaced", torch.zeros(1))
        self.register_buffer("unsaved", torch.zeros(1), persistent=False)
        self.to(dtype)
        self.fail_in_validation = fail_in_validation
        self.states: list[State] = []
        self.unsaved_values: list[float] = []
        self.validated_with: list[State] = []

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> torch.Tensor:
        images, labels = batch
        hidden = self.norm(self.convolution(images)).relu().mean((2, 3))
        self.replaced = self.replaced + 1  # a new tensor, not the old one changed
        self.unsaved += 1
        return nn.functional.cross_entropy(self.frozen(self.head(hidden)), labels)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.states.append(copy_of(self))

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.validated_with.append(copy_of(self))
        if self.fail_in_validation:
            raise RuntimeError("the cable fell out")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


class SaveAt(pl.callbacks.Checkpoint):
    """Save after ``step`` steps, within the first validation, and at the end of training."""

    def __init__(self, folder: Path, step: int) -> None:
        super().__init__()
        self.mid, self.within, self.end = folder / "mid.ckpt", folder / "within.ckpt", folder / "end.ckpt"
        self.step = step

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.mid)

    def on_validation_batch_end(self, trainer: pl.Trainer, *_: Any, **__: Any) -> None:
        if not self.within.exists():
            trainer.save_checkpoint(self.within)

    def on_train_end(self, trainer: pl.Trainer, *_: Any) -> None:
        trainer.save_checkpoint(self.end)


Train = Callable[..., pl.Trainer]


@pytest.fixture
def train(tmp_path: Path) -> Train:
    """``train(module, *callbacks, steps=8)`` shows the same batch again and again, so that any step can be resumed."""

    def run(
        module: pl.LightningModule,
        *callbacks: pl.Callback,
        steps: int = 8,
        valid: bool = False,
        accumulate: int = 1,
        resume: Path | None = None,
    ) -> pl.Trainer:
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(4, 3, 5, 5, generator=generator).to(next(module.parameters()).dtype)
        data = TensorDataset(images.repeat(4, 1, 1, 1), torch.tensor([0, 1, 0, 1]).repeat(4))
        trainer = pl.Trainer(
            max_steps=steps,
            max_epochs=-1,
            accelerator="cpu",
            accumulate_grad_batches=accumulate,
            callbacks=list(callbacks),
            logger=False,
            enable_checkpointing=any(isinstance(callback, SaveAt) for callback in callbacks),
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            default_root_dir=tmp_path,
        )
        loader = DataLoader(data, batch_size=4)
        path = str(resume) if resume else None
        trainer.fit(module, loader, DataLoader(data, 8) if valid else None, ckpt_path=path, weights_only=True)
        return trainer

    return run


def two_phases(steps: int = 8) -> Clock:
    return Clock(Timeline((Phase("grow", 0.5), Phase("finish", 0.5))), steps)


def reference_ema(states: list[State], decays: list[float]) -> State:
    """The formula of the docstring, in float64; tensors that are not averaged are those of the last state."""
    average = {name: value.double() for name, value in states[0].items()}
    for state, decay in zip(states[1:], decays, strict=True):
        average = {name: decay * average[name] + (1 - decay) * state[name].double() for name in average}
    return average | {name: value for name, value in states[-1].items() if not value.is_floating_point()}


def assert_states_close(found: State, expected: State, rtol: float = 1e-5) -> None:
    assert found.keys() == expected.keys()
    for name, value in found.items():
        torch.testing.assert_close(value.double(), expected[name].double(), rtol=rtol, atol=1e-6, msg=name)


def assert_same(found: State, expected: State) -> None:
    assert found.keys() == expected.keys()
    assert [name for name, value in found.items() if not torch.equal(value, expected[name])] == []


@pytest.mark.parametrize("warmup", [True, False])
def test_ema_is_the_formula(train: Train, warmup: bool):
    module = Small()
    train(module, EMA(decay=0.3, warmup=warmup))
    limits = [2 / 11, 3 / 12, 4 / 13, 5 / 14, 6 / 15, 7 / 16, 8 / 17]  # (1 + n) / (10 + n), n = 1..7
    expected = reference_ema(module.states, [min(0.3, limit) if warmup else 0.3 for limit in limits])
    assert_states_close(module.state_dict(), expected)
    assert module.norm.num_batches_tracked.item() == 8
    assert module.mask.tolist() == [0.0, -torch.inf]
    # By hand: after the values 1..8 of a counter, a decay of .3 leaves 8 - .3/.7, but for the start.
    assert module.replaced.item() == pytest.approx(module.unsaved.item())
    assert warmup or module.replaced.item() == pytest.approx(8 - (0.3 - 0.3**8) / 0.7, abs=1e-5)


def test_swa_is_the_mean_over_the_phase(train: Train):
    module = Small()
    train(module, two_phases(), SWA("finish"))
    expected = {name: torch.stack([s[name].double() for s in module.states[4:]]).mean(0) for name in module.states[0]}
    expected["norm.num_batches_tracked"] = torch.tensor(8)
    assert_states_close(module.state_dict(), expected)


def test_only_the_phases_named_are_averaged(train: Train):
    module = Small()
    train(module, two_phases(), EMA(0.5, warmup=False, phases="grow"), valid=True)
    expected = reference_ema(module.states[:4], [0.5] * 3)
    assert_states_close(module.state_dict(), expected)
    assert_states_close(module.validated_with[-1], expected)


def test_without_any_update_the_present_weights_stay(train: Train):
    module = Small()
    ema = EMA(phases=("finish",))
    train(module, two_phases(steps=100), ema, valid=True)
    ema.settle(module)
    assert_same(module.state_dict(), module.states[-1])
    assert_same(module.validated_with[-1], module.states[-1])


@given(st.floats(0.0, 0.9999), st.integers(0, 10_000))
def test_the_decay_rises_to_its_limit(decay: float, updates: int):
    ema = EMA(decay)
    assert 0.0 <= ema.decay_at(updates) <= ema.decay_at(updates + 1) <= decay
    assert ema.decay_at(10**9) == decay
    assert ema.new_share(updates, 1) == 1 - ema.decay_at(updates)
    assert ema.new_share(updates, 3) == pytest.approx(1 - ema.decay_at(updates) ** 3)


@pytest.mark.each(
    ("ema", "steps", "interval"),
    [
        (EMA(0.999), 0, 1),
        (EMA(0.999), 200, 1),  # reaches back 23 steps
        (EMA(0.999), 400, 2),
        (EMA(0.999), 10_000, 32),
        (EMA(0.999, every=8), 10_000, 8),
        (EMA(0.999, every=1), 10_000, 1),
        (EMA(0.98, warmup=False), 0, 3),  # reaches back 50 steps
        (EMA(0.0), 10_000, 1),
    ],
)
def test_steps_between_updates_grow_with_the_average(ema: EMA, steps: int, interval: int):
    assert ema.interval(steps) == interval


def test_steps_left_out_count_in_the_decay(train: Train):
    module = Small()
    ema = EMA(0.98, warmup=False)
    train(module, ema)
    # The first update starts the average; three more steps are pending each time.
    expected = reference_ema(module.states[2::3], [0.98**3])
    expected["norm.num_batches_tracked"] = torch.tensor(6)
    assert_states_close(module.state_dict(), expected)


def test_one_update_for_each_optimiser_step(train: Train):
    module = Small()
    train(module, EMA(0.5, warmup=False), steps=4, accumulate=2)
    assert len(module.states) == 8
    assert_states_close(
        module.state_dict() | {"norm.num_batches_tracked": torch.tensor(8)},
        reference_ema(module.states[1::2], [0.5] * 3),
    )


def test_validation_runs_with_the_average_and_gives_the_weights_back(train: Train):
    plain, averaged = Small(), Small()
    train(plain, valid=True)
    train(averaged, EMA(0.5, warmup=False), valid=True)
    for found, expected in zip(averaged.states, plain.states, strict=True):
        assert_same(found, expected)
    assert_states_close(averaged.validated_with[0], reference_ema(plain.states[:4], [0.5] * 3))


def test_an_exception_in_validation_gives_the_weights_back(train: Train):
    module = Small(fail_in_validation=True)
    with pytest.raises(RuntimeError, match="cable"):
        train(module, EMA(0.5, warmup=False), valid=True)
    assert not torch.equal(module.validated_with[0]["head.weight"], module.states[-1]["head.weight"])
    assert_same(module.state_dict(), module.states[-1])


@pytest.mark.parametrize("step", [1, 3, 4, 5, 7])
@pytest.mark.parametrize(
    "make", [lambda: EMA(0.9), lambda: EMA(0.98, False), lambda: EMA(0.9, phases="grow"), lambda: SWA()]
)
def test_a_resumed_run_ends_bit_for_bit_the_same(train: Train, tmp_path: Path, make: Any, step: int):
    whole, resumed = Small(), Small()
    save = SaveAt(tmp_path, step)
    train(whole, two_phases(), make(), save, valid=True)
    train(resumed, two_phases(), make(), valid=True, resume=save.mid)
    assert_same(resumed.state_dict(), whole.state_dict())
    assert torch.equal(resumed.states[-1]["head.weight"], whole.states[-1]["head.weight"])


def test_a_run_killed_within_a_validation_repeats_it_with_the_average(train: Train, tmp_path: Path):
    path = tmp_path / "killed.ckpt"

    class Saving(Small):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            super().validation_step(batch, batch_idx)
            if not path.exists():
                self.trainer.save_checkpoint(path)

    whole, resumed = Saving(), Saving()
    train(whole, EMA(0.9), valid=True)
    train(resumed, EMA(0.9), valid=True, resume=path)
    assert len(resumed.states) == 4
    assert_same(resumed.validated_with[0], whole.validated_with[0])
    assert_same(resumed.state_dict(), whole.state_dict())


def test_a_checkpoint_holds_the_average_and_what_training_goes_on_with(train: Train, tmp_path: Path):
    module = Small()
    save = SaveAt(tmp_path, 6)
    train(module, EMA(0.5, warmup=False), save, valid=True)
    for path, steps in ((save.mid, 6), (save.within, 4), (save.end, 8)):
        checkpoint = torch.load(path, weights_only=True)
        assert_same(checkpoint["current_model_state"], module.states[steps - 1])
        assert_states_close(checkpoint["state_dict"], reference_ema(module.states[:steps], [0.5] * (steps - 1)))
        assert checkpoint["callbacks"]["EMA"]["steps"] == steps
    other = Small()
    other.load_state_dict(checkpoint["state_dict"])
    assert_same(other.state_dict(), module.state_dict())


def test_settle_serves_a_run_that_has_no_steps_left(train: Train, tmp_path: Path):
    whole, resumed = Small(), Small()
    save = SaveAt(tmp_path, 8)
    train(whole, EMA(0.9), save)
    ema = EMA(0.9)
    train(resumed, ema, resume=save.mid)
    assert_same(resumed.state_dict(), whole.states[-1])
    ema.settle(resumed)
    assert_same(resumed.state_dict(), whole.state_dict())


def test_settling_again_leaves_later_changes_alone(train: Train):
    module = Small()
    ema = EMA(0.9)
    trainer = train(module, ema)
    module.norm.running_mean.fill_(5.0)  # as recompute_batchnorm may do
    ema.settle(module)
    assert (module.norm.running_mean == 5.0).all()
    trainer.save_checkpoint(Path(trainer.default_root_dir) / "after.ckpt")
    saved = torch.load(Path(trainer.default_root_dir) / "after.ckpt", weights_only=True)
    assert_same(saved["state_dict"], module.state_dict())


def test_channels_last_stays(train: Train, tmp_path: Path):
    whole = Small().to(memory_format=torch.channels_last)
    resumed = Small().to(memory_format=torch.channels_last)
    save, ema = SaveAt(tmp_path, 4), EMA(0.9)
    train(whole, EMA(0.9), save)
    train(resumed, ema, resume=save.mid)
    assert_same(resumed.state_dict(), whole.state_dict())
    for weight in (resumed.convolution.weight, ema.state_dict()["averaged"]["convolution.weight"]):
        assert weight.is_contiguous(memory_format=torch.channels_last)


def test_half_precision_is_averaged_in_single(train: Train):
    module = Small(dtype=torch.bfloat16)
    train(module, EMA(0.99, warmup=False, every=1))
    expected = reference_ema(module.states, [0.99] * 7)
    assert module.head.weight.dtype == torch.bfloat16
    for name in ("head.weight", "convolution.weight"):
        assert torch.equal(module.state_dict()[name], expected[name].to(torch.bfloat16))


def test_frozen_weights_are_left_out_until_they_are_unfrozen(train: Train):
    class Unfreezing(Small):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            self.frozen.requires_grad_(self.trainer.global_step >= 4)

    module, ema = Unfreezing(), EMA(0.5, warmup=False)
    train(module, ema, steps=4)
    assert not [name for name in ema.state_dict()["averaged"] if name.startswith("frozen")]
    module = Unfreezing()
    train(module, ema)
    expected = reference_ema(module.states[4:], [0.5] * 3)
    torch.testing.assert_close(module.frozen.weight.double(), expected["frozen.weight"])
    assert not torch.equal(module.frozen.weight, module.states[-1]["frozen.weight"])


def test_tied_weights_are_averaged_once_and_saved_under_both_names(train: Train, tmp_path: Path):
    module, save, ema = Small(), SaveAt(tmp_path, 8), EMA(0.5)
    module.other_head = module.head
    train(module, ema, save)
    saved = torch.load(save.mid, weights_only=True)["state_dict"]
    assert torch.equal(saved["head.weight"], module.head.weight)
    assert torch.equal(saved["other_head.weight"], module.head.weight)
    assert [name for name in ema.state_dict()["averaged"] if "head.weight" in name] == ["head.weight"]


def test_a_second_fit_starts_a_new_average(train: Train):
    ema = EMA(0.5, warmup=False)
    train(Small(), ema)
    module = Small()
    train(module, ema, steps=2)
    assert_states_close(module.state_dict(), reference_ema(module.states, [0.5]))


def test_the_data_that_a_module_holds_is_not_copied(train: Train):
    class Uncopyable:
        def __deepcopy__(self, memo: object) -> None:
            raise AssertionError("copied")

    module = Small()
    module.data = Uncopyable()
    train(module, EMA())
    assert len(module.states) == 8


@pytest.mark.parametrize(
    ("callbacks", "told"),
    [
        ([SWA()], "without a Clock"),
        ([EMA(phases=["finish"])], "without a Clock"),
        ([two_phases(), SWA("finsh")], "'finsh', which the timeline lacks; it has 'grow', 'finish'. Did you mean"),
        ([two_phases(), EMA(phases=("grow", "end"))], "'end', which the timeline lacks"),
        ([two_phases(), EMA(), SWA()], "EMA and SWA"),
        ([EMA(), EMAWeightAveraging()], "EMA and EMAWeightAveraging"),
    ],
)
def test_mistakes_are_told_before_training(train: Train, callbacks: list[pl.Callback], told: str):
    module = Small()
    with pytest.raises(EtudeError, match=told):
        train(module, *callbacks)
    assert module.states == []


@pytest.mark.parametrize("decay", [1.0, -0.1, float("nan")])
def test_a_decay_out_of_range_is_refused(decay: float):
    with pytest.raises(EtudeError, match="at least 0 and below 1"):
        EMA(decay)


def test_a_checkpoint_without_an_average_is_told_of(train: Train, tmp_path: Path):
    save = SaveAt(tmp_path, 4)
    train(Small(), save)
    module = Small()
    with pytest.warns(UserWarning, match="no average of EMA"):
        train(module, EMA(0.5, warmup=False), resume=save.mid)
    assert_states_close(module.state_dict(), reference_ema(module.states, [0.5] * 3))


@pytest.mark.parametrize(("name", "told"), [("gone", "lacks it"), ("head.weight", r"has \(2, 4\)")])
def test_an_average_of_another_model_is_refused(name: str, told: str):
    ema = EMA()
    averaged = {name: torch.zeros(3, 3)}
    ema.load_state_dict({"latest_update_step": 1, "steps": 1, "pending": 0, "averaged": averaged, "copied": {}})
    with pytest.raises(EtudeError, match=told):
        ema.settle(Small())
