"""``etude ablate``: every trick of a recipe with and without, over several seeds, and a recipe of what helped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from etude.core.errors import EtudeError
from etude.core.metrics import Metric
from etude.core.paired import FEWEST_SEEDS, paired_metric
from etude.data.scan import scan_images
from etude.journal.record import RunRecord, read_run
from etude.journal.runs import FILE_NAME, is_complete, working_on
from etude.journal.screen import Screen
from etude.recipe import Recipe, load_recipe, resolve
from etude.recipe.load import changes_of
from etude.recipe.tricks import TRICKS, Trick, tricks_named, tricks_of
from etude.study.ablation.design import Design, Division, costs_of, design_of, divide, modes_named
from etude.study.ablation.report import Outcome, show_outcome, show_plan, write_outcome
from etude.study.ablation.runs import Runs, judge
from etude.study.diagnostics import report, send
from etude.study.doctor.doctor import Subject, choose_subject
from etude.study.run.request import Request, claim_run_folder
from etude.study.run.session import (
    naming_resume,
    open_record,
    refuse_other_inputs,
    refuse_other_settings,
    resumable_folder,
)
from etude.study.run.sources import inputs_of
from etude.timeline import parse_length

_SECTION = "ablation"  # of the record: what a resumed ablation goes on with
_SEEDS = 5
_MODE = "leave-one-out"
_METRIC = "accuracy"


@dataclass(frozen=True, slots=True)
class AblationRequest:
    """The arguments of ``etude ablate``; what is None is taken from the ablation that is resumed, or the usual.

    Args:
        request: images, recipe, first seed, folders and whether to resume.
        tricks: names; all that the recipe has when None.
        mode: leave-one-out (the usual), add-one-in or both.
        seeds: how many; 5 when None.
        budget: of all runs together, such as ``"30m"``.
        metric: that decides, a mean over images; accuracy when None.
    """

    request: Request
    tricks: Sequence[str] | None = None
    mode: str | None = None
    seeds: int | None = None
    budget: str | None = None
    metric: str | None = None


@dataclass(frozen=True, slots=True)
class _Begun:
    """The ablation that is resumed.

    Args:
        folder: where it stands; for a new one as asked.
        section: what it began with; empty for a new one.
        seconds: that it took so far.
    """

    folder: Path | None
    section: Mapping[str, Any]
    seconds: float


@dataclass(frozen=True, slots=True)
class _Prepared:
    """What is known before the first run.

    Args:
        recipe: resolved for the images.
        recipes: of the arms, resolved.
        inputs: fingerprints of images, labels and so on.
    """

    begun: _Begun
    recipe: Recipe
    tricks: tuple[Trick, ...]
    mode: str
    metric: Metric
    design: Design
    recipes: Mapping[str, Recipe]
    subject: Subject
    inputs: Mapping[str, str]


def ablate(asked: AblationRequest, screen: Screen) -> Outcome:
    """Train every arm on every seed, or what is missing of them, judge the tricks, and write what was found.

    Raises:
        EtudeError: whatever the user can mend, in one sentence; runs that were finished before are kept.
    """
    asked.request.check()
    budget = _seconds_of(asked.budget)
    if asked.seeds is not None and asked.seeds < FEWEST_SEEDS:
        raise EtudeError(
            f"--seeds is {asked.seeds}; give {FEWEST_SEEDS} or more: one seed cannot tell what a trick does from what "
            "another seed would do"
        )
    prepared = _prepare(asked, screen)
    division = _division(asked, prepared, budget)
    request, folder = asked.request, prepared.begun.folder or claim_run_folder(_named_after(asked.request.train))
    with working_on(folder, screen.warn), naming_resume(folder):
        record = open_record(folder, request, load_recipe(request.recipe, request.settings), kind="ablate")
        try:
            record.set(_SECTION, _section(prepared, division))
            record.set("inputs", prepared.inputs)
            show_plan(screen, request, prepared.design, prepared.tricks, prepared.mode, division, asked.budget)
            outcome = _run(prepared, division, budget, request, record, screen)
        except BaseException as error:
            record.close("interrupted" if isinstance(error, KeyboardInterrupt) else "failed", error)
            report(record.folder, screen)
            raise
        record.set("reported", False)
        record.close("finished")
        report(record.folder, screen)
        if request.mlflow is not None:
            send(record, request.mlflow, screen)
        record.set("reported", True)
    show_outcome(screen, outcome)
    return outcome


def _run(
    prepared: _Prepared, division: Division, budget: float | None, request: Request, record: RunRecord, screen: Screen
) -> Outcome:
    more = {} if division.epochs is None else {"train.epochs": division.epochs}
    runs = Runs(
        # The ablation is tagged and sent as a whole, when all of its runs have ended.
        replace(request, resume=False, tags=(), mlflow=None), record, screen, prepared.design, prepared.metric,
        more=more, budget=budget, spent=prepared.begun.seconds,
    )  # fmt: skip
    seeds = range(request.seed, request.seed + division.seeds)
    done = runs.over(seeds)
    count = len(next(iter(done.values())))
    outcome = Outcome(
        folder=record.folder,
        metric=prepared.metric,
        seeds=tuple(seeds[:count]),
        epochs=division.epochs,
        design=prepared.design,
        runs=done,
        found=judge(prepared.design, done, prepared.metric),
        failed=runs.failed,
    )
    write_outcome(outcome, request, prepared.recipe, record)
    return outcome


def _prepare(asked: AblationRequest, screen: Screen) -> _Prepared:
    """Read the images, and settle tricks and arms; every arm's recipe is checked before the first is trained."""
    request, begun = asked.request, _begun(asked.request)
    known = begun.section
    metric = paired_metric(asked.metric or known.get("metric") or _METRIC)
    mode = asked.mode or known.get("mode") or _MODE
    modes = modes_named(mode)
    subject = choose_subject(request.recipe, request.settings, request, screen)
    tricks = _tricks(asked.tricks or known.get("tricks"), subject.recipe)
    design = design_of(subject.recipe, tricks, modes)
    arms = {arm.name: load_recipe(request.recipe, changes_of(request.settings) | arm.changes) for arm in design.arms}
    recipes = {name: resolve(recipe, subject.facts) for name, recipe in arms.items()}
    assert subject.images is not None
    fingerprint = scan_images(subject.images, screen).fingerprint
    inputs = {**inputs_of(subject.recipe, subject.images, len(subject.images)), "images": fingerprint}
    if begun.folder is not None and known:
        refuse_other_inputs(begun.folder, read_run(begun.folder).get, inputs)
    return _Prepared(begun, subject.recipe, tricks, mode, metric, design, recipes, subject, inputs)


def _begun(request: Request) -> _Begun:
    """Return what is known of the ablation that is resumed.

    Raises:
        EtudeError: there is none, another process is at work on it, or it was begun with other settings.
    """
    if not request.resume:
        return _Begun(request.out, {}, 0.0)
    finished = request.out is not None and (request.out / FILE_NAME).is_file() and is_complete(read_run(request.out))
    # One that has finished can have more seeds, or another metric.
    folder = request.out if finished else resumable_folder(replace(request, train=_named_after(request.train)))
    assert folder is not None
    content = read_run(folder)
    if content.get(_SECTION) is None:
        raise EtudeError(f"{folder} is no ablation that has begun: give the --out of the one to resume")
    refuse_other_settings(folder, load_recipe(request.recipe, request.settings), request)
    return _Begun(folder, content[_SECTION], content["seconds"])


def _tricks(names: Sequence[str] | None, recipe: Recipe) -> tuple[Trick, ...]:
    if names is not None:
        return tricks_named(names, recipe)
    if not (tricks := tricks_of(recipe)):
        raise EtudeError(
            f"recipe {recipe.name!r} has no trick that could be left out: name some with --tricks ({', '.join(TRICKS)})"
        )
    return tricks


def _division(asked: AblationRequest, prepared: _Prepared, budget: float | None) -> Division:
    """Return how many epochs and seeds there are; a resumed ablation keeps its epochs, since its runs have them."""
    known = prepared.begun.section
    seeds = asked.seeds or known.get("seeds") or _SEEDS
    if known:
        return Division(seeds, known["epochs"], None)
    costs, once = costs_of(prepared.recipes, prepared.subject)
    own = prepared.recipe
    by_epochs = "finetune" in own.stages and own.timeline.length is None and not own.timeline.phases
    return divide(costs, once, budget, seeds, own.train.epochs if by_epochs else None)


def _section(prepared: _Prepared, division: Division) -> dict[str, Any]:
    return {
        "tricks": [trick.name for trick in prepared.tricks],
        "mode": prepared.mode,
        "metric": prepared.metric.name,
        "seeds": division.seeds,
        "epochs": division.epochs,
        "fingerprint": prepared.inputs["images"],
        "arms": {arm.name: arm.changes for arm in prepared.design.arms},
    }


def _named_after(train: Path) -> Path:
    """Return a path of the name that the run folder takes."""
    name = train.stem if train.suffix.lower() in (".csv", ".tsv", ".parquet") else train.resolve().name
    return Path(f"ablate-{name}")


def _seconds_of(budget: str | None) -> float | None:
    """Return a time limit in seconds.

    Raises:
        EtudeError: it is no time.
    """
    if budget is None:
        return None
    try:
        amount, unit = parse_length(budget)
    except ValueError:
        amount, unit = 0.0, ""
    if unit != "s":
        raise EtudeError(f"--budget is {budget!r}; give a time such as 90s, 30m or 2h")
    return amount
