"""The two stages as candidates: a head on frozen features, and a fine-tuned network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from etude.core.context import Context
from etude.core.metrics import score_of
from etude.core.predictions import Predictions
from etude.core.seeds import derive_seed
from etude.core.text import plain_name
from etude.data.dataset import Dataset
from etude.data.loader import TrainingRows, concatenated_rows
from etude.data.order import FixedMix
from etude.data.split import Fold
from etude.functional.augment import policy_named
from etude.inference.alignment import FEWEST, Reference
from etude.inference.predict import predict
from etude.models.backbones import with_levels
from etude.models.classifier import Classifier, ModelCard, Preprocessing
from etude.models.head import LinearHead, fit_head
from etude.recipe.timeline import image_sizes, maximum_of
from etude.study.run.frozen import trainable_backbone
from etude.study.run.prepare import Prepared
from etude.training.fit import fine_tune
from etude.training.resume import Finished
from etude.training.task import FineTuneTask

FINE_TUNED = "finetune"  # the stage of a network that learned from labelled images, the first of several
_PASSES = 3  # of the network forward take about as long as one pass of training, forward and backward
_CHEAP = 0.05  # of the time of training
_SMALL = 2**29  # bytes of features


@dataclass(frozen=True, slots=True)
class Extras:
    """What a fine-tuning learns from besides the fold's labelled images."""

    rows: tuple[TrainingRows, ...] = ()  # unlabelled images, with pseudo-labels or without
    mix: FixedMix | None = None  # how they share the batches with the labelled ones
    prior: np.ndarray | None = None  # (C,) class shares that online pseudo-labels are aligned to
    teacher: np.ndarray | None = None  # float32 (N, C) a teacher's probabilities of all labelled images
    teachers: tuple[nn.Module, ...] = ()  # networks that see the same views as the student
    start: Classifier | None = None  # weights to start from
    head: LinearHead | None = None  # of stage 1; fitted anew where it is not at hand


NO_EXTRAS = Extras()


def fit_head_on(prepared: Prepared, rows: np.ndarray, fold: Fold, c: float | None = None) -> LinearHead:
    """Fit a linear head on all views of images by the fold's seed, with one ``c`` if it is given."""
    data, settings = prepared.data, prepared.recipe.head
    assert prepared.features is not None
    return fit_head(
        prepared.features.views_of(rows),
        data.labels[rows],
        len(data.images.classes),
        candidates=settings.inverse_regularization if c is None else (c,),
        folds=settings.folds,
        search_rows=settings.search_rows,
        weights=data.weights[rows],
        context=Context(seed=fold.seed),
    )


def starting_network(
    prepared: Prepared, fold: Fold, policy: str, head: LinearHead | None = None
) -> tuple[Classifier, ModelCard]:
    """Return a fresh network and its card; where stage 1 used the same backbone, the network starts as that stage.

    A fitted head spares the backbone the large gradients of a random one (Kumar et al. 2022, "Fine-Tuning can Distort
    Pretrained Features and Underperform Out-of-Distribution"), and all depths that the head knows go on to count.
    """
    recipe, data, features, mode = prepared.recipe, prepared.data, prepared.features, prepared.mode
    assert mode is not None
    torch.manual_seed(derive_seed(fold.seed, "initial weights"))
    name, classes = recipe.model.backbone, data.images.classes
    backbone = trainable_backbone(recipe, data.build.store.channels, mode.precision)
    from_head = features is not None and features.frozen.name == name
    levels = features.frozen.levels if features is not None and from_head else 0
    backbone = with_levels(backbone, levels)
    folded = recipe.train.batchnorm == "keep"
    dropout = max(recipe.train.dropout, maximum_of(recipe, "dropout"))  # the clock can change it, but not add it
    model = Classifier(backbone.module, backbone.num_features, len(classes), dropout)
    if from_head:
        head = head or fit_head_on(prepared, fold.train, fold)
        model.set_head(head.weight, head.bias)
    preprocessing = Preprocessing.of(backbone, data.build, image_sizes(recipe).final)
    return model, ModelCard(
        name, classes, preprocessing, mode.precision, tta=1, policy=policy, folded=folded, levels=levels
    )


def training_task(
    prepared: Prepared, fold: Fold, card: ModelCard, folder: Path, *, resume: bool = False, extras: Extras = NO_EXTRAS
) -> FineTuneTask:
    data, recipe = prepared.data, prepared.recipe
    assert prepared.mode is not None
    store, near = data.build.store, prepared.on_device
    gather_tensor = None if near is None else near.gather_tensor
    everything = TrainingRows(
        store.gather, np.arange(len(data)), data.labels, data.weights, store.source_size, gather_tensor,
        num_classes=len(data.images.classes), teacher=extras.teacher,
    )  # fmt: skip
    labelled = everything.subset(fold.train)
    return FineTuneTask(
        preprocessing=card.preprocessing,
        train=concatenated_rows(labelled, *extras.rows) if extras.rows else labelled,
        valid=everything.subset(fold.valid) if fold.held_out else None,
        recipe=recipe,
        policy=policy_named(card.policy),
        mode=prepared.mode,
        seed=fold.seed,
        folder=folder,
        pace=prepared.pace,
        resume=resume,
        mix=extras.mix,
        prior=extras.prior,
        left=prepared.left,
        teachers=extras.teachers,
    )


TrainRows = tuple[np.ndarray, np.ndarray | None]
"""Rows (M,) that a candidate was trained on; float16 (N, D) its network's features of every row, where they are known.
"""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A trained model and its labelled predictions of the validation images."""

    stage: str  # that made it: head or finetune; with unlabelled images round 2 and so on, or online
    model: Classifier
    card: ModelCard
    valid: Predictions
    notes: dict[str, Any] = field(default_factory=dict)
    train: TrainRows | None = None  # None when features of the training images are not to be saved
    folder: str = "."  # of its files in the run's folder
    on_all: Callable[[], LinearHead] | None = None  # fits a head on the validation images too
    scale: float = 1.0  # of the logits

    def scaled(self, factor: float) -> Candidate:
        """Return the candidate with the logits of its model multiplied, in place: it predicts the same classes."""
        head = self.model.head
        self.model.set_head(head.weight.detach().cpu().numpy() * factor, head.bias.detach().cpu().numpy() * factor)
        valid = replace(self.valid, logits=self.valid.logits * factor)
        scale = self.scale * factor
        return replace(self, valid=valid, notes={**self.notes, "temperature": 1 / scale}, scale=scale)

    def with_tta(self, views: int, policy: str) -> Candidate:
        return replace(self, card=replace(self.card, tta=views, policy=policy))

    @property
    def reference(self) -> Reference | None:
        """Where the features of the validation images lie; None where those are too few to tell."""
        features, labels = self.valid.features, self.valid.labels
        return None if features is None or labels is None or len(labels) < FEWEST else Reference.of(features, labels)

    def predict(self, data: Dataset, rows: np.ndarray, context: Context, **options: Any) -> Predictions:
        return predict_rows(self.model, self.card, data, rows, context, **options)


def predict_rows(
    model: Classifier, card: ModelCard, data: Dataset, rows: np.ndarray, context: Context, **options: Any
) -> Predictions:
    """Return what a model predicts of images of a data set, with their labels where there are some."""
    labels, ids = data.images.labels, [data.images.ids[row] for row in rows]
    known = None if labels is None else labels[rows]
    return predict(model, card, data.build.store.gather, rows, ids, labels=known, context=context, **options)


def head_candidate(
    prepared: Prepared,
    fold: Fold,
    head: LinearHead,
    context: Context,
    stage: str = "head",
    on_all: Callable[[], LinearHead] | None = None,
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
    known = features.values[fold.valid]
    valid = predict_rows(model, card, prepared.data, fold.valid, context, known_features=known, name="validate")
    notes = {"C": head.inverse_regularization, "cv cross-entropy": head.cross_entropy}
    train = _train_rows(prepared, fold, model, features.values)
    return Candidate(stage, model, card, valid, notes, train, on_all=on_all)


def finetune_candidate(
    prepared: Prepared,
    fold: Fold,
    context: Context,
    *,
    policy: str,
    folder: Path,
    resume: bool,
    extras: Extras = NO_EXTRAS,
    stage: str = FINE_TUNED,
) -> tuple[Candidate, Finished]:
    """Fine-tune a network, or resume one that was stopped; return it with what happened on the way."""
    model, card = starting_network(prepared, fold, policy, extras.head)
    if extras.start is not None:
        model.load_state_dict(extras.start.state_dict())
    task = training_task(prepared, fold, card, folder, resume=resume, extras=extras)
    done = fine_tune(model, task, context=context, name=plain_name(stage))
    valid = predict_rows(model, card, prepared.data, fold.valid, context, name="validate")
    epochs = done.steps * min(prepared.recipe.train.batch_size, len(fold.train)) / len(fold.train)
    train = _train_rows(prepared, fold, model, None, epochs)
    return Candidate(stage, model, card, valid, {"steps": done.steps}, train), done


def better(candidates: list[Candidate]) -> Candidate:
    """Return the candidate with the best validation accuracy, then log loss; the earlier one where they are equal."""
    return max(candidates, key=lambda candidate: score_of(candidate.valid))


def _train_rows(
    prepared: Prepared, fold: Fold, model: Classifier, known: np.ndarray | None, epochs: float = 0.0
) -> TrainRows | None:
    """Return the training images if the recipe wants their features, or leaves it open and they cost little."""
    asked, size = prepared.recipe.predict.train_features, 2 * len(fold.train) * model.head.in_features
    cheap = size <= _SMALL and (known is not None or _CHEAP * _PASSES * epochs >= 1.0)
    wanted = cheap and len(prepared.folds) == 1 if asked == "auto" else asked == "always"
    return (fold.train, known) if wanted else None
