"""The two stages as candidates: a head on frozen features, and a fine-tuned network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from etude.core.predictions import Predictions
from etude.core.progress import Progress
from etude.core.scores import score_of
from etude.inference.predict import predict
from etude.models.classifier import Classifier, ModelCard
from etude.models.head import LinearHead
from etude.study.fold import Fold
from etude.study.network import starting_network, training_task
from etude.study.prepare import Prepared
from etude.training.fit import fine_tune
from etude.training.resume import Finished


@dataclass(frozen=True, slots=True)
class Candidate:
    """A trained model and its predictions of the validation images.

    Args:
        stage: the stage that made it, ``head`` or ``finetune``.
        valid: labelled predictions, all views.
    """

    stage: str
    model: Classifier
    card: ModelCard
    valid: Predictions
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def score(self) -> tuple[float, float]:
        """Validation accuracy, then negative log loss to settle ties; larger is better."""
        return score_of(self.valid)


def head_candidate(prepared: Prepared, fold: Fold, head: LinearHead, progress: Progress) -> Candidate:
    """Return stage 1 as a candidate; its validation predictions come from the cached features."""
    features, classes = prepared.features, prepared.data.images.classes
    assert features is not None
    frozen = features.frozen
    model = Classifier(frozen.backbone.module, frozen.backbone.num_features, len(classes))
    model.set_head(head.weight, head.bias)
    card = ModelCard(
        frozen.name, classes, features.preprocessing, prepared.precision,
        tta=1, policy="none", levels=frozen.levels, folded=True,
    )  # fmt: skip
    valid = _predict_valid(model, card, prepared, fold, progress, features.values[fold.valid])
    notes = {"C": head.inverse_regularization, "cv cross-entropy": head.cross_entropy}
    return Candidate("head", model, card, valid, notes)


def finetune_candidate(
    prepared: Prepared,
    fold: Fold,
    *,
    policy: str,
    folder: Path,
    resume: bool,
    progress: Progress,
    warn: Callable[[str], None],
) -> tuple[Candidate, Finished]:
    """Fine-tune a fresh network, or go on with one that was stopped; return it with what happened on the way."""
    model, card = starting_network(prepared, fold, policy)
    task = training_task(prepared, fold, card, folder, resume=resume)
    done = fine_tune(model, task, progress=progress, warn=warn)
    valid = _predict_valid(model, card, prepared, fold, progress, None)
    return Candidate("finetune", model, card, valid, {"steps": done.steps}), done


def better(candidates: list[Candidate]) -> Candidate:
    """Return the candidate with the best validation score; the earlier stage where they are equal."""
    return max(candidates, key=lambda candidate: candidate.score)


def _predict_valid(
    model: Classifier, card: ModelCard, prepared: Prepared, fold: Fold, progress: Progress, known: np.ndarray | None
) -> Predictions:
    data = prepared.data
    return predict(
        model,
        card,
        data.build.store.gather,
        fold.valid,
        [data.images.ids[row] for row in fold.valid],
        labels=data.labels[fold.valid],
        progress=progress,
        known_features=known,
        name="validate",
    )
