from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etude.timeline.lengths import Pace, RunSize, check_shares, divided, length_in_steps, parse_length, share_of

RUN = RunSize(1000, epoch_steps=40, pace=Pace(0.5, size=100))


@pytest.mark.each(
    ("length", "parsed"),
    [
        (0.25, (0.25, "share")),
        (1, (1.0, "share")),
        ("0.25", (0.25, "share")),
        ("25%", (0.25, "share")),
        ("3ep", (3.0, "ep")),
        ("1.5 EP", (1.5, "ep")),
        ("500st", (500.0, "st")),
        ("90s", (90.0, "s")),
        ("10m", (600.0, "s")),  # 10 * 60
        ("2h", (7200.0, "s")),  # 2 * 3600
    ],
)
def test_lengths_are_read(length: float | str, parsed: tuple[float, str]):
    assert parse_length(length) == parsed
    assert share_of(length) == (parsed[0] if parsed[1] == "share" else None)


@pytest.mark.each("length", ["", "ep", "3 epochs", "3x", "-3ep", "1,5ep", "3ep4", True, None, [1]])
def test_what_is_no_length_is_named(length: object):
    with pytest.raises(ValueError, match="cannot be read; a length is a share such as 0.25") as error:
        parse_length(length)  # type: ignore[arg-type]
    assert repr(length) in str(error.value)


@pytest.mark.each("length", [0, 0.0, -0.1, math.nan, math.inf, "0ep", "0%", "9e999st"])
def test_a_length_is_above_zero_and_finite(length: float | str):
    with pytest.raises(ValueError, match="must be above 0 and finite"):
        parse_length(length)


@pytest.mark.each(
    ("length", "size", "steps"),
    [
        (0.1, None, 20.0),  # of the whole of 200
        ("50%", None, 100.0),
        ("70st", None, 70.0),
        ("3ep", None, 120.0),  # 3 * 40
        ("1m", None, 120.0),  # 60 s / 0.5 s
        ("1m", 100, 120.0),
        ("1m", 200, 30.0),  # four times the area: 2 s a step
        ("30s", 50, 240.0),  # a quarter of the area: 0.125 s a step
    ],
)
def test_lengths_in_steps(length: float | str, size: float | None, steps: float):
    assert length_in_steps(length, 200, RUN, size) == pytest.approx(steps)


def test_a_pace_without_a_size_is_the_same_at_every_size():
    assert Pace(0.2).at(320) == Pace(0.2).at(None) == 0.2


@pytest.mark.parametrize(
    ("length", "told"), [("2ep", r"'2ep' is in epochs.*epoch_steps"), ("5m", r"'5m' is in time.*pace")]
)
def test_what_is_missing_is_named(length: str, told: str):
    with pytest.raises(ValueError, match=told):
        length_in_steps(length, 100, RunSize(100))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Pace(0.0),
        lambda: Pace(math.nan),
        lambda: Pace(1.0, 0),
        lambda: RunSize(0),
        lambda: RunSize(10, epoch_steps=0.0),
        lambda: RunSize(10, epoch_steps=math.inf),
    ],
)
def test_impossible_paces_and_runs_are_refused(make):
    with pytest.raises(ValueError, match="at least 1 step|above 0"):
        make()


@pytest.mark.parametrize(
    ("lengths", "shares"),
    [
        ([0.3, 0.7], (0.3, 0.7)),
        (["100st", 1.0], (0.25, 0.75)),  # of 400
        (["1ep", 0.5, 0.5], (0.1, 0.45, 0.45)),  # 40 of 400; halves of the other 360
        (["100st", "25%", "5ep", 0.75], (0.25, 0.0625, 0.5, 0.1875)),  # 100 and 200; a quarter and the rest of 100
        (["100st", "300st"], (0.25, 0.75)),
    ],
)
def test_shares_divide_what_fixed_lengths_leave(lengths: list[float | str], shares: tuple[float, ...]):
    assert divided(lengths, 400, RUN) == pytest.approx(shares)


@pytest.mark.parametrize(
    ("lengths", "told"),
    [
        ([0.3, 0.6], "the shares 0.3 [+] 0.6 sum to 0.9, they must sum to 1"),
        (["100st", 0.5], "the shares 0.5 sum to 0.5"),
        (["400st", 1.0], "take 400 of 400 steps and leave nothing"),
        (["401st"], "401st take 401 of 400 steps: make them fill it"),
        (["100st", "1ep"], "100st [+] 1ep take 140 of 400 steps"),
    ],
)
def test_lengths_that_do_not_fit_are_told(lengths: list[float | str], told: str):
    with pytest.raises(ValueError, match=told):
        divided(lengths, 400, RUN)


def test_fixed_lengths_alone_may_miss_the_whole_by_half_a_step():
    assert divided(["100st", "299.5st"], 400, RUN) == pytest.approx((100 / 399.5, 299.5 / 399.5))


def test_shares_are_checked_before_the_run_is_known():
    check_shares([0.5, "3ep", 0.5])
    check_shares(["3ep", "500st"])
    with pytest.raises(ValueError, match="sum to 1.1"):
        check_shares([0.5, "3ep", 0.6])
    with pytest.raises(ValueError, match="cannot be read"):
        check_shares([1.0, "3 parsecs"])


@given(
    st.lists(st.floats(0.01, 1.0), min_size=1, max_size=5),
    st.lists(st.integers(1, 50).map(lambda steps: f"{steps}st"), max_size=4),
    st.integers(300, 5000),
)
def test_divided_lengths_fill_the_whole_and_keep_their_proportions(weights: list[float], fixed: list[str], steps: int):
    shares = [weight / sum(weights) for weight in weights]
    result = divided([*fixed, *shares], steps, RunSize(steps))
    assert math.fsum(result) == pytest.approx(1.0, abs=2e-6)
    assert [share * steps for share in result[: len(fixed)]] == pytest.approx([float(text[:-2]) for text in fixed])
    assert [share / result[-1] for share in result[len(fixed) :]] == pytest.approx([s / shares[-1] for s in shares])
