from __future__ import annotations

from pathlib import Path
from typing import Any

import etude.compat  # noqa: F401  (before lightning)

import lightning.pytorch as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch.callbacks import (
    EarlyStopping,
    EMAWeightAveraging,
    LearningRateFinder,
    LearningRateMonitor,
    ModelCheckpoint,
    StochasticWeightAveraging,
)
from lightning.pytorch.loggers import CSVLogger

from etude.callbacks.augment import AugmentRamp
from etude.callbacks.averaging import EMA, SWA
from etude.callbacks.base import ORDER, arrange, check_order, place_of
from etude.callbacks.clock import Clock
from etude.callbacks.distill import Distill
from etude.callbacks.history import History, TrainingProgress
from etude.callbacks.hooks import Hooks
from etude.callbacks.mixup import CutMix, LabelSmoothing, MixUp
from etude.callbacks.pseudo_labels import PseudoLabels
from etude.callbacks.resize import ProgressiveResize
from etude.callbacks.time_limit import TimeLimit
from etude.core.context import Silent
from etude.core.errors import EtudeError
from etude.timeline import Linear, Phase, Timeline

WITH_LR = Timeline((Phase("all", 1.0, lr=0.1),))
WITHOUT_LR = Timeline((Phase("all", 1.0, augment=0.5),))


def everything() -> list[pl.Callback]:
    """One of each place, in order."""
    return [
        Clock(WITH_LR),
        TimeLimit(60.0),
        ProgressiveResize(),
        PseudoLabels(),
        AugmentRamp(),
        MixUp(),
        CutMix(),
        LabelSmoothing(),
        Distill([torch.nn.Identity()]),
        EMAWeightAveraging(),
        History(),
        Hooks(),
        TrainingProgress(Silent(), 8, 6),
        ModelCheckpoint(),
    ]


def test_every_place_is_taken_by_its_class():
    assert [place_of(callback) for callback in everything()] == list(ORDER)
    for other in (EarlyStopping("valid_loss"), LearningRateMonitor(), pl.Callback()):
        assert place_of(other) is None


def test_a_subclass_takes_the_place_of_its_class_and_a_namesake_does_not():
    class MyMixUp(MixUp):
        pass

    class Clock(pl.Callback):
        pass

    assert place_of(MyMixUp()) == "MixUp"
    assert place_of(Clock()) is None


@given(st.permutations(range(len(ORDER))))
def test_any_order_can_be_arranged_and_only_the_right_one_passes(order: list[int]):
    right = everything()
    shuffled = [right[index] for index in order]
    check_order(arrange(shuffled))
    assert arrange(shuffled) == right
    if shuffled != right:
        with pytest.raises(EtudeError, match="must come after it"):
            check_order(shuffled)


@given(st.lists(st.sampled_from(range(12)), unique=True), st.integers(0, 12))
def test_parts_in_order_pass_with_others_between(indices: list[int], where: int):
    right = everything()
    chosen: list[pl.Callback] = [right[index] for index in sorted(indices)]
    chosen.insert(where, EarlyStopping("valid_loss"))
    check_order(chosen)


def test_others_stay_behind_the_one_they_followed():
    first, second, clock, mixup = pl.Callback(), pl.Callback(), Clock(WITH_LR), MixUp()
    assert arrange([first, mixup, second, clock]) == [first, clock, mixup, second]


def test_a_wrong_order_says_what_to_write():
    with pytest.raises(EtudeError) as told:
        check_order([MixUp(), EarlyStopping("valid_loss"), Clock(WITH_LR), History()])
    assert str(told.value) == (
        "MixUp stands before Clock among the callbacks, and must come after it (it sets the moment that all others "
        "ask for): list them as Clock, MixUp, History, or pass them through etude.callbacks.arrange"
    )


@pytest.mark.parametrize(
    ("callbacks", "sentence"),
    [
        (lambda: [Clock(WITH_LR), Clock(WITH_LR)], "Clock and Clock, but one timeline runs a training: keep one"),
        (
            lambda: [EMAWeightAveraging(), EMAWeightAveraging(decay=0.9)],
            "EMAWeightAveraging and EMAWeightAveraging, but each swaps the network's weights: keep one",
        ),
        (
            lambda: [Clock(WITH_LR), StochasticWeightAveraging(0.1)],
            "StochasticWeightAveraging sets the learning rate, and so does the Clock's timeline: use etude's SWA",
        ),
        (lambda: [LearningRateFinder(), Clock(WITH_LR)], "LearningRateFinder sets the learning rate.*etude lr-find"),
    ],
)
def test_what_cannot_stand_together_is_refused(callbacks: Any, sentence: str):
    with pytest.raises(EtudeError, match=sentence):
        check_order(callbacks())


def test_a_timeline_without_rates_leaves_them_to_others(fit_images, image_module):
    check_order([Clock(WITHOUT_LR), StochasticWeightAveraging(0.1)])
    check_order([StochasticWeightAveraging(0.1), MixUp()])

    class Scheduled(image_module):
        def configure_optimizers(self) -> Any:
            optimizer = super().configure_optimizers()
            return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)]

    module = Scheduled()
    fit_images(module, [Clock(WITHOUT_LR), MixUp()], steps=8)
    assert module.optimizers().param_groups[0]["lr"] == pytest.approx(0.0025)
    with pytest.raises(EtudeError, match="returns the scheduler StepLR, and the Clock's timeline schedules the"):
        fit_images(Scheduled(), [Clock(WITH_LR), MixUp()])


@pytest.mark.parametrize("kind", [MixUp, CutMix, ProgressiveResize, AugmentRamp, PseudoLabels, Hooks, History])
def test_every_callback_checks_the_order_when_training_starts(kind: type[pl.Callback], fit_images, image_module):
    module = image_module()
    with pytest.raises(EtudeError, match=f"{kind.__name__} stands before Clock"):
        fit_images(module, [kind(), Clock(WITH_LR)])
    assert module.seen == []
    assert module.validated == []


@pytest.mark.each("average", [EMA, lambda: SWA("all"), EMAWeightAveraging])
@pytest.mark.each("clock", [[], [WITHOUT_LR], [WITH_LR]])
def test_a_second_average_of_the_weights_is_refused(average: Any, clock: list[Timeline]):
    for other in (StochasticWeightAveraging(0.1), EMAWeightAveraging()):
        made = average()
        clocks = [Clock(timeline) for timeline in clock]
        names = f"{type(made).__name__} and {type(other).__name__}, but each swaps"
        with pytest.raises(EtudeError, match=names):
            check_order([*clocks, made, other])
    with pytest.raises(EtudeError, match="StochasticWeightAveraging and EMA, but each swaps"):
        check_order([StochasticWeightAveraging(0.1), MixUp(), EMA()])


@pytest.mark.parametrize(("interval", "steps"), [("step", range(8)), ("epoch", (0, 4))])
def test_a_monitor_of_rates_stands_after_the_clock(interval: Any, steps: Any, fit_images, image_module, tmp_path: Path):
    plan = Timeline((Phase("all", 1.0, lr=Linear(1.0, 0.0)),))
    clock, monitor, stop = Clock(plan), LearningRateMonitor(interval), EarlyStopping("valid_loss")
    check_order([LearningRateMonitor(interval), Clock(WITHOUT_LR)])
    with pytest.raises(EtudeError, match="LearningRateMonitor stands before the Clock"):
        check_order([monitor, stop, clock])
    assert arrange([monitor, stop, clock, MixUp()])[:3] == [stop, clock, monitor]
    fit_images(image_module(), [clock, monitor], logger=CSVLogger(tmp_path), log_every_n_steps=1)
    assert monitor.lrs["lr-SGD"] == pytest.approx([1.0 - (step + 0.5) / 8 for step in steps])
