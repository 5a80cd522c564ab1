"""What a run measures before it trains: the symmetries of its images, with the stage 1 head, and the learning rate."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from etude.core.context import Context
from etude.core.lr_range import LrSuggestion, suggest_lr
from etude.core.paired import matched_interval
from etude.data.split import Fold
from etude.inference.views import IDENTITY, SYMMETRIES
from etude.journal.figures import save_figure
from etude.journal.figures.lr_range import lr_range_figure
from etude.journal.record import RunRecord
from etude.journal.screen import Screen
from etude.models.features import extract_features
from etude.models.head import LinearHead
from etude.recipe.timeline import maximum_of
from etude.study.run.frozen import FrozenFeatures
from etude.study.run.network import fit_head_on, starting_network, training_task
from etude.study.run.plan import SYMMETRY_IMAGES
from etude.study.run.prepare import Prepared, prepare
from etude.study.run.session import Session
from etude.study.run.sources import Sources
from etude.training.lr_range import lr_range_test

_TOLERANCE = 0.15  # of the plain view's accuracy beyond chance that a view may lose, by the lower end of its interval
_PROBES = ("flip", "turn 180", "turn 90")


@dataclass(frozen=True, slots=True)
class PolicyChoice:
    """An augmentation policy and why it was chosen; ``measured`` on validation images or not."""

    policy: str
    reason: str
    measured: bool = False


def choose_policy(
    prepared: Prepared, features: FrozenFeatures, fold: Fold, head: LinearHead, context: Context
) -> PolicyChoice:
    """Return the widest policy whose symmetries leave the labels recognisable.

    The head has never seen a turned or mirrored image; where it still knows the classes, the symmetry keeps the label.
    """
    rows = fold.valid[np.sort(context.rng("symmetry").permutation(len(fold.valid))[:SYMMETRY_IMAGES])]
    truth, gather = prepared.data.labels[rows], prepared.data.build.store.gather
    right: dict[str, NDArray[np.bool_]] = {}
    for view in SYMMETRIES:
        if view == IDENTITY:
            values = features.values[rows]
        elif view.name in _PROBES:
            values = extract_features(
                features.frozen.backbone.module, lambda rows, size, view=view: view(gather(rows, size)), rows,
                features.preprocessing, context=context, precision=prepared.precision, name=f"symmetry ({view.name})",
            )  # fmt: skip
        else:
            continue
        right[view.name] = head.logits(values).argmax(1) == truth
    return decide(right, chance=float(np.bincount(truth).max() / len(truth)))


def decide(right: Mapping[str, NDArray[np.bool_]], chance: float) -> PolicyChoice:
    """Return the policy, by which of the same images the head gets right in the plain view and in each probed one.

    A symmetry is taken where the 90% interval of its gain in accuracy over the plain view does not lie below zero, and
    even its lower end is a loss of at most 15% of the plain view's accuracy beyond chance.
    """
    plain, count = right["plain"], len(right["plain"])
    measured = ", ".join(f"{name} {hits.mean():.1%}" for name, hits in right.items())
    reason = f"stage 1 accuracy on {count} validation images: {measured}"
    policy = "none"
    steps = (("flip", "photos", "mirror images"), ("turn 180", "flips", "images upside down"))
    for name, wider, named in (*steps, ("turn 90", "symmetric", "quarter turns")):
        wins, losses = int((right[name] & ~plain).sum()), int((plain & ~right[name]).sum())
        low, high = matched_interval(wins, losses, count)
        if high < 0.0:
            return PolicyChoice(policy, f"{reason}; {named} lose their class", measured=True)
        if low < -_TOLERANCE * max(0.0, float(plain.mean()) - chance):
            return PolicyChoice(policy, f"{reason}; too few to tell whether {named} keep their class", measured=True)
        policy = wider
    return PolicyChoice(policy, reason, measured=True)


def settle_policy(session: Session, prepared: Prepared, fold: Fold, head: LinearHead | None) -> PolicyChoice:
    """Return the augmentation policy that the recipe names, or the one that the images allow."""
    recipe, features = prepared.recipe, prepared.features
    asked = recipe.augment.policy
    if asked != "auto":
        return PolicyChoice(asked, "as the recipe says")
    if not recipe.changes_images:
        return PolicyChoice("none", "this recipe neither trains on images nor averages over views")
    if features is None or head is None:
        return PolicyChoice("photos", "there is no stage 1 head to measure symmetries with")
    with session.stage("symmetry"):
        return choose_policy(prepared, features, fold, head, session.context)


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


def search(sources: Sources, screen: Screen, figure: Path) -> LrSuggestion:
    """Prepare the images as a run would, and search the learning rate on its first fold; only the figure is kept."""
    request, recipe = sources.request, sources.recipe
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
            head = fit_head_on(prepared, fold.train, fold)
        policy = settle_policy(session, prepared, fold, head).policy
        return find_lr(prepared, fold, policy, figure, session.context)
