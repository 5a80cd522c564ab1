"""Stage 2's network as training starts it: folded, partly frozen, its head taken from stage 1."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from etude.core.seeds import derive_seed
from etude.data.dataset import Dataset
from etude.data.joined import joined
from etude.data.loader import TrainingRows
from etude.data.mix import FixedMix
from etude.functional.augment import policy_named
from etude.models.classifier import Classifier, ModelCard, Preprocessing
from etude.models.head import LinearHead, fit_head
from etude.recipe.settings import Recipe
from etude.recipe.sizes import image_sizes, most_of
from etude.study.backbone import trainable_backbone
from etude.study.fold import Fold
from etude.study.frozen import FrozenFeatures
from etude.study.prepare import Prepared
from etude.training.fit import FineTuneTask


@dataclass(frozen=True, slots=True)
class Extras:
    """What a fine-tuning learns from besides the fold's labelled images.

    Args:
        rows: unlabelled images, with pseudo-labels or without.
        mix: how they share the batches with the labelled ones.
        prior: (C,) class shares that online pseudo-labels are aligned to, or None.
        teacher: float32 (N, C) a teacher's probabilities of all labelled images, or None.
        teachers: networks that look at the very views of the student.
        start: weights to start from, or None for a fresh network.
    """

    rows: tuple[TrainingRows, ...] = ()
    mix: FixedMix | None = None
    prior: np.ndarray | None = None
    teacher: np.ndarray | None = None
    teachers: tuple[nn.Module, ...] = ()
    start: Classifier | None = None


NO_EXTRAS = Extras()


def fit_head_on(
    data: Dataset, fold: Fold, features: FrozenFeatures, recipe: Recipe, columns: int | None = None
) -> LinearHead:
    """Fit a linear head on all views of the fold's training images; on the first ``columns`` features, if given."""
    return fit_head(
        features.views_of(fold.train, columns),
        data.labels[fold.train],
        len(data.images.classes),
        candidates=recipe.head.inverse_regularization,
        folds=recipe.head.folds,
        search_rows=recipe.head.search_rows,
        weights=data.weights[fold.train],
        seed=fold.seed,
    )


def starting_network(prepared: Prepared, fold: Fold, policy: str) -> tuple[Classifier, ModelCard]:
    """Return a fresh network, its head started from stage 1's features where they are its own, and its card."""
    recipe, data, features, mode = prepared.recipe, prepared.data, prepared.features, prepared.training_mode
    torch.manual_seed(derive_seed(fold.seed, "initial weights"))
    name, classes = recipe.model.backbone, data.images.classes
    backbone = trainable_backbone(recipe, data.build.store.channels, mode.precision)
    folded = recipe.train.batchnorm == "keep"
    dropout = max(recipe.train.dropout, most_of(recipe, "dropout"))  # the clock can change it, but not add it
    model = Classifier(backbone.module, backbone.num_features, len(classes), dropout)
    if features is not None and features.frozen.name == name:
        # The trained network pools its last map only, so its head starts from a fit on those columns.
        start = fit_head_on(data, fold, features, recipe, columns=features.frozen.own_features)
        model.set_head(start.weight, start.bias)
    preprocessing = Preprocessing.of(backbone, data.build, image_sizes(recipe).final)
    return model, ModelCard(name, classes, preprocessing, mode.precision, tta=1, policy=policy, folded=folded)


def training_task(
    prepared: Prepared,
    fold: Fold,
    card: ModelCard,
    folder: Path,
    *,
    resume: bool = False,
    extras: Extras = NO_EXTRAS,
) -> FineTuneTask:
    """Return what there is to train on, and how."""
    data, recipe = prepared.data, prepared.recipe
    store, near = data.build.store, prepared.on_device
    gather_tensor = None if near is None else near.gather_tensor
    everything = TrainingRows(
        store.gather, np.arange(len(data)), data.labels, data.weights, store.source_size, gather_tensor,
        num_classes=len(data.images.classes), teacher=extras.teacher,
    )  # fmt: skip
    labelled = everything.subset(fold.train)
    return FineTuneTask(
        preprocessing=card.preprocessing,
        train=joined(labelled, *extras.rows) if extras.rows else labelled,
        valid=everything.subset(fold.valid),
        recipe=recipe,
        policy=policy_named(card.policy),
        mode=prepared.training_mode,
        seed=fold.seed,
        folder=folder,
        pace=prepared.pace,
        resume=resume,
        mix=extras.mix,
        prior=extras.prior,
        teachers=extras.teachers,
    )
