"""The choice of squash, crop or letterbox."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from etude.data.decode import choose_fit

sizes = st.lists(st.tuples(st.integers(1, 5000), st.integers(1, 5000)), min_size=1, max_size=30)


def arrays(pairs: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    widths, heights = zip(*pairs, strict=True)
    return np.array(widths), np.array(heights)


@pytest.mark.parametrize(
    ("pairs", "fit"),
    [
        ([(300, 300)] * 10, "squash"),
        ([(300, 280), (290, 310)] * 10, "squash"),
        ([(640, 480), (480, 640)] * 10, "crop"),
        ([(200, 100)] * 10, "crop"),
        ([(1000, 200)] * 10, "letterbox"),
        ([(100, 100)] * 8 + [(300, 100)] * 2, "letterbox"),
        ([(100, 100)] * 19 + [(900, 100)], "squash"),
    ],
)
def test_choice(pairs: list[tuple[int, int]], fit: str) -> None:
    chosen, reason = choose_fit(*arrays(pairs))
    assert chosen == fit
    assert reason.startswith(fit)


def test_the_reason_gives_the_figures() -> None:
    assert "1.33 in the median and up to 1.33" in choose_fit(*arrays([(640, 480)] * 3))[1]


@given(sizes)
def test_turning_every_image_changes_nothing(pairs: list[tuple[int, int]]) -> None:
    widths, heights = arrays(pairs)
    assert choose_fit(widths, heights) == choose_fit(heights, widths)


@given(sizes, st.integers(1, 50))
def test_only_shapes_count_not_sizes_nor_order(pairs: list[tuple[int, int]], factor: int) -> None:
    widths, heights = arrays(pairs)
    assert choose_fit(widths, heights)[0] == choose_fit(factor * widths[::-1], factor * heights[::-1])[0]


@given(sizes)
def test_a_crop_keeps_half_of_nine_images_in_ten(pairs: list[tuple[int, int]]) -> None:
    widths, heights = arrays(pairs)
    kept = np.minimum(widths, heights) / np.maximum(widths, heights)
    fit = choose_fit(widths, heights)[0]
    assert (fit == "letterbox") == ((kept >= 0.5).mean() < 0.9)


def test_no_sizes() -> None:
    with pytest.raises(ValueError, match="at least one"):
        choose_fit(np.array([]), np.array([]))
