from __future__ import annotations

import dataclasses
import math
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etude.timeline import Constant, Cosine, Curve, Linear

ENDS = st.floats(-10, 10, allow_nan=False)
SHARES = st.floats(0, 1)


@pytest.mark.parametrize(
    ("curve", "progress", "expected"),
    [
        (Constant(0.3), 0.0, 0.3),
        (Constant(0.3), 1.0, 0.3),
        (Linear(2.0, 10.0), 0.0, 2.0),
        (Linear(2.0, 10.0), 0.25, 4.0),
        (Linear(2.0, 10.0), 1.0, 10.0),
        (Linear(1.0, -1.0), 0.5, 0.0),
        (Cosine(1.0, 0.0), 0.0, 1.0),
        (Cosine(1.0, 0.0), 1 / 3, 0.75),  # cos 60 degrees = 1/2
        (Cosine(1.0, 0.0), 2 / 3, 0.25),
        (Cosine(0.0, 4.0), 0.5, 2.0),
        (Cosine(0.0, 4.0), 0.25, 2.0 - math.sqrt(2)),  # cos 45 degrees = sqrt(2)/2
    ],
)
def test_curves_pass_through_known_points(curve: Curve, progress: float, expected: float):
    assert curve.at(progress) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("kind", [Linear, Cosine])
@given(ENDS, ENDS, SHARES, SHARES)
def test_ramps_stay_between_their_ends_and_never_turn_back(kind, start: float, end: float, one: float, other: float):
    curve, (early, late) = kind(start, end), sorted((one, other))
    low, high = min(start, end), max(start, end)
    assert low - 1e-9 <= curve.at(one) <= high + 1e-9
    assert (curve.at(late) - curve.at(early)) * (end - start) >= -1e-9
    assert curve.at(0.0) == pytest.approx(start, abs=1e-9)
    assert curve.at(1.0) == pytest.approx(end, abs=1e-9)


@pytest.mark.parametrize(("start", "end"), [(1.0, 0.0), (0.0, 1.0)])
def test_a_cosine_is_flat_at_both_ends(start: float, end: float):
    curve = Cosine(start, end)
    assert abs(curve.at(0.001) - start) < 1e-5
    assert abs(curve.at(0.999) - end) < 1e-5
    assert abs(curve.at(0.501) - curve.at(0.5)) > 1e-3


@pytest.mark.parametrize("curve", [Constant(0.1), Linear(0.0, 1.0), Cosine(1.0, 0.0)])
def test_curves_are_values(curve: Curve):
    assert pickle.loads(pickle.dumps(curve)) == curve
    assert hash(dataclasses.replace(curve)) == hash(curve)  # type: ignore[type-var]
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(curve, dataclasses.fields(curve)[0].name, 3.0)  # type: ignore[arg-type]
