"""The time that a run may take, and what is left of it as the run goes on."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import FrameType

from etude.core.errors import EtudeError
from etude.core.stops import handled_by
from etude.timeline import parse_length

_REPORT = 5.0  # seconds, after the predictions
_LONGEST = 30 * 86_400.0  # seconds of a budget


class Budget:
    """The seconds that a run may take, from its start to its report.

    Within ``finishing``, Ctrl-C or SIGTERM uses up what is left, so that the run ends with what it has; the second one
    stops it.
    """

    def __init__(self, seconds: float, began: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.seconds, self.enough = seconds, False
        self._began, self._clock = began, clock
        self._handler: Callable[[int, FrameType | None], None] | None = None

    @property
    def is_limited(self) -> bool:
        return self.seconds < math.inf

    def left(self) -> float:
        """Return the seconds left for training and predictions, below 0 when it is time to end."""
        if self._handler is not None and signal.getsignal(signal.SIGTERM) is not self._handler:
            signal.signal(signal.SIGTERM, self._handler)  # in place of Lightning's, which ends training and the run
        return -1.0 if self.enough else self.seconds - _REPORT - (self._clock() - self._began)

    @contextmanager
    def finishing(self) -> Generator[None]:
        """Take the first Ctrl-C or SIGTERM for the end of the budget."""
        if not self.is_limited:
            yield
            return

        def stop(number: int, frame: FrameType | None) -> None:
            if self.enough:
                signal.signal(number, before[number])
                signal.raise_signal(number)
            self.enough = True

        with handled_by(stop) as before:
            self._handler = stop if signal.SIGTERM in before else None
            try:
                yield
            finally:
                self._handler = None


def budget_seconds(text: str) -> float:
    """Return the seconds of a budget such as ``"90s"``, ``"10m"`` or ``"2h"``; EtudeError for anything else."""
    try:
        amount, unit = parse_length(text)
    except ValueError:
        amount, unit = 0.0, ""
    if unit != "s" or not 10.0 <= amount <= _LONGEST:
        raise EtudeError(f"--budget is {text!r}; give a time such as 90s, 10m or 2h, at least 10s and at most 720h")
    return amount


NO_LIMIT = Budget(math.inf, 0.0)
