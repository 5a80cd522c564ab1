from __future__ import annotations

import numpy as np
import pytest
from sklearn.preprocessing import StandardScaler

from etude.core.standardise import FLOOR, Standardised


def table(rows: int = 60, columns: int = 9, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, columns)) * np.linspace(1, 2, columns) + 3


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_without_a_floor_it_is_scikit_learns(dtype: type):
    x = table(10_000).astype(dtype)  # several blocks
    np.testing.assert_allclose(
        Standardised.of(x, floor=0.0).apply(x), StandardScaler().fit_transform(x.astype(np.float64)), atol=1e-9
    )


def test_no_column_is_divided_by_less_than_the_floor():
    x = table()
    x[:, 0] = 5 + 1e-4 * x[:, 0]
    x[:, 1] = 7.0
    usual = float(np.median(x.std(axis=0)[[0, *range(2, 9)]]))  # of those that vary
    scaling = Standardised.of(x, floor=0.3)
    np.testing.assert_allclose(scaling.deviation[:2], 0.3 * usual)
    np.testing.assert_allclose(scaling.deviation[2:], x.std(axis=0)[2:])
    assert np.abs(scaling.apply(x)[:, 1]).max() == 0
    far = x[:1] + 1.0
    assert np.abs(scaling.apply(far)).max() < 1 / (0.3 * usual) + 4
    assert np.abs(Standardised.of(x, floor=0.0).apply(far)).max() > 1000


def test_columns_of_another_unit_have_no_part_in_the_floor():
    x = table()
    x[:, -1] *= 1e-6  # such as blur beside log probabilities
    x[:, 0] = 1e-4 * x[:, 0]
    scaling = Standardised.of(x, same_unit=8)
    assert scaling.deviation[-1] == pytest.approx(x[:, -1].std())
    assert scaling.deviation[0] == pytest.approx(FLOOR * np.median(x[:, :8].std(axis=0)))


def test_a_mean_far_from_zero_costs_no_digits_and_float16_sums_do_not_overflow():
    x = np.random.default_rng(0).normal(size=(9000, 3)) * 0.01
    np.testing.assert_allclose(Standardised.of(x + 1e3, floor=0).deviation, x.std(axis=0), rtol=1e-9)
    assert np.isfinite(Standardised.of(np.full((9000, 2), 60_000, np.float16)).mean).all()


@pytest.mark.parametrize("floor", [0.0, 0.3])
def test_columns_that_never_vary_stay_zero(floor: float):
    still = np.full((7, 2), 0.1, np.float32)
    assert np.abs(Standardised.of(still, floor).apply(still)).max() < 1e-6
