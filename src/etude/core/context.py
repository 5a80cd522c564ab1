"""What all work shares, in one small object: where progress and warnings are shown, the cache, and the seed."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:  # numpy takes longer to load than etude journal list
    import numpy as np

Warn = Callable[[str], object]
"""Takes one sentence that a user should read."""


class Advance(Protocol):
    """Advance a progress bar by ``count`` units."""

    def __call__(self, count: int = 1) -> None: ...


BarContext = AbstractContextManager[Advance]
"""What :meth:`Progress.bar` returns."""


class Progress(Protocol):
    """Something that can show lines and progress bars; ``journal.screen`` draws them, tests count them."""

    def bar(self, name: str, total: int, unit: str = "images") -> BarContext:
        """Open a bar of ``total`` units; the context yields the function that advances it."""
        ...

    def say(self, text: str) -> None:
        """Show one line."""
        ...


class Silent:
    """A :class:`Progress` that shows nothing."""

    def bar(self, name: str, total: int, unit: str = "images") -> BarContext:
        """Return a context whose advance function does nothing."""
        return nullcontext(_ignore)

    def say(self, text: str) -> None:
        """Show nothing."""


def _ignore(count: object = None) -> None:
    """Show no progress, or no warning."""


@dataclass(frozen=True, slots=True)
class Context:
    """What all work of a run shares; it is itself a :class:`Progress`."""

    progress: Progress = field(default_factory=Silent)
    warn: Warn = warnings.warn
    cache: Path | None = None  # folder of stores and features; None for :func:`default_cache`
    seed: int = 0  # that every draw derives from

    def bar(self, name: str, total: int, unit: str = "images") -> BarContext:
        """Open a bar of ``total`` units; the context yields the function that advances it."""
        return self.progress.bar(name, total, unit)

    def say(self, text: str) -> None:
        """Show one line."""
        self.progress.say(text)

    def cached(self, *parts: str) -> Path:
        """Return a path in the cache."""
        return (self.cache or default_cache()).joinpath(*parts)

    def rng(self, name: str, step: int = 0) -> np.random.Generator:
        """Return the generator of a draw, by :func:`~etude.core.seeds.rng_for`."""
        from etude.core.seeds import rng_for

        return rng_for(self.seed, name, step)

    def quiet(self) -> Context:
        """Return a context whose warnings are dropped, for work that is done again with them."""
        return replace(self, warn=_ignore)


def default_cache() -> Path:
    """Return the folder of stores and features: ``$ETUDE_CACHE``, else ``~/.cache/etude`` (or ``$XDG_CACHE_HOME``)."""
    if given := os.environ.get("ETUDE_CACHE"):
        return Path(os.path.expanduser(given))
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "etude"
