"""What every stage of a run shares: the request, the record, the screen, and the rows of the final table."""

from __future__ import annotations

import shlex
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from etude.core.predictions import Predictions
from etude.core.scores import score_of
from etude.journal.record import RunRecord, Stage
from etude.journal.record_notes import add_tags
from etude.journal.record_read import IN_NO_STAGE, was_kept
from etude.journal.screen import Screen
from etude.models.classifier import Classifier, ModelCard, save_model
from etude.models.modes import Mode
from etude.recipe import Recipe, changed_settings, flat
from etude.study.request import Request, default_cache
from etude.study.resume import refuse_other_inputs


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the final table.

    Args:
        stage: its name.
        seconds: that it took, or None.
        predictions: labelled validation predictions to score, or None.
    """

    stage: str
    seconds: float | None
    predictions: Predictions | None = None


@dataclass(frozen=True, slots=True)
class Session:
    """One run in progress.

    Args:
        scores: what stages predict of the validation images, and how the final table names them.
        kept: whether the folder stays; a search for the learning rate needs one for as long as it runs only.
    """

    request: Request
    record: RunRecord
    screen: Screen
    scores: dict[str, Row] = field(default_factory=dict)
    kept: bool = True

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return self.record.folder

    @property
    def cache(self) -> Path:
        """The folder of stores and features."""
        return self.request.cache or default_cache()

    def warn(self, text: str) -> None:
        """Show a warning and keep it in the record."""
        self.screen.warn(text)
        self.record.warn(text)

    def save_model(self, name: str, model: Classifier, card: ModelCard) -> None:
        """Write a model into the folder ``name`` of the run, its hashes into the record."""
        folder = self.folder / name
        with self.record.writing(folder / "model.safetensors", folder / "model.json"):
            save_model(folder, model, card)

    @contextmanager
    def stage(self, name: str) -> Generator[Stage]:
        """Time a stage in the record, and so in the final table."""
        with self.record.stage(name) as stage:
            yield stage

    def keep_inputs(self, now: Mapping[str, str]) -> None:
        """Write fingerprints of inputs into the record, by name; a resumed run must have begun with the same.

        Raises:
            EtudeError: with what has changed.
        """
        refuse_other_inputs(self.folder, self.record.get, now)
        self.record.set("inputs", {**(self.record.get("inputs") or {}), **now})

    def begun_mode(self) -> Mode | None:
        """Return the numeric mode of the run that is resumed: another one would end with other weights."""
        told = (self.record.get("plan") or {}).get("mode") if self.request.resume else None
        return None if told is None else Mode.from_dict(told)

    def scored(self, stage: Stage, predictions: Predictions, shown: str | None = None) -> None:
        """Write the validation scores of a stage into its record and its row, ``shown`` by another name perhaps."""
        right, negative_loss = score_of(predictions)
        stage.score("accuracy", right)
        stage.score("log_loss", -negative_loss)
        self.scores[stage.name] = Row(shown or stage.name, None, predictions)

    def table(self) -> list[Row]:
        """Return the final table: every stage of the record, what no stage took, and the whole of the run's seconds."""
        self.record.write()  # which brings the seconds up to date
        stages, scores = self.record.get("stages"), dict(self.scores)
        rows: list[Row] = []
        for entry in stages:
            row = scores.pop(entry["name"], Row(entry["name"], None))
            name = row.stage if was_kept(entry) else f"{row.stage}: not kept"
            rows.append(replace(row, stage=name, seconds=entry["seconds"]))
        rest, whole = self.record.get("seconds_in_no_stage"), self.record.get("seconds")
        return [*rows, *scores.values(), Row(IN_NO_STAGE, rest), Row("in all", whole)]


@contextmanager
def naming_resume(folder: Path) -> Generator[None]:
    """Let a stop by hand or by SIGTERM say how to go on with the run in ``folder``."""
    try:
        yield
    except KeyboardInterrupt as stop:
        stop.__notes__ = [f"to go on, give the same command with --resume --out {shlex.quote(str(folder))}"]
        raise


def open_record(
    folder: Path, request: Request, recipe: Recipe, kind: str = "fit", began: float | None = None
) -> RunRecord:
    """Open the record of what a request asks for, new or to be gone on with; its seconds count from ``began``."""
    record = RunRecord.open(
        folder,
        kind=kind,
        command=request.command,
        recipe=recipe.name,
        settings=flat(recipe),
        changed=changed_settings(recipe),
        seed=request.seed,
        resume=request.resume,
        parent=request.parent,
        tags=request.tags,
        began=began,
    )
    if request.resume and request.tags:  # a resumed run keeps those that it began with
        add_tags(record.folder, request.tags)
    return record
