from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etude.timeline import PRESETS, Event, Plateau, RunSize, Shape, Timeline, preset
from etude.timeline.plan import rounded

PROGRESS = st.floats(0, 1)
NAMES = ["default", "cyclic", "cyclic-decay", "cyclic-exp", "one-cycle", "plateau"]
NAMES += ["progressive", "large-batch", "five-minutes"]
SHAPE = Shape(1e-3, 128, 224)


@st.composite
def shapes(draw: st.DrawFn) -> Shape:
    """Shapes of all kinds; lengths are shares or, for a run of 1000 steps, fixed."""
    sizes = sorted((draw(st.integers(32, 512)), draw(st.integers(32, 512))))
    length = st.one_of(st.floats(0.01, 0.45), st.integers(10, 450).map(lambda steps: f"{steps}st"))
    knee = draw(st.floats(0.01, 1.0))
    return Shape(
        draw(st.floats(1e-6, 1.0)),
        *sizes,
        size_multiple=draw(st.sampled_from([1, 4, 32])),
        warmup=draw(length),
        finish=draw(length),
        cycle=draw(st.floats(0.02, 1.5)),
        augment=draw(PROGRESS),
        fade=draw(st.booleans()),
        mixup=draw(st.sampled_from([0.0, 0.2])),
        cutmix=draw(st.sampled_from([0.0, 1.0])),
        momentum=draw(st.sampled_from([None, 0.9])),
        batch_size=draw(st.one_of(st.none(), st.integers(1, 4096))),
        knee=knee,
        min_lr_share=draw(st.floats(0.0, knee)),
    )


def plan_of(name: str, shape: Shape) -> Timeline:
    return preset(name, shape).resolved(RunSize(1000))


def lr_at(plan: Timeline, progress: float) -> float:
    lr = plan.at(progress).lr
    assert lr is not None
    return lr


def peak_of(name: str, shape: Shape) -> float:
    scaled = name == "large-batch" and shape.batch_size is not None
    return shape.peak_lr * (shape.batch_size or 0) / 256 if scaled else shape.peak_lr


def test_the_presets_are_those_that_are_documented():
    assert list(PRESETS) == NAMES
    lines = [entry.line for entry in PRESETS.values()]
    assert len(set(lines)) == len(lines)
    assert all(line and "\n" not in line for line in lines)


# Worked out by hand for peak 1e-3, 128 -> 224 px, warmup 10%, finish 20%: lr rises on a line to 1e-3 at 0.1, falls
# on half a cosine to 2e-4 at 0.8 and on another to 0 at 1; sizes rise on a line from 0.1 to 0.8, in multiples of 32.
DEFAULT = [
    (0.0, "warmup", 0.0, 128, 0.0),
    (0.05, "warmup", 5e-4, 128, 0.25),
    (0.1, "grow", 1e-3, 128, 0.5),
    (0.275, "grow", 8.82842712e-4, 160, 0.625),  # 2e-4 + 8e-4 (1 + cos 45 degrees) / 2; 152 px
    (0.45, "grow", 6e-4, 192, 0.75),  # 176 px lies halfway: up
    (0.625, "grow", 3.17157288e-4, 192, 0.875),  # 200 px
    (0.8, "finish", 2e-4, 224, 0.0),
    (0.9, "finish", 1e-4, 224, 0.0),
    (1.0, "finish", 0.0, 224, 0.0),
]
# The learning rates of the others at the same peak, by the formulas of the papers.
RATES = [
    # four triangles from 2e-4 to 1e-3 in the first 80%: peaks at 0.1, 0.3, 0.5, 0.7
    (
        "cyclic",
        [(0.0, 2e-4), (0.05, 6e-4), (0.1, 1e-3), (0.2, 2e-4), (0.7, 1e-3), (0.8, 2e-4), (0.9, 1e-4), (1.0, 0.0)],
    ),
    # amplitude 8e-4, halved with each triangle
    ("cyclic-decay", [(0.0, 2e-4), (0.1, 1e-3), (0.2, 2e-4), (0.3, 6e-4), (0.5, 4e-4), (0.7, 3e-4), (0.8, 2e-4)]),
    # amplitude 8e-4 * 0.1 ** p, with p an eighth and three eighths of the phase at the first two peaks
    ("cyclic-exp", [(0.0, 2e-4), (0.1, 7.99915368e-4), (0.2, 2e-4), (0.3, 5.37357203e-4), (0.8, 2e-4)]),
    # from a 25th of the peak, up by half a cosine over 30% of the first 80%
    ("one-cycle", [(0.0, 4e-5), (0.12, 5.2e-4), (0.24, 1e-3), (0.52, 6e-4), (0.8, 2e-4), (0.9, 1e-4), (1.0, 0.0)]),
    ("plateau", [(0.0, 0.0), (0.05, 5e-4), (0.1, 1e-3), (0.5, 1e-3), (0.8, 1e-3), (0.9, 5e-4), (1.0, 0.0)]),
    ("five-minutes", [(0.025, 5e-4), (0.05, 1e-3), (0.425, 6e-4), (0.8, 2e-4)]),  # warmup takes half of the 10%
]


@pytest.mark.each(("progress", "phase", "lr", "size", "augment"), DEFAULT)
def test_the_default_passes_through_known_moments(progress, phase, lr, size, augment):
    moment = preset("default", SHAPE).at(progress)
    assert (moment.progress, moment.phase, moment.image_size) == (progress, phase, size)
    assert moment.lr == pytest.approx(lr, abs=1e-12, rel=1e-8)
    assert moment.augment == pytest.approx(augment, abs=1e-9)


@pytest.mark.parametrize(("name", "rates"), RATES, ids=[name for name, _ in RATES])
def test_learning_rates_pass_through_known_points(name: str, rates: list[tuple[float, float]]):
    plan = preset(name, SHAPE)
    assert [lr_at(plan, progress) for progress, _ in rates] == pytest.approx(
        [lr for _, lr in rates], rel=1e-8, abs=1e-12
    )


@pytest.mark.parametrize(
    ("progress", "size"), [(0.0, 64), (0.49, 64), (0.575, 80), (0.65, 96), (0.725, 112), (0.8, 128), (1.0, 128)]
)
def test_progressive_holds_half_of_the_run_then_grows(progress: float, size: int):
    plan = preset("progressive", Shape(1e-3, 64, 128, size_multiple=1))
    assert plan.at(progress).image_size == size
    same = preset("progressive", Shape(1e-3, 128, 128, size_multiple=1))  # nothing to grow from: from half
    assert same.at(progress).image_size == size


def test_progressive_grows_at_once_after_a_long_warmup():
    plan = preset("progressive", Shape(1e-3, 64, 128, size_multiple=1, warmup=0.6))
    assert [plan.at(progress).image_size for progress in (0.3, 0.6, 0.7, 0.8)] == [64, 64, 96, 128]


def test_one_cycle_moves_momentum_against_the_learning_rate():
    moments = [preset("one-cycle", SHAPE).at(progress) for progress in (0.0, 0.12, 0.24, 0.8, 1.0)]
    assert [moment.momentum for moment in moments] == pytest.approx([0.95, 0.9, 0.85, 0.95, 0.95])


def test_large_batches_warm_up_from_the_base_rate_to_the_scaled_one():
    plan = preset("large-batch", replace(SHAPE, batch_size=1024))
    assert [lr_at(plan, progress) for progress in (0.0, 0.05, 0.1, 0.8)] == pytest.approx([1e-3, 2.5e-3, 4e-3, 8e-4])
    assert plan.at(0.3).batch_size == 1024
    assert lr_at(preset("large-batch", SHAPE), 0.1) == pytest.approx(1e-3)  # no batch size, nothing to scale by
    assert preset("large-batch", SHAPE).at(0.3).batch_size is None


def test_plateau_goes_on_to_finish_at_the_rate_it_has_reached():
    plan = preset("plateau", SHAPE)
    watched = plan.phase_at(0.5).plateau
    assert watched == Plateau(reductions=2)
    scale = Event(0.4, "scale", "hold", watched.factor)
    plan = plan.with_event(scale).with_event(replace(scale, progress=0.5)).with_event(Event(0.6, "end", "hold"))
    assert [lr_at(plan, progress) for progress in (0.3, 0.4, 0.5, 0.7)] == pytest.approx([1e-3, 1e-4, 1e-5, 5e-6])
    assert (plan.at(0.6).phase, plan.at(0.6).image_size, plan.at(0.6).augment) == ("finish", 224, 0.0)
    assert preset("plateau", replace(SHAPE, plateau=Plateau("acc", "max"))).phase_at(0.5).plateau == Plateau(
        "acc", "max"
    )


@pytest.mark.parametrize("name", NAMES)
@given(shapes(), PROGRESS)
def test_moments_stay_in_bounds(name: str, shape: Shape, progress: float):
    plan = plan_of(name, shape)
    moment, first, last = plan.at(progress), plan.at(0.0), plan.at(1.0)
    assert -1e-15 <= lr_at(plan, progress) <= peak_of(name, shape) * (1 + 1e-9)
    sizes = [first.image_size or 0, moment.image_size or 0, last.image_size or 0]
    assert 0 < sizes[0] <= sizes[1] <= sizes[2] == rounded(shape.final_size, shape.size_multiple)
    assert sizes[1] % shape.size_multiple == 0
    assert moment.augment is not None
    assert 0.0 <= moment.augment <= shape.augment
    assert moment.batch_size == shape.batch_size


@pytest.mark.parametrize("name", NAMES)
@given(shapes())
def test_the_learning_rate_does_not_jump_where_phases_join(name: str, shape: Shape):
    plan = plan_of(name, shape)
    assert plan.jumps() == ()
    spans = plan.spans()
    for (before, _, join), (after, _, _) in pairwise(spans):
        moments = plan.at(join - 1e-8), plan.at(join + 1e-8)
        assert [moment.phase for moment in moments] == [before, after]
        # 1e-8 of the run may be 1e-6 of a phase of 1%, and 1e-4 of the height of a cycle of 2% of that.
        assert moments[0].lr == pytest.approx(moments[1].lr, abs=peak_of(name, shape) * 3e-4)


@pytest.mark.parametrize("name", NAMES)
@given(shapes(), PROGRESS, PROGRESS)
def test_sizes_only_grow(name: str, shape: Shape, one: float, other: float):
    early, late = (plan_of(name, shape).at(progress).image_size for progress in sorted((one, other)))
    assert early is not None
    assert late is not None
    assert early <= late


@pytest.mark.parametrize("name", NAMES)
@given(shapes(), PROGRESS)
def test_every_preset_finishes_clean(name: str, shape: Shape, progress: float):
    plan = plan_of(name, shape)
    assert plan.phases[-1].name == "finish"
    start = plan.spans()[-1][1]
    moment = plan.at(start + (1.0 - start) * progress)
    assert moment.phase == "finish"
    assert moment.image_size == rounded(shape.final_size, shape.size_multiple)
    assert (moment.mixup, moment.cutmix) == (0.0, 0.0)
    assert moment.augment == pytest.approx(shape.augment * (1.0 - progress) if shape.fade else 0.0, abs=1e-6)
    assert lr_at(plan, 1.0) == pytest.approx(peak_of(name, shape) * shape.min_lr_share)
    tricks = [(phase.mixup is None, phase.cutmix is None) for phase in plan.phases[:-1]]
    assert set(tricks) == {(shape.mixup == 0.0, shape.cutmix == 0.0)}


@pytest.mark.each("name", NAMES)
def test_mixing_keeps_its_alpha_until_finish(name: str):
    plan = preset(name, replace(SHAPE, mixup=0.2, cutmix=1.0))
    assert {(moment.mixup, moment.cutmix) for moment in plan.moments(50) if moment.phase != "finish"} == {(0.2, 1.0)}


@pytest.mark.each("name", NAMES)
def test_fixed_lengths_leave_the_middle_what_is_left(name: str):
    plan = preset(name, replace(SHAPE, warmup="2ep", finish="100st")).resolved(RunSize(1000, epoch_steps=25))
    names = [phase.name for phase in plan.phases]
    assert plan.spans()[-1][1] == pytest.approx(0.9)
    if "warmup" in names:
        assert plan.spans()[0][2] == pytest.approx(0.05)


def test_cycles_in_epochs_say_that_finish_may_cut_them():
    plan = preset("cyclic", replace(SHAPE, cycle="3ep")).resolved(RunSize(1000, epoch_steps=100))
    assert lr_at(plan, 0.15) == pytest.approx(1e-3)  # the middle of a cycle of 300 steps
    assert plan.phases[-1].jump
    assert not preset("cyclic", SHAPE).phases[-1].jump


@pytest.mark.parametrize(
    ("name", "hint"),
    [("cyclyc", "did you mean 'cyclic'"), ("onecycle", "did you mean 'one-cycle'"), ("???", "are default")],
)
def test_an_unknown_preset_is_refused_with_the_nearest(name: str, hint: str):
    with pytest.raises(ValueError, match=hint):
        preset(name, SHAPE)


@pytest.mark.each(
    ("arguments", "message"),
    [
        ({"peak_lr": 0.0}, "the peak learning rate is 0.0"),
        ({"peak_lr": math.inf}, "the peak learning rate is inf"),
        ({"start_size": 256}, "from 256 to 224 px"),
        ({"augment": 1.5}, "augment is 1.5"),
        ({"min_lr_share": 0.5}, "min_lr_share is 0.5 and knee 0.2"),
        ({"knee": 0.0}, "knee 0.0"),
        ({"warmup": 0.6, "finish": "40%"}, "warmup 0.6 and finish 40% leave nothing"),
        ({"warmup": "soon"}, "the length 'soon' cannot be read"),
    ],
)
def test_a_shape_that_makes_no_sense_is_refused(arguments: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        Shape(**{"peak_lr": 1e-3} | arguments)
