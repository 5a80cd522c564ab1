"""The main job: from a request to a run folder, stage by stage, all of it in the journal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from etude.core.lr_range import NoDescentError
from etude.core.metrics import adjusted_error, score_of
from etude.core.seeds import derive_seed
from etude.core.text import plain_name
from etude.data.split import Fold
from etude.functional.augment import policy_named
from etude.functional.transforms import code_digest
from etude.journal.figures import save_figure
from etude.journal.figures.timeline import timeline_figure
from etude.journal.record import Stage
from etude.models.device import best_device
from etude.models.features import extract_views
from etude.models.head import LinearHead
from etude.recipe import Recipe
from etude.recipe.resolve import supervised_recipe
from etude.recipe.timeline import resolved_run, timeline_of
from etude.recipe.tricks import changed
from etude.study.diagnostics import write_diagnostics
from etude.study.run.blend import Kept, blend_of
from etude.study.run.finish import finish
from etude.study.run.measure import find_lr, settle_policy
from etude.study.run.network import (
    FINE_TUNED,
    NO_EXTRAS,
    Candidate,
    better,
    finetune_candidate,
    fit_head_on,
    head_candidate,
)
from etude.study.run.prepare import Prepared
from etude.study.run.session import Session
from etude.study.unlabelled.pool import Pool, pool_of
from etude.study.unlabelled.rounds import Rounds
from etude.study.unlabelled.teachers import open_teachers
from etude.timeline import Timeline, timeline_to_tree
from etude.training.batches import changes_of
from etude.training.task import DivergedError

_NETWORKS = 4  # at most, where a budget has time for them
_LIKE_THE_LAST = 0.9  # of the time that the network before took, which the next one should have
_LEAST_STEPS = 0.8  # of those of the first network, of a further one that was trained as it should be
_LEAST_TRAINING = 5.0  # seconds


@dataclass(frozen=True, slots=True)
class _Shared:
    """What the networks of a fold have in common."""

    fold: Fold
    policy: str
    folder: Path
    suffix: str  # of the fold's stages
    head: LinearHead | None  # that they start from


class Job:
    """Training, on every fold, and the predictions."""

    def __init__(self, session: Session, prepared: Prepared) -> None:
        limited = session.budget.is_limited
        self.session, self.prepared = session, replace(prepared, left=self._time_to_train if limited else None)
        self.pool: Pool | None = None
        self.extras = NO_EXTRAS
        self._after_training = self._expected_after_training(prepared.recipe.predict.tta) if limited else 0.0
        self._kept_back = 0.0  # seconds of the budget that are not for the training that runs

    @property
    def recipe(self) -> Recipe:
        """The resolved recipe; a learning rate that was searched for takes its place there."""
        return self.prepared.recipe

    def run(self) -> None:
        folds = self.prepared.folds
        self.pool = pool_of(self.session, self.prepared)
        if (teachers := open_teachers(self.session, self.prepared)) is not None:
            self.extras = teachers.distilled(self.pool)
        self._add_views(folds)
        kept = self._in_time([self._train(fold, number, len(folds)) for number, fold in enumerate(folds, 1)])
        kept = finish(self.session, kept, self.prepared)
        write_diagnostics(self.session, self.prepared, kept)
        self.session.show_table()

    def _train(self, fold: Fold, number: int, count: int) -> Kept:
        """Train the recipe's stages on one fold; return what is kept of them, which is saved."""
        session = self.session
        if session.budget.is_limited:
            left = session.budget.left()
            self._kept_back = left - (left - self._after_training) / (count - number + 1)
        suffix = f" (fold {number}/{count})" if count > 1 else ""
        name = f"fold-{number}" if count > 1 else "."
        folder = session.folder / name
        candidates: list[Candidate] = []
        head = None
        if self.prepared.features is not None:
            head, candidate = self._headed(self.prepared, fold, f"head{suffix}")
            # So that a run killed in stage 2 can already predict.
            session.save_model(name, candidate.model, candidate.card)
            candidates.append(candidate)
        for features in self.prepared.others:
            stage, prepared = f"head of {features.frozen.name}", replace(self.prepared, features=features)
            candidates.append(self._headed(prepared, fold, f"{stage}{suffix}", stage)[1])
        policy, method = self._settled_policy(fold, head), self.recipe.unlabeled.method
        if self.pool is not None and method == "head":
            if head is None:
                session.warn(
                    "unlabelled images teach nothing: unlabeled.method=head needs a head on pretrained features"
                )
            else:
                rounds = Rounds(session, self.prepared, fold, self.pool, policy, folder, suffix)
                candidates[0] = rounds.run(candidates[0])
        shared = _Shared(fold, policy, folder, suffix, head)
        with session.budget.finishing():
            self._kept_back += (rounds := self._seconds_of_rounds)
            trained = self._network(1, shared)
            self._kept_back -= rounds
            candidates += [] if trained is None else [trained[0]]
            best = better(candidates)
            others, teachers = [one for one in candidates if one is not best], list[Candidate]()
            if self.pool is not None and self.recipe.unlabeled.trains_networks and not session.budget.enough:
                session.save_model(name, best.model, best.card)
                teachers.append(best)
                best = Rounds(session, self.prepared, fold, self.pool, policy, folder, suffix).run(best)
            if self.recipe.predict.blend == "never":
                others = []
            seeded = replace(session.context, seed=fold.seed)
            blend = blend_of(replace(best, folder=name), [replace(one, folder=name) for one in others], seeded)
            blend = blend.with_tta(self.recipe.predict.tta, policy)
            blend.save(session)
            if trained is not None:
                candidate, stage = trained
                is_used = any(one.model is candidate.model for one in blend.members)
                stage.keep(is_used or any(one.model is candidate.model for one in teachers))
                more = self._further(shared, candidate, stage) if is_used else []
                if self.recipe.train.networks > 1 and not more:
                    session.warn(f"no further networks{suffix}: {plain_name(FINE_TUNED)} is not part of what is kept")
                blend = blend.with_further([replace(one, folder=name) for one in more])
        if session.budget.enough:
            session.warn("the budget was ended by hand: the run ends with what it has")
        if len(candidates) > 1 or blend.further:
            session.screen.say(f"kept{suffix}: {blend.described}")
        return blend

    def _network(self, number: int, shared: _Shared, least: float = _LEAST_TRAINING) -> tuple[Candidate, Stage] | None:
        """Fine-tune one of a fold's networks, each from a seed of its own; None where no time is left for it."""
        if "finetune" not in self.recipe.stages:
            return None
        name = FINE_TUNED if number == 1 else f"fine-tune {number}"
        own = shared.folder if number == 1 else shared.folder / name.replace(" ", "-")
        begun, only = (
            self.session.request.resume and (own / "checkpoints").is_dir(),
            number == 1 and shared.head is None,
        )
        if self.session.budget.is_limited and not begun and not only and self._time_to_train() < least:
            return None
        seed = shared.fold.seed if number == 1 else derive_seed(shared.fold.seed, "network", number)
        alone = replace(shared, fold=replace(shared.fold, seed=seed), folder=own)
        trained = self._finetuned(alone, name, only)
        if trained is not None:
            self._kept_back += self._after_training / len(self.prepared.folds)  # each predicts too
        return trained

    def _further(self, shared: _Shared, first: Candidate, stage: Stage) -> list[Candidate]:
        """Fine-tune the recipe's further networks, or as many as the budget has time for.

        They share the weight that the ``first`` one got on the validation images, and so may learn from these too.
        """
        found, fold, longer = list[Candidate](), shared.fold, 1.0
        if self._refits and not any(phase.plateau for phase in timeline_of(self.recipe).phases):
            whole = replace(fold, train=np.sort(np.concatenate([fold.train, fold.valid])))
            shared, longer = replace(shared, fold=whole), len(whole.train) / len(fold.train)
        for number in range(2, 1 + self._most_networks):
            trained = self._network(number, shared, _LIKE_THE_LAST * stage.seconds * longer)
            if trained is None:
                break
            network, own = trained
            own.keep(is_sound := _is_sound(network, first))
            if is_sound:
                found.append(network)
            else:
                self.session.warn(
                    f"{network.stage}{shared.suffix} is left out: it was ended early, or is worse than the first"
                )
        return found

    @property
    def _most_networks(self) -> int:
        asked, settings = self.recipe.train.networks, self.session.request.changes
        open_ended = self.session.budget.is_limited and "train.networks" not in settings
        with_rounds = self.pool is not None and self.recipe.unlabeled.trains_networks
        return 1 if with_rounds else max(asked, _NETWORKS) if open_ended else asked

    @property
    def _seconds_of_rounds(self) -> float:
        """Seconds that trainings with unlabelled images are expected to take on this fold."""
        plan, folds = self.prepared.plan, len(self.prepared.folds)
        return 0.0 if plan is None or self.pool is None else plan.seconds_of_rounds / folds

    def _time_to_train(self) -> float:
        """Return the seconds of the budget left to train on this fold, so that there is time to predict."""
        return self.session.budget.left() - self._kept_back

    def _expected_after_training(self, views: int) -> float:
        """Return the seconds that views and predictions will take, by the time that the features took."""
        record, plan = self.session.record, self.prepared.plan
        assert plan is not None
        expected, entries = record.get("plan")["expected_seconds"], {one["name"]: one for one in record.get("stages")}
        features, slower = entries.get("features"), 1.0
        if features is not None and not features["notes"].get("reused"):
            slower = max(1.0, features["seconds"] / max(expected["features"], 1.0))
        return slower * plan.seconds_after_training(views)

    def _in_time(self, kept: list[Kept]) -> list[Kept]:
        """Return the models with as many views of an image as the budget has time for."""
        views, budget = self.recipe.predict.tta, self.session.budget
        models = max(len(fold.members) + len(fold.further) for fold in kept)
        while budget.is_limited and views > 1 and models * self._expected_after_training(views) > budget.left():
            views //= 2
        if views == self.recipe.predict.tta:
            return kept
        fewer = [fold.with_tta(views, fold.main.card.policy) for fold in kept]
        for fold in fewer:
            fold.save(self.session)
        return fewer

    def _headed(
        self, prepared: Prepared, fold: Fold, title: str, stage_name: str = "head"
    ) -> tuple[LinearHead, Candidate]:
        """Fit a head on a frozen backbone's features."""
        with self.session.stage(title) as stage:
            head = fit_head_on(prepared, fold.train, fold)
            on_all = None
            if self._refits:
                rows = np.sort(np.concatenate([fold.train, fold.valid]))
                on_all = partial(fit_head_on, prepared, rows, fold, c=head.inverse_regularization)
            candidate = head_candidate(prepared, fold, head, self.session.context, stage_name, on_all)
        self.session.scored(stage, candidate.valid)
        return head, candidate

    @property
    def _refits(self) -> bool:
        return self.prepared.plan is not None and self.prepared.plan.refits

    def _add_views(self, folds: list[Fold]) -> None:
        """Add features of augmented views of the training images, by a policy that a head on the plain ones settles."""
        prepared, session, views = self.prepared, self.session, self.recipe.head.views
        if prepared.features is None or views == 1:
            return
        head = None
        if self.recipe.augment.policy == "auto" and session.record.get("augmentation") is None:
            with session.stage("head on plain views"):
                head = fit_head_on(prepared, folds[0].train, folds[0])
        policy, own = policy_named(self._settled_policy(folds[0], head)), self.recipe.augment.transform
        if policy.changes_nothing and not own:
            session.warn(f"head.views={views} is left at 1: without augmentation all views of an image are the same")
            return
        code = code_digest(own) if own else ""
        features, store = prepared.features, prepared.data.build.store
        known = [fold.train for fold in folds] + [fold.valid for fold in folds if self._refits]
        rows = np.unique(np.concatenate(known))
        with session.stage("views"):
            values = extract_views(
                features.frozen.backbone.module.to(best_device()), store.gather, rows, features.preprocessing,
                augment=changes_of(policy, own), policy=f"{policy} {own} {code}", views=views, data=store.folder.name,
                plain=features.values[rows], source_size=store.source_size, precision=prepared.precision,
                context=session.context,
                keep=code is not None,  # otherwise nothing tells one change of the user's from another
            )  # fmt: skip
        self.prepared = replace(prepared, features=replace(features, augmented=(rows, values[1:])))

    def _finetuned(self, shared: _Shared, name: str, only: bool) -> tuple[Candidate, Stage] | None:
        """Return a candidate of stage 2 and its record; None when training diverged and it is not the only one."""
        session, fold, policy, folder, suffix = self.session, shared.fold, shared.policy, shared.folder, shared.suffix
        if self.recipe.train.find_lr:
            self._find_lr(fold, policy)
        title, alone = f"{self.recipe.name}{suffix}", replace(self.prepared, recipe=supervised_recipe(self.recipe))
        images = len(fold.train) + sum(len(rows) for rows in self.extras.rows)
        timeline, size = resolved_run(alone.recipe, images, alone.pace)
        try:
            with session.stage(f"{plain_name(name)}{suffix}") as stage:
                self._show_timeline(folder, title, timeline, size.steps)
                trained, done = finetune_candidate(
                    alone, fold, session.context,
                    policy=policy, folder=folder, resume=session.request.resume,
                    extras=replace(self.extras, head=shared.head), stage=name,
                )  # fmt: skip
                stage.note("steps", done.steps)
                stage.note("events", [f"{event.kind} at {event.progress:.1%}" for event in done.timeline.events])
                planned = max(done.steps, round(done.steps / done.timeline.end))
                self._show_timeline(folder, title, done.timeline, planned, done.happened)
        except DivergedError as problem:
            if only:
                raise
            session.warn(f"{plain_name(name)}{suffix} is left out, since {problem}")
            return None
        if name == FINE_TUNED:  # further ones may have learned from the validation images
            session.scored(stage, trained.valid)
        return trained, stage

    def _show_timeline(
        self, folder: Path, title: str, timeline: Timeline, steps: int, happened: Sequence[dict[str, Any]] | None = None
    ) -> None:
        """Draw a model's schedule, and write it into the record by its folder; events that changed it are part."""
        save_figure(timeline_figure(timeline, steps, happened=happened, title=title), folder / "timeline.png")
        record, name = self.session.record, folder.relative_to(self.session.folder).as_posix()
        plan = {"timeline": timeline_to_tree(timeline), "steps": steps}
        record.set("timelines", {**(record.get("timelines") or {}), name: plan})

    def _find_lr(self, fold: Fold, policy: str) -> None:
        """Search the learning rate once, on the first fold; a resumed run keeps what it found."""
        session, figure = self.session, self.session.folder / "lr_find.png"
        found: dict[str, float] | None = session.record.get("lr_find")
        if found is None:
            try:
                with session.stage("lr-find"):
                    best = find_lr(self.prepared, fold, policy, figure, session.context)
                session.screen.say(f"learning rate: {best.lr:.2g} ({figure} shows the search)")
                found = {"lr": best.lr, "lowest": best.lowest, "steepest": best.steepest}
            except NoDescentError as problem:
                session.warn(f"train.lr={self.recipe.train.lr:g} is kept: {problem}")
                found = {"lr": self.recipe.train.lr}
            session.record.set("lr_find", found)
        recipe = changed(self.recipe, {"train.lr": found["lr"], "train.find_lr": False})
        self.prepared = replace(self.prepared, recipe=recipe)

    def _settled_policy(self, fold: Fold, head: LinearHead | None) -> str:
        """Decide the augmentation policy once, on the first fold; it is needed for training and for TTA only."""
        known = self.session.record.get("augmentation")
        if known is None:  # a resumed run keeps what it began with
            choice = settle_policy(self.session, self.prepared, fold, head)
            known = {"policy": choice.policy, "reason": choice.reason}
            self.session.record.set("augmentation", known)
            if choice.measured or choice.policy != "none":
                self.session.screen.say(f"augmentation: {choice.policy} ({choice.reason})")
        return known["policy"]


def _is_sound(network: Candidate, first: Candidate) -> bool:
    """Whether a further network was trained to its end, and knows the validation images as well as the first one."""
    share, least = (score_of(one.valid)[0] for one in (network, first))
    ended = network.notes["steps"] >= _LEAST_STEPS * first.notes["steps"]
    return ended and share + 2 * adjusted_error(share, len(network.valid)) >= least
