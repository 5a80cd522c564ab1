from __future__ import annotations

import math
import pickle
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etude.timeline.curves import Curve, ExpRange, Triangular, Triangular2, is_resolved, resolved
from etude.timeline.lengths import RunSize

SHARES = st.floats(0, 1)
CYCLES = st.floats(0.02, 2.0)
KINDS = [Triangular, Triangular2, ExpRange]

# Two cycles of half the phase between 0.1 and 0.5: up over a quarter, down over the next. triangular2 has amplitude
# 0.4, then 0.2. exp_range with decay 1/16 multiplies 0.4 by 16 ** -p, which is 1/2 at p = 1/4 and 1/8 at p = 3/4.
PLAIN, HALVED, DECAYED = Triangular(0.1, 0.5, 0.5), Triangular2(0.1, 0.5, 0.5), ExpRange(0.1, 0.5, 0.5, decay=1 / 16)


@pytest.mark.each(
    ("curve", "progress", "expected"),
    [
        (PLAIN, 0.0, 0.1),
        (PLAIN, 0.125, 0.3),
        (PLAIN, 0.25, 0.5),
        (PLAIN, 0.375, 0.3),
        (PLAIN, 0.5, 0.1),
        (PLAIN, 0.75, 0.5),
        (PLAIN, 1.0, 0.1),
        (HALVED, 0.0, 0.1),
        (HALVED, 0.25, 0.5),
        (HALVED, 0.5, 0.1),
        (HALVED, 0.625, 0.2),  # 0.1 + 0.2 / 2
        (HALVED, 0.75, 0.3),
        (HALVED, 1.0, 0.1),
        (DECAYED, 0.0, 0.1),
        (DECAYED, 0.125, 0.1 + 0.2 / math.sqrt(2)),  # 16 ** -1/8 = 2 ** -1/2
        (DECAYED, 0.25, 0.3),
        (DECAYED, 0.5, 0.1),
        (DECAYED, 0.75, 0.15),
        (DECAYED, 1.0, 0.1),
        (Triangular(0.0, 1.0, cycle=2.0), 0.5, 0.5),  # half a cycle: one long rise
        (Triangular(0.0, 1.0, cycle=2.0), 1.0, 1.0),
        (Triangular(0.95, 0.85, cycle=1.0), 0.5, 0.85),  # momentum goes the other way
        (Triangular(0.0, 1.0, cycle=0.8), 0.4, 1.0),
        (Triangular(0.0, 1.0, cycle=0.8), 1.0, 0.5),  # the phase ends in the middle of a rise
    ],
)
def test_cycles_pass_through_known_points(curve: Curve, progress: float, expected: float):
    assert curve.at(progress) == pytest.approx(expected, abs=1e-12)


@given(st.integers(1, 400), st.integers(1, 200), st.integers(0, 400))
def test_the_formulas_are_smiths(steps: int, step_size: int, iteration: int):
    """The paper's words in exact arithmetic: cycles of 2 step sizes, iterations counted from 0."""
    iteration = min(iteration, steps)
    cycle = math.floor(1 + Fraction(iteration, 2 * step_size))
    x = abs(Fraction(iteration, step_size) - 2 * cycle + 1)
    height, gamma = float(max(0, 1 - x)), 0.99
    length, progress = 2 * step_size / steps, iteration / steps
    assert Triangular(1.0, 3.0, length).at(progress) == pytest.approx(1.0 + 2.0 * height, abs=1e-9)
    assert Triangular2(1.0, 3.0, length).at(progress) == pytest.approx(1.0 + 2.0 * height / 2 ** (cycle - 1), abs=1e-9)
    decayed = ExpRange.from_gamma(1.0, 3.0, length, gamma, steps).at(progress)
    assert decayed == pytest.approx(1.0 + 2.0 * height * gamma**iteration, abs=1e-9)


@pytest.mark.parametrize("kind", KINDS)
@given(CYCLES, SHARES, st.floats(0, 1), st.floats(0, 1))
def test_cycles_stay_between_base_and_peak_and_are_pure(kind, cycle, progress, base, peak):
    curve = kind(base, peak, cycle)
    value = curve.at(progress)
    assert min(base, peak) - 1e-12 <= value <= max(base, peak) + 1e-12
    assert pickle.loads(pickle.dumps(curve)) == curve
    assert pickle.loads(pickle.dumps(curve)).at(progress) == value


@pytest.mark.parametrize("kind", KINDS)
@given(CYCLES, st.floats(0, 0.999))
def test_cycles_never_jump(kind, cycle: float, progress: float):
    curve = kind(0.0, 1.0, cycle)
    # The steepest slope is that of a rise: 2 / cycle, and what the decay adds to it.
    assert abs(curve.at(progress + 1e-4) - curve.at(progress)) <= 1e-4 * (2.0 / cycle + 3.0)


@given(CYCLES, SHARES)
def test_decays_never_raise_a_cycle(cycle: float, progress: float):
    plain = Triangular(0.0, 1.0, cycle).at(progress)
    assert Triangular2(0.0, 1.0, cycle).at(progress) <= plain
    assert ExpRange(0.0, 1.0, cycle).at(progress) <= plain
    assert ExpRange(0.0, 1.0, cycle, decay=1.0).at(progress) == plain


@pytest.mark.parametrize("kind", KINDS)
def test_cycles_in_steps_and_epochs_become_shares(kind):
    run = RunSize(1000, epoch_steps=50)
    for length, share in (("100st", 0.2), ("4ep", 0.4), ("1000st", 2.0), (0.3, 0.3), ("30%", 0.3)):
        curve = kind(0.1, 0.5, length)
        assert is_resolved(curve) == (share == 0.3)
        assert resolved(curve, 500, run) == kind(0.1, 0.5, share)


def test_an_unresolved_cycle_has_no_values():
    with pytest.raises(ValueError, match="'2ep' has no values before the run's size is known"):
        Triangular(0.0, 1.0, "2ep").at(0.5)


@pytest.mark.each(
    ("make", "told"),
    [
        (lambda: Triangular(math.nan, 1.0), "base of the curve 'triangular' must be a finite number"),
        (lambda: Triangular2(0.0, math.inf), "peak of the curve 'triangular2' must be a finite number"),
        (lambda: Triangular(0.0, 1.0, 0.0), "must be above 0"),
        (lambda: ExpRange(0.0, 1.0, -0.5), "must be above 0"),
        (lambda: ExpRange(math.nan, 1.0), "base of the curve 'exp_range'"),
        (lambda: ExpRange(0.0, 1.0, 0.5, decay=0.0), "decay of an exp_range curve must be above 0 and at most 1"),
        (lambda: ExpRange(0.0, 1.0, 0.5, decay=1.1), "decay of an exp_range curve must be above 0 and at most 1"),
        (lambda: ExpRange.from_gamma(0.0, 1.0, 0.5, 1.01, 10), "gamma of an exp_range curve"),
        (lambda: ExpRange.from_gamma(0.0, 1.0, 0.5, 0.5, 0), "steps .* at least 1"),
        (lambda: ExpRange.from_gamma(0.0, 1.0, 0.5, 0.5, 10_000), "gamma 0.5 leaves nothing of it after 10000 steps"),
    ],
)
def test_impossible_cycles_are_refused(make, told: str):
    with pytest.raises(ValueError, match=told):
        make()
