"""The search for the learning rate, inside a run and as a command of its own."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

from etude.core.context import Context
from etude.core.errors import EtudeError
from etude.core.lr_range import LrSuggestion, suggest_lr
from etude.data.split import Fold
from etude.journal.figures import save_figure
from etude.journal.figures.lr_range import lr_range_figure
from etude.journal.record import RunRecord
from etude.journal.screen import Screen
from etude.recipe import Recipe, load_recipe
from etude.recipe.timeline import maximum_of
from etude.study.run.network import fit_head_on, starting_network, training_task
from etude.study.run.policy import settle_policy
from etude.study.run.prepare import Prepared, prepare
from etude.study.run.request import Request
from etude.study.run.session import Session
from etude.study.run.sources import read_sources
from etude.training.lr_range import lr_range_test


def find_lr(prepared: Prepared, fold: Fold, policy: str, figure: Path, context: Context) -> LrSuggestion:
    """Run a range test on a fresh network and draw it; return what to set ``train.lr`` to, or raise NoDescentError.

    The test finds the rate that the timeline may reach at its peak; ``train.lr`` is that divided by what the timeline
    makes of it there, such as four where a batch four times as large scales it.
    """
    model, card = starting_network(prepared, fold, policy)
    with tempfile.TemporaryDirectory() as nowhere:
        task = training_task(prepared, fold, card, Path(nowhere))
        rates, losses = lr_range_test(model, task, context=context)
    suggestion = suggest_lr(rates, losses)
    save_figure(lr_range_figure(rates, losses, suggestion.smoothed, suggestion), figure)
    return replace(suggestion, lr=suggestion.lr * prepared.recipe.train.lr / maximum_of(prepared.recipe, "lr"))


def search(request: Request, screen: Screen, figure: Path) -> LrSuggestion:
    """Prepare the images as a run would, and search the learning rate on its first fold; only the figure is kept."""
    request.check()
    recipe = load_recipe(request.recipe, request.settings)
    refuse_idle_search(recipe, always=True)
    sources = read_sources(request, recipe, Context(screen, screen.warn, request.cache, request.seed))
    with tempfile.TemporaryDirectory() as nowhere:
        record = RunRecord.open(
            Path(nowhere) / "run", command=request.command, recipe=recipe.name, settings={}, changed={},
            seed=request.seed,
        )  # fmt: skip
        session = Session(request, record, screen, kept=False)
        prepared = prepare(session, sources)
        fold = prepared.folds[0]
        head = None
        if prepared.features is not None and prepared.recipe.augment.policy == "auto":  # to measure symmetries with
            head = fit_head_on(prepared, fold)
        policy = settle_policy(session, prepared, fold, head).policy
        return find_lr(prepared, fold, policy, figure, session.context)


def refuse_idle_search(recipe: Recipe, always: bool = False) -> None:
    """Refuse to search a learning rate that nothing would use; ``always`` where the search is the command."""
    if (always or recipe.train.find_lr) and "finetune" not in recipe.stages:
        raise EtudeError(
            f"recipe {recipe.name!r} fine-tunes no network, so it has no learning rate to search: give another --recipe"
        )
