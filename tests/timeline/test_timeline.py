from __future__ import annotations

import dataclasses
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etude.timeline import Constant, Cosine, Linear, Phase, Timeline, default_timeline, step_progress

PROGRESS = st.floats(0, 1)


@st.composite
def plans(draw: st.DrawFn) -> Timeline:
    """Default timelines of any shape whose sizes grow."""
    sizes = sorted((draw(st.integers(32, 512)), draw(st.integers(32, 512))))
    return default_timeline(
        draw(st.floats(1e-6, 1.0)),
        *sizes,
        warmup=draw(st.floats(0.01, 0.45)),
        finish=draw(st.floats(0.01, 0.45)),
        size_multiple=draw(st.sampled_from([1, 4, 32])),
    )


def flat(name: str, share: float, size: float = 64) -> Phase:
    return Phase(name, share, Constant(1.0), Constant(size))


# Worked out by hand for peak 1e-3, 128 -> 224 px, warmup 10%, finish 20%: lr rises on a line to 1e-3 at 0.1, falls
# on half a cosine to 2e-4 at 0.8 and on another to 0 at 1; sizes rise on a line from 0.1 to 0.8, in multiples of 32.
GOLDEN = [
    (0.0, "warmup", 0.0, 128, 0.5),
    (0.05, "warmup", 5e-4, 128, 0.5),
    (0.1, "grow", 1e-3, 128, 0.5),
    (0.275, "grow", 8.82842712e-4, 160, 0.625),  # 2e-4 + 8e-4 (1 + cos 45 degrees) / 2; 152 px
    (0.45, "grow", 6e-4, 192, 0.75),  # 176 px lies halfway: up
    (0.625, "grow", 3.17157288e-4, 192, 0.875),  # 200 px
    (0.8, "finish", 2e-4, 224, None),
    (0.9, "finish", 1e-4, 224, None),
    (1.0, "finish", 0.0, 224, 0.0),
]


@pytest.mark.parametrize(("progress", "phase", "lr", "size", "augment"), GOLDEN)
def test_the_default_timeline_passes_through_known_moments(progress, phase, lr, size, augment):
    moment = default_timeline(1e-3, 128, 224).at(progress)
    assert (moment.progress, moment.phase, moment.image_size) == (progress, phase, size)
    assert moment.lr == pytest.approx(lr, abs=1e-12, rel=1e-8)
    assert augment is None or moment.augment == pytest.approx(augment, abs=1e-9)


@given(plans(), PROGRESS)
def test_moments_stay_in_bounds(plan: Timeline, progress: float):
    moment = plan.at(progress)
    peak = plan.at(plan.phases[0].share).lr
    assert 0.0 <= moment.lr <= peak * (1 + 1e-9)
    assert plan.at(0.0).image_size <= moment.image_size <= plan.at(1.0).image_size
    assert moment.image_size % plan.size_multiple == 0
    assert 0.0 <= moment.augment <= 1.0


@given(plans(), PROGRESS, PROGRESS)
def test_size_only_grows_and_lr_rises_then_falls(plan: Timeline, one: float, other: float):
    early, late = (plan.at(progress) for progress in sorted((one, other)))
    assert early.image_size <= late.image_size
    if late.phase == "warmup":
        assert early.lr <= late.lr + 1e-12
    elif early.phase != "warmup":
        assert early.lr >= late.lr - 1e-12


@given(plans())
def test_lr_does_not_jump_where_phases_join(plan: Timeline):
    peak, join = plan.at(plan.phases[0].share).lr, 0.0
    for phase in plan.phases[:-1]:
        join += phase.share
        before, after = plan.at(join - 1e-6), plan.at(join + 1e-6)
        assert before.phase == phase.name != after.phase
        assert before.lr == pytest.approx(after.lr, abs=peak * 1e-3)


@given(plans(), st.lists(PROGRESS, min_size=1, max_size=5))
def test_at_is_pure(plan: Timeline, order: list[float]):
    first = {progress: plan.at(progress) for progress in order}
    again = pickle.loads(pickle.dumps(plan))
    assert {progress: again.at(progress) for progress in reversed(order)} == first


@pytest.mark.parametrize(("size", "rounded"), [(144, 160), (176, 192), (143.9, 128), (175.9, 160), (160, 160), (3, 32)])
def test_sizes_are_rounded_half_up(size: float, rounded: int):
    assert Timeline((flat("all", 1.0),), size_multiple=32).rounded_size(size) == rounded
    assert Timeline((flat("all", 1.0, size),), size_multiple=32).at(0.5).image_size == rounded


@given(st.floats(1, 2048), st.integers(1, 256))
def test_a_rounded_size_is_the_nearest_multiple(size: float, multiple: int):
    rounded = Timeline((flat("all", 1.0),), size_multiple=multiple).rounded_size(size)
    assert rounded % multiple == 0
    assert rounded >= multiple
    assert rounded == multiple or abs(rounded - size) <= multiple / 2 + 1e-9


def test_augmentation_is_clipped_to_a_strength():
    plan = Timeline((Phase("all", 1.0, Constant(1.0), Constant(64), Linear(-1.0, 2.0)),))
    assert [plan.at(progress).augment for progress in (0.0, 0.5, 1.0)] == [0.0, 0.5, 1.0]


def test_a_first_moment_belongs_to_its_own_phase():
    plan = Timeline(tuple(flat(name, 0.1) for name in "abcdefghij"))
    assert [plan.at(tenth / 10).phase for tenth in range(10)] == [*"abcdefghij"]
    assert plan.at(1.0).phase == "j"


@pytest.mark.parametrize(
    ("phases", "message"),
    [
        ((), "at least one phase"),
        ((flat("a", 0.5), flat("a", 0.5)), "names must differ, got \\['a', 'a'\\]"),
        ((flat("a", 0.0), flat("b", 1.0)), "phase 'a' has share 0.0"),
        ((flat("a", 1.5),), "phase 'a' has share 1.5"),
        ((flat("a", -0.5), flat("b", 1.0)), "phase 'a' has share -0.5"),
        ((flat("a", float("nan")),), "phase 'a' has share nan"),
        ((flat("a", 0.5), flat("b", 0.25)), "sum to 0.75, they must sum to 1"),
    ],
)
def test_phases_that_make_no_run_are_refused(phases: tuple[Phase, ...], message: str):
    with pytest.raises(ValueError, match=message):
        Timeline(phases)


def test_shares_may_miss_one_by_rounding():
    assert Timeline(tuple(flat(str(number), 0.1) for number in range(10))).at(1.0).phase == "9"


@pytest.mark.parametrize("progress", [-0.01, 1.01, float("nan")])
def test_progress_outside_the_run_is_refused(progress: float):
    with pytest.raises(ValueError, match="must lie in"):
        default_timeline(1e-3, 128, 224).at(progress)


def test_timelines_are_values():
    plan = default_timeline(1e-3, 128, 224)
    again = pickle.loads(pickle.dumps(plan))
    assert again == plan
    assert hash(again) == hash(plan)
    assert plan != default_timeline(1e-3, 128, 256)
    assert plan != default_timeline(1e-3, 128, 224, size_multiple=16)
    assert "Cosine(start=0.001" in repr(plan)
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.size_multiple = 8  # type: ignore[misc]


def test_steps_are_taken_at_their_middle():
    assert [step_progress(step, 4) for step in range(4)] == [0.125, 0.375, 0.625, 0.875]
    assert step_progress(0, 1) == 0.5
    assert step_progress(7, 4) == 1.0  # a step beyond the plan stays at its end


def test_every_step_gets_its_moment():
    plan = Timeline((flat("a", 0.5, 64), Phase("b", 0.5, Cosine(1.0, 0.0), Linear(96, 160))), size_multiple=32)
    moments = [*plan.moments(4)]
    assert [moment.phase for moment in moments] == ["a", "a", "b", "b"]
    assert [moment.image_size for moment in moments] == [64, 64, 128, 160]  # 112 and 144 px, halfway: up
    assert plan.largest_size(4) == 160
    assert plan.largest_size(1) == 96
