"""``etude ablate``: every trick of a recipe with and without, over several seeds, and a recipe of what helped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from etude.core.errors import EtudeError
from etude.core.paired import FEWEST_SEEDS, paired_metric
from etude.data.scan import scan_images
from etude.journal.record import read_run
from etude.journal.runs import FILE_NAME, is_complete, working_on
from etude.journal.screen import Screen
from etude.recipe import load_recipe, resolve
from etude.recipe.load import changes_of
from etude.recipe.tricks import TRICKS, tricks_named, tricks_of
from etude.study.ablation.design import AblationPlan, Division, costs_of, design_of, divide, modes_named
from etude.study.ablation.report import Outcome, best_changes, show_outcome, show_plan, write_outcome
from etude.study.ablation.runs import Runs, judge
from etude.study.diagnostics import report, send
from etude.study.doctor.doctor import choose_subject
from etude.study.run.request import Request, claim_run_folder
from etude.study.run.session import (
    Session,
    naming_resume,
    open_record,
    refuse_other_inputs,
    refuse_other_settings,
    resumable_folder,
)
from etude.study.run.sources import inputs_of
from etude.timeline import parse_length

_SECTION = "ablation"  # of the record: what a resumed ablation continues with
_USUAL: Mapping[str, Any] = {"tricks": None, "mode": "leave-one-out", "metric": "accuracy", "seeds": 5}


def ablate(
    request: Request,
    screen: Screen,
    *,
    tricks: Sequence[str] | None = None,
    mode: str | None = None,
    seeds: int | None = None,
    budget: str | None = None,
    metric: str | None = None,
) -> Outcome:
    """Train every arm on every seed, or what is missing of them, judge the tricks, and write what was found.

    What is None is taken from the ablation that is resumed, or the usual.
    """
    request.check()
    limit = _seconds_of(budget)
    if seeds is not None and seeds < FEWEST_SEEDS:
        raise EtudeError(
            f"--seeds is {seeds}; give {FEWEST_SEEDS} or more: one seed cannot separate the effect of a trick from "
            "that of another seed"
        )
    folder, begun = _begun(request)
    given = {"tricks": tricks, "mode": mode, "metric": metric, "seeds": seeds}
    asked = {**_USUAL, **begun.get(_SECTION, {}), **{name: value for name, value in given.items() if value is not None}}
    plan = _planned(request, screen, asked, limit)
    if folder is not None and begun:
        refuse_other_inputs(folder, begun.get, plan.inputs)
    folder = folder or claim_run_folder(_named_after(request.train))
    with working_on(folder, screen.warn), naming_resume(folder):
        record = open_record(folder, request, load_recipe(request.recipe, request.settings), kind="ablate")
        session = Session(request, record, screen)
        try:
            record.set(_SECTION, _section(plan))
            record.set("inputs", plan.inputs)
            show_plan(session, plan, budget)
            outcome = _run(session, plan, begun.get("seconds", 0.0))
        except BaseException as error:
            record.close("interrupted" if isinstance(error, KeyboardInterrupt) else "failed", error)
            report(folder, screen)
            raise
        record.set("reported", False)
        record.close("finished")
        report(folder, screen)
        if request.mlflow is not None:
            send(record, request.mlflow, screen)
        record.set("reported", True)
    show_outcome(screen, outcome)
    return outcome


def _run(session: Session, plan: AblationPlan, spent: float) -> Outcome:
    runs = Runs(session, plan, spent)
    first = session.request.seed
    done = runs.over(range(first, first + plan.division.seeds))
    found = judge(plan.design, done, plan.metric)
    seeds = range(first, first + len(next(iter(done.values()))))
    outcome = Outcome(session.folder, plan, seeds, done, found, runs.failed, *best_changes(plan.recipe, found))
    write_outcome(outcome, session)
    return outcome


def _planned(request: Request, screen: Screen, asked: Mapping[str, Any], limit: float | None) -> AblationPlan:
    """Read the images, and settle tricks and arms; every arm's recipe is checked before the first is trained."""
    metric, modes = paired_metric(asked["metric"]), modes_named(asked["mode"])
    subject = choose_subject(request, screen)
    recipe, images = subject.recipe, subject.images
    assert images is not None
    tricks = tricks_of(recipe) if asked["tricks"] is None else tricks_named(asked["tricks"], recipe)
    if not tricks:
        raise EtudeError(
            f"recipe {recipe.name!r} has no trick that could be left out: name some with --tricks ({', '.join(TRICKS)})"
        )
    design = design_of(recipe, tricks, modes)
    recipes = {
        name: resolve(load_recipe(request.recipe, changes_of(request.settings) | changes), subject.facts)
        for name, changes in design.arms.items()
    }
    inputs = {**inputs_of(recipe, images, len(images)), "images": scan_images(images, screen).fingerprint}
    if "epochs" in asked:  # a resumed ablation keeps its epochs, since its runs have them
        division = Division(asked["seeds"], asked["epochs"])
    else:
        by_epochs = "finetune" in recipe.stages and recipe.timeline.length is None and not recipe.timeline.phases
        epochs = recipe.train.epochs if by_epochs else None
        division = divide(*costs_of(recipes, subject), limit, asked["seeds"], epochs)
    return AblationPlan(recipe, tricks, asked["mode"], metric, design, division, inputs, limit)


def _begun(request: Request) -> tuple[Path | None, dict[str, Any]]:
    """Return the folder and the record of the ablation that is resumed; of a new one the folder as asked."""
    if not request.resume:
        return request.out, {}
    finished = request.out is not None and (request.out / FILE_NAME).is_file() and is_complete(read_run(request.out))
    # One that has finished can have more seeds, or another metric.
    folder = request.out if finished else resumable_folder(replace(request, train=_named_after(request.train)))
    assert folder is not None
    record = read_run(folder)
    if record.get(_SECTION) is None:
        raise EtudeError(f"{folder} does not hold an ablation that has begun: give the --out of the one to resume")
    refuse_other_settings(folder, load_recipe(request.recipe, request.settings), request)
    return folder, record


def _section(plan: AblationPlan) -> dict[str, Any]:
    return {
        "tricks": [trick.name for trick in plan.tricks],
        "mode": plan.mode,
        "metric": plan.metric.name,
        "seeds": plan.division.seeds,
        "epochs": plan.division.epochs,
        "fingerprint": plan.inputs["images"],
        "arms": dict(plan.design.arms),
    }


def _named_after(train: Path) -> Path:
    """Return a path of the name that the run folder takes."""
    name = train.stem if train.suffix.lower() in (".csv", ".tsv", ".parquet") else train.resolve().name
    return Path(f"ablate-{name}")


def _seconds_of(budget: str | None) -> float | None:
    """Return a time limit in seconds."""
    if budget is None:
        return None
    try:
        amount, unit = parse_length(budget)
    except ValueError:
        amount, unit = 0.0, ""
    if unit != "s":
        raise EtudeError(f"--budget is {budget!r}; give a time such as 90s, 30m or 2h")
    return amount
