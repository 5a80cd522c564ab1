"""How a run begins: what can be refused before torch is imported is refused, and the run's folder is opened."""

from __future__ import annotations

import time
from pathlib import Path

from etude.core.context import Context
from etude.core.errors import EtudeError, listed
from etude.functional.augment import policy_named
from etude.journal.record import RunRecord
from etude.journal.runs import working_on
from etude.journal.screen import Screen
from etude.recipe import Recipe, load_recipe, timeline_of
from etude.recipe.resolve import weights_file
from etude.recipe.settings import changed
from etude.study.run.budget import NO_LIMIT, Budget, budget_seconds
from etude.study.run.request import Options, Request, claim_run_folder
from etude.study.run.session import (
    Session,
    clear_leftovers,
    naming_resume,
    open_record,
    record_to_resume,
    recording,
    refuse_other_inputs,
    refuse_other_settings,
    report,
    resumable_folder,
)
from etude.study.run.sources import Sources, inputs_of, read_sources

_OF_TRAINING = ("train.", "timeline.", "plateau.", "augment.mixup", "augment.cutmix")
# Those that are not of fine-tuning alone; --size sets the sizes with that of the features.
_OF_FROZEN = {"train.precision", "train.memory_format", "train.threads", "train.find_lr"}
_OF_FROZEN |= {"timeline.start_size", "timeline.final_size"}
_FOR_OTHERS = 180.0  # seconds of a budget, from which further backbones are worth loading


def checked_recipe(options: Options) -> Recipe:
    """Return the recipe that is asked for; EtudeError for any mistake that shows before images are read."""
    options.check()
    recipe = load_recipe(options.recipe, options.settings)
    timeline_of(recipe)
    policy_named("none" if recipe.augment.policy == "auto" else recipe.augment.policy)
    weights_file(recipe.model.weights)
    return recipe


def checked_sources(request: Request, screen: Screen) -> Sources:
    """Return the images of a request, and its recipe, with all that can be refused before pixels are read refused."""
    recipe = checked_recipe(request)
    return read_sources(request, recipe, Context(screen, screen.warn, request.cache, request.seed))


def fit(request: Request, screen: Screen, began: float | None = None) -> Path:
    """Run the whole job, or go on with one that was stopped, and return the run's folder.

    ``began`` is when the command began, by ``time.monotonic``.
    """
    began = time.monotonic() if began is None else began
    recipe = checked_recipe(request)
    if request.budget is not None and budget_seconds(request.budget) >= _FOR_OTHERS:
        recipe = changed(recipe, {"model.others": ("auto",)}, unset_only=True)
    refuse_idle_search(recipe)
    refuse_mismatch(request, recipe)
    early_warnings: list[str] = []
    if idle := idle_settings(request, recipe):
        early_warnings.append(f"recipe {recipe.name!r} fine-tunes no network: changing {listed(idle)} has no effect")
    sources = read_sources(request, recipe, Context(screen, early_warnings.append, request.cache, request.seed))
    inputs = inputs_of(recipe, sources.labelled, sources.train_count)
    folder = resumable_folder(request) if request.resume else request.out or claim_run_folder(request.train)
    with working_on(folder, early_warnings.append), naming_resume(folder):
        state = None
        if request.resume:
            begun = record_to_resume(folder)
            refuse_other_settings(folder, recipe, request)
            refuse_other_inputs(folder, begun.get, inputs)
            state = begun["state"]
        if state == "finished":
            session = Session(request, RunRecord.reopen(folder), screen)
        else:
            record = open_record(folder, request, recipe, began=began)
            session = Session(request, record, screen, budget=_budget(request, record))
            with recording(session):
                with session.stage("start-up", before=time.monotonic() - began):
                    session.keep_inputs(inputs)
                    from etude.study.run.job import Job  # and torch with it
                    from etude.study.run.prepare import prepare
                for text in early_warnings:
                    session.warn(text)
                Job(session, prepare(session, sources)).run()
        clear_leftovers(folder)  # not before: a run killed in between would have to train again
        report(folder, screen)
        from etude.study.diagnostics import export_run

        export_run(session)
        session.record.set("reported", True)
    return folder


def _budget(request: Request, record: RunRecord) -> Budget:
    """Return the run's budget, of which a resumed run has used a part."""
    if request.budget is None:
        return NO_LIMIT
    return Budget(budget_seconds(request.budget), time.monotonic() - record.get("seconds"))


def refuse_mismatch(request: Request, recipe: Recipe) -> None:
    """Refuse images and teachers that the recipe does not use, and a recipe that lacks what it is about."""
    settings = recipe.unlabeled
    if request.unlabeled is not None and settings.method == "off" and not request.teachers:
        raise EtudeError("--unlabeled gives images that unlabeled.method=off leaves unused: leave out one of the two")
    if settings.is_on and request.unlabeled is None and not (settings.use_test and request.test is not None):
        raise EtudeError(
            f"recipe {recipe.name!r} learns from images without labels, and there are none: give them with --unlabeled"
            + ("" if settings.use_test else "; unlabeled.use_test=false leaves the test images out")
        )
    if settings.method == "online" and "finetune" not in recipe.stages:
        raise EtudeError(
            f"recipe {recipe.name!r} fine-tunes no network that online pseudo-labels could teach: "
            "--set unlabeled.method=head works on a head alone"
        )
    if recipe.distill.model_fields_set and not request.teachers:
        raise EtudeError(f"recipe {recipe.name!r} learns from a teacher, and there is none: give a run with --teacher")
    if request.teachers and "finetune" not in recipe.stages:
        raise EtudeError(f"recipe {recipe.name!r} fine-tunes no network that --teacher could teach: give another one")
    if request.teachers and settings.is_on:
        raise EtudeError(
            f"--teacher and unlabeled.method={settings.method} both say what unlabelled images are: give --recipe "
            "distill, or leave --teacher out"
        )
    for path in request.teachers:
        if not path.exists():
            raise EtudeError(f"--teacher {path} does not exist: give the folder of a run, or a file of probabilities")


def idle_settings(request: Request, recipe: Recipe) -> list[str]:
    """Return the settings of fine-tuning that were given for a recipe that fine-tunes nothing."""
    given = request.changes if "finetune" not in recipe.stages else {}
    return [name for name in given if name.startswith(_OF_TRAINING) and name not in _OF_FROZEN]


def refuse_idle_search(recipe: Recipe, always: bool = False) -> None:
    """Refuse to search a learning rate that nothing would use; ``always`` where the search is the command."""
    if (always or recipe.train.find_lr) and "finetune" not in recipe.stages:
        raise EtudeError(
            f"recipe {recipe.name!r} fine-tunes no network, so it has no learning rate to search: give another --recipe"
        )
