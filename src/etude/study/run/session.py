"""A run in progress: the folder that it opens or resumes, its record and screen, and the table of its stages."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from etude.core.context import Context
from etude.core.errors import EtudeError, error_text, listed
from etude.core.metrics import score_of, wilson
from etude.core.predictions import Predictions
from etude.core.text import duration
from etude.journal.record import RunRecord, Stage
from etude.journal.runs import FILE_NAME, IN_NO_STAGE, at_work, is_complete, read_record, read_run, set_tags, was_kept
from etude.journal.screen import Screen
from etude.recipe import Recipe, changed_settings, flat
from etude.study.run.budget import NO_LIMIT, Budget, budget_seconds
from etude.study.run.request import Request, run_folders

if TYPE_CHECKING:  # torch is imported when a run has begun
    from etude.inference.alignment import Reference
    from etude.models.classifier import Classifier, ModelCard
    from etude.models.modes import Mode


def resumable_folder(request: Request) -> Path:
    """Return the folder of the run to resume: ``--out``, or the newest unfinished run on these images."""
    folder = request.out or _newest_unfinished(request.train)
    if folder is None:
        raise EtudeError(
            f"no unfinished run on {request.train} stands below runs/: give its folder with --out, or start a new run "
            "without --resume"
        )
    if not (folder / "run.json").is_file():
        raise EtudeError(f"{folder} holds no run to resume: give the --out of the run that was stopped")
    record = read_run(folder)
    if record["state"] == "running":
        raise at_work(folder, record["pid"], record["host"])
    return folder


def _newest_unfinished(train: Path) -> Path | None:
    """Return the newest unfinished run below ``runs/`` that is named after the training data."""
    first = next(run_folders(train))
    name = re.compile(re.escape(first.name) + r"(-\d+)?")
    found: list[tuple[str, str]] = []
    for folder in first.parent.glob("*"):
        if name.fullmatch(folder.name):
            with suppress(EtudeError):  # one without a readable record
                content = read_run(folder)
                if not is_complete(content):
                    found.append((content.get("started", ""), folder.name))
    return first.parent / max(found)[1] if found else None


def record_to_resume(folder: Path) -> dict[str, Any]:
    """Return the record of the unfinished run in ``folder``, whose lock is held; refuse a finished one."""
    record = read_record(folder)
    if is_complete(record):
        raise EtudeError(f"{folder} is finished, so nothing is left to resume: start a new run without --resume")
    return record


def refuse_other_settings(folder: Path, recipe: Recipe, request: Request) -> None:
    """Refuse to resume a run by other settings than those it began with."""
    record = read_run(folder)
    began, asks = dict(record["settings"]), json.loads(json.dumps(flat(recipe), default=str))
    began["seed"], asks["seed"] = record["seed"], request.seed
    if data := record.get("data"):  # written once the images were split
        began |= {"folds": len(data["folds"]), "sample": data["sample"]}
        asks |= {"folds": request.folds or 1, "sample": request.sample}
    if record.get("plan"):
        began["--budget"] = (record.get("budget") or {}).get("seconds")
        asks["--budget"] = None if request.budget is None else budget_seconds(request.budget)
    if new := sorted(asks.keys() - began.keys()):
        raise EtudeError(
            f"{folder} was begun by an earlier version of etude, which did not know {listed(new, 3, str)}, and a "
            "resumed run would mix both: start a new run without --resume"
        )
    differ = [f"{key} {began.get(key)!r} (now {value!r})" for key, value in asks.items() if began.get(key) != value]
    if differ:
        raise EtudeError(
            f"{folder} was begun with {listed(differ, 3, str)}: give the same settings again to resume it, or start "
            "a new run without --resume"
        )


def refuse_other_inputs(folder: Path, begun: Callable[[str], Any], now: Mapping[str, str]) -> None:
    """Refuse to resume a run on other images, labels and so on than those it began with.

    ``begun`` returns a section of its record, or None; what an older etude did not write is not compared. ``now`` are
    fingerprints by the name of what they are of, and perhaps ``described``: the training data in words.
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
            "both: bring the old ones back, or start a new run without --resume"
        )


def clear_leftovers(folder: Path) -> None:
    """Remove what a finished run leaves: checkpoints, large and of no more use, and halves of files from a kill -9."""
    for checkpoints in [*folder.rglob("checkpoints")]:  # of folds, and of rounds with unlabelled images
        shutil.rmtree(checkpoints, ignore_errors=True)
    for half in folder.rglob(".*.tmp"):
        half.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class Session:
    """One run in progress."""

    request: Request
    record: RunRecord
    screen: Screen
    # By stage, its name in the final table and its predictions of the validation images.
    scores: dict[str, tuple[str, Predictions]] = field(default_factory=dict)
    budget: Budget = NO_LIMIT
    kept: bool = True  # whether the folder stays; a search for the learning rate needs it no longer than it runs

    @property
    def folder(self) -> Path:
        return self.record.folder

    @property
    def context(self) -> Context:
        return Context(self.screen, self.warn, self.request.cache, self.request.seed)

    def warn(self, text: str) -> None:
        self.screen.warn(text)
        self.record.warn(text)

    def save_model(self, name: str, model: Classifier, card: ModelCard) -> None:
        """Write a model into the folder ``name`` of the run, its hashes into the record."""
        from etude.models.classifier import save_model

        folder = self.folder / name
        with self.record.writing(folder / "model.safetensors", folder / "model.json"):
            save_model(folder, model, card)

    def save_validated_head(self, name: str, model: Classifier) -> None:
        from etude.models.classifier import VALIDATED, save_validated_head

        with self.record.writing(self.folder / name / VALIDATED):
            save_validated_head(self.folder / name, model)

    def save_reference(self, name: str, reference: Reference) -> None:
        from etude.inference.alignment import FILE_NAME

        with self.record.writing(self.folder / name / FILE_NAME):
            reference.save(self.folder / name)

    def stage(self, name: str, before: float = 0.0) -> AbstractContextManager[Stage]:
        return self.record.stage(name, before)

    def keep_inputs(self, now: Mapping[str, str]) -> None:
        """Write fingerprints of inputs into the record, by name; a resumed run must have begun with the same."""
        refuse_other_inputs(self.folder, self.record.get, now)
        self.record.set("inputs", {**(self.record.get("inputs") or {}), **now})

    def begun_mode(self) -> Mode | None:
        """Return the mode that a resumed run began with: another one would end with other weights."""
        from etude.models.modes import Mode

        begun = (self.record.get("plan") or {}).get("mode") if self.request.resume else None
        return None if begun is None else Mode.from_dict(begun)

    def scored(self, stage: Stage, predictions: Predictions, shown: str | None = None) -> None:
        """Show a stage's validation scores, and write them into its record and its row of the final table.

        It is named ``shown`` there.
        """
        share, negative_loss = score_of(predictions)
        stage.score("accuracy", share)
        stage.score("log_loss", -negative_loss)
        self.scores[stage.name] = shown or stage.name, predictions
        *_, right, ends, loss = _row(stage.name, None, predictions)
        took = duration(stage.seconds)
        self.screen.say(f"{stage.name}: validation accuracy {right} (95% interval {ends}), log loss {loss}, {took}")

    def show_table(self) -> None:
        """Show every stage, what no stage took, and the run's seconds, with scores."""
        self.record.write()  # which brings the seconds up to date
        scores = dict(self.scores)
        rows: list[list[str | float | None]] = []
        for entry in self.record.get("stages"):
            name, predictions = scores.pop(entry["name"], (entry["name"], None))
            rows.append(_row(name if was_kept(entry) else f"{name}: not kept", entry["seconds"], predictions))
        rows += [_row(name, None, predictions) for name, predictions in scores.values()]
        rows.append(_row(IN_NO_STAGE, self.record.get("seconds_in_no_stage"), None))
        rows.append(_row("in all", self.record.get("seconds"), None))
        columns = ["stage", "seconds", "accuracy", "95% interval", "log loss"]
        self.screen.table("What each stage took, and reached on validation images", columns, rows)


def _row(name: str, seconds: float | None, predictions: Predictions | None) -> list[str | float | None]:
    shown = None if seconds is None else f"{seconds:.1f}"
    if predictions is None or predictions.labels is None:
        return [name, shown, None, None, None]
    right, negative_loss = score_of(predictions)
    ends = " to ".join(f"{end:.1%}" for end in wilson(right * len(predictions), len(predictions)))
    return [name, shown, f"{right:.2%}", ends, f"{-negative_loss:.4f}"]


@contextmanager
def recording(session: Session) -> Generator[None]:
    """Close the record of the work inside, however it ends; a run that is stopped or fails is reported as it stands."""
    record = session.record
    try:
        yield
    except BaseException as error:
        record.close("interrupted" if isinstance(error, KeyboardInterrupt) else "failed", error)
        report(record.folder, session.screen)
        raise
    record.set("reported", False)
    record.close("finished")


def report(folder: Path, screen: Screen) -> None:
    """Write ``report.html`` of a run that has ended, however it did; one that cannot be written is a warning."""
    try:
        from etude.journal.report.report import write_report

        write_report(folder)
    except Exception as problem:  # the run's own outcome must not be lost for it
        screen.warn(f"no report: {error_text(problem)}")


@contextmanager
def naming_resume(folder: Path) -> Generator[None]:
    """Let a stop by hand or by SIGTERM say how to go on with the run in ``folder``."""
    try:
        yield
    except KeyboardInterrupt as stop:
        if (folder / FILE_NAME).is_file():
            stop.__notes__ = [f"to go on: etude resume {shlex.quote(str(folder))}"]
        raise


def open_record(
    folder: Path, request: Request, recipe: Recipe, kind: str = "fit", began: float | None = None
) -> RunRecord:
    """Open the record of what a request asks for, new or to be gone on with; its seconds count from ``began``."""
    record = RunRecord.open(
        folder, kind=kind, command=request.command, recipe=recipe.name, settings=flat(recipe),
        changed=changed_settings(recipe), seed=request.seed, resume=request.resume, parent=request.parent,
        tags=request.tags, request=request.as_record(), began=began,
    )  # fmt: skip
    if request.resume and request.tags:  # a resumed run keeps those that it began with
        set_tags(record.folder, request.tags)
    return record
