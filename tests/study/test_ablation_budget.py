"""A time limit over the arms: epochs give way first, then seeds, and what cannot fit is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etude.core.errors import EtudeError
from etude.study.ablation.runs import BUDGET_SEEDS, SHORTEST, Cost, divide

COSTS = {"full": Cost(2.0, 60.0), "without-ema": Cost(2.0, 58.0), "without-clip": Cost(2.0, 62.0)}
ONCE = 30.0
WHOLE = ONCE + 5 * (6.0 + 180.0)


def test_without_a_limit_nothing_gives_way():
    made = divide(COSTS, ONCE, None, seeds=5, epochs=8.0)
    assert (made.seeds, made.epochs, made.seconds) == (5, None, WHOLE)


def test_room_enough_is_no_reason_for_more():
    assert divide(COSTS, ONCE, 10 * WHOLE, seeds=5, epochs=8.0) == divide(COSTS, ONCE, None, seeds=5, epochs=8.0)


def test_epochs_give_way_first():
    made = divide(COSTS, ONCE, WHOLE / 2, seeds=5, epochs=8.0)
    assert made.seeds == 5
    assert made.epochs is not None
    assert 2.0 <= made.epochs < 4.0


def test_epochs_are_cut_to_tenths():
    made = divide({"full": Cost(5.0, 60.0), "bare": Cost(5.0, 60.0)}, 10.0, 300.0, seeds=5, epochs=8.0)
    assert made == (5, 3.2, pytest.approx(300.0))


def test_then_seeds():
    made = divide(COSTS, ONCE, 260.0, seeds=5, epochs=8.0)
    assert made.seeds == 4
    assert made.epochs is not None
    assert made.epochs >= SHORTEST * 8.0


def test_a_length_that_is_given_stays():
    made = divide(COSTS, ONCE, ONCE + 4 * 186.0, seeds=5, epochs=None)
    assert (made.seeds, made.epochs) == (4, None)


def test_what_cannot_fit_is_refused_with_what_would():
    with pytest.raises(EtudeError, match="3 arms by 3 seeds of 2 epochs take about 3 min here") as refused:
        divide(COSTS, ONCE, 60.0, seeds=5, epochs=8.0)
    assert str(refused.value).startswith("--budget 60 s is too short")
    with pytest.raises(EtudeError, match="by 2 seeds take about"):
        divide(COSTS, ONCE, 60.0, seeds=2, epochs=None)


@given(
    st.lists(st.builds(Cost, st.floats(0.1, 50), st.floats(0, 500)), min_size=2, max_size=9),
    st.floats(0, 100), st.floats(1, 50_000), st.integers(2, 9), st.one_of(st.none(), st.floats(0.5, 40)),
)  # fmt: skip
def test_a_division_fits_or_is_refused(costs, once, budget, seeds, epochs):
    named = {str(number): cost for number, cost in enumerate(costs)}
    try:
        made = divide(named, once, budget, seeds, epochs)
    except EtudeError:
        share = 1.0 if epochs is None else min(1.0, max(SHORTEST, 1.0 / epochs))
        least = once + min(seeds, BUDGET_SEEDS) * sum(cost.fixed + share * cost.training for cost in costs)
        assert least > budget * (1 - 1e-9)
        return
    assert made.seconds <= budget * (1 + 1e-9)
    assert min(seeds, BUDGET_SEEDS) <= made.seeds <= seeds
    if made.epochs is not None:
        assert min(SHORTEST * epochs, 1.0) - 1e-9 <= made.epochs <= epochs
