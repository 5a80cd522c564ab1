"""Work in threads with results in order and a bounded number of them waiting."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def prefetch(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    threads: int = 1,
    ahead: int | None = None,
    name: str = "etude-prefetch",
) -> Generator[Result]:
    """Yield ``function(item)`` for each item, in order; an error surfaces at its item.

    Nothing is computed before the first result is requested. A reader that stops early leaves no thread behind.
    ``ahead`` results, by default about eight a thread, are ready or being computed while the reader works, which bounds
    the memory (``Executor.map`` would queue all items).
    """
    ahead = 8 * threads - 1 if ahead is None else ahead
    pending: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix=name) as pool:
        try:
            for item in items:
                pending.append(pool.submit(function, item))
                if len(pending) > ahead:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:  # a reader that stops early must not wait for results that nobody needs
            for waiting in pending:
                waiting.cancel()
