"""What every stage of a run shares: the request, the record, the screen, and the rows of the final table."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from etude.core.context import default_cache
from etude.core.errors import EtudeError
from etude.core.metrics import score_of
from etude.core.predictions import Predictions
from etude.journal.record import RunRecord, Stage
from etude.journal.runs import IN_NO_STAGE, add_tags, at_work, is_complete, read_record, read_run, was_kept
from etude.journal.screen import Screen
from etude.models.classifier import Classifier, ModelCard, save_model
from etude.models.modes import Mode
from etude.recipe import Recipe, changed_settings, flat
from etude.study.run.request import Request, run_folders


def resumable_folder(request: Request) -> Path:
    """Return the folder of the run to go on with: ``--out``, or the newest unfinished run on these images.

    Raises:
        EtudeError: there is none, or another process is still at work on it.
    """
    if request.out is not None:
        folder = request.out
        if not (folder / "run.json").is_file():
            raise EtudeError(f"{folder} holds no run to resume: give the --out of the run that was stopped")
    else:
        runs = [(folder, _content(folder)) for folder in _runs_on(request.train)]
        unfinished = [folder for folder, content in runs if content and not is_complete(content)]
        if not unfinished:
            raise EtudeError(
                f"no unfinished run on {request.train} stands below runs/: give its folder with --out, or leave out "
                "--resume to start a new run"
            )
        folder = unfinished[-1]
    record = read_run(folder)
    if record["state"] == "running":
        raise at_work(folder, record["pid"], record["host"])
    return folder


def record_to_resume(folder: Path) -> dict[str, Any]:
    """Return the record of the run in ``folder``, whose lock is held.

    Raises:
        EtudeError: nothing is left to do.
    """
    record = read_record(folder)
    if is_complete(record):
        raise EtudeError(f"{folder} is finished, so nothing is left to resume: leave out --resume for a new run")
    return record


def refuse_other_settings(folder: Path, recipe: Recipe, request: Request) -> None:
    """Refuse to go on with a run by other settings than those it began with.

    Raises:
        EtudeError: with the settings that differ.
    """
    record = read_run(folder)
    began, asks = dict(record["settings"]), json.loads(json.dumps(flat(recipe), default=str))
    began["seed"], asks["seed"] = record["seed"], request.seed
    if data := record.get("data"):  # written once the images were split
        began |= {"folds": len(data["folds"]), "sample": data["sample"]}
        asks |= {"folds": request.folds or 1, "sample": request.sample}
    if new := sorted(asks.keys() - began.keys()):
        raise EtudeError(
            f"{folder} was begun by an earlier version of etude, which did not know {listed_plainly(new)}, and a "
            "resumed run would mix both: leave out --resume to start a new run"
        )
    differ = [f"{key} {began.get(key)!r} (now {value!r})" for key, value in asks.items() if began.get(key) != value]
    if differ:
        raise EtudeError(
            f"{folder} was begun with {listed_plainly(differ)}: give the same settings again to resume it, or leave "
            "out --resume to start a new run"
        )


def refuse_other_inputs(folder: Path, begun: Callable[[str], Any], now: Mapping[str, str]) -> None:
    """Refuse to go on with a run on other images, labels and so on than those it began with.

    Args:
        folder: of the run.
        begun: returns a section of its record, or None; what an older etude did not write is not compared.
        now: fingerprints by the name of what they are of, and perhaps ``described``: the training data in words.

    Raises:
        EtudeError: with what has changed.
    """
    data, unlabelled = begun("data") or begun("ablation") or {}, begun("unlabelled") or {}
    known = {"images": data.get("fingerprint"), "unlabelled images": unlabelled.get("fingerprint")}
    known |= begun("inputs") or {}
    other = [name for name, value in now.items() if name != "described" and known.get(name) not in (None, value)]
    if other:
        was, described = known.get("described"), now.get("described")
        words = f" (with {was}, and now there is {described})" if was and described and was != described else ""
        raise EtudeError(
            f"the {' and the '.join(other)} have changed since {folder} was begun{words}, and a resumed run would mix "
            "both: bring the old ones back, or leave out --resume and start a new run"
        )


def clear_leftovers(folder: Path) -> None:
    """Remove what a finished run leaves: checkpoints, large and of no more use, and halves of files from a kill -9."""
    for checkpoints in [*folder.rglob("checkpoints")]:  # of folds, and of rounds with unlabelled images
        shutil.rmtree(checkpoints, ignore_errors=True)
    for half in folder.rglob(".*.tmp"):
        half.unlink(missing_ok=True)


def listed_plainly(parts: list[str], most: int = 3) -> str:
    """Join parts for a sentence, cut after ``most``.

    >>> listed_plainly(["a", "b", "c", "d"])
    'a, b, c and 1 more'
    """
    rest = len(parts) - most
    return ", ".join(parts[:most]) + (f" and {rest} more" if rest > 0 else "")


def _runs_on(train: Path) -> list[Path]:
    """Return the folders below ``runs/`` that are named after the training data, the one begun last at the end."""
    first = next(run_folders(train))
    name = re.compile(re.escape(first.name) + r"(-\d+)?")
    return sorted(
        (folder for folder in first.parent.glob("*") if name.fullmatch(folder.name)),
        key=lambda folder: (_content(folder).get("started", ""), folder.name),
    )


def _content(folder: Path) -> dict[str, Any]:
    """Return the run's record; nothing where it holds no readable one."""
    with suppress(EtudeError):
        return read_run(folder)
    return {}


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
