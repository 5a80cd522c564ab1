"""What a fold keeps: one model, or a blend of the models of several stages, weighted by the validation images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from etude.core.context import Context
from etude.core.paired import matched_interval
from etude.core.predictions import Predictions
from etude.core.text import counted
from etude.data.dataset import Dataset
from etude.inference.alignment import aligned
from etude.refine.cross_fit import FEWEST_ROWS, fold_numbers, out_of_fold
from etude.refine.ensemble import blend_views, log_linear, log_linear_weights
from etude.study.run.network import FINE_TUNED, Candidate
from etude.study.run.session import Session

_FOLDS = 5  # of the validation images, to see whether a blend is better
_LEAST_GAIN = 1e-3  # in log loss, of a blend that is worth its passes
_LEAST_WEIGHT = 0.05  # of all weights, of a model that is worth its passes; and of logits that are scaled down


@dataclass(frozen=True, slots=True)
class Kept:
    """The models of a fold, that of the largest weight first, and the weights of their log probabilities.

    ``further`` networks share the weight of the fine-tuned one once all is validated: they may have learned from the
    validation images.
    """

    members: tuple[Candidate, ...]
    weights: tuple[float, ...] = (1.0,)
    further: tuple[Candidate, ...] = ()

    @property
    def main(self) -> Candidate:
        return self.members[0]

    @property
    def stage(self) -> str:
        return " + ".join(member.stage for member in self.members)

    @property
    def described(self) -> str:
        """Such as ``0.62 finetune + 0.38 head, weights fitted on the validation images``."""
        more = f"; {counted(len(self.further), 'further network')} share {FINE_TUNED}'s part" if self.further else ""
        if len(self.members) == 1:
            return f"{self.stage}, the best of the stages on the validation images{more}"
        parts = zip(self.weights, self.members, strict=True)
        return (
            f"{' + '.join(f'{w:.2f} {one.stage}' for w, one in parts)}, weights fitted on the validation images{more}"
        )

    @property
    def valid(self) -> Predictions:
        return self._blended([member.valid for member in self.members])

    @property
    def folders(self) -> list[str]:
        """Of the models' files, in the run's folder; the first has the fold's own."""
        own = Path(self.main.folder)
        return [own.as_posix(), *((own / member.stage.replace(" ", "-")).as_posix() for member in self.members[1:])]

    def save(self, session: Session) -> None:
        for name, member in zip(self.folders, self.members, strict=True):
            session.save_model(name, member.model, member.card)
            if (reference := member.reference) is not None:
                session.save_reference(name, reference)

    def refitted(self, session: Session) -> Kept:
        """Fit the heads on the validation images too, and return the models with those of further networks.

        The heads' weights until then are kept as well.
        """
        heads = [(name, one) for name, one in zip(self.folders, self.members, strict=True) if one.on_all is not None]
        if heads:
            with session.stage("head on all images"):
                for name, member in heads:
                    session.save_validated_head(name, member.model)
                    assert member.on_all is not None
                    head = member.on_all()
                    member.model.set_head(head.weight * member.scale, head.bias * member.scale)
                    session.save_model(name, member.model, member.card)
        if not self.further:
            return self
        whole = self.shared()
        whole.save(session)
        return whole

    def shared(self) -> Kept:
        """Return all networks as members, which share the weight of the fine-tuned one evenly."""
        tuned = [member.stage for member in self.members].index(FINE_TUNED)
        share = self.weights[tuned] / (1 + len(self.further))
        weights = [share if number == tuned else weight for number, weight in enumerate(self.weights)]
        more = [share * self.members[tuned].scale] * len(self.further)  # their logits are as they were trained
        return Kept((*self.members, *self.further), (*weights, *more))

    def sharpened(self, factor: float, session: Session) -> Kept:
        """Return the same models with the logits of each view multiplied, saved."""
        if len(self.members) == 1:
            sharper = replace(self, members=(self.main.scaled(factor),))
            sharper.save(session)
            return sharper
        return replace(self, weights=tuple(factor * weight for weight in self.weights))

    def with_tta(self, views: int, policy: str) -> Kept:
        """Return the same models, their cards with that many views by default."""
        members, further = (
            tuple(one.with_tta(views, policy) for one in group) for group in (self.members, self.further)
        )
        return replace(self, members=members, further=further)

    def with_further(self, networks: Sequence[Candidate]) -> Kept:
        """Return the models with further networks, whose views are those of the others."""
        card = self.main.card
        return replace(self, further=tuple(one.with_tta(card.tta, card.policy) for one in networks))

    def validate(self, data: Dataset, context: Context) -> Predictions:
        """Return predictions of the validation images, in the views that the cards ask for."""
        position = {name: row for row, name in enumerate(data.images.ids)}
        rows = np.array([position[name] for name in self.main.valid.ids])
        return self._blended([
            one.predict(data, rows, context, tta=one.card.tta, known_features=one.valid.features, name="TTA")
            for one in self.members
        ])  # fmt: skip

    def predict(self, data: Dataset, rows: np.ndarray, context: Context, align: bool) -> Predictions:
        """Return what the models predict together, view by view, with the features of the first."""
        parts = [one.predict(data, rows, context, tta=one.card.tta) for one in self.members]
        if align:
            models, references = [one.model for one in self.members], [one.reference for one in self.members]
            parts = aligned(parts, models, references, context)
        return self._blended(parts)

    def _blended(self, parts: Sequence[Predictions]) -> Predictions:
        if len(parts) == 1:
            return parts[0]
        return blend_views(parts, self.weights)


def blend_of(best: Candidate, others: Sequence[Candidate], context: Context) -> Kept:
    """Return the blend of all candidates; ``best`` alone where a blend, cross-fitted, is no better than it.

    Either is calibrated where that, cross-fitted, is better too.
    """
    labels, candidates = best.valid.labels, [best, *others]
    assert labels is not None
    if len(labels) < FEWEST_ROWS:
        return Kept((best,))
    rows, numbers = np.arange(len(labels)), fold_numbers(best.valid, _FOLDS, context)
    plain = best.valid.log_probabilities()
    alone, blended = (_cross_fitted(each, labels, numbers) for each in ([best], candidates))
    right, was = blended.argmax(axis=1) == labels, alone.argmax(axis=1) == labels
    _, most = matched_interval(int((right & ~was).sum()), int((was & ~right).sum()), len(labels))
    if (blended - alone)[rows, labels].mean() < _LEAST_GAIN or most < 0.0:
        if (alone - plain)[rows, labels].mean() < _LEAST_GAIN:
            return Kept((best,))
        return _calibrated(best, float(log_linear_weights(plain[None], labels)[0]))
    weights = log_linear_weights(_log_probabilities(candidates), labels)
    least = _LEAST_WEIGHT * weights.sum()
    order = [number for number in np.argsort(-weights, kind="stable") if weights[number] >= least]
    if len(order) == 1:
        return _calibrated(candidates[order[0]], float(weights[order[0]]))
    return Kept(tuple(candidates[number] for number in order), tuple(weights[order].tolist()))


def _calibrated(candidate: Candidate, weight: float) -> Kept:
    return Kept((candidate.scaled(max(_LEAST_WEIGHT, weight)),))


def _cross_fitted(candidates: Sequence[Candidate], labels: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Return log probabilities (N, C) of a blend whose weights were fitted on the other folds; of one, calibrated."""
    log_p = _log_probabilities(candidates)
    return out_of_fold(
        numbers,
        lambda train, held: log_linear(log_p[:, held], log_linear_weights(log_p[:, train], labels[train])),
    )


def _log_probabilities(candidates: Sequence[Candidate]) -> np.ndarray:
    return np.stack([one.valid.log_probabilities() for one in candidates])
