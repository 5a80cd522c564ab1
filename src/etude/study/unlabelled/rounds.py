"""Training with unlabelled images on one fold: rounds of pseudo-labels, or one training with labels made online.

A student takes its teacher's place only if it is better on validation images; all the rest of a run stays as it was.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from etude.core.context import Context
from etude.core.predictions import Predictions
from etude.data.order import FixedMix
from etude.data.split import Fold
from etude.inference.views import many_views
from etude.journal.figures import save_figure
from etude.journal.figures.timeline import timeline_figure
from etude.journal.record import Stage
from etude.models.head import LinearHead, fit_head
from etude.recipe.resolve import labelled_share, mixed_recipe, share_caution
from etude.refine.propagation import Propagation
from etude.refine.pseudo_labels import Drift, PseudoLabelRule, Selected, drift
from etude.refine.views import gain_by_views
from etude.study.run.frozen import FrozenFeatures, compute_features
from etude.study.run.network import Candidate, Extras, finetune_candidate, fit_head_on, head_candidate
from etude.study.run.prepare import Prepared
from etude.study.run.session import Session
from etude.study.unlabelled.guards import (
    Decision,
    EvaluatedModel,
    apart_from_validation,
    compare_student,
    label_shift,
    views_to_compare,
)
from etude.study.unlabelled.pool import Pool
from etude.timeline import Pace
from etude.training.task import DivergedError

_LEAST_PROBABILITY = 0.02  # of a class, for a soft pseudo-label of the head to count it


@dataclass
class Rounds:
    """All rounds on a fold."""

    session: Session
    prepared: Prepared
    fold: Fold
    pool: Pool
    policy: str  # of augmentation, by name
    folder: Path  # of the fold; each round has a folder in it
    suffix: str = ""  # names the fold, where there are several
    features: dict[str, np.ndarray] | None = field(init=False, default=None)  # where the head alone is trained
    propagation: Propagation | None = field(init=False, default=None)
    tta: int | None = field(init=False, default=None)  # views of a prediction, settled by the first teacher
    chosen: NDArray[np.int64] = field(init=False)
    seeded: Context = field(init=False)  # the session's, with the fold's seed

    def __post_init__(self) -> None:
        prepared, record = self.prepared, self.session.record
        self.seeded = replace(self.session.context, seed=self.fold.seed)
        with self.session.stage(f"unlabelled images{self.suffix}"):
            known = None
            if prepared.recipe.unlabeled.method == "head" and prepared.features is not None:
                self.features = self._features_of_parts(prepared.features)
                known = self._pool_features(self.features), prepared.features.values
            self.chosen = apart_from_validation(self.pool, prepared.data, self.fold.valid, known)
        left = len(self.pool) - len(self.chosen)
        if left:
            self.session.screen.say(f"{left:,} unlabelled images{self.suffix} look like validation images: left out")
        record.set("unlabelled", {**(record.get("unlabelled") or {}), f"like validation{self.suffix}": left})

    def run(self, kept: Candidate) -> Candidate:
        """Train students of ``kept`` and of each other while each is better than the one before; return the last."""
        session, settings = self.session, self.prepared.recipe.unlabeled
        if not len(self.chosen):
            session.warn(f"no unlabelled image{self.suffix} is left to learn from, so stage {kept.stage!r} is kept")
            return kept
        if (caution := share_caution(self.prepared.recipe)) is not None:
            session.warn(caution)
        with session.stage(f"predict unlabelled{self.suffix}"):
            before = self._evaluated(kept)
            labels = self.prepared.data.labels[self.fold.train]
            shift = label_shift(before, labels, self.seeded.rng("unlabelled shift"))
        (session.warn if shift.is_there else session.screen.say)(shift.described(kept.card.classes))
        prior, online = shift.prior(settings.prior), settings.method == "online"
        for name in ["online"] if online else [f"round {number + 1}" for number in range(settings.rounds)]:
            selected = None if online else self._selected(name, kept, before.pool, prior)
            if selected is None and not online:
                break
            try:
                with session.stage(f"{name}{self.suffix}") as stage:
                    if selected is not None and self.features is not None:
                        student = self._head(name, kept, selected, self._pool_features(self.features))
                    else:
                        student = self._network(name, kept, selected, prior, stage)
                    after = self._evaluated(student)
            except DivergedError as problem:
                session.warn(f"{name}{self.suffix} is thrown away, since {problem}")
                break
            session.scored(stage, student.valid)
            decision = compare_student(before, after, shift.expected, keep_at=settings.keep_at, context=self.seeded)
            stage.keep(decision.keeps)
            self._report(name, decision, drift(before.pool, after.pool, shift.expected), selected)
            if not decision.keeps:
                break
            kept, before = student, after
        return kept

    def _propagated(self, name: str, kept: Candidate, teacher: Predictions) -> Predictions | None:
        """Return the pool's predictions, where the network is frozen with labels propagated through its features.

        None where neighbours do not help: a head that learns from its own predictions alone gains nothing, or loses.
        """
        settings, prepared = self.prepared.recipe.unlabeled, self.prepared
        if self.features is None or prepared.features is None or not settings.neighbours:
            return teacher
        train, context, labelled = self.fold.train, self.session.context, len(self.fold.train)
        with self.session.stage(f"neighbours of {name}{self.suffix}") as stage:
            if self.propagation is None:  # the first teacher learned from labels alone, so they can say what helps
                nodes = np.concatenate(
                    [prepared.features.values[train], self._pool_features(self.features)[self.chosen]]
                )
                labels = np.concatenate([prepared.data.labels[train], np.full(len(self.chosen), -1)])

                def classifier(rows: NDArray[np.int64]) -> np.ndarray:
                    return fit_head_on(prepared, train[rows], self.fold, c=kept.notes["C"]).logits(nodes)

                self.propagation = Propagation(settings.neighbours).fit(nodes, labels, classifier)
                self.session.screen.say(f"neighbours{self.suffix}: {self.propagation.described}")
            stage.note("strength", self.propagation.strength_)
            if not self.propagation.strength_:
                return None
            plain = self.pool.predictions(kept, self.chosen, 1, context, self.features)
            logits = np.concatenate([np.zeros((labelled, len(plain.classes))), plain.log_probabilities()])
            found = self.propagation.probabilities(logits)[labelled:]
        return Predictions.from_probabilities(plain.ids, plain.classes, found)

    def _selected(self, name: str, kept: Candidate, teacher: Predictions, prior: np.ndarray | None) -> Selected | None:
        """Return the pseudo-labels of a round; None, and a sentence that says why, where there is nothing to learn."""
        settings, session = self.prepared.recipe.unlabeled, self.session
        found = self._propagated(name, kept, teacher)
        if found is None:
            session.warn(
                f"{name}{self.suffix}: neighbours among the unlabelled images do not help to predict labelled ones, so "
                f"stage {kept.stage!r} is kept (unlabeled.neighbours=0 trains on its own predictions all the same)"
            )
            return None
        quotas = None if settings.quota is None else [settings.quota] * len(teacher.classes)
        auto = "soft" if self.propagation is None else "hard"  # a soft one would teach the head what it said before
        selected = PseudoLabelRule(
            kind=auto if settings.kind == "auto" else settings.kind,
            temperature=settings.temperature, threshold=settings.threshold,
            quotas=quotas, weights=settings.weights, prior=prior,
        ).select(found)  # fmt: skip
        if not (selected.weights > 0).any():
            session.warn(f"{name}{self.suffix}: no pseudo-label reaches unlabeled.threshold, so the rounds end here")
            return None
        return selected

    def _network(
        self, name: str, kept: Candidate, selected: Selected | None, prior: np.ndarray | None, stage: Stage
    ) -> Candidate:
        """Fine-tune a network on labelled and unlabelled images at a fixed mix."""
        prepared, session, classes = self.prepared, self.session, len(kept.card.classes)
        settings = prepared.recipe.unlabeled
        if selected is None:
            rows = self.pool.training_rows(self.chosen, classes)
        else:
            used = selected.weights > 0
            rows = self.pool.training_rows(self.chosen[used], classes, selected.targets[used], selected.weights[used])
        share = labelled_share(prepared.recipe, len(self.fold.train), sum(len(part) for part in rows))
        warm = settings.start == "warm" and kept.stage != "head"
        if settings.start == "warm" and not warm:
            session.screen.say(
                f"{name}{self.suffix} starts fresh: the better stage is a head, whose weights fit no other"
            )
        stage.note("labelled share", share)
        folder, recipe, pace = self.folder / name.replace(" ", "-"), mixed_recipe(prepared.recipe), prepared.pace
        if pace is not None:
            pace = Pace(pace.seconds * recipe.train.batch_size / prepared.recipe.train.batch_size, pace.size)
        student, done = finetune_candidate(
            replace(prepared, recipe=recipe, pace=pace), self.fold, session.context,
            policy=self.policy, folder=folder, resume=session.request.resume, stage=name,
            extras=Extras(tuple(rows), FixedMix(share, settings.balanced), prior, start=kept.model if warm else None),
        )  # fmt: skip
        stage.note("steps", done.steps)
        figure = timeline_figure(done.timeline, done.steps, happened=done.happened, title=name)
        save_figure(figure, folder / "timeline.png")
        return student

    def _head(self, name: str, kept: Candidate, selected: Selected, features: np.ndarray) -> Candidate:
        """Fit the head anew, with pseudo-labels as rows whose weights make the mix.

        The mix is an upper limit here: few unlabelled images count once each, not many times.
        """
        prepared, fold, recipe = self.prepared, self.fold, self.prepared.recipe
        data, known = prepared.data, prepared.features
        assert known is not None
        mass = selected.targets * selected.weights[:, None]
        rows, classes = np.nonzero((selected.targets >= _LEAST_PROBABILITY) & (mass > 0))
        weights, pseudo = data.weights[fold.train], mass[rows, classes]
        share = labelled_share(recipe, len(fold.train), len(selected.weights))
        pseudo = pseudo * min(1.0, float(weights.sum() * (1 - share) / share / pseudo.sum()))

        def fitted(labelled: np.ndarray) -> LinearHead:
            views = known.views_of(labelled)
            more = np.broadcast_to(features[self.chosen][rows], (len(views), len(rows), views.shape[2]))
            return fit_head(
                np.concatenate([views, more], axis=1),
                np.concatenate([data.labels[labelled], classes]),
                len(kept.card.classes),
                candidates=(kept.notes["C"],),  # pseudo-labels must not decide how much to trust them
                weights=np.concatenate([data.weights[labelled], pseudo]),
                context=self.seeded,
            )

        on_all = None if kept.on_all is None else partial(fitted, np.concatenate([fold.train, fold.valid]))
        return head_candidate(prepared, fold, fitted(fold.train), self.session.context, name, on_all)

    def _evaluated(self, candidate: Candidate) -> EvaluatedModel:
        """Return the candidate's calibrated predictions of validation images and pool, with the recipe's views."""
        recipe, context = self.prepared.recipe.predict, self.session.context
        candidate = replace(candidate, card=replace(candidate.card, policy=self.policy))
        views = many_views(self.policy, max(recipe.tta, views_to_compare(len(candidate.valid))))  # first those of tta
        valid = candidate.predict(
            self.prepared.data, self.fold.valid, context,
            views=views, known_features=candidate.valid.features, store=self._store, name="evaluate",
        )  # fmt: skip
        if self.tta is None:  # settled by the first teacher: students are compared with it through the same views
            asked = replace(valid, logits=valid.logits[: recipe.tta])
            self.tta = 1 if recipe.tta_if == "harmless" and gain_by_views(asked).harm else recipe.tta
        if self.tta < recipe.tta:
            valid = replace(valid, logits=valid.logits[:1])
        return EvaluatedModel.calibrated(
            valid, self.pool.predictions(candidate, self.chosen, self.tta, context, self.features)
        )

    @property
    def _store(self) -> str | None:
        """The name of the labelled images' store where the network is frozen, so that features of views are kept."""
        return None if self.features is None else self.prepared.data.build.store.folder.name

    def _features_of_parts(self, features: FrozenFeatures) -> dict[str, np.ndarray]:
        """Return the frozen features of every row of the store of each part of the pool, by the part's name."""
        recipe, precision, context = self.prepared.recipe, self.prepared.precision, self.session.context
        return {
            part.name: compute_features(features.frozen, part.data, recipe, precision, context).values
            for part in self.pool.parts
        }

    def _pool_features(self, of_parts: Mapping[str, np.ndarray]) -> np.ndarray:
        return np.concatenate([of_parts[part.name][part.rows] for part in self.pool.parts])

    def _report(self, name: str, decision: Decision, moved: Drift, selected: Selected | None) -> None:
        """Show what a round brought, and write it into the record in place of an attempt that was stopped."""
        session, name = self.session, f"{name}{self.suffix}"
        entry = {
            "name": name,
            **decision.as_dict(),
            "pseudo_labels": None if selected is None else selected.described,
            "changed": moved.changed,
            "from_prior": moved.from_prior,
            "histogram": moved.histogram,
        }
        known: Sequence[dict[str, object]] = session.record.get("rounds") or ()
        session.record.set("rounds", [*(one for one in known if one["name"] != name), entry])
        labels = "" if selected is None else f"{selected.described}; "
        session.screen.say(f"{name}: {labels}{moved.described}")
        (session.screen.say if decision.keeps else session.warn)(f"{name} {decision.text}")
