from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etude.core.prefetch import prefetch


@given(st.integers(0, 20), st.integers(1, 4), st.integers(1, 5))
def test_results_come_in_order_and_no_more_than_asked_for_are_made_ahead(count: int, threads: int, most: int):
    made: list[int] = []

    def square(number: int) -> int:
        made.append(number)
        return number * number

    for taken, result in enumerate(prefetch(square, range(count), threads=threads, ahead=most)):
        assert result == taken * taken
        assert len(made) <= taken + 1 + most
    assert sorted(made) == list(range(count))


def test_an_error_surfaces_in_its_place():
    results = prefetch(lambda number: 1 // (2 - number), range(5), threads=2, ahead=3)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_a_reader_that_stops_leaves_no_thread_and_unmade_results():
    made: list[int] = []
    results = prefetch(lambda number: made.append(number), range(100), ahead=2, name="etude-test")
    next(results)
    results.close()
    assert len(made) <= 3
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("etude-test")]


def test_the_next_result_is_made_while_the_reader_works():
    begun = threading.Event()

    def number(asked: int) -> int:
        if asked == 1:
            begun.set()
        return asked

    results = prefetch(number, range(3), ahead=1)
    next(results)
    assert begun.wait(30)
    results.close()
