"""PlateauWatch against PyTorch's own scheduler, whose rules it promises."""

from __future__ import annotations

import json
import math
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from etude.timeline import Event, Phase, Plateau, PlateauWatch, Timeline

# Few distinct values make plateaus and exact ties likely; wild ones and the values in between come beside them.
METRICS = st.lists(
    st.one_of(st.sampled_from([0.0, 0.5, 0.4999, 0.49995, 0.6, 1.0]), st.floats(-2, 2), st.just(math.nan)), max_size=40
)
RULES = [*product(["min", "max"], ["rel", "abs"], [0, 1, 3])]


def torch_rates(plateau: Plateau, metrics: list[float]) -> list[float]:
    """Return the learning rate after each metric, from 1.0 on, by PyTorch."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer,
        mode=plateau.mode,
        factor=plateau.factor,
        patience=plateau.patience,
        threshold=plateau.threshold,
        threshold_mode=plateau.threshold_mode,
        cooldown=plateau.cooldown,
        min_lr=plateau.min_lr,
        eps=0.0,
    )
    rates: list[float] = []
    for metric in metrics:
        scheduler.step(metric)
        rates.append(optimizer.param_groups[0]["lr"])
    return rates


def etude_rates(plateau: Plateau, metrics: list[float]) -> list[float | None]:
    """Return the same by a watch and the events it asks for."""
    plan, watch = Timeline((Phase("all", 1.0, lr=1.0),)), PlateauWatch(plateau)
    rates: list[float | None] = []
    for number, metric in enumerate(metrics, 1):
        progress = number / len(metrics)
        if watch.observe(metric):
            plan = plan.with_event(Event(progress, "scale", "all", plateau.factor, plateau.min_lr))
        rates.append(plan.at(progress).lr)
    return rates


@pytest.mark.parametrize(("mode", "threshold_mode", "cooldown"), RULES)
@given(METRICS, st.integers(0, 3), st.sampled_from([0.0, 1e-4, 0.1]), st.sampled_from([0.0, 0.02, 0.3]))
def test_a_watch_scales_when_pytorch_does(
    mode: Any, threshold_mode: Any, cooldown: int, metrics: list[float], patience: int, threshold: float, min_lr: float
):
    plateau = Plateau("loss", mode, 0.5, patience, threshold, threshold_mode, cooldown, min_lr)
    assert etude_rates(plateau, metrics) == pytest.approx(torch_rates(plateau, metrics), rel=1e-12)


def test_the_comparison_sees_plateaus():
    metrics = [1.0, 0.5, 0.5, 0.6, 0.5, 0.4, 0.5, 0.5, 0.5]
    assert torch_rates(Plateau(factor=0.5), metrics) == [1, 1, 1, 1, 0.5, 0.5, 0.5, 0.5, 0.25]
    assert etude_rates(Plateau(factor=0.5), metrics) == [1, 1, 1, 1, 0.5, 0.5, 0.5, 0.5, 0.25]


STUCK = [1.0] * 10


@pytest.mark.parametrize(
    ("reductions", "expected"),
    [
        (None, ["scale", "scale", "scale", "scale"]),
        (0, ["end"]),
        (1, ["scale", "end"]),
        (2, ["scale", "scale", "end"]),
    ],
)
def test_after_its_reductions_a_plateau_ends_the_phase(reductions: int | None, expected: list[str]):
    watch = PlateauWatch(Plateau(patience=1, reductions=reductions))
    seen = [watch.observe(value) for value in STUCK]
    assert seen[0] is None  # the best of all; then every second value overfills the patience
    assert seen[1::2] == [None] * 5
    assert seen[2::2][: len(expected)] == expected


def test_nan_is_no_improvement():
    watch = PlateauWatch(Plateau(patience=1))
    assert [watch.observe(value) for value in (math.nan, math.nan, 1.0, math.nan, math.nan)] == [
        None,
        "scale",
        None,
        None,
        "scale",
    ]


@given(METRICS, METRICS, st.sampled_from(RULES), st.sampled_from([None, 0, 2]))
def test_a_watch_goes_on_from_its_state(before: list[float], after: list[float], rules: Any, reductions: int | None):
    mode, threshold_mode, cooldown = rules
    plateau = Plateau("loss", mode, 0.5, 1, 1e-4, threshold_mode, cooldown, reductions=reductions)
    watch, resumed = PlateauWatch(plateau), PlateauWatch(plateau)
    for value in before:
        watch.observe(value)
    resumed.load_state_dict(json.loads(json.dumps(watch.state_dict(), allow_nan=False)))
    assert resumed.state_dict() == watch.state_dict()
    assert [resumed.observe(value) for value in after] == [watch.observe(value) for value in after]


def test_the_state_is_what_was_seen():
    watch = PlateauWatch(Plateau(patience=1, cooldown=2, reductions=1))
    assert watch.state_dict() == {"best": None, "bad": 0, "cooldown": 0, "reductions": 0}
    for value in (0.5, 0.6):
        watch.observe(value)
    assert watch.state_dict() == {"best": 0.5, "bad": 1, "cooldown": 0, "reductions": 0}
    watch.observe(0.6)
    assert watch.state_dict() == {"best": 0.5, "bad": 0, "cooldown": 2, "reductions": 1}


@pytest.mark.each(
    ("arguments", "message"),
    [
        ({"metric": ""}, "name of a metric"),
        ({"mode": "low"}, "mode of a plateau is 'low'; give 'min' or 'max'"),
        ({"threshold_mode": "share"}, "threshold_mode of a plateau is 'share'; give 'rel' or 'abs'"),
        ({"factor": 1.0}, "factor of a plateau is 1.0; it must lie between 0 and 1"),
        ({"factor": 0.0}, "factor of a plateau is 0.0"),
        ({"threshold": 1.0}, "threshold of a plateau is 1.0"),
        ({"threshold": math.nan}, "threshold of a plateau is nan"),
        ({"min_lr": -1e-3}, "min_lr of a plateau is -0.001"),
        ({"patience": -1}, "patience of a plateau is -1"),
        ({"cooldown": -1}, "cooldown of a plateau is -1"),
        ({"reductions": -1}, "reductions of a plateau is -1"),
    ],
)
def test_a_plateau_that_makes_no_sense_is_refused(arguments: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        Plateau(**arguments)


def test_an_absolute_threshold_may_be_large():
    watch = PlateauWatch(Plateau(threshold=5.0, threshold_mode="abs", patience=0))
    assert [watch.observe(value) for value in (100.0, 96.0, 94.0)] == [None, "scale", None]
