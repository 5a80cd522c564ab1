"""What plateaus do to a run: phases that end early and learning rates that are scaled, as a list of events."""

from __future__ import annotations

import json
import pickle
from dataclasses import asdict, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etude.timeline import Event, Linear, Phase, RunSize, Timeline

PLAN = Timeline(
    (
        Phase("warmup", 0.2, lr=Linear(0.0, 1.0), image_size=64, augment=0.0),
        Phase("hold", 0.5, lr=1.0, image_size=Linear(64, 164), augment=Linear(0.0, 1.0)),
        Phase("finish", 0.3, lr=Linear(1.0, 0.0), image_size=224, augment=0.0),
    ),
    size_multiple=1,
)
PROGRESS = st.floats(0, 1)
SCALED = Event(0.45, "scale", "hold", factor=0.1)


def test_an_ended_phase_hands_everything_on_together():
    plan = PLAN.with_event(Event(0.4, "end", "hold"))
    before, after = plan.at(0.4 - 1e-6), plan.at(0.4)
    # At 0.4 hold has done 0.2 of its 0.5: sizes and strength stand at two fifths of their way.
    assert (before.phase, before.image_size) == ("hold", 104)
    assert (before.lr, before.augment) == (1.0, pytest.approx(0.4, abs=1e-4))
    assert (after.phase, after.image_size, after.lr, after.augment) == ("finish", 224, 1.0, 0.0)
    assert plan.at(0.55).lr == pytest.approx(0.5)  # finish keeps its length of 0.3: here its middle
    assert plan.end == pytest.approx(0.7)
    spans = plan.spans()
    assert [name for name, _, _ in spans] == ["warmup", "hold", "finish"]
    assert [spot for _, *ends in spans for spot in ends] == pytest.approx([0.0, 0.2, 0.2, 0.4, 0.4, 0.7])


def test_beyond_its_end_a_run_stays_at_its_last_moment():
    plan = PLAN.with_event(Event(0.4, "end", "hold"))
    assert plan.at(0.9) == plan.at(1.0) == plan.at(plan.end)
    assert plan.at(1.0).lr == pytest.approx(0.0)
    assert plan.at(1.0).progress == plan.end
    assert plan.phase_at(1.0).name == "finish"


@given(st.floats(0.2, 0.7), PROGRESS)
def test_an_end_does_not_change_what_was(ended: float, progress: float):
    plan = PLAN.with_event(Event(ended, "end", "hold"))
    if progress < ended - 1e-6:
        assert plan.at(progress) == PLAN.at(progress)
    else:
        assert plan.at(progress).phase == "finish"
        assert plan.end == pytest.approx(ended + 0.3)


@given(st.floats(0.2, 0.7), st.floats(0, 0.299))
def test_an_end_moves_the_rest_of_the_run_forward(ended: float, within: float):
    plan = PLAN.with_event(Event(ended, "end", "hold"))
    moved, planned = plan.at(min(1.0, ended + within)), PLAN.at(0.7 + within)
    assert moved.lr == pytest.approx(planned.lr, abs=1e-9)
    assert replace(moved, progress=0.0, lr=0.0) == replace(planned, progress=0.0, lr=0.0)


def test_two_phases_may_end_early():
    plan = PLAN.with_event(Event(0.1, "end", "warmup")).with_event(Event(0.2, "end", "hold"))
    assert [plan.at(progress).phase for progress in (0.09, 0.1, 0.19, 0.2)] == ["warmup", "hold", "hold", "finish"]
    assert plan.end == pytest.approx(0.5)
    assert plan.at(0.15).image_size == 74  # hold has done 0.05 of its 0.5: a tenth of 100 px


def test_ending_the_last_phase_ends_the_run():
    plan = PLAN.with_event(Event(0.85, "end", "finish"))
    assert plan.end == 0.85
    assert plan.at(1.0).lr == pytest.approx(0.5)


def test_ending_a_phase_where_it_begins_leaves_it_out():
    plan = PLAN.with_event(Event(0.2, "end", "hold"))
    assert plan.at(0.2).phase == "finish"
    assert "hold" not in {moment.phase for moment in plan.moments(100)}


def test_an_end_after_the_phase_changes_nothing():
    plan = PLAN.with_event(Event(0.75, "end", "hold"))
    assert plan.spans() == PLAN.spans()


def test_a_scaling_stays_to_the_end_of_the_run():
    plan = PLAN.with_event(SCALED)
    assert plan.at(0.45 - 1e-6).lr == 1.0
    assert plan.at(0.45).lr == pytest.approx(0.1)
    assert plan.at(0.85).lr == pytest.approx(0.05)  # finish chains with it: half of its curve, scaled
    twice = plan.with_event(Event(0.6, "scale", "hold", factor=0.1))
    assert [twice.at(progress).lr for progress in (0.5, 0.6, 0.85)] == pytest.approx([0.1, 0.01, 0.005])


@given(PROGRESS)
def test_a_scaling_touches_nothing_but_the_learning_rate(progress: float):
    one, other = PLAN.at(progress), PLAN.with_event(SCALED).at(progress)
    assert replace(one, lr=None) == replace(other, lr=None)


def test_a_scaling_stays_after_an_end():
    plan = PLAN.with_event(SCALED).with_event(Event(0.5, "end", "hold"))
    assert [plan.at(progress).lr for progress in (0.5, 0.65, 0.8)] == pytest.approx([0.1, 0.05, 0.0])


@pytest.mark.parametrize(
    ("progress", "expected"),
    [
        (0.5, 0.3),  # 0.1 would lie below the floor
        (0.85, 0.3),  # the curve stands at 0.5
        (0.94, 0.2),  # the curve itself is below the floor: nothing to scale, nothing to raise
        (1.0, 0.0),
    ],
)
def test_no_scaling_goes_below_its_floor(progress: float, expected: float):
    plan = PLAN.with_event(Event(0.45, "scale", "hold", factor=0.1, min_lr=0.3))
    again = plan.with_event(Event(0.46, "scale", "hold", factor=0.1, min_lr=0.3))
    assert plan.at(progress).lr == pytest.approx(expected)
    assert again.at(progress).lr == pytest.approx(expected)


@given(st.lists(st.floats(0.05, 1.0), max_size=4), st.floats(0, 0.5), PROGRESS)
def test_scalings_only_lower_and_multiply(factors: list[float], floor: float, progress: float):
    events = tuple(Event(0.3, "scale", "hold", factor, floor) for factor in factors)
    curve, scaled = PLAN.at(progress).lr, replace(PLAN, events=events).at(progress).lr
    assert curve is not None
    assert scaled is not None
    product = 1.0
    for factor in factors:
        product *= factor
    expected = max(curve * product, min(curve, floor)) if progress >= 0.3 else curve
    assert scaled <= curve
    assert scaled == pytest.approx(expected, abs=1e-9) or abs(progress - 0.3) < 1e-8


def test_a_batch_scales_before_a_plateau_does():
    phase = Phase("all", 1.0, lr=1.0, batch_size=400)
    plan = Timeline((phase,), batch_scaling="linear", base_batch_size=100, events=(Event(0.0, "scale", "all", 0.1, 1),))
    assert plan.at(0.5).lr == 1.0  # 4 after the batch, 0.4 after the plateau, but not below 1


def test_planned_joins_are_judged_without_events():
    assert PLAN.with_event(SCALED).jumps() == PLAN.jumps() == ()


@pytest.mark.parametrize(
    ("events", "message"),
    [
        ((Event(0.3, "end", "grow"),), "names the phase 'grow', but the phases are warmup, hold, finish"),
        ((Event(0.1, "end", "hold"),), "at progress 0.1 belongs to phase 'hold', which begins only at 0.2"),
        ((SCALED, Event(0.3, "end", "hold")), "at progress 0.3 comes after one at 0.45"),
    ],
)
def test_events_that_do_not_fit_are_refused(events: tuple[Event, ...], message: str):
    with pytest.raises(ValueError, match=message):
        replace(PLAN, events=events)


def test_an_unresolved_timeline_takes_no_events():
    plan = Timeline((Phase("all", "100st"),))
    with pytest.raises(ValueError, match="resolve the timeline"):
        plan.with_event(Event(0.5, "end", "all"))
    assert plan.resolved(RunSize(100)).with_event(Event(0.5, "end", "all")).end == 0.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"progress": 1.5}, "progress of an event is 1.5"),
        ({"progress": float("nan")}, "progress of an event is nan"),
        ({"kind": "stop"}, "kind of an event is 'stop'; give 'scale' or 'end'"),
        ({"factor": 0.0}, "factor of an event is 0.0"),
        ({"factor": 2.0}, "factor of an event is 2.0"),
        ({"min_lr": -1.0}, "min_lr of an event is -1.0"),
    ],
)
def test_an_event_that_makes_no_sense_is_refused(arguments: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        Event(**{"progress": 0.5, "kind": "scale", "phase": "hold"} | arguments)


def test_a_timeline_with_events_is_a_value():
    plan = PLAN.with_event(SCALED)
    assert pickle.loads(pickle.dumps(plan)) == plan != PLAN
    assert pickle.loads(pickle.dumps(plan)).at(0.5) == plan.at(0.5)
    assert Event(**json.loads(json.dumps(asdict(SCALED)))) == SCALED
