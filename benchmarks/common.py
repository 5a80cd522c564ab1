"""What the benchmarks share: runs of the command line, and tables with n, mean and spread."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Measured:
    """One run of a command.

    Args:
        seconds: of wall time, the start of Python included.
        peak_bytes: largest resident memory of the process, or of one that it started and waited for.
        folder: the run's folder.
    """

    seconds: float
    peak_bytes: int
    folder: Path

    @property
    def stages(self) -> dict[str, float]:
        """Seconds of every stage."""
        record = json.loads((self.folder / "run.json").read_text(encoding="utf-8"))
        return {stage["name"]: stage["seconds"] for stage in record["stages"]}


def run_etude(arguments: Sequence[str], out: Path, cache: Path) -> Measured:
    """Run ``etude ARGUMENTS --out OUT`` in a process of its own and measure it; its output is shown."""
    return measured([sys.executable, "-m", "etude", *arguments, "--out", str(out)], out, {"ETUDE_CACHE": str(cache)})


def measured(command: Sequence[str], folder: Path, variables: Mapping[str, str], **how: Any) -> Measured:
    """Run a command with more environment variables, and ``how`` as `subprocess.Popen` takes it, and measure it.

    Raises:
        SystemExit: it ended with an error.
    """
    start = time.perf_counter()
    process = subprocess.Popen(command, env={**os.environ, **variables}, **how)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if code := os.waitstatus_to_exitcode(status):
        sys.exit(f"{' '.join(command)} ended with code {code}")
    return Measured(seconds, usage.ru_maxrss * 1024, folder)


def spread(values: Sequence[float], form: str = ".2%") -> str:
    """Return ``mean ± sd`` of the values; of a single one, which has no spread, the value alone."""
    if len(values) == 1:
        return f"{values[0]:{form}}"
    return f"{statistics.mean(values):{form}} ± {statistics.stdev(values):{form}}"


def machine() -> str:
    """Return the processor, its cores and torch's version in words."""
    import torch

    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    return f"{model}, {os.cpu_count()} cores, torch {torch.__version__}"
