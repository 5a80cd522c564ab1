"""What a probe found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from etude.models.modes import Mode

_DISTURBING = 0.5  # cores of others


@dataclass(frozen=True, slots=True)
class Timed:
    """A mode that was looked at.

    Args:
        images_per_second: at the probe's batch, or None when it was not timed.
        note: why it was left out or not tried, or empty.
    """

    mode: Mode
    images_per_second: float | None
    note: str = ""


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """The mode to run in, and what was measured.

    Args:
        mode: the fastest of those that keep the loss.
        images_per_second: in that mode, at the probe's batch; None when nothing could be timed.
        table: all modes looked at, the fastest first.
        seconds: that the measurement took.
        batch: images a step while measuring.
        complete: whether the budget sufficed to look at every mode.
        busy_cores: that other programs used meanwhile, or None when that is not known.
        cached: whether it was measured earlier.
    """

    mode: Mode
    images_per_second: float | None
    table: tuple[Timed, ...]
    seconds: float
    batch: int
    complete: bool = True
    busy_cores: float | None = None
    cached: bool = False

    @property
    def disturbed(self) -> bool:
        """Whether other programs took so much of the processor that on a quiet machine another mode may be faster."""
        return (self.busy_cores or 0.0) > _DISTURBING

    @property
    def lasting(self) -> bool:
        """Whether the result is worth keeping for the next run."""
        return self.complete and not self.disturbed

    def in_words(self) -> str:
        """Return the choice in a line, for the plan.

        >>> mode = Mode("bf16", "channels_last", 2)
        >>> ProbeResult(mode, 31.2, (Timed(mode, 31.2),), 4.0, 8).in_words()
        'bf16, channels_last, 2 threads: 31 images/s'
        """
        rate = "" if self.images_per_second is None else f": {_rate(self.images_per_second)}"
        timed = [each for each in self.table if each.images_per_second is not None]
        slowest = timed[-1] if len(timed) > 1 else None
        beside = ""
        if slowest is not None and slowest.images_per_second is not None:
            beside = f", the fastest of {len(timed)} (the slowest, {slowest.mode.in_words()}: " + (
                f"{_rate(slowest.images_per_second)})"
            )
        left_out = [each for each in self.table if each.note.startswith(("left out", "taken as asked"))]
        told = "".join(f"; {each.mode.precision} {each.mode.memory_format} {each.note}" for each in left_out)
        unfinished = "" if self.complete else "; the probe's time was used up, so not every mode was tried"
        if self.disturbed:
            unfinished += f"; other programs kept about {self.busy_cores:.1f} cores busy, so it is not kept"
        return self.mode.in_words() + rate + beside + told + unfinished + ("; measured earlier" if self.cached else "")

    def rows(self) -> list[tuple[str, str, int, float | None, str]]:
        """Return (precision, memory format, threads, images/s, note) of every mode, for a table."""
        return [
            (each.mode.precision, each.mode.memory_format, each.mode.threads, each.images_per_second, each.note)
            for each in self.table
        ]

    def as_dict(self) -> dict[str, Any]:
        """Return the result as JSON values."""
        return {
            "mode": self.mode.as_dict(),
            "images_per_second": self.images_per_second,
            "table": [
                {"mode": each.mode.as_dict(), "images_per_second": each.images_per_second, "note": each.note}
                for each in self.table
            ],
            "seconds": self.seconds,
            "batch": self.batch,
            "complete": self.complete,
            "busy_cores": self.busy_cores,
            "cached": self.cached,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ProbeResult:
        """Return the result that :meth:`as_dict` described.

        Raises:
            ValueError, TypeError, KeyError: it describes none.
        """
        table = tuple(Timed(Mode.from_dict(each["mode"]), _number(each["images_per_second"]), str(each["note"]))
                      for each in values["table"])  # fmt: skip
        seconds, batch = _number(values["seconds"]), _number(values["batch"])
        if seconds is None or batch is None:
            raise ValueError("no seconds or no batch")
        rate = _number(values["images_per_second"])
        mode = Mode.from_dict(values["mode"])
        busy, complete = _number(values["busy_cores"]), bool(values["complete"])
        return cls(mode, rate, table, seconds, int(batch), complete, busy, bool(values["cached"]))


def _number(value: Any) -> float | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or value < 0):
        raise ValueError(f"no number: {value!r}")
    return value


def _rate(images_per_second: float) -> str:
    return f"{images_per_second:,.0f} images/s" if images_per_second >= 10 else f"{images_per_second:.2g} images/s"
