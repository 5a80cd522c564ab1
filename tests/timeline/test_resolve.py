"""A timeline of epochs, steps and minutes is resolved for a run of known size."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etude.timeline import Linear, Pace, Phase, RunSize, Timeline, Triangular, Warmup, step_progress

HUNDRED_A_SECOND = Pace(0.01)


def plan_of(*lengths: Any, **quantities: Any) -> Timeline:
    """A phase of each length, named a, b, c..."""
    return Timeline(tuple(Phase("abcdef"[number], length, **quantities) for number, length in enumerate(lengths)))


def shares(plan: Timeline, run: RunSize) -> list[Any]:
    return [phase.length for phase in plan.resolved(run).phases]


@pytest.mark.parametrize(
    ("lengths", "run", "expected"),
    [
        ((0.25, 0.75), RunSize(1000), [0.25, 0.75]),
        (("25%", 0.75), RunSize(1000), [0.25, 0.75]),
        (("100st", 0.75, 0.25), RunSize(500), [0.2, 0.6, 0.2]),  # 100 steps, then 300 and 100 of the other 400
        (("3ep", 1.0), RunSize(600, epoch_steps=50), [0.25, 0.75]),
        (("1m", "90s", 1.0), RunSize(30_000, pace=HUNDRED_A_SECOND), [0.2, 0.3, 0.5]),
        (("100st", "2ep"), RunSize(400, epoch_steps=150), [0.25, 0.75]),
        (("100st", "300.4st"), RunSize(400), [100 / 400.4, 300.4 / 400.4]),  # the rest, below half a step, is shared
    ],
)
def test_fixed_lengths_come_first_and_shares_divide_the_rest(lengths: Any, run: RunSize, expected: list[float]):
    assert shares(plan_of(*lengths), run) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("lengths", "run", "message"),
    [
        (("3ep", "500st", 1.0), RunSize(600, epoch_steps=50), "3ep \\+ 500st take 650 of 600 steps"),
        (("600st", 1.0), RunSize(600), "leave nothing"),
        (("100st", "300st"), RunSize(401), "take 400 of 401 steps"),
        (("3ep", 1.0), RunSize(600), "'3ep' is in epochs, and the steps of an epoch are not known"),
        (("3m", 1.0), RunSize(600), "'3m' is in time, and the duration of a step is not known"),
    ],
)
def test_lengths_that_make_no_run_are_refused(lengths: Any, run: RunSize, message: str):
    with pytest.raises(ValueError, match=message):
        plan_of(*lengths).resolved(run)


def test_a_curve_that_does_not_fit_is_refused_with_its_phase():
    plan = Timeline((Phase("a", 0.5), Phase("grow", 0.5, lr=Warmup(Linear(1.0, 0.0), "60st"))))
    with pytest.raises(ValueError, match="phase 'grow': a warmup of '60st'"):
        plan.resolved(RunSize(100))


def test_only_a_resolved_timeline_answers():
    plan = plan_of("50st", 1.0, lr=Triangular(0.0, 1.0, "10st"))
    assert not plan.is_resolved
    questions: list[Any] = [lambda: plan.at(0.5), lambda: plan.end, plan.spans, plan.jumps, lambda: plan.phase_at(0.0)]
    for ask in questions:
        with pytest.raises(ValueError, match="resolve it for a run first"):
            ask()
    settled = plan.resolved(RunSize(100))
    assert settled.is_resolved
    assert settled.spans() == (("a", 0.0, 0.5), ("b", 0.5, 1.0))
    assert settled.end == 1.0
    assert settled.at(0.05).lr == pytest.approx(1.0)  # the middle of the first cycle of 10 of 100 steps


def test_a_length_within_a_curve_keeps_a_timeline_unresolved():
    assert not plan_of(1.0, lr=Warmup(Linear(1.0, 0.0), "2ep")).is_resolved
    settled = plan_of(1.0, lr=Warmup(Linear(1.0, 0.0), "2ep")).resolved(RunSize(100, epoch_steps=10))
    assert settled.at(0.1).lr == pytest.approx(0.5)
    assert settled.at(0.2).lr == pytest.approx(1.0)
    assert settled.at(0.6).lr == pytest.approx(0.5)


def test_curves_keep_their_steps_within_their_own_phase():
    settled = plan_of(0.5, 0.5, lr=Triangular(0.0, 1.0, "10st")).resolved(RunSize(100))
    assert settled.phases[1].lr == Triangular(0.0, 1.0, 0.2)  # 10 of the phase's 50 steps


@given(st.integers(1, 10_000), st.integers(1, 10_000))
def test_resolving_again_is_identity(steps: int, other: int):
    settled = plan_of("0.5st", 0.25, 0.75, lr=Triangular(0.0, 1.0, "20st")).resolved(RunSize(steps))
    assert settled.resolved(RunSize(other)) is settled


SHARES = st.floats(0.05, 0.45)


@given(SHARES, SHARES, st.integers(2, 500), st.floats(0, 1))
def test_a_plan_of_shares_scales_with_the_run(warmup: float, finish: float, steps: int, progress: float):
    phases = (
        Phase("warmup", warmup, lr=Linear(0.0, 1.0)),
        Phase("grow", 1.0 - warmup - finish, lr=Triangular(0.1, 1.0, 0.3), image_size=Linear(64, 224)),
        Phase("finish", finish, lr=Warmup(Linear(0.1, 0.0), "10%")),
    )
    once, twice = (Timeline(phases).resolved(RunSize(run)) for run in (steps, 2 * steps))
    assert once.at(progress) == twice.at(progress)


@given(st.integers(1, 400), st.floats(0.1, 0.9), st.integers(450, 2000))
def test_a_fixed_length_keeps_its_steps(warmup: int, share: float, steps: int):
    plan = plan_of(f"{warmup}st", share, 1.0 - share, lr=Linear(0.0, 1.0))
    for run in (steps, 2 * steps):
        settled = plan.resolved(RunSize(run))
        phases = [moment.phase for moment in settled.moments(run)]
        assert phases.index("b") == warmup
        last = settled.at(step_progress(warmup - 1, run))
        assert last.lr == pytest.approx((warmup - 0.5) / warmup)


@given(st.integers(1, 50), st.floats(1.5, 90))
def test_epochs_keep_their_steps(epochs: int, epoch_steps: float):
    settled = plan_of(f"{epochs}ep", 1.0).resolved(RunSize(10_000, epoch_steps))
    assert settled.spans()[0][2] * 10_000 == pytest.approx(epochs * epoch_steps)


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [(("3ep", "50st"), 80.0), (("3ep", "50st", "2s"), 280.0), (("3ep", 1.0), None), ((0.5, 0.5), None)],
)
def test_the_steps_of_fixed_phases_are_known(lengths: Any, expected: float | None):
    assert plan_of(*lengths).fixed_steps(10.0, HUNDRED_A_SECOND) == expected


def test_fixed_steps_ask_for_what_they_need():
    with pytest.raises(ValueError, match="is in epochs"):
        plan_of("3ep").fixed_steps(None)
    with pytest.raises(ValueError, match="is in time"):
        plan_of("3m").fixed_steps(10.0)


def test_minutes_hold_fewer_steps_of_larger_images():
    pace = Pace(0.01, size=96)
    assert plan_of("60s", image_size=96).fixed_steps(None, pace) == pytest.approx(6000)
    assert plan_of("60s", image_size=192).fixed_steps(None, pace) == pytest.approx(1500)  # four times the area
    assert plan_of("60s").fixed_steps(None, pace) == pytest.approx(6000)  # no size is scheduled
    half = plan_of("60s", image_size=Linear(96, 128))  # rounded: half of the time 96 px, half 128 px
    assert half.fixed_steps(None, Pace(0.01, size=32)) == pytest.approx(6000 / ((3**2 + 4**2) / 2))


def test_minutes_settle_with_sizes_that_depend_on_them():
    sizes = Warmup(Linear(128, 128), "1000st", start=64)  # 1000 steps of 64 to 128 px, then 128 px
    plan = dataclasses.replace(plan_of("100s", image_size=sizes), size_multiple=64)
    steps = plan.fixed_steps(None, Pace(0.01, size=64))
    # By hand, s steps of which 500 at 64 px take 0.01 s and the others four times as long: 5 + 0.04 (s - 500) = 100.
    assert steps == pytest.approx(2875, rel=0.02)
