"""``etude journal send``."""

from __future__ import annotations

from pathlib import Path


def send(run: str, *, mlflow: str, runs: Path = Path("runs")) -> None:
    """Send a run that has ended, with all that is part of it, to an MLflow server.

    It goes to the experiment etude, or to that of $MLFLOW_EXPERIMENT_NAME. Sent again, its tags and notes are brought
    up to date.

    Parameters
    ----------
    run
        Its folder, name or id.
    mlflow
        Address of the server, such as http://127.0.0.1:5000.
    runs
        The folder of runs.
    """
    from etude.journal.index import find_run
    from etude.journal.mlflow_send import log_to_mlflow
    from etude.journal.screen import Screen

    Screen().say(log_to_mlflow(find_run(runs, run), mlflow).told)
