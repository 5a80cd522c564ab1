"""Ctrl-C and SIGTERM: the two signals that stop a command."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any


@contextmanager
def handled_by(stop: Callable[[int, FrameType | None], object]) -> Generator[Mapping[int, Any]]:
    """Let ``stop`` handle both signals in the main thread; yield the handlers in whose place it stands.

    What the caller ignores, as nohup and a shell's background do, stays ignored.
    """
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        now = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        before = {number: handler for number, handler in now.items() if handler not in (signal.SIG_IGN, None)}
    for number in before:
        signal.signal(number, stop)
    try:
        yield before
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) == stop:  # otherwise another has been put in its place
                signal.signal(number, handler)
