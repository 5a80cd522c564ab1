"""What the benchmarks of refinement share: results that outlive a stop, and means over seeds with their interval."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from scipy import stats

from etude.core.files import read_json, write_json


class Kept:
    """Results by name, written into a JSON file after each, so that a benchmark that was stopped goes on.

    Threads may share it.

    Args:
        file: None keeps them in memory only.
    """

    def __init__(self, file: Path | None) -> None:
        self.file, self.writing = file, Lock()
        self.results: dict[str, Any] = read_json(file) if file is not None and file.is_file() else {}

    def of(self, name: str, make: Callable[[], Any]) -> Any:
        """Return the result of ``name``, made of JSON values; made by ``make`` unless the file holds it."""
        if name not in self.results:
            made = make()
            with self.writing:
                self.results[name] = made
                if self.file is not None:
                    write_json(self.file, self.results)
        return self.results[name]


def with_interval(values: Sequence[float], form: str) -> str:
    """Return ``mean [95% t interval of the mean] ± sd`` of values over seeds.

    >>> with_interval([1.0, 2.0, 3.0], "+.1f")
    '+2.0 [-0.5, +4.5] ± 1.0'
    """
    mean = float(np.mean(values))
    if len(values) < 2:
        return f"{mean:{form}}"
    reach = float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))
    spread = f"{np.std(values, ddof=1):{form.removeprefix('+')}}"
    return f"{mean:{form}} [{mean - reach:{form}}, {mean + reach:{form}}] ± {spread}"
