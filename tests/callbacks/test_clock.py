from __future__ import annotations

import etude.compat  # noqa: F401  (before lightning)

import pytest

from etude.callbacks import Clock
from etude.timeline import Constant, Linear, Phase, Timeline, default_timeline


def test_every_step_runs_at_the_timelines_rate_times_the_groups_scale(fit, plain_module):
    plan = Timeline(
        (Phase("up", 0.5, Linear(0.0, 0.8), Constant(64)), Phase("down", 0.5, Linear(0.8, 0.0), Constant(96)))
    )
    module = plain_module()
    fit(module, [Clock(plan, 8)], steps=8)
    # The middles of eight steps, worked out by hand.
    expected = [0.1, 0.3, 0.5, 0.7, 0.7, 0.5, 0.3, 0.1]
    assert [rates[1] for rates in module.rates] == pytest.approx(expected)
    assert [rates[0] for rates in module.rates] == pytest.approx([0.1 * rate for rate in expected])


def test_the_clock_knows_the_present_moment(fit, plain_module):
    plan = default_timeline(1e-2, 64, 128)
    clock = Clock(plan, 10)
    assert clock.moment == plan.at(0.05)
    fit(plain_module(), [clock], steps=10)
    assert clock.moment == plan.at(0.95)
    assert clock.moment.phase == "finish"


def test_a_run_beyond_the_plan_stays_at_its_end(fit, plain_module):
    module = plain_module()
    clock = Clock(default_timeline(1e-2, 64, 128), 4)
    fit(module, [clock], steps=6)
    assert [rates[1] for rates in module.rates[4:]] == [0.0, 0.0]
    assert clock.moment.progress == 1.0


def test_the_weights_move_as_the_rates_say(fit, plain_module):
    still, moved = plain_module(), plain_module()
    for module, rate in ((still, 0.0), (moved, 0.1)):
        weight = module.layer.weight.detach().clone()
        fit(module, [Clock(Timeline((Phase("all", 1.0, Constant(rate), Constant(64)),)), 3)], steps=3)
        assert (module.layer.weight.detach() == weight).all().item() is (rate == 0.0)
