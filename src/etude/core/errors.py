"""Errors that a user can cause, each a single sentence, and the parts such sentences share."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable


class EtudeError(Exception):
    """A problem the user can fix. The command line prints its message without a traceback.

    The message says what was received, where, what is accepted and how to go on.
    """


class Terminated(KeyboardInterrupt):
    """The system or another program has asked the process to end (SIGTERM): it stops as by Ctrl-C."""


def error_text(problem: BaseException) -> str:
    """Return the message of an error; with its type where the message was not written for users."""
    if isinstance(problem, EtudeError | OSError) and str(problem):
        return str(problem)
    return f"{type(problem).__name__}: {problem}".removesuffix(": ")


def shown(value: object, most: int = 80) -> str:
    """Return a value that was received as a sentence shows it: cut where it is long."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # too many digits, or too deep
        return f"a very large {type(value).__name__}"
    return text if len(text) <= most else f"{text[: most - 3]}..."


def plain(name: str) -> str:
    """Return a name without what people spell differently: capitals, hyphens, underscores, dots and spaces."""
    return re.sub(r"[-_.\s]", "", name.casefold())


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the closest known name, or an empty string."""
    spelled = {plain(one): one for one in known}
    return did_you_mean(spelled[one] for one in difflib.get_close_matches(plain(name), spelled, n=1, cutoff=0.6))


def did_you_mean(names: Iterable[str]) -> str:
    """Return the question whether one of ``names`` was meant, or an empty string where there is none."""
    *others, last = [*map(repr, names)] or [""]
    return f" Did you mean {', '.join(others)}{' or ' if others else ''}{last}?" if last else ""


def listed(names: Iterable[str], most: int = 5, shown: Callable[[str], str] = repr) -> str:
    """Join names for a sentence, quoted by default, cut after ``most``."""
    names = list(names)
    first = ", ".join(map(shown, names[:most]))
    rest = len(names) - most
    return f"{first} and {rest:,} more" if rest > 0 else first
