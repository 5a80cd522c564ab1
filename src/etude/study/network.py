"""Stage 2's network as training starts it: folded, partly frozen, its head taken from stage 1."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from etude.core.seeds import derive_seed
from etude.data.dataset import Dataset
from etude.data.loader import TrainingRows
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
    prepared: Prepared, fold: Fold, card: ModelCard, folder: Path, *, resume: bool = False
) -> FineTuneTask:
    """Return what there is to train on, and how."""
    data, recipe = prepared.data, prepared.recipe
    targets, store, near = data.targets(), data.build.store, prepared.on_device
    gather_tensor = None if near is None else near.gather_tensor
    rows: Callable[[np.ndarray], TrainingRows] = lambda chosen: TrainingRows(  # noqa: E731
        store.gather, chosen, targets[chosen], data.weights[chosen], store.source_size, gather_tensor
    )
    return FineTuneTask(
        preprocessing=card.preprocessing,
        train=rows(fold.train),
        valid=rows(fold.valid),
        recipe=recipe,
        policy=policy_named(card.policy),
        mode=prepared.training_mode,
        seed=fold.seed,
        folder=folder,
        pace=prepared.pace,
        resume=resume,
    )
