"""What others get of a run that has finished: its notebook, and the run itself on an MLflow server."""

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
    told: list[str] = []
    try:
        write_notebook(record.folder)
    except (EtudeError, OSError) as problem:
        told.append(f"no notebook: {problem}")
    if uri is not None:
        try:
            screen.say(log_to_mlflow(record.folder, uri).told)
        except (EtudeError, OSError) as problem:
            later = shlex.join(["etude", "journal", "send", str(record.folder), "--mlflow", uri])
            told.append(f"the run is whole, but not on the MLflow server: {problem}. To send it later: {later}")
    for text in told:
        screen.warn(text)
        record.warn(text)
    if told:
        report(record.folder, screen)
