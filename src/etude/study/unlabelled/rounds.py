"""Training with unlabelled images on one fold: rounds of pseudo-labels, or one training with labels made online.

A student takes its teacher's place only if it is better on validation images; all the rest of a run stays as it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from etude.data.order import FixedMix
from etude.data.split import Fold
from etude.inference.views import many_views
from etude.journal.figures import save_figure
from etude.journal.figures.timeline import timeline_figure
from etude.journal.record import Stage
from etude.models.head import fit_head
from etude.recipe.resolve import labelled_share, mixed_recipe, share_caution
from etude.refine.pseudo_labels import Drift, PseudoLabelRule, Selected, drift
from etude.refine.views import gain_by_views
from etude.study.run.frozen import compute_features
from etude.study.run.network import Candidate, Extras, finetune_candidate, head_candidate
from etude.study.run.prepare import Prepared
from etude.study.run.session import Session
from etude.study.unlabelled.guards import (
    Seen,
    Verdict,
    apart_from_validation,
    judged,
    judging_views,
    label_shift,
    settled_prior,
)
from etude.study.unlabelled.pool import Pool
from etude.timeline import Pace
from etude.training.task import DivergedError

_LEAST_PROBABILITY = 0.02  # of a class, for a soft pseudo-label of the head to count it


@dataclass
class Rounds:
    """All rounds on a fold.

    Args:
        policy: of augmentation, by name.
        folder: of the fold; each round has a folder in it.
        suffix: names the fold, where there are several.
        features: of the pool, where the head alone is trained.
        tta: views of a prediction, once the first teacher has shown whether those of the recipe do harm.
    """

    session: Session
    prepared: Prepared
    fold: Fold
    pool: Pool
    policy: str
    folder: Path
    suffix: str = ""
    features: np.ndarray | None = field(init=False, default=None)
    tta: int | None = field(init=False, default=None)
    chosen: NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        prepared = self.prepared
        with self.session.stage(f"unlabelled images{self.suffix}"):
            if prepared.recipe.stages == ("head",):
                self.features = self._pool_features()
            labelled = None if prepared.features is None else prepared.features.values
            known = None if self.features is None or labelled is None else (self.features, labelled)
            self.chosen = apart_from_validation(self.pool, prepared.data, self.fold.valid, known)
        left = len(self.pool) - len(self.chosen)
        if left:
            self.session.screen.say(f"{left:,} unlabelled images{self.suffix} look like validation images: left out")
        self.session.record.set(
            "unlabelled", {**(self.session.record.get("unlabelled") or {}), f"like validation{self.suffix}": left}
        )

    def run(self, kept: Candidate) -> Candidate:
        """Train students of ``kept`` and of each other while each is better than the one before; return the last."""
        session, settings = self.session, self.prepared.recipe.unlabeled
        if not len(self.chosen):
            session.warn(f"no unlabelled image{self.suffix} is left to learn from, so stage {kept.stage!r} is kept")
            return kept
        if (caution := share_caution(self.prepared.recipe)) is not None:
            session.warn(caution)
        with session.stage(f"predict unlabelled{self.suffix}"):
            seen = self._seen(kept)
            shift = label_shift(seen, self.prepared.data.labels[self.fold.train], self.fold.seed)
        (session.warn if shift.is_there else session.screen.say)(shift.described(seen.valid.classes))
        prior = settled_prior(settings.prior, shift)
        expected = shift.estimated if shift.is_there else shift.labelled
        online = settings.method == "online"
        for number in range(1, (1 if online else settings.rounds) + 1):
            name = "online" if online else f"round {number}"
            trained = self._trained(name, kept, seen, prior)
            if trained is None:
                break
            student, selected, after, stage = trained
            verdict = judged(seen, after, expected, keep_at=settings.keep_at, seed=self.fold.seed)
            stage.keep(verdict.keeps)
            self._tell(name, verdict, drift(seen.pool, after.pool, expected), selected)
            if not verdict.keeps:
                break
            kept, seen = student, after
        return kept

    def _trained(
        self, name: str, kept: Candidate, seen: Seen, prior: np.ndarray | None
    ) -> tuple[Candidate, Selected | None, Seen, Stage] | None:
        """Return a student, its pseudo-labels, what it predicts, and its stage; None with nothing to learn from."""
        session, settings = self.session, self.prepared.recipe.unlabeled
        selected = None if settings.method == "online" else self._rule(prior, len(seen.pool.classes)).select(seen.pool)
        if selected is not None and not (selected.weights > 0).any():
            session.warn(f"{name}{self.suffix}: no pseudo-label reaches unlabeled.threshold, so the rounds end here")
            return None
        try:
            with session.stage(f"{name}{self.suffix}") as stage:
                if selected is not None and self.features is not None:
                    student = self._head(name, kept, selected, self.features)
                else:
                    student = self._network(name, kept, selected, prior, stage)
                after = self._seen(student)
        except DivergedError as problem:
            session.warn(f"{name}{self.suffix} is thrown away, since {problem}")
            return None
        session.scored(stage, student.valid)
        return student, selected, after, stage

    def _network(
        self, name: str, kept: Candidate, selected: Selected | None, prior: np.ndarray | None, stage: Stage
    ) -> Candidate:
        """Fine-tune a network on labelled and unlabelled images at a fixed mix."""
        recipe, session, classes = self.prepared.recipe, self.session, len(kept.card.classes)
        settings = recipe.unlabeled
        if selected is None:
            rows = self.pool.training_rows(self.chosen, classes)
        else:
            used = selected.weights > 0
            rows = self.pool.training_rows(self.chosen[used], classes, selected.targets[used], selected.weights[used])
        share = labelled_share(recipe, len(self.fold.train), sum(len(part) for part in rows))
        warm = settings.start == "warm" and kept.stage != "head"
        if settings.start == "warm" and not warm:
            session.screen.say(
                f"{name}{self.suffix} starts fresh: the better stage is a head, whose weights fit no other"
            )
        stage.note("labelled share", share)
        folder = self.folder / name.replace(" ", "-")
        student, done = finetune_candidate(
            mixed(self.prepared), self.fold, session.context,
            policy=self.policy, folder=folder, resume=session.request.resume, stage=name,
            extras=Extras(tuple(rows), FixedMix(share, settings.balanced), prior, start=kept.model if warm else None),
        )  # fmt: skip
        stage.note("steps", done.steps)
        figure = timeline_figure(done.timeline, done.steps, happened=done.happened, title=name)
        save_figure(figure, folder / "timeline.png")
        return student

    def _head(self, name: str, kept: Candidate, selected: Selected, features: np.ndarray) -> Candidate:
        """Fit the head anew, with pseudo-labels as rows whose weights make the mix.

        An image counts for each class that its soft label gives a share. The mix is an upper limit here: few unlabelled
        images count once each, not many times.
        """
        prepared, fold, recipe = self.prepared, self.fold, self.prepared.recipe
        assert prepared.features is not None
        mass = selected.targets * selected.weights[:, None]
        rows, classes = np.nonzero((selected.targets >= _LEAST_PROBABILITY) & (mass > 0))
        weights, pseudo = prepared.data.weights[fold.train], mass[rows, classes]
        share = labelled_share(recipe, len(fold.train), len(selected.weights))
        pseudo = pseudo * min(1.0, float(weights.sum() * (1 - share) / share / pseudo.sum()))
        views = prepared.features.views_of(fold.train)
        more = np.broadcast_to(features[self.chosen][rows], (len(views), len(rows), views.shape[2]))
        head = fit_head(
            np.concatenate([views, more], axis=1),
            np.concatenate([prepared.data.labels[fold.train], classes]),
            len(kept.card.classes),
            candidates=(kept.notes["C"],),  # pseudo-labels must not judge how much to trust them
            weights=np.concatenate([weights, pseudo]),
            seed=fold.seed,
        )
        return head_candidate(prepared, fold, head, self.session.context, name)

    def _seen(self, candidate: Candidate) -> Seen:
        """Return the candidate's calibrated predictions of validation images and pool, with the recipe's views."""
        recipe, context = self.prepared.recipe.predict, self.session.context
        candidate = replace(candidate, card=replace(candidate.card, policy=self.policy))
        views = many_views(self.policy, max(recipe.tta, judging_views(len(candidate.valid))))  # first those of tta
        valid = candidate.predict(
            self.prepared.data, self.fold.valid, context,
            views=views, known_features=candidate.valid.features, name="judge",
        )  # fmt: skip
        if self.tta is None:  # settled by the first teacher: students are compared with it through the same views
            asked = replace(valid, logits=valid.logits[: recipe.tta])
            self.tta = 1 if recipe.tta_if == "harmless" and gain_by_views(asked).harm else recipe.tta
        if self.tta < recipe.tta:
            valid = replace(valid, logits=valid.logits[:1])
        pool = self.pool.predictions(candidate, self.chosen, self.tta, context, self.features)
        return Seen.calibrated(valid, pool)

    def _rule(self, prior: np.ndarray | None, classes: int) -> PseudoLabelRule:
        settings = self.prepared.recipe.unlabeled
        quotas = None if settings.quota is None else [settings.quota] * classes
        return PseudoLabelRule(
            kind=settings.kind, temperature=settings.temperature, threshold=settings.threshold,
            quotas=quotas, weights=settings.weights, prior=prior,
        )  # fmt: skip

    def _pool_features(self) -> np.ndarray:
        prepared, context = self.prepared, self.session.context
        assert prepared.features is not None
        frozen, precision = prepared.features.frozen, prepared.precision
        return np.concatenate([
            compute_features(frozen, part.data, prepared.recipe, precision, context).values[part.rows]
            for part in self.pool.parts
        ])  # fmt: skip

    def _tell(self, name: str, verdict: Verdict, moved: Drift, selected: Selected | None) -> None:
        """Show what a round brought, and write it into the record in place of an attempt that was stopped."""
        session = self.session
        entry = {
            "name": f"{name}{self.suffix}",
            **verdict.as_dict(),
            "pseudo_labels": None if selected is None else selected.described,
            "changed": moved.changed,
            "from_prior": moved.from_prior,
            "histogram": moved.histogram,
        }
        known: Sequence[dict[str, object]] = session.record.get("rounds") or ()
        session.record.set("rounds", [*(one for one in known if one["name"] != entry["name"]), entry])
        labels = "" if selected is None else f"{selected.described}; "
        session.screen.say(f"{name}{self.suffix}: {labels}{moved.described}")
        (session.screen.say if verdict.keeps else session.warn)(f"{name}{self.suffix} {verdict.told}")


def mixed(prepared: Prepared) -> Prepared:
    """Return what a training with unlabelled images starts from: its own length and batch size, and so its own pace."""
    recipe, before = mixed_recipe(prepared.recipe), prepared.recipe
    pace = prepared.pace
    if pace is not None:
        pace = Pace(pace.seconds * recipe.train.batch_size / before.train.batch_size, pace.size)
    return replace(prepared, recipe=recipe, pace=pace)
