"""What each step of a run bought and what it cost."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from etude.journal.charts_bars import bar_in_cell
from etude.journal.quantities import duration, in_words, percent, spoken
from etude.journal.record_state import KILLED, stopped_at

FOLD = re.compile(r" \(fold (\d+)/\d+\)$")
"""The end of a stage's name that tells its fold."""


@dataclass(frozen=True, slots=True)
class Step:
    """One row of the table: a stage, or the same stage of all folds together.

    Args:
        name: of the stage, without its fold.
        state: finished, running, failed or interrupted.
        count: how many folds it ran on.
        seconds: of all of them, or None while it runs.
        planned: seconds that the plan gave it, or None.
        accuracy: mean over the folds, or None where the stage has no score.
        log_loss: likewise.
        gained: accuracy beyond that of the scored step before.
        saved: log loss below that of the scored step before.
        notes: further facts, as text.
        error: what ended it, or None.
        share: a bar of its share of all steps' seconds.
    """

    name: str
    state: str
    count: int
    seconds: float | None
    planned: float | None
    accuracy: float | None
    log_loss: float | None
    gained: float | None
    saved: float | None
    notes: str
    error: str | None
    share: Markup


def steps_of(record: Mapping[str, Any]) -> list[Step]:
    """Return the run's stages in their order; a stage of several folds is one step with the mean of its scores."""
    stages: dict[str, list[Mapping[str, Any]]] = {}
    for stage in record["stages"]:
        stages.setdefault(FOLD.sub("", stage["name"]), []).append(stage)
    planned = (record.get("plan") or {}).get("expected_seconds") or {}
    state, each_builds_up = record["state"], builds_up(record)
    whole = sum(_seconds(group) or 0.0 for group in stages.values())
    steps: list[Step] = []
    before: dict[str, float] = {}
    for name, group in stages.items():
        scores = {score: _mean(group, score) for score in ("accuracy", "log_loss")}
        seconds, accuracy, loss = _seconds(group), scores["accuracy"], scores["log_loss"]
        share = (seconds or 0.0) / whole if whole else 0.0
        bar = bar_in_cell(share, f"{percent(share, 0)} of the time") if seconds is not None else Markup("")
        gained = None if accuracy is None or "accuracy" not in before else accuracy - before["accuracy"]
        saved = None if loss is None or "log_loss" not in before else before["log_loss"] - loss
        notes, error = _notes(group), next((stage["error"] for stage in group if stage.get("error")), None)
        row = (seconds, planned.get(name), accuracy, loss, gained, saved, notes, error, bar)
        steps.append(Step(name, state_of_all(group, state), len(group), *row))
        before |= {score: value for score, value in scores.items() if value is not None and each_builds_up}
    return steps


def builds_up(record: Mapping[str, Any]) -> bool:
    """Whether each stage goes on from the one before; those of a study are runs that stand side by side."""
    return record.get("kind", "fit") == "fit"


def last_words(record: Mapping[str, Any]) -> str:
    """Return where a run stands that has not finished; empty for one that has."""
    state, where = record["state"], stopped_at(record["stages"])
    if state == "finished":
        return ""
    if state == "running":
        return f"It was running when this page was written, {duration(record['seconds'])} after its start: {where}."
    how = {"failed": "failed", "interrupted": "was interrupted"}.get(state, "was killed")
    said = f": {record['error']}" if record["error"] else "."
    return f"It {how} {where}{said}"


def _seconds(group: Sequence[Mapping[str, Any]]) -> float | None:
    known = [float(stage["seconds"]) for stage in group if stage.get("seconds") is not None]
    return sum(known) if known else None


def _mean(group: Sequence[Mapping[str, Any]], score: str) -> float | None:
    known = [float(value) for stage in group if (value := stage["scores"].get(score)) is not None]
    return sum(known) / len(known) if known else None


def state_of_all(group: Sequence[Mapping[str, Any]], run: str) -> str:
    """Return the state of stages together: the worst, or finished when all are; with a killed ``run`` they ended too.

    >>> group = [{"state": "finished"}, {"state": "running"}]
    >>> state_of_all(group, "running"), state_of_all(group, KILLED)
    ('running', 'killed')
    """
    states = [stage["state"] for stage in group]
    worst = next((state for state in ("failed", "interrupted", "running") if state in states), "finished")
    return KILLED if worst == "running" and run == KILLED else worst


def _notes(group: Sequence[Mapping[str, Any]]) -> str:
    """Return the facts that all folds share, and how often a stage was begun."""
    facts: dict[str, str] = {}
    for stage in group:
        for key, value in stage["notes"].items():
            text = _in_a_note(key, value)
            facts[key] = text if facts.get(key, text) == text else f"{spoken(key)} differs by fold"
    begun = max((int(stage.get("attempts") or 1) for stage in group), default=1)
    told = [text for text in facts.values() if text]
    return "; ".join([*told, *([f"begun {begun} times"] if begun > 1 else [])])


def _in_a_note(key: str, value: Any) -> str:
    """Return a fact in words; what is not so, or not known, is not worth one."""
    if value is None or value is False or value == []:
        return ""
    return spoken(key) if value is True else f"{spoken(key)} {in_words(value)}"
