"""How long work reports that it moves, without knowing how it is drawn."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Advance(Protocol):
    """Tell a progress bar that ``count`` more units are done."""

    def __call__(self, count: int = 1) -> None: ...


BarContext = AbstractContextManager[Advance]
"""What :meth:`Progress.bar` returns."""


class Progress(Protocol):
    """Something that can show progress bars; ``journal.screen`` draws them, tests count them."""

    def bar(self, name: str, total: int, unit: str = "images") -> BarContext:
        """Open a bar of ``total`` units; the context yields the function that advances it."""
        ...


class Silent:
    """A :class:`Progress` that shows nothing.

    >>> with Silent().bar("decode", 10) as advance:
    ...     advance(10)
    """

    def bar(self, name: str, total: int, unit: str = "images") -> BarContext:
        """Return a context whose advance function does nothing."""
        return _nothing()


@contextmanager
def _nothing() -> Generator[Advance]:
    def advance(count: int = 1) -> None:
        """Show nothing."""

    yield advance
