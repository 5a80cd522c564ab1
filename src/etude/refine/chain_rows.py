"""What a chain says of its steps: one row each, as a table and as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from etude.core.metrics import Gain


@dataclass(frozen=True, slots=True)
class StepRow:
    """What became of one step.

    Args:
        name: of the step.
        kept: whether it is applied.
        described: what was fitted on all labelled images.
        seconds: of fitting, on all labelled images and on every fold.
        gain: cross-fitted, in the metric's unit, positive is better; None when it was not measured.
        low: end of the interval of the gain.
        high: its other end.
        probability: that the step gains, as :class:`etude.core.metrics.Gain` has it.
        at_target_prior: whether labelled images were weighted to the class shares of the target to measure it.
        reason: why a step that was not measured is left out.
    """

    name: str
    kept: bool
    described: str
    seconds: float
    gain: float | None = None
    low: float | None = None
    high: float | None = None
    probability: float | None = None
    at_target_prior: bool = False
    reason: str = ""

    @classmethod
    def measured(cls, name: str, gain: Gain, described: str, seconds: float, *, weighted: bool) -> StepRow:
        """Return the row of a step whose gain is known: kept when the whole interval is above zero."""
        numbers = (gain.gain, gain.low, gain.high, gain.probability)
        return cls(name, gain.beyond_noise, described, seconds, *numbers, at_target_prior=weighted)

    def as_dict(self) -> dict[str, Any]:
        """Return the row as JSON values."""
        return asdict(self)


COLUMNS = ("step", "kept", "gain", "interval", "s", "fitted")


def table_rows(rows: list[StepRow]) -> list[tuple[str, ...]]:
    """Return texts for :data:`COLUMNS`; a star marks gains at the target's class shares.

    >>> table_rows([StepRow("knn", True, "k = 8", 0.25, 0.01, 0.002, 0.018, 0.98)])
    [('knn', 'yes', '+0.0100', '+0.0020 +0.0180', '0.25', 'k = 8')]
    """
    return [_cells(row) for row in rows]


def _cells(row: StepRow) -> tuple[str, ...]:
    said = f"{row.described}: {row.reason}" if row.described and row.reason else row.described or row.reason
    if row.gain is None or row.low is None or row.high is None:
        return row.name, _yes_no(row), "", "", f"{row.seconds:.2g}", said
    star = "*" if row.at_target_prior else ""
    interval = f"{row.low + 0.0:+.4f} {row.high + 0.0:+.4f}"
    return row.name, _yes_no(row), f"{row.gain + 0.0:+.4f}{star}", interval, f"{row.seconds:.2g}", said


def _yes_no(row: StepRow) -> str:
    return "yes" if row.kept else "no"
