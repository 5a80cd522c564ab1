"""Predict the rows of a store."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from etude.core.predictions import Predictions
from etude.core.progress import Progress
from etude.inference.views import IDENTITY, seen_through, views_of
from etude.models.classifier import Classifier, ModelCard
from etude.models.device import best_device
from etude.models.features import Gather, extract_features


def predict(
    model: Classifier,
    card: ModelCard,
    gather: Gather,
    rows: np.ndarray,
    ids: Sequence[str],
    *,
    progress: Progress,
    tta: int = 1,
    labels: np.ndarray | None = None,
    known_features: np.ndarray | None = None,
    name: str = "predict",
) -> Predictions:
    """Return logits (V, N, C) over V views, and the plain view's features.

    The head works on the float16 features in both cases, so predictions from cached features and from images agree.

    Args:
        gather: a store's method.
        rows: int (N,), positions in the store.
        ids: N names.
        tta: views asked for; the policy's symmetries may allow fewer.
        labels: int (N,) where they are known.
        known_features: (N, D) features of the plain view, when they have been computed before.
    """
    model.eval().to(best_device())
    weight = model.head.weight.detach().float().cpu().numpy()
    bias = model.head.bias.detach().float().cpu().numpy()
    logits: list[np.ndarray] = []
    plain: np.ndarray | None = None
    for view in views_of(card.policy, tta):
        if view == IDENTITY and known_features is not None:
            features = known_features
        else:
            bar_name = name if view == IDENTITY else f"{name} ({view.name})"
            features = extract_features(
                model.backbone, seen_through(view, gather), rows, card.preprocessing,
                progress=progress, precision=card.precision, name=bar_name,
            )  # fmt: skip
        plain = features if plain is None else plain
        logits.append(features.astype(np.float32) @ weight.T + bias)
    return Predictions(ids=tuple(ids), classes=card.classes, logits=np.stack(logits), features=plain, labels=labels)


def plain_view(predictions: Predictions) -> Predictions:
    """Return the predictions of the first view alone, to show scores with and without TTA apart."""
    return Predictions(
        ids=predictions.ids,
        classes=predictions.classes,
        logits=predictions.logits[:1],
        features=predictions.features,
        labels=predictions.labels,
    )
