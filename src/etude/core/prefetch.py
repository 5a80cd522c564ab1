"""Work in threads with results in order and a bounded number of them waiting."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def made_ahead(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    threads: int = 1,
    most: int = 1,
    name: str = "etude-ahead",
) -> Generator[Result]:
    """Yield ``function(item)`` for each item, in order; an error surfaces in the place of its item.

    Nothing is made before the first result is asked for. A reader that stops early leaves no thread behind.

    Args:
        threads: that work at the same time.
        most: results that are ready or in the making while the reader works, which bounds the memory.
        name: that the threads' names begin with.

    >>> list(made_ahead(abs, [-1, 2, -3], threads=2, most=2))
    [1, 2, 3]
    """
    pending: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix=name) as pool:
        try:
            for item in items:
                pending.append(pool.submit(function, item))
                if len(pending) > most:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:  # a reader that stops early must not wait for what nobody wants
            for waiting in pending:
                waiting.cancel()


def map_in_order(function: Callable[[Item], Result], items: Iterable[Item], threads: int) -> Iterator[Result]:
    """Yield ``function(item)`` for each item, in order, computed in ``threads`` threads.

    At most eight results a thread are computed ahead of the reader, so memory stays bounded however many items there
    are (``Executor.map`` would queue them all).

    >>> list(map_in_order(abs, [-1, 2, -3], threads=2))
    [1, 2, 3]
    """
    pending: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="etude-data") as pool:
        try:
            for item in items:
                pending.append(pool.submit(function, item))
                if len(pending) >= 8 * threads:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for waiting in pending:
                waiting.cancel()
