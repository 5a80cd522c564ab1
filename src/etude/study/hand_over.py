"""What others get of a run or an ablation that has finished: its notebook, and itself on an MLflow server."""

from __future__ import annotations

import shlex

from etude.core.errors import EtudeError
from etude.journal.mlflow_send import log_to_mlflow
from etude.journal.notebook import write_notebook
from etude.journal.record import RunRecord
from etude.journal.screen import Screen
from etude.study.look_back import report


def hand_over(record: RunRecord, uri: str | None, screen: Screen) -> None:
    """Write ``notebook.ipynb``, and send the run to the MLflow server at ``uri``, if any.

    The run is whole by now: what cannot be done is a warning, in its record and its report too.
    """
    try:
        write_notebook(record.folder)
    except (EtudeError, OSError) as problem:
        _warn(record, f"no notebook: {problem}", screen)
    if uri is not None:
        send(record, uri, screen)


def send(record: RunRecord, uri: str, screen: Screen) -> None:
    """Send a run and all that is part of it to the MLflow server at ``uri``; where that fails it is a warning."""
    try:
        screen.say(log_to_mlflow(record.folder, uri).told)
    except (EtudeError, OSError) as problem:
        later = shlex.join(["etude", "journal", "send", str(record.folder), "--mlflow", uri])
        text = f"the run is whole, but not on the MLflow server: {problem}. To send it later: {later}"
        _warn(record, text, screen)


def _warn(record: RunRecord, text: str, screen: Screen) -> None:
    screen.warn(text)
    record.warn(text)
    report(record.folder, screen)
