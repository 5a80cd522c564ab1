"""The two stages as candidates: a head on frozen features, and a fine-tuned network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from etude.core.predictions import Predictions
from etude.core.progress import Progress
from etude.core.scores import accuracy, log_loss
from etude.core.seeds import derive_seed
from etude.data.dataset import Dataset
from etude.data.loader import TrainingRows
from etude.functional.augment import policy_named
from etude.inference.predict import predict
from etude.models.backbones import Backbone, build_backbone
from etude.models.classifier import Classifier, ModelCard, Preprocessing
from etude.models.depthwise import use_fast_depthwise
from etude.models.device import best_device
from etude.models.fold import fold_batchnorm
from etude.models.head import LinearHead, fit_head
from etude.recipe.settings import Recipe
from etude.study.frozen import FrozenFeatures
from etude.training.fit import FineTuneResult, fine_tune
from etude.training.freeze import freeze_depthwise, freeze_first_layers


@dataclass(frozen=True, slots=True)
class Fold:
    """One split: rows of the store to train on and rows to validate on, and the seed of what is trained on it."""

    train: np.ndarray
    valid: np.ndarray
    seed: int


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


def score_of(predictions: Predictions) -> tuple[float, float]:
    """Return accuracy and negative log loss of labelled predictions."""
    if predictions.labels is None:
        raise ValueError("these predictions have no labels to be scored against")
    labels = predictions.labels
    return accuracy(predictions.predicted(), labels), -log_loss(predictions.probabilities(), labels)


def fit_head_on(data: Dataset, fold: Fold, features: np.ndarray, recipe: Recipe) -> LinearHead:
    """Fit a linear head on the fold's training rows of the features (N, D)."""
    return fit_head(
        features[fold.train],
        data.labels[fold.train],
        len(data.images.classes),
        candidates=recipe.head.inverse_regularization,
        folds=recipe.head.folds,
        search_rows=recipe.head.search_rows,
        weights=data.weights[fold.train],
        seed=fold.seed,
    )


def head_candidate(
    data: Dataset, fold: Fold, features: FrozenFeatures, head: LinearHead, precision: str, progress: Progress
) -> Candidate:
    """Return stage 1 as a candidate; its validation predictions come from the cached features."""
    frozen = features.frozen
    classes = data.images.classes
    model = Classifier(frozen.backbone.module, frozen.backbone.num_features, len(classes))
    model.set_head(head.weight, head.bias)
    card = ModelCard(
        frozen.name, classes, features.preprocessing, precision,
        tta=1, policy="none", levels=frozen.levels, folded=True,
    )  # fmt: skip
    valid = _predict_valid(model, card, data, fold, progress, features.values[fold.valid])
    notes = {"C": head.inverse_regularization, "cv cross-entropy": head.cross_entropy}
    return Candidate("head", model, card, valid, notes)


def trainable_backbone(recipe: Recipe, weights: str, channels: int, precision: str) -> Backbone:
    """Return stage 2's network as it is trained: folded, frozen and made fast as the recipe says."""
    backbone = build_backbone(recipe.model.backbone, weights, channels)
    if recipe.train.batchnorm == "keep":
        fold_batchnorm(backbone.module, backbone.probe())
    if precision == "bf16" and best_device().type == "cpu":
        use_fast_depthwise(backbone.module)
    freeze_first_layers(backbone.module, recipe.train.freeze)
    if recipe.train.freeze_depthwise:
        freeze_depthwise(backbone.module)
    return backbone


def finetune_candidate(
    data: Dataset,
    fold: Fold,
    features: FrozenFeatures | None,
    recipe: Recipe,
    *,
    policy: str,
    precision: str,
    folder: Path,
    progress: Progress,
) -> Candidate:
    """Fine-tune a fresh backbone, its head started from stage 1's features where they are its own."""
    torch.manual_seed(derive_seed(fold.seed, "initial weights"))
    name, classes = recipe.model.backbone, data.images.classes
    backbone = trainable_backbone(recipe, recipe.model.weights, data.build.store.channels, precision)
    folded = recipe.train.batchnorm == "keep"
    model = Classifier(backbone.module, backbone.num_features, len(classes), recipe.train.dropout)
    if features is not None and features.frozen.name == name:
        # The trained network pools its last map only, so its head starts from a fit on those columns.
        start = fit_head_on(data, fold, features.values[:, : features.frozen.own_features], recipe)
        model.set_head(start.weight, start.bias)
    preprocessing = Preprocessing.of(backbone, data.build, recipe.timeline.final_size)
    card = ModelCard(name, classes, preprocessing, precision, tta=1, policy=policy, folded=folded)
    result = _train(model, data, fold, card, recipe, folder, progress)
    valid = _predict_valid(model, card, data, fold, progress, None)
    return Candidate("finetune", model, card, valid, {"steps": result.steps})


def better(candidates: list[Candidate]) -> Candidate:
    """Return the candidate with the best validation score; the earlier stage where they are equal."""
    return max(candidates, key=lambda candidate: candidate.score)


def _train(
    model: Classifier, data: Dataset, fold: Fold, card: ModelCard, recipe: Recipe, folder: Path, progress: Progress
) -> FineTuneResult:
    targets = data.targets(recipe.train.label_smoothing)
    rows: Callable[[np.ndarray], TrainingRows] = lambda chosen: TrainingRows(  # noqa: E731
        data.build.store.gather, chosen, targets[chosen], data.weights[chosen]
    )
    return fine_tune(
        model,
        card.preprocessing,
        rows(fold.train),
        rows(fold.valid),
        recipe,
        policy_named(card.policy),
        precision=card.precision,
        seed=fold.seed,
        folder=folder,
        progress=progress,
    )


def _predict_valid(
    model: Classifier, card: ModelCard, data: Dataset, fold: Fold, progress: Progress, known: np.ndarray | None
) -> Predictions:
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
