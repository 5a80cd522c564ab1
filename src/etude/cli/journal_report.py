"""``etude journal report``: the report of a run that has none yet, or of what its folder holds by now."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter


def report(run: str, *, runs: Annotated[Path, Parameter(name="--runs")] = Path("runs")) -> None:
    """Write the report of a run from its folder, also of one that was killed, or is still at work.

    Parameters
    ----------
    run
        Its folder, name or id.
    runs
        The folder of runs.
    """
    from etude.journal.index import find_run
    from etude.journal.report import write_report
    from etude.journal.screen import Screen

    page = write_report(find_run(runs, run))
    Screen().say(f"{page} shows the run")
