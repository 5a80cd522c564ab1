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
from etude.study.network import NO_EXTRAS, Extras, starting_network, training_task
from etude.study.prepare import Prepared
from etude.training.fit import fine_tune
from etude.training.resume import Finished

_PASSES = 3  # of the network forward take about as long as one pass of training, forward and backward
_CHEAP = 0.05  # of the time of training
_SMALL = 2**29  # bytes of features


@dataclass(frozen=True, slots=True)
class TrainRows:
    """The images that a candidate was trained on, where their features are to be saved.

    Args:
        rows: int (M,), positions in the store.
        features: float16 (N, D) of the candidate's network for every row of the store, where they are known.
    """

    rows: np.ndarray
    features: np.ndarray | None


@dataclass(frozen=True, slots=True)
class Candidate:
    """A trained model and its predictions of the validation images.

    Args:
        stage: the stage that made it, ``head`` or ``finetune``, or ``round 2`` or ``online`` with unlabelled images.
        valid: labelled predictions, all views.
        train: the training images, or None when nobody wants their features.
    """

    stage: str
    model: Classifier
    card: ModelCard
    valid: Predictions
    notes: dict[str, Any] = field(default_factory=dict)
    train: TrainRows | None = None

    @property
    def score(self) -> tuple[float, float]:
        """Validation accuracy, then negative log loss to settle ties; larger is better."""
        return score_of(self.valid)


def head_candidate(
    prepared: Prepared, fold: Fold, head: LinearHead, progress: Progress, stage: str = "head"
) -> Candidate:
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
    return Candidate(stage, model, card, valid, notes, _train_rows(prepared, fold, model, features.values))


def finetune_candidate(
    prepared: Prepared,
    fold: Fold,
    *,
    policy: str,
    folder: Path,
    resume: bool,
    progress: Progress,
    warn: Callable[[str], None],
    extras: Extras = NO_EXTRAS,
    stage: str = "finetune",
) -> tuple[Candidate, Finished]:
    """Fine-tune a network, or go on with one that was stopped; return it with what happened on the way.

    Args:
        extras: what it learns from besides the fold's labelled images.
        stage: its name.
    """
    model, card = starting_network(prepared, fold, policy)
    if extras.start is not None:
        model.load_state_dict(extras.start.state_dict())
    task = training_task(prepared, fold, card, folder, resume=resume, extras=extras)
    done = fine_tune(model, task, progress=progress, warn=warn, name="fine-tune" if stage == "finetune" else stage)
    valid = _predict_valid(model, card, prepared, fold, progress, None)
    epochs = done.steps * min(prepared.recipe.train.batch_size, len(fold.train)) / len(fold.train)
    train = _train_rows(prepared, fold, model, None, epochs)
    return Candidate(stage, model, card, valid, {"steps": done.steps}, train), done


def better(candidates: list[Candidate]) -> Candidate:
    """Return the candidate with the best validation score; the earlier stage where they are equal."""
    return max(candidates, key=lambda candidate: candidate.score)


def _train_rows(
    prepared: Prepared, fold: Fold, model: Classifier, known: np.ndarray | None, epochs: float = 0.0
) -> TrainRows | None:
    """Return the training images if the recipe wants their features, or leaves it open and they cost little.

    Costs are counted and not measured, so that the same command saves the same files. Each fold's model has features of
    its own, so several folds save none unless they are asked to, which ends in a warning.
    """
    asked, size = prepared.recipe.predict.train_features, 2 * len(fold.train) * model.head.in_features
    cheap = size <= _SMALL and (known is not None or _CHEAP * _PASSES * epochs >= 1.0)
    wanted = cheap and len(prepared.folds) == 1 if asked == "auto" else asked == "always"
    return TrainRows(fold.train, known) if wanted else None


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
