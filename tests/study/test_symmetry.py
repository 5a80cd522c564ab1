"""Symmetries are chosen beyond noise: what loses is never taken, and of what few images cannot tell none is made."""

from __future__ import annotations

import numpy as np
import pytest

from etude.core.seeds import rng_for
from etude.study.run.measure import decide

NAMES = ("flip", "turn 180", "turn 90")


def right(count: int, plain: int, **lost: int) -> dict[str, np.ndarray]:
    """Return which of ``count`` images are right: the first ``plain``, and all but so many of them in the others."""
    rows = np.arange(count)
    found = {"plain": rows < plain}
    return found | {name: (rows >= lost.get(name.replace(" ", "_"), 0)) & (rows < plain) for name in NAMES}


@pytest.mark.each(
    ("seen", "policy", "told"),
    [
        (right(192, 180), "symmetric", "quarter"),
        (right(192, 180, turn_90=120), "flips", "quarter turns lose"),
        (right(192, 180, turn_180=10), "photos", "images upside down lose"),  # 5 points
        (right(192, 180, turn_180=17), "photos", "images upside down lose"),  # 9 points
        (right(192, 180, flip=10), "none", "mirror images lose"),
        (right(192, 180, flip=1, turn_180=1, turn_90=1), "symmetric", ""),
        (right(16, 15), "none", "too few to tell whether mirror"),
        (right(16, 15, flip=1, turn_180=1), "none", "too few to tell whether mirror"),
        (right(60, 55, turn_180=3), "photos", "too few to tell whether images upside down"),
        (right(192, 100), "none", "too few"),  # a head near chance knows nothing of symmetries
    ],
)
def test_a_symmetry_is_taken_only_where_it_is_seen_to_hold(seen: dict[str, np.ndarray], policy: str, told: str):
    found = decide(seen, chance=0.5)
    assert found.policy == policy
    assert found.measured
    assert told in found.reason or policy == "symmetric"
    assert f"{len(seen['plain'])} validation images" in found.reason


@pytest.mark.parametrize("count", [12, 24, 48, 96, 192])
def test_what_costs_nine_points_is_seldom_taken_and_what_costs_nothing_mostly_is(count: int):
    """Over 200 draws of images of which the head knows 90%: whether the mirror is taken."""
    taken = {0.0: 0, 0.09: 0}
    for number in range(200):
        for loss in taken:
            rng = rng_for(number, f"symmetry {loss}")
            plain = rng.random(count) < 0.9
            drawn_again = np.where(rng.random(count) < 0.1, rng.random(count) < 0.9, plain)
            flip = drawn_again & (rng.random(count) >= loss)
            found = decide({"plain": plain, "flip": flip, "turn 180": ~plain, "turn 90": ~plain}, chance=0.5)
            taken[loss] += found.policy != "none"
    assert taken[0.09] <= 20, taken
    if count == 192:
        assert taken[0.0] >= 180, taken
