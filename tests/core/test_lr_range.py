from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from etude.core.errors import EtudeError
from etude.core.lr_range import suggest_lr

RATES = np.geomspace(1e-7, 10, 120)


def range_test(rates: np.ndarray, knee: float = 1e-3, edge: float = 0.3, noise: float = 0.0, seed: int = 0):
    """Losses that fall fastest at ``knee`` against the logarithm of the rate, and break at ``edge``."""
    clean = 2.3 - 1.5 / (1 + (knee / rates) ** 1.5) + (rates / edge) ** 3
    return clean + np.random.default_rng(seed).normal(0, noise, len(rates)) if noise else clean


def test_a_clean_curve_gives_the_knee_the_minimum_and_their_mean():
    found = suggest_lr(RATES, range_test(RATES))
    assert found.steepest == pytest.approx(1e-3, rel=0.2)
    true_minimum = RATES[np.argmin(range_test(RATES))]
    assert true_minimum / 2 < found.lowest <= true_minimum  # smoothing sees the break coming: the safe side
    assert found.lr == pytest.approx(math.sqrt(found.steepest * found.lowest / 10))


@pytest.mark.parametrize("count", [40, 120, 400])
def test_smoothing_does_not_shift_the_curve_to_higher_rates(count: int):
    rates = np.geomspace(1e-7, 10, count)
    assert suggest_lr(rates, range_test(rates)).steepest <= 1.2e-3


@pytest.mark.each("seed", range(20))
def test_noise_moves_the_suggestion_little(seed: int):
    clean, noisy = suggest_lr(RATES, range_test(RATES)), suggest_lr(RATES, range_test(RATES, noise=0.15, seed=seed))
    assert clean.lr / 2 < noisy.lr < clean.lr * 2


@given(st.floats(1e-5, 1e-2), st.integers(0, 1000))
def test_the_suggestion_lies_below_a_third_of_the_rate_at_the_minimum(knee: float, seed: int):
    found = suggest_lr(RATES, range_test(RATES, knee=knee, noise=0.05, seed=seed))
    assert RATES[0] <= found.steepest <= found.lowest
    assert found.lr <= found.lowest / math.sqrt(10) * (1 + 1e-12)


@given(st.floats(1e-2, 1e2), st.floats(1e-1, 1e2))
def test_units_of_rate_and_loss_do_not_matter(rate_unit: float, loss_unit: float):
    plain, scaled = suggest_lr(RATES, range_test(RATES)), suggest_lr(rate_unit * RATES, loss_unit * range_test(RATES))
    assert scaled.lr == pytest.approx(rate_unit * plain.lr)
    np.testing.assert_allclose(scaled.smoothed, loss_unit * plain.smoothed)


def test_the_curve_is_cut_where_it_diverges():
    found = suggest_lr(RATES, range_test(RATES))
    assert found.diverged_at is not None
    cut = int(np.flatnonzero(found.diverged_at == RATES)[0])
    assert np.isfinite(found.smoothed[:cut]).all()
    assert np.isnan(found.smoothed[cut:]).all()
    raw = range_test(RATES)
    assert raw[cut] > 4 * raw.min()
    assert raw[cut - 3] < 8 * raw.min()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nothing_after_a_loss_that_is_not_finite_counts(bad: float):
    losses = range_test(RATES)
    losses[70:] = 0.0  # a crash to zero after the break must not become the minimum
    losses[70] = bad
    found = suggest_lr(RATES, losses)
    assert found.diverged_at == RATES[70]
    assert found.lowest < RATES[70]


def test_a_sweep_that_never_diverges_says_so():
    rates = np.geomspace(1e-6, 1e-2, 60)
    found = suggest_lr(rates, range_test(rates))
    assert found.diverged_at is None
    assert np.isfinite(found.smoothed).all()


def test_a_perfect_fit_is_reproduced_by_the_smoothing():
    line = np.linspace(2.0, 1.0, 50)
    found = suggest_lr(np.geomspace(1e-4, 1e-1, 50), line)
    np.testing.assert_allclose(found.smoothed[5:-5], line[5:-5], atol=0.01)
    assert abs(found.smoothed[0] - line[0]) < 0.05


@pytest.mark.each("seed", range(40))
def test_noise_alone_is_no_descent(seed: int):
    losses = 2.3 + np.random.default_rng(seed).normal(0, 0.2, len(RATES))
    with pytest.raises(EtudeError, match="does not fall"):
        suggest_lr(RATES, losses)


@pytest.mark.parametrize(
    ("losses", "said"),
    [
        (np.full(120, 2.3), "does not fall"),
        (np.linspace(1.0, 3.0, 120), "does not fall"),
        (np.full(120, np.nan), "broke down after 0 of 120"),
        (np.r_[2.3, 2.2, np.nan, np.ones(117)], "broke down after 2 of 120"),
        (np.ones(119), "one loss for each rate"),
        (np.ones((120, 1)), "one loss for each rate"),
    ],
)
def test_losses_that_show_nothing_are_refused(losses: np.ndarray, said: str):
    with pytest.raises(EtudeError, match=said) as caught:
        suggest_lr(RATES, losses)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("rates", [RATES[::-1], np.zeros(120), RATES - 1e-6, np.full(120, 1e-3), RATES * np.inf])
def test_rates_that_do_not_rise_are_refused(rates: np.ndarray):
    with pytest.raises(EtudeError, match="positive and rise"):
        suggest_lr(rates, range_test(RATES))


def test_too_few_rates_are_refused():
    with pytest.raises(EtudeError, match="too few"):
        suggest_lr(RATES[:9], range_test(RATES)[:9])
