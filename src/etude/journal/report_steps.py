"""What each step of a run bought and what it cost."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from etude.journal.charts_bars import bar_in_cell
from etude.journal.quantities import duration, in_words, percent, spoken
from etude.journal.record_read import IN_NO_STAGE, seconds_in_no_stage, was_kept
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
        gained: accuracy beyond that of what was kept before.
        saved: log loss below that of what was kept before.
        notes: further facts, as text.
        error: what ended it, or None.
        share: a bar of its share of all steps' seconds.
        kept: whether the run went on from it, on one fold or more.
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
    kept: bool = True


def steps_of(record: Mapping[str, Any]) -> list[Step]:
    """Return the run's stages in their order; a stage of several folds is one step with the mean of its scores.

    A gain is the mean over the folds of what a stage has more than what was kept of its fold before. What no stage took
    of the run's seconds is the last step.
    """
    stages: dict[str, list[Mapping[str, Any]]] = {}
    for stage in record["stages"]:
        stages.setdefault(FOLD.sub("", stage["name"]), []).append(stage)
    planned = (record.get("plan") or {}).get("expected_seconds") or {}
    state, each_builds_up = record["state"], builds_up(record)
    rest = seconds_in_no_stage(record)
    whole = rest + sum(_seconds(group) or 0.0 for group in stages.values())
    steps: list[Step] = []
    before = _Kept(record)
    for name, group in stages.items():
        step = Step(
            name=name,
            state=state_of_all(group, state),
            count=len(group),
            seconds=_seconds(group),
            planned=planned.get(name),
            accuracy=_mean(group, "accuracy"),
            log_loss=_mean(group, "log_loss"),
            gained=before.gain(group, "accuracy") if each_builds_up else None,
            saved=before.gain(group, "log_loss") if each_builds_up else None,
            notes=_notes(group),
            error=next((stage["error"] for stage in group if stage.get("error")), None),
            share=_share_bar(_seconds(group), whole),
            kept=before.goes_on_from(group),
        )
        steps.append(step)
    if rest > 0.0:
        bar = _share_bar(rest, whole)
        steps.append(Step(IN_NO_STAGE, "finished", 1, rest, None, None, None, None, None, "", None, bar))
    return steps


class _Kept:
    """The scores of what is kept of each fold, as a run goes through its stages; fold 0 is a run without folds."""

    def __init__(self, record: Mapping[str, Any]) -> None:
        self._rounds = {one["name"]: one["kept"] for one in record.get("rounds") or []}
        self._scores: dict[int, Mapping[str, Any]] = {}

    def gain(self, group: Sequence[Mapping[str, Any]], score: str) -> float | None:
        """Return what stages have more than what is kept of their folds, or less for a loss: positive is better."""
        sign = -1.0 if score == "log_loss" else 1.0
        known = [
            (value, base)
            for stage in group
            if (value := stage["scores"].get(score)) is not None and (base := self._before(stage, score)) is not None
        ]
        return sign * sum(value - base for value, base in known) / len(known) if known else None

    def goes_on_from(self, group: Sequence[Mapping[str, Any]]) -> bool:
        """Take the scores of the stages that were kept, and return whether any was."""
        kept = [stage for stage in group if self._was_kept(stage)]
        self._scores |= {_fold_of(stage): stage["scores"] for stage in kept if stage["scores"]}
        return bool(kept)

    def _was_kept(self, stage: Mapping[str, Any]) -> bool:
        """Older records do not say: rounds have a verdict of their own, and stage 2 was kept where it was better."""
        if "kept" in stage or not was_kept(stage):
            return was_kept(stage)
        if stage["name"] in self._rounds:
            return self._rounds[stage["name"]]
        if FOLD.sub("", stage["name"]) != "fine-tune":
            return True
        more = [self.gain([stage], score) for score in ("accuracy", "log_loss")]
        return more == [None, None] or next((gain for gain in more if gain), 0.0) > 0.0

    def _before(self, stage: Mapping[str, Any], score: str) -> float | None:
        """Return the score of what is kept of a stage's fold; of all folds together where it is no fold's."""
        fold = _fold_of(stage)
        own = [self._scores[fold]] if fold in self._scores else [] if fold else list(self._scores.values())
        known = [float(value) for scores in own if (value := scores.get(score)) is not None]
        return sum(known) / len(known) if known else None


def _fold_of(stage: Mapping[str, Any]) -> int:
    found = FOLD.search(stage["name"])
    return 0 if found is None else int(found[1])


def _share_bar(seconds: float | None, whole: float) -> Markup:
    if seconds is None:
        return Markup("")
    share = seconds / whole if whole else 0.0
    return bar_in_cell(share, f"{percent(share, 0)} of the time")


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
