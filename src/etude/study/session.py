"""What every stage of a run shares: the request, the record, the screen, and the rows of the final table."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from etude.core.errors import EtudeError
from etude.core.predictions import Predictions
from etude.core.scores import score_of
from etude.journal.record import RunRecord, Stage
from etude.journal.record_notes import add_tags
from etude.journal.screen import Screen
from etude.models.classifier import Classifier, ModelCard, save_model
from etude.models.modes import Mode
from etude.recipe import Recipe, changed_settings, flat
from etude.study.request import Request, default_cache


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
        rows: of the final table, a stage each.
        kept: whether the folder stays; a search for the learning rate needs one for as long as it runs only.
    """

    request: Request
    record: RunRecord
    screen: Screen
    rows: list[Row] = field(default_factory=list)
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
        """Time a stage in the record and give it a row in the final table."""
        with self.record.stage(name) as stage:
            yield stage
        self.rows.append(Row(name, stage.seconds))

    def refuse_other_images(self, fingerprint: str) -> None:
        """Refuse to go on with a run on other images than those it began with.

        Raises:
            EtudeError: with what to do.
        """
        known = (self.record.get("data") or {}).get("fingerprint")
        if self.request.resume and known is not None and known != fingerprint:
            raise EtudeError(
                f"the images of {self.request.train} have changed since {self.folder} was begun, and a resumed run "
                "would mix both: bring the old ones back, or leave out --resume and start a new run"
            )

    def begun_mode(self) -> Mode | None:
        """Return the numeric mode of the run that is resumed: another one would end with other weights."""
        told = (self.record.get("plan") or {}).get("mode") if self.request.resume else None
        return None if told is None else Mode.from_dict(told)

    def scored(self, stage: Stage, predictions: Predictions) -> None:
        """Write the validation scores of the stage that has just ended into its record and its row."""
        right, negative_loss = score_of(predictions)
        stage.score("accuracy", right)
        stage.score("log_loss", -negative_loss)
        self.rows[-1] = replace(self.rows[-1], predictions=predictions)


def open_record(folder: Path, request: Request, recipe: Recipe, kind: str = "fit") -> RunRecord:
    """Open the record of what a request asks for, new or to be gone on with."""
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
    )
    if request.resume and request.tags:  # a resumed run keeps those that it began with
        add_tags(record.folder, request.tags)
    return record
