from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import etude.compat  # noqa: F401  (before lightning)

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import BackboneFinetuning

from etude.callbacks import Clock, clock_of
from etude.core.errors import EtudeError
from etude.timeline import Constant, Linear, Phase, Plateau, Shape, Timeline, preset, step_progress

UP_AND_DOWN = Timeline((Phase("up", 0.5, lr=Linear(0.0, 0.8)), Phase("down", 0.5, lr=Linear(0.8, 0.0))))


def test_every_step_runs_at_the_timelines_rate_times_the_groups_scale(fit, plain_module):
    module = plain_module()
    fit(module, [Clock(UP_AND_DOWN)], steps=8)
    # The middles of eight steps, worked out by hand.
    expected = [0.1, 0.3, 0.5, 0.7, 0.7, 0.5, 0.3, 0.1]
    assert [rates[1] for rates in module.rates] == pytest.approx(expected)
    assert [rates[0] for rates in module.rates] == pytest.approx([0.1 * rate for rate in expected])


def test_the_clock_takes_its_steps_from_the_trainer_or_as_given(fit, plain_module):
    by_trainer, given = Clock(UP_AND_DOWN), Clock(UP_AND_DOWN, 100)
    fit(plain_module(), [by_trainer], steps=8)
    fit(plain_module(), [given], steps=8)
    assert (by_trainer.steps, given.steps) == (8, 100)
    assert given.moment == UP_AND_DOWN.at(step_progress(7, 100))


def test_lengths_in_epochs_are_resolved_when_training_starts(fit, plain_module):
    plan = Timeline((Phase("up", "1ep", lr=Constant(0.25)), Phase("rest", 1.0, lr=Constant(0.5))))
    module = plain_module()
    fit(module, [Clock(plan)], steps=12, per_epoch=4)
    assert [rates[1] for rates in module.rates] == [0.25] * 4 + [0.5] * 8


class Endless(torch.utils.data.IterableDataset):
    """Batches without a length."""

    def __iter__(self):
        return iter([(torch.zeros(2), torch.zeros(()))] * 5)


def test_a_run_whose_length_nobody_knows_is_refused(plain_module):
    quiet = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False}
    trainer = pl.Trainer(max_epochs=2, callbacks=[Clock(UP_AND_DOWN)], **quiet)  # type: ignore[arg-type]
    with pytest.raises(EtudeError, match="Clock must know where the run ends"):
        trainer.fit(plain_module(), torch.utils.data.DataLoader(Endless(), batch_size=5))


def test_a_timeline_that_does_not_fit_the_run_is_told_in_one_sentence(fit, plain_module):
    plan = Timeline((Phase("long", "300st", lr=Constant(0.25)), Phase("rest", 1.0, lr=Constant(0.5))))
    with pytest.raises(EtudeError, match="the timeline does not fit this run: .*300"):
        fit(plain_module(), [Clock(plan)], steps=8)


def test_the_moment_of_any_step_can_be_asked(fit, plain_module):
    plan = preset("default", Shape(peak_lr=1e-2, start_size=64, final_size=128))
    clock = Clock(plan)
    trainer = fit(plain_module(), [clock], steps=10)
    assert clock_of(trainer) is clock
    assert clock.moment == clock.moment_at(9) == plan.at(0.95)
    assert clock.moment_at(0) == plan.at(0.05)


def test_a_trainer_without_a_clock_has_none():
    assert clock_of(pl.Trainer(logger=False, accelerator="cpu")) is None


def test_a_run_beyond_the_plan_stays_at_its_end(fit, plain_module):
    module = plain_module()
    fit(module, [Clock(UP_AND_DOWN, 4)], steps=6)
    assert [rates[1] for rates in module.rates[4:]] == [0.0, 0.0]


class Unfreezing(pl.Callback):
    """Adds a group of parameters before the fifth step, as Lightning's BackboneFinetuning does."""

    def on_train_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, batch, batch_idx: int) -> None:
        if trainer.global_step == 3 and len(trainer.optimizers[0].param_groups) == 2:
            trainer.optimizers[0].add_param_group({"params": [torch.nn.Parameter(torch.zeros(1))], "lr_scale": 0.5})


def test_groups_that_come_later_are_set_too(fit, plain_module):
    module = plain_module()
    fit(module, [Clock(UP_AND_DOWN), Unfreezing()], steps=8)
    assert [len(rates) for rates in module.rates] == [2] * 3 + [3] * 5
    assert [rates[2] for rates in module.rates[4:]] == pytest.approx([0.5 * rates[1] for rates in module.rates[4:]])


class Grouped(pl.LightningModule):
    """Trains with optimisers of the given groups (options beside the parameters); writes down each group's rate."""

    def __init__(self, *optimizers: list[dict[str, Any]], kind: Any = torch.optim.SGD, scheduled: bool = False) -> None:
        super().__init__()
        self.automatic_optimization, self.kind, self.scheduled = len(optimizers) == 1, kind, scheduled
        self.options, self.rates = optimizers, list[list[float]]()
        self.layers = torch.nn.ModuleList(torch.nn.Linear(2, 1) for groups in optimizers for _ in groups)

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> torch.Tensor | None:
        self.rates.append([group["lr"] for each in self.trainer.optimizers for group in each.param_groups])
        loss = sum(layer(batch[0]).square().mean() for layer in self.layers)
        if self.automatic_optimization:
            return loss  # type: ignore[return-value]
        self.manual_backward(loss)  # type: ignore[arg-type]
        for optimizer in self.optimizers():  # type: ignore[union-attr]
            optimizer.step()

    def validation_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> None: ...

    def configure_optimizers(self) -> Any:
        layers = iter(self.layers)
        made = [
            self.kind([{"params": next(layers).parameters(), **options} for options in groups], lr=0.5)
            for groups in self.options
        ]
        if not self.scheduled:
            return made
        by_step = torch.optim.lr_scheduler.LambdaLR(
            made[0], lambda step: UP_AND_DOWN.at(step_progress(step, 8)).lr / 0.8
        )
        return made, [{"scheduler": by_step, "interval": "step"}]


RATES: dict[str, tuple[list[dict[str, Any]], ...]] = {
    "rates": ([{"lr": 1e-5}, {"lr": 1e-2}],),
    "frozen, and the default": ([{"lr": 0.0}, {}, {"lr": 0.05}],),
    "scaled": ([{"lr": 0.4, "lr_scale": 0.1}, {"lr": 0.2}, {"lr_scale": 0.5}],),
    "two optimisers": ([{"lr": 1e-4}], [{"lr": 4e-4}, {"lr": 2e-4}]),
    "all at nothing": ([{"lr": 0.0}, {"lr": 0.0, "lr_scale": 0.5}],),
}
SHARES = {
    "rates": [1e-3, 1.0],
    "frozen, and the default": [0.0, 1.0, 0.1],
    "scaled": [0.08, 0.4, 0.5],
    "two optimisers": [0.25, 1.0, 0.5],
    "all at nothing": [1.0, 0.5],
}


@pytest.mark.parametrize("name", RATES)
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_groups_keep_their_ratio_to_the_largest(name: str, kind: Any, fit):
    module = Grouped(*RATES[name], kind=kind)
    batches = 8 // len(RATES[name])
    clock = Clock(UP_AND_DOWN)
    fit(module, [clock], steps=8)
    steps = range(0, 8, len(RATES[name]))
    assert len(module.rates) == batches
    for step, rates in zip(steps, module.rates, strict=True):
        whole = UP_AND_DOWN.at(step_progress(step, 8)).lr
        assert rates == pytest.approx([whole * share for share in SHARES[name]])


def test_the_rates_are_those_of_torchs_scheduler(fit):
    ours, torchs = Grouped([{"lr": 1e-3}, {"lr": 1.0}]), Grouped([{"lr": 8e-4}, {"lr": 0.8}], scheduled=True)
    fit(ours, [Clock(UP_AND_DOWN)], steps=8)
    fit(torchs, [], steps=8)
    for rates, expected in zip(ours.rates, torchs.rates, strict=True):
        assert rates == pytest.approx(expected)


def test_a_resumed_run_keeps_the_ratios(fit, tmp_path: Path):
    whole, stopped, resumed = (Grouped(*RATES["scaled"]) for _ in range(3))
    fit(whole, [Clock(UP_AND_DOWN, 8)], steps=8)
    trainer = fit(stopped, [Clock(UP_AND_DOWN, 8)], steps=4)
    trainer.save_checkpoint(tmp_path / "saved.ckpt")
    fit(resumed, [Clock(UP_AND_DOWN, 8)], steps=8, ckpt_path=tmp_path / "saved.ckpt")
    assert stopped.rates + resumed.rates == whole.rates


def test_a_checkpoint_from_before_groups_kept_their_ratios_goes_on_as_it_was(fit, tmp_path: Path):
    trainer = fit(Grouped(*RATES["scaled"]), [Clock(UP_AND_DOWN, 8)], steps=4)
    trainer.save_checkpoint(tmp_path / "saved.ckpt")
    old = torch.load(tmp_path / "saved.ckpt", weights_only=True)
    del old["callbacks"]["Clock"]["own_lr"]
    for group in old["optimizer_states"][0]["param_groups"]:
        del group["initial_lr"]
    torch.save(old, tmp_path / "old.ckpt")
    resumed = Grouped(*RATES["scaled"])
    fit(resumed, [Clock(UP_AND_DOWN, 8)], steps=8, ckpt_path=tmp_path / "old.ckpt")
    assert resumed.rates[0] == pytest.approx([0.07, 0.7, 0.35])


@pytest.mark.parametrize("reused", [False, True])
def test_ratios_are_those_of_each_fits_own_optimisers(reused: bool, fit):
    clock, first, second = Clock(UP_AND_DOWN), Grouped(*RATES["rates"]), Grouped([{"lr": 0.3}, {"lr": 0.1}, {}])
    fit(first, [clock], steps=8)
    if reused:  # a module may keep its optimiser from fit to fit, with the last rates that were written
        second = Grouped(*RATES["rates"])
        optimizer = first.trainer.optimizers[0]
        second.configure_optimizers = lambda: optimizer  # type: ignore[method-assign]
    fit(second, [clock], steps=8)
    assert second.rates[3] == pytest.approx([7e-4, 0.7] if reused else [0.42, 0.14, 0.7])


def test_unfrozen_layers_keep_lightnings_ratio(fit):
    class Pretrained(Grouped):
        def __init__(self) -> None:
            super().__init__([{}])
            self.backbone = torch.nn.Linear(2, 2)

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.layers.parameters(), lr=0.5)

    def finetuning() -> BackboneFinetuning:
        return BackboneFinetuning(
            unfreeze_backbone_at_epoch=1, backbone_initial_ratio_lr=0.1, lambda_func=lambda e: 1.0
        )

    for callbacks in ([Clock(UP_AND_DOWN), finetuning()], [finetuning(), Clock(UP_AND_DOWN)]):
        module = Pretrained()
        fit(module, callbacks, steps=8)
        assert [len(rates) for rates in module.rates] == [1] * 4 + [2] * 4
        shares = [backbone / head for head, backbone in module.rates[4:]]
        assert shares == pytest.approx([0.1] * 4)


def test_the_weights_move_as_the_rates_say(fit, plain_module):
    still, moved = plain_module(), plain_module()
    for module, rate in ((still, 0.0), (moved, 0.1)):
        weight = module.layer.weight.detach().clone()
        fit(module, [Clock(Timeline((Phase("all", 1.0, lr=rate),)))], steps=3)
        assert (module.layer.weight.detach() == weight).all().item() is (rate == 0.0)


class Watching(pl.Callback):
    """Writes down what the optimiser, the dropout and the stochastic depth are set to at each step."""

    def __init__(self) -> None:
        self.seen: list[tuple[float, ...]] = []

    def on_before_optimizer_step(self, trainer: pl.Trainer, module: pl.LightningModule, optimizer) -> None:
        group = optimizer.param_groups[0]
        momentum = group["betas"][0] if "betas" in group else group["momentum"]
        self.seen.append((group["lr"], momentum, module.drop.p, module.shallow.drop_prob, module.deep.drop_prob))


class DropPath(torch.nn.Module):
    """As timm's, for the attribute that counts."""

    def __init__(self, drop_prob: float) -> None:
        super().__init__()
        self.drop_prob = drop_prob


def with_layers(plain_module, optimizer: type[torch.optim.Optimizer], **options: object):
    class Module(plain_module):
        def __init__(self) -> None:
            super().__init__()
            self.drop, self.shallow, self.deep = torch.nn.Dropout(0.4), DropPath(0.1), DropPath(0.2)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return optimizer(self.parameters(), **options)

    return Module()


@pytest.mark.parametrize(
    ("optimizer", "options"),
    [(torch.optim.AdamW, {"lr": 7.0, "betas": (0.8, 0.99)}), (torch.optim.SGD, {"lr": 7.0, "momentum": 0.8})],
)
def test_what_a_phase_leaves_alone_stays_as_the_user_set_it(fit, plain_module, optimizer, options):
    plan = Timeline(
        (
            Phase("first", 0.5, momentum=Constant(0.5), dropout=0.1, drop_path=0.4),
            Phase("second", 0.5, lr=Constant(0.01)),
        )
    )
    watching = Watching()
    module = with_layers(plain_module, optimizer, **options)
    fit(module, [Clock(plan), watching], steps=2)
    # Stochastic depth keeps its proportions: the last block gets the scheduled share, the one before half of it.
    assert watching.seen[0] == pytest.approx((7.0, 0.5, 0.1, 0.2, 0.4))
    assert watching.seen[1] == pytest.approx((0.01, 0.8, 0.4, 0.1, 0.2))
    if "betas" in options:
        assert module.optimizers().param_groups[0]["betas"][1] == 0.99


@pytest.mark.parametrize("fail_at", [-1, 1])
def test_layers_get_their_own_back_after_training(fail_at: int, fit, plain_module):
    plan, module = Timeline((Phase("all", 1.0, lr=0.1, dropout=0.0, drop_path=0.0),)), None
    for kind in range(2):
        module = module or with_layers(plain_module, torch.optim.SGD, lr=1.0)
        module.fail_at = fail_at if kind == 0 else -1
        with pytest.raises(RuntimeError, match="cable") if module.fail_at > 0 else nullcontext():
            fit(module, [Clock(plan)], steps=2)
        assert (module.drop.p, module.shallow.drop_prob, module.deep.drop_prob) == (0.4, 0.1, 0.2)


@pytest.mark.parametrize("quantity", ["dropout", "drop_path"])
def test_scheduling_what_the_network_lacks_is_refused(fit, plain_module, quantity: str):
    plan = Timeline((Phase("all", 1.0, **{quantity: 0.2}),))
    with pytest.raises(EtudeError, match=f"schedules {quantity}, but the network has no layer"):
        fit(plain_module(), [Clock(plan)], steps=2)


class Scripted(pl.LightningModule):
    """Validation logs the next of ``values``."""

    def __init__(self, values: list[float]) -> None:
        super().__init__()
        self.layer, self.values, self.rates, self.value = torch.nn.Linear(2, 1), list(values), [], 0.0

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> torch.Tensor:
        self.rates.append(self.optimizers().param_groups[0]["lr"])  # type: ignore[union-attr]
        return self.layer(batch[0]).square().mean()

    def validation_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> None:
        if batch_idx == 0 and not self.trainer.sanity_checking:
            self.value = self.values.pop(0)
        self.log("score", self.value)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1.0)


def with_plateau(**options: object) -> Timeline:
    plateau = Plateau(metric="score", patience=0, threshold=0.0, factor=0.5, **options)  # type: ignore[arg-type]
    return Timeline(
        (
            Phase("warmup", 0.25, lr=Constant(0.8)),
            Phase("train", 0.5, lr=Constant(0.8), plateau=plateau),
            Phase("finish", 0.25, lr=Constant(0.4), image_size=64, jump=True),
        )
    )


def test_a_plateau_halves_the_rate_from_the_next_step_on(fit):
    # Two steps an epoch, validated each; the phase that watches spans epochs 3 to 6 (steps 4 to 11).
    module = Scripted([9.0, 9.0, 1.0, 2.0, 0.5, 0.4, 0.3, 0.2])
    clock = Clock(with_plateau())
    fit(module, [clock], steps=16, per_epoch=2, valid=True)
    # Warmup's bad values count for nothing; 2.0 after 1.0 is a plateau with patience 0, seen after step 8.
    assert module.rates == pytest.approx([0.8] * 8 + [0.4] * 4 + [0.2] * 4)
    assert [(event.kind, event.progress) for event in clock.timeline.events] == [("scale", 0.5)]


def test_a_plateau_ends_its_phase_and_the_run_ends_earlier(fit):
    module = Scripted([9.0, 9.0, 1.0, 2.0, 0.5, 0.4])
    clock = Clock(with_plateau(reductions=0))
    trainer = fit(module, [clock], steps=16, per_epoch=2, valid=True)
    # The watching phase had 8 steps and is left after 4; finish keeps its own 4.
    assert module.rates == pytest.approx([0.8] * 8 + [0.4] * 4)
    assert trainer.global_step == 12
    assert clock.moment is not None
    assert clock.moment.image_size == 64


def test_a_metric_that_nobody_logs_is_named(fit, plain_module):
    plan = Timeline((Phase("all", 1.0, lr=0.1, plateau=Plateau(metric="valid_f1")),))
    with pytest.raises(EtudeError, match="watches 'valid_f1'.*it logs 'valid_accuracy', 'valid_loss'"):
        fit(plain_module(), [Clock(plan)], steps=16, valid=True)


def test_a_scheduler_beside_the_clock_is_refused(fit, plain_module):
    class Both(plain_module):
        def configure_optimizers(self):
            optimizer = super().configure_optimizers()
            return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]

    with pytest.raises(EtudeError, match="StepLR"):
        fit(Both(), [Clock(UP_AND_DOWN)], steps=4)


@pytest.mark.parametrize("plan", [with_plateau(), Timeline((Phase("one", "8ep", lr=0.8, plateau=Plateau("score")),))])
def test_state_comes_back_in_another_clock(fit, plan: Timeline, tmp_path: Path):
    clock, again = Clock(plan, 16), Clock(plan, 16)
    trainer = fit(Scripted([9.0, 9.0, 1.0, 2.0]), [clock], steps=8, per_epoch=2, valid=True)
    trainer.save_checkpoint(tmp_path / "saved.ckpt")
    fit(Scripted([]), [again], steps=9, per_epoch=2, valid=True, ckpt_path=tmp_path / "saved.ckpt")
    assert again.timeline.events == clock.timeline.events
    assert again.state_dict()["watches"] == clock.state_dict()["watches"]
    assert again.happened[:8] == clock.happened


def test_what_happened_is_kept_in_at_most_five_hundred_rows(fit, plain_module):
    clock = Clock(UP_AND_DOWN)
    fit(plain_module(), [clock], steps=8)
    assert [row["step"] for row in clock.happened] == [*range(8)]
    assert clock.happened[0] == {"step": 0, "phase": "up", "lr": pytest.approx(0.1)}
    long = Clock(UP_AND_DOWN, 4_000)
    fit(plain_module(), [long], steps=40)
    assert [row["step"] for row in long.happened] == [0, 8, 16, 24, 32]


@pytest.mark.parametrize(
    ("settings", "loader"),
    [
        ({"limit_val_batches": 0}, True),
        ({}, False),
        ({"check_val_every_n_epoch": 5}, True),
    ],
    ids=["no batches", "no images", "later than the run ends"],
)
def test_a_plateau_without_validation_is_refused(settings: dict[str, Any], loader: bool, fit_images, image_module):
    plan = Timeline((Phase("all", 1.0, lr=0.1, plateau=Plateau("valid_loss", patience=0)),))
    module = image_module()
    if not loader:
        module.validation_step = None
    with pytest.raises(EtudeError, match="phase 'all' watches 'valid_loss' .*validat"):
        fit_images(module, [Clock(plan)], steps=-1, max_epochs=4, **settings)
    assert module.seen == []


@pytest.mark.parametrize(
    ("settings", "patience", "fires"),
    [
        ({}, 3, True),  # the first is the best, four without improvement follow
        ({}, 4, False),
        ({"val_check_interval": 0.5}, 4, True),
        ({"val_check_interval": 2, "check_val_every_n_epoch": None}, 4, True),
        ({"check_val_every_n_epoch": 2}, 1, False),
        ({"check_val_every_n_epoch": 2}, 0, True),
        ({"accumulate_grad_batches": 2}, 3, True),
        ({"accumulate_grad_batches": 2}, 4, False),
    ],
)
def test_a_plateau_that_too_few_validations_see_is_told(
    settings: dict[str, Any], patience: int, fires: bool, fit_images, image_module, recwarn
):
    class Flat(image_module):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("valid_loss", torch.tensor(1.0))

    watch = Plateau("valid_loss", patience=patience)
    clock = Clock(Timeline((Phase("all", 1.0, lr=0.1, plateau=watch),)))
    with (
        pytest.warns(UserWarning, match="phase 'all' watches 'valid_loss' .*cannot fire")
        if not fires
        else nullcontext()
    ):
        fit_images(Flat(), [clock], steps=-1, max_epochs=5, **settings)
    assert bool(clock.timeline.events) is fires
