from __future__ import annotations

import dataclasses
import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etude.timeline import (
    QUANTITIES,
    Constant,
    Cosine,
    Linear,
    Moment,
    Phase,
    Timeline,
    step_progress,
)
from etude.timeline.plan import rounded

PROGRESS = st.floats(0, 1)
ASCENT = Timeline(
    (
        Phase("warmup", 0.25, lr=Linear(0.0, 0.8), image_size=96, augment=Linear(-1.0, 1.0), batch_size=64),
        Phase("finish", 0.75, lr=Cosine(0.8, 0.0), image_size=Linear(96, 224), momentum=0.9, batch_size=Linear(64, 69)),
    )
)
# Worked out by hand: a quarter of the way through finish lies at 0.25 + 0.75 / 4, where cos 45 degrees = 0.70710678.
GOLDEN = [
    Moment(0.0, "warmup", lr=0.0, image_size=96, augment=0.0, batch_size=64),
    Moment(0.1875, "warmup", lr=0.6, image_size=96, augment=0.5, batch_size=64),
    Moment(0.25, "finish", lr=0.8, image_size=96, momentum=0.9, batch_size=64),
    Moment(0.4375, "finish", lr=0.68284271, image_size=128, momentum=0.9, batch_size=65),  # 65.25 images
    Moment(0.625, "finish", lr=0.4, image_size=160, momentum=0.9, batch_size=67),  # 66.5 images: up
    Moment(1.0, "finish", lr=0.0, image_size=224, momentum=0.9, batch_size=69),
]


def flat(name: str, length: Any, size: float = 64) -> Phase:
    return Phase(name, length, lr=1.0, image_size=size)


@pytest.mark.parametrize("golden", GOLDEN, ids=lambda moment: str(moment.progress))
def test_a_timeline_passes_through_known_moments(golden: Moment):
    moment = ASCENT.at(golden.progress)
    assert moment.lr == pytest.approx(golden.lr, abs=1e-8)
    assert dataclasses.replace(moment, lr=golden.lr) == golden


def test_what_no_phase_schedules_is_left_alone():
    moment = Timeline((Phase("all", 1.0),)).at(0.5)
    assert moment == Moment(0.5, "all")
    assert all(getattr(moment, quantity) is None for quantity in QUANTITIES)
    assert ASCENT.at(0.1).momentum is None
    assert ASCENT.quantities() == ("lr", "momentum", "image_size", "augment", "batch_size")


@pytest.mark.each("quantity", QUANTITIES)
def test_a_number_is_a_constant(quantity: str):
    phase = Phase("all", 1.0, **{quantity: 1})
    assert getattr(phase, quantity) == Constant(1.0)
    assert getattr(Timeline((phase,), size_multiple=1).at(0.3), quantity) == 1


@given(PROGRESS, PROGRESS)
def test_at_is_pure(one: float, other: float):
    first = [ASCENT.at(one), ASCENT.at(other)]
    again = pickle.loads(pickle.dumps(ASCENT))
    assert [again.at(other), again.at(one)] == first[::-1]


@pytest.mark.parametrize(
    ("size", "expected"), [(144, 160), (176, 192), (143.9, 128), (175.9, 160), (160, 160), (3, 32)]
)
def test_sizes_are_rounded_half_up(size: float, expected: int):
    assert rounded(size, 32) == expected
    assert Timeline((flat("all", 1.0, size),), size_multiple=32).at(0.5).image_size == expected


@given(st.floats(1, 2048), st.integers(1, 256))
def test_a_rounded_size_is_the_nearest_multiple(size: float, multiple: int):
    nearest = rounded(size, multiple)
    assert nearest % multiple == 0
    assert nearest >= multiple
    assert nearest == multiple or abs(nearest - size) <= multiple / 2 + 1e-9


def test_augmentation_is_clipped_to_a_strength():
    plan = Timeline((Phase("all", 1.0, augment=Linear(-1.0, 2.0)),))
    assert [plan.at(progress).augment for progress in (0.0, 0.5, 1.0)] == [0.0, 0.5, 1.0]


def test_a_first_moment_belongs_to_its_own_phase():
    plan = Timeline(tuple(flat(name, 0.1) for name in "abcdefghij"))
    assert [plan.at(tenth / 10).phase for tenth in range(10)] == [*"abcdefghij"]
    assert [plan.phase_at(tenth / 10) for tenth in range(10)] == [*plan.phases]
    assert plan.at(1.0).phase == "j"


@pytest.mark.parametrize(
    ("scaling", "base", "expected"),
    [
        ("none", 64, [0.5, 0.5]),
        ("linear", 64, [0.5, 2.0]),
        ("sqrt", 64, [0.5, 1.0]),
        ("linear", None, [0.5, 2.0]),  # the base is the first batch size
        ("linear", 256, [0.125, 0.5]),
        ("sqrt", 256, [0.25, 0.5]),
    ],
)
def test_the_learning_rate_follows_the_batch_size(scaling: Any, base: int | None, expected: list[float]):
    phases = (Phase("a", 0.5, lr=0.5, batch_size=64), Phase("b", 0.5, lr=0.5, batch_size=256))
    plan = Timeline(phases, batch_scaling=scaling, base_batch_size=base)
    assert [plan.at(progress).lr for progress in (0.2, 0.7)] == expected
    assert [plan.at(progress).batch_size for progress in (0.2, 0.7)] == [64, 256]


def test_the_learning_rate_follows_a_batch_as_it_is_rounded():
    plan = Timeline((Phase("all", 1.0, lr=1.0, batch_size=Linear(10, 12)),), batch_scaling="linear")
    assert plan.at(0.3).batch_size == 11  # 10.6 images
    assert plan.at(0.3).lr == pytest.approx(1.1)


def test_scaling_without_a_scheduled_batch_changes_nothing():
    assert Timeline((flat("all", 1.0),), batch_scaling="linear", base_batch_size=256).at(0.5).lr == 1.0


JUMPS = [
    ((1.0, 0.49), True),
    ((0.49, 1.0), True),
    ((1.0, 0.51), False),
    ((0.0, 0.02), True),  # the peak is 1: 1% of it passes
    ((0.02, 0.0), True),
    ((0.0, 0.009), False),
    ((0.0, 0.0), False),
]


@pytest.mark.parametrize(("join", "is_jump"), JUMPS)
def test_jumps_of_the_learning_rate_are_named(join: tuple[float, float], is_jump: bool):
    before, after = join

    def plan(jump: bool) -> Timeline:
        phases = Phase("peak", 0.5, lr=Linear(1.0, before)), Phase("next", 0.5, lr=Linear(after, 1.0), jump=jump)
        return Timeline(phases)

    assert len(plan(jump=False).jumps()) == is_jump
    assert all(f"from {before:g} to {after:g} where phase 'next' begins" in line for line in plan(jump=False).jumps())
    assert plan(jump=True).jumps() == ()


def test_a_batch_that_carries_the_learning_rate_along_counts_as_a_jump():
    phases = Phase("a", 0.5, lr=1.0, batch_size=10), Phase("b", 0.5, lr=1.0, batch_size=40)
    assert Timeline(phases).jumps() == ()
    assert "from 1 to 4" in Timeline(phases, batch_scaling="linear").jumps()[0]


@pytest.mark.parametrize(
    ("phases", "message"),
    [
        ((), "at least one phase"),
        ((flat("a", 0.5), flat("a", 0.5)), "names must differ, got \\['a', 'a'\\]"),
        ((flat("a", 0.5), flat("b", 0.25)), "sum to 0.75, they must sum to 1"),
        ((flat("a", "3ep"), flat("b", 0.25)), "sum to 0.25, they must sum to 1"),
        ((Phase("a", 1.0, lr=Linear(0.1, -0.1)),), "phase 'a' sets lr to -0.1; it must be at least 0"),
        ((Phase("a", 1.0, dropout=1.5),), "phase 'a' sets dropout to 1.5; it must be within \\[0, 1\\]"),
        ((Phase("a", 1.0, image_size=0),), "phase 'a' sets image_size to 0; it must be at least 1"),
    ],
)
def test_phases_that_make_no_run_are_refused(phases: tuple[Phase, ...], message: str):
    with pytest.raises(ValueError, match=message):
        Timeline(phases)


@pytest.mark.each(
    ("arguments", "message"),
    [
        ({"name": ""}, "a phase needs a name"),
        ({"length": 0.0}, "phase 'a': the length 0.0 must be above 0"),
        ({"length": 1.5}, "phase 'a' has the share 1.5 of the run; a share is at most 1"),
        ({"length": -0.5}, "phase 'a': the length -0.5 must be above 0"),
        ({"length": float("nan")}, "phase 'a': the length nan"),
        ({"length": "3 weeks"}, "phase 'a': the length '3 weeks' cannot be read"),
        ({"lr": "fast"}, "phase 'a' has lr = 'fast'; give a number, a curve"),
        ({"mixup": True}, "phase 'a' has mixup = True"),
    ],
)
def test_a_phase_that_makes_no_sense_is_refused(arguments: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        Phase(**{"name": "a", "length": 1.0} | arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_scaling": "log"}, "batch_scaling is 'log'; give one of none, linear, sqrt"),
        ({"base_batch_size": 0}, "base_batch_size is 0"),
        ({"size_multiple": 0}, "size_multiple is 0"),
        ({"batch_scaling": "sqrt"}, "phase 'b' does not schedule batch_size"),
    ],
)
def test_settings_that_make_no_sense_are_refused(arguments: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        Timeline((Phase("a", 0.5, lr=1.0, batch_size=8), Phase("b", 0.5, lr=1.0)), **arguments)


def test_shares_may_miss_one_by_rounding():
    assert Timeline(tuple(flat(str(number), 0.1) for number in range(10))).at(1.0).phase == "9"


@pytest.mark.parametrize("progress", [-0.01, 1.01, float("nan")])
def test_progress_outside_the_run_is_refused(progress: float):
    for ask in (ASCENT.at, ASCENT.phase_at):
        with pytest.raises(ValueError, match="must lie in"):
            ask(progress)


def test_timelines_are_values():
    again = pickle.loads(pickle.dumps(ASCENT))
    assert again == ASCENT
    assert hash(again) == hash(ASCENT)
    assert dataclasses.replace(ASCENT, size_multiple=16) != ASCENT
    assert dataclasses.replace(ASCENT, size_multiple=16).at(0.4375).image_size == 128
    assert "Cosine(start=0.8" in repr(ASCENT)
    with pytest.raises(dataclasses.FrozenInstanceError):
        ASCENT.size_multiple = 8  # type: ignore[misc]


def test_steps_are_taken_at_their_middle():
    assert [step_progress(step, 4) for step in range(4)] == [0.125, 0.375, 0.625, 0.875]
    assert step_progress(0, 1) == 0.5
    assert step_progress(7, 4) == 1.0  # a step beyond the plan stays at its end


def test_every_step_gets_its_moment():
    plan = Timeline((flat("a", 0.5, 64), Phase("b", 0.5, lr=Cosine(1.0, 0.0), image_size=Linear(96, 160))))
    moments = [*plan.moments(4)]
    assert [moment.phase for moment in moments] == ["a", "a", "b", "b"]
    assert [moment.image_size for moment in moments] == [64, 64, 128, 160]  # 112 and 144 px, halfway: up
    assert [moment.image_size for moment in plan.moments(1)] == [96]
