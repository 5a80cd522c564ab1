from __future__ import annotations

import dataclasses
import math
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etude.timeline.curves import (
    Constant,
    Cosine,
    Curve,
    Exponential,
    Joined,
    Linear,
    OneCycle,
    Scaled,
    Steps,
    Warmup,
    is_resolved,
    resolved,
)
from etude.timeline.lengths import Pace, RunSize

ENDS = st.floats(-10, 10, allow_nan=False)
POSITIVE = st.floats(1e-6, 10)
SHARES = st.floats(0, 1)
INNER = st.floats(0.01, 0.99)

# Half a cosine: a third of the way cos 60 degrees = 1/2, so a quarter of the height; at a quarter sqrt(2)/2.
THREE_STEPS = Steps(8.0, 0.5, (0.25, 0.5, 0.75))  # 8, 4, 2, 1
CYCLE = OneCycle(0.1, 1.0, 0.0, rise=0.3)  # up by 0.9 over [0, 0.3], down by 1 over [0.3, 1]
WARM = Warmup(Cosine(1.0, 0.0), length=0.2)  # a line to 1 over [0, 0.2], half a cosine over the other 0.8
ROW = Joined(((0.25, Linear(0.0, 4.0)), (0.5, Constant(3.0)), (0.25, Linear(2.0, 0.0))))


@pytest.mark.each(
    ("curve", "progress", "expected"),
    [
        (Constant(0.3), 0.0, 0.3),
        (Constant(0.3), 1.0, 0.3),
        (Linear(2.0, 10.0), 0.0, 2.0),
        (Linear(2.0, 10.0), 0.25, 4.0),
        (Linear(2.0, 10.0), 1.0, 10.0),
        (Linear(1.0, -1.0), 0.5, 0.0),
        (Cosine(1.0, 0.0), 0.0, 1.0),
        (Cosine(1.0, 0.0), 1 / 3, 0.75),
        (Cosine(1.0, 0.0), 2 / 3, 0.25),
        (Cosine(1.0, 0.0), 1.0, 0.0),
        (Cosine(0.0, 4.0), 0.5, 2.0),
        (Cosine(0.0, 4.0), 0.25, 2.0 - math.sqrt(2)),
        (Exponential(1.0, 1e-4), 0.0, 1.0),
        (Exponential(1.0, 1e-4), 0.25, 0.1),  # four decades, one a quarter
        (Exponential(1.0, 1e-4), 0.5, 0.01),
        (Exponential(1.0, 1e-4), 1.0, 1e-4),
        (Exponential(2.0, 8.0), 0.5, 4.0),  # geometric mean
        (THREE_STEPS, 0.0, 8.0),
        (THREE_STEPS, 0.2499, 8.0),
        (THREE_STEPS, 0.25, 4.0),
        (THREE_STEPS, 0.5, 2.0),
        (THREE_STEPS, 0.75, 1.0),
        (THREE_STEPS, 1.0, 1.0),
        (Steps(1.0, 0.1, ()), 1.0, 1.0),
        (Steps(1.0, 0.1, (0.3,)), (0.37 - 0.1) / 0.9, 0.1),  # 0.3 up to rounding
        (CYCLE, 0.0, 0.1),
        (CYCLE, 0.1, 0.325),  # a third of the rise: 0.1 + 0.9 / 4
        (CYCLE, 0.15, 0.55),
        (CYCLE, 0.3, 1.0),
        (CYCLE, 0.3 + 0.7 / 3, 0.75),  # a third of the fall
        (CYCLE, 0.65, 0.5),
        (CYCLE, 1.0, 0.0),
        (OneCycle(0.95, 0.85, 0.95), 0.15, 0.9),  # momentum falls while the learning rate rises
        (OneCycle(0.95, 0.85, 0.95), 0.3, 0.85),
        (OneCycle(0.95, 0.85, 0.95), 1.0, 0.95),
        (WARM, 0.0, 0.0),
        (WARM, 0.1, 0.5),
        (WARM, 0.2, 1.0),
        (WARM, 0.2 + 0.8 / 3, 0.75),
        (WARM, 0.6, 0.5),
        (WARM, 1.0, 0.0),
        (Warmup(Constant(1.0), 0.5, start=0.5), 0.0, 0.5),
        (Warmup(Constant(1.0), 0.5, start=0.5), 0.25, 0.75),
        (Warmup(Warmup(Constant(1.0), 0.5, start=0.2), 0.5), 0.25, 0.1),  # half of the way to 0.2
        (Warmup(Warmup(Constant(1.0), 0.5, start=0.2), 0.5), 0.625, 0.6),  # half of the way from 0.2 to 1
        (Warmup(Warmup(Constant(1.0), 0.5, start=0.2), 0.5), 0.75, 1.0),
        (ROW, 0.0, 0.0),
        (ROW, 0.125, 2.0),
        (ROW, 0.25, 3.0),  # a boundary belongs to what begins there
        (ROW, 0.5, 3.0),
        (ROW, 0.75, 2.0),
        (ROW, 0.875, 1.0),
        (ROW, 1.0, 0.0),
        (Scaled(Linear(2.0, 4.0), 0.5), 0.0, 1.0),
        (Scaled(Linear(2.0, 4.0), 0.5), 0.5, 1.5),
        (Scaled(Linear(2.0, 4.0), 0.5), 1.0, 2.0),
    ],
)
def test_curves_pass_through_known_points(curve: Curve, progress: float, expected: float):
    assert curve.at(progress) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("kind", [Linear, Cosine, Exponential])
@given(POSITIVE, POSITIVE, SHARES, SHARES)
def test_ramps_stay_between_their_ends_and_never_turn_back(kind, start: float, end: float, one: float, other: float):
    curve, (early, late) = kind(start, end), sorted((one, other))
    low, high = min(start, end), max(start, end)
    assert low - 1e-9 <= curve.at(one) <= high + 1e-9
    assert (curve.at(late) - curve.at(early)) * (end - start) >= -1e-9
    assert curve.at(0.0) == pytest.approx(start, abs=1e-9)
    assert curve.at(1.0) == pytest.approx(end, abs=1e-9)


@given(ENDS, ENDS, SHARES)
def test_ramps_may_cross_zero(start: float, end: float, progress: float):
    for curve in (Linear(start, end), Cosine(start, end)):
        assert min(start, end) - 1e-9 <= curve.at(progress) <= max(start, end) + 1e-9


@pytest.mark.parametrize(("start", "end"), [(1.0, 0.0), (0.0, 1.0)])
def test_a_cosine_is_flat_at_both_ends(start: float, end: float):
    curve = Cosine(start, end)
    assert abs(curve.at(0.001) - start) < 1e-5
    assert abs(curve.at(0.999) - end) < 1e-5
    assert abs(curve.at(0.501) - curve.at(0.5)) > 1e-3


@given(ENDS, ENDS, ENDS, INNER, SHARES, SHARES)
def test_one_cycle_moves_to_its_peak_and_away_from_it(start, peak, end, rise, one, other):
    curve, (early, late) = OneCycle(start, peak, end, rise), sorted((one, other))
    assert min(start, peak, end) - 1e-9 <= curve.at(one) <= max(start, peak, end) + 1e-9
    if late <= rise:
        assert (curve.at(late) - curve.at(early)) * (peak - start) >= -1e-9
    elif early >= rise:
        assert (curve.at(late) - curve.at(early)) * (end - peak) >= -1e-9
    assert curve.at(rise) == pytest.approx(peak, abs=1e-9)


@given(POSITIVE, st.floats(0.01, 1.0), st.lists(SHARES, max_size=5, unique=True).map(sorted), SHARES, SHARES)
def test_steps_only_fall_and_only_by_their_factor(start, factor, milestones, one, other):
    curve, (early, late) = Steps(start, factor, tuple(milestones)), sorted((one, other))
    assert curve.at(late) <= curve.at(early)
    powers = [start * factor**count for count in range(len(milestones) + 1)]
    assert min(abs(curve.at(one) - power) for power in powers) <= 1e-12


@given(POSITIVE, INNER, SHARES, SHARES)
def test_a_warmup_rises_and_meets_the_curve_after_it(peak: float, length: float, one: float, other: float):
    curve, (early, late) = Warmup(Cosine(peak, 0.0), length), sorted((one, other))
    assert -1e-9 <= curve.at(one) <= peak + 1e-9
    if late <= length:
        assert curve.at(early) <= curve.at(late) + 1e-9
    assert curve.at(length) == pytest.approx(curve.at(max(0.0, length - 1e-12)), rel=1e-6)
    assert curve.at(1.0) == pytest.approx(0.0, abs=1e-9)


RUN = RunSize(1000, epoch_steps=50, pace=Pace(0.6))


def test_the_length_of_a_warmup_is_resolved_over_its_phase():
    curve = Warmup(Warmup(Linear(1.0, 0.0), "100st"), "2ep")
    assert not is_resolved(curve)
    # 2 * 50 = 100 of 500 steps; then 100 of the other 400
    assert resolved(curve, 500, RUN) == Warmup(Warmup(Linear(1.0, 0.0), 0.25), 0.2)
    assert is_resolved(resolved(curve, 500, RUN))


def test_the_lengths_of_joined_curves_are_resolved_over_their_phase():
    curve = Joined((("1m", Linear(0.0, 1.0)), (0.5, Constant(1.0)), (0.5, Warmup(Constant(2.0), "50st", start=1.0))))
    assert not is_resolved(curve)
    # 60 s / 0.6 s = 100 of 500 steps, the rest halved: 200 steps each, 50 of 200 for the warmup
    expected = ((0.2, Linear(0.0, 1.0)), (0.4, Constant(1.0)), (0.4, Warmup(Constant(2.0), 0.25, start=1.0)))
    assert resolved(curve, 500, RUN) == Joined(expected)


def test_a_scaled_curve_resolves_the_curve_within():
    curve = Scaled(Warmup(Constant(1.0), "50st"), 2.0)
    assert not is_resolved(curve)
    assert resolved(curve, 500, RUN) == Scaled(Warmup(Constant(1.0), 0.1), 2.0)


def test_a_joined_curve_with_a_length_inside_is_not_resolved():
    assert not is_resolved(Joined(((1.0, Warmup(Constant(1.0), "2ep")),)))
    assert is_resolved(Joined(((1.0, Warmup(Constant(1.0), "20%")),)))


@pytest.mark.parametrize("curve", [Constant(1.0), Linear(0.0, 1.0), THREE_STEPS, CYCLE])
def test_curves_without_lengths_are_resolved_as_they_are(curve: Curve):
    assert is_resolved(curve)
    assert resolved(curve, 10, RUN) is curve


@given(INNER, st.integers(1, 10_000))
def test_resolving_a_resolved_curve_changes_nothing(share: float, steps: int):
    for curve in (Warmup(Linear(1.0, 0.0), share), Joined(((share, Constant(1.0)), (1.0 - share, Constant(2.0))))):
        assert resolved(curve, steps, RUN) == curve


@pytest.mark.parametrize("curve", [Warmup(Constant(1.0), "2ep"), Joined((("2ep", Constant(1.0)),))])
def test_an_unresolved_curve_has_no_values(curve: Curve):
    with pytest.raises(ValueError, match="'2ep' has no values before the run's size is known"):
        curve.at(0.0)


@pytest.mark.parametrize("length", ["500st", "501st", "10ep"])
def test_a_warmup_leaves_something_of_its_phase(length: str):
    with pytest.raises(ValueError, match=f"warmup of '{length}' takes .* of the 500 steps"):
        resolved(Warmup(Constant(1.0), length), 500, RUN)


@pytest.mark.each(
    ("make", "told"),
    [
        (lambda: Constant(math.nan), "value of the curve 'constant' must be a finite number, got nan"),
        (lambda: Constant("1"), "value of the curve 'constant' must be a finite number, got '1'"),
        (lambda: Linear(0.0, math.inf), "end of the curve 'linear'"),
        (lambda: Linear(True, 1.0), "start of the curve 'linear'"),
        (lambda: Cosine(math.nan, 1.0), "start of the curve 'cosine'"),
        (lambda: Exponential(0.0, 1.0), "between numbers above 0, got 0.0 to 1.0"),
        (lambda: Exponential(1.0, -1.0), "between numbers above 0"),
        (lambda: Steps(1.0, 0.0, (0.5,)), "factor of a steps curve must be above 0"),
        (lambda: Steps(1.0, 0.1, (0.5, 0.5)), "must rise within"),
        (lambda: Steps(1.0, 0.1, (0.5, 1.5)), "must rise within"),
        (lambda: Steps(1.0, 0.1, (math.nan,)), "milestone of the curve 'steps'"),
        (lambda: OneCycle(0.0, 1.0, 0.0, rise=0.0), "rise of a one_cycle curve must lie between 0 and 1"),
        (lambda: OneCycle(0.0, 1.0, 0.0, rise=1.0), "rise of a one_cycle curve must lie between 0 and 1"),
        (lambda: OneCycle(0.0, math.inf, 0.0), "peak of the curve 'one_cycle'"),
        (lambda: Warmup(Constant(1.0), 1.0), "length 1.0 of a warmup must be a share between 0 and 1"),
        (lambda: Warmup(Constant(1.0), 3), "length 3 of a warmup"),
        (lambda: Warmup(Constant(1.0), math.nan), "length nan of a warmup"),
        (lambda: Warmup(Constant(1.0), "soon"), "'soon' cannot be read"),
        (lambda: Warmup(Constant(1.0), start=math.nan), "start of the curve 'warmup'"),
        (lambda: Joined(()), "at least one part"),
        (lambda: Joined(((0.5, Constant(1.0)),)), "sum to 0.5"),
        (lambda: Joined((("x", Constant(1.0)),)), "'x' cannot be read"),
        (lambda: Scaled(Constant(1.0), math.inf), "factor of the curve 'scaled'"),
    ],
)
def test_impossible_curves_are_refused_in_one_sentence(make, told: str):
    with pytest.raises(ValueError, match=told) as error:
        make()
    assert "\n" not in str(error.value)


@pytest.mark.each(
    "curve",
    [
        *(Constant(0.1), Linear(0.0, 1.0), Cosine(1.0, 0.0), Exponential(1.0, 0.1), THREE_STEPS, CYCLE, WARM, ROW),
        *(Scaled(WARM, 2.0), Warmup(Constant(1.0), "2ep")),
    ],
)
def test_curves_are_values(curve: Curve):
    assert pickle.loads(pickle.dumps(curve)) == curve
    assert hash(dataclasses.replace(curve)) == hash(curve)  # type: ignore[type-var]
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(curve, dataclasses.fields(curve)[0].name, 3.0)  # type: ignore[arg-type]


def test_lists_become_tuples_so_that_curves_stay_values():
    assert hash(Steps(1.0, 0.1, [0.5])) == hash(Steps(1.0, 0.1, (0.5,)))  # type: ignore[arg-type]
    assert hash(Joined([[1.0, Constant(1.0)]])) == hash(Joined(((1.0, Constant(1.0)),)))  # type: ignore[arg-type]


@given(st.sampled_from([THREE_STEPS, CYCLE, WARM, ROW, Scaled(ROW, 3.0)]), st.lists(SHARES, min_size=1, max_size=5))
def test_at_is_pure(curve: Curve, order: list[float]):
    first = {progress: curve.at(progress) for progress in order}
    again = pickle.loads(pickle.dumps(curve))
    assert {progress: again.at(progress) for progress in reversed(order)} == first
