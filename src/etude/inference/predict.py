"""Predict the rows of a store."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from threading import Lock

import numpy as np

from etude.core.arrays import save_arrays
from etude.core.context import Context
from etude.core.files import digest_of
from etude.core.predictions import Predictions
from etude.core.prefetch import prefetch
from etude.core.processor import usable_cores
from etude.inference.views import IDENTITY, ViewLike, input_size, many_views
from etude.models.classifier import Classifier, ModelCard
from etude.models.device import best_device
from etude.models.features import Gather, kept_features, outputs_of, weights_digest

_BATCH = 32
_MOST_THREADS = 8  # that make views
_MOST_KEPT = 2**29  # bytes of features of all views together, beyond which none are kept


def predict(
    model: Classifier,
    card: ModelCard,
    gather: Gather,
    rows: np.ndarray,
    ids: Sequence[str],
    *,
    context: Context = Context(),
    tta: int = 1,
    views: Sequence[ViewLike] | None = None,
    labels: np.ndarray | None = None,
    known_features: np.ndarray | None = None,
    store: str | None = None,
    name: str = "predict",
) -> Predictions:
    """Return logits (V, N, C) over V views, and the plain view's features.

    A batch is read from the store once, and threads make every view of it from that while the network works. The head
    works on the float16 features in both cases, so predictions from cached features and from images agree.

    ``known_features`` (N, D) are those of the plain view. ``store`` names the store of images that a *frozen* backbone
    sees again and again, under other heads: features of each of their views are kept in the cache and read from there.
    """
    model.eval().to(best_device())
    weight = model.head.weight.detach().float().cpu().numpy()
    bias = model.head.bias.detach().float().cpu().numpy()
    chosen = tuple(many_views(card.policy, tta) if views is None else views)
    logits = np.empty((len(chosen), len(rows), len(bias)), np.float32)
    kept_at = {} if store is None else _paths(model, card, rows, chosen, store, context)
    known = {
        number: values for number, path in kept_at.items() if (values := kept_features(path, len(rows))) is not None
    }
    if known_features is not None and chosen[0] == IDENTITY:
        known[0] = known_features
    for number, values in known.items():
        for start in range(0, len(rows), _BATCH):  # as many rows at once as below, so that the sums round the same
            logits[number, start : start + _BATCH] = values[start : start + _BATCH].astype(np.float32) @ weight.T + bias
    missing = [number for number in range(len(chosen)) if number not in known]
    found: dict[int, np.ndarray] = {}
    bar_name = name if len(chosen) == 1 else f"{name} ({len(chosen)} views)"
    with context.bar(bar_name, len(rows) * len(missing)) as advance:
        for start, place, features in _features(model, card, gather, rows, [chosen[number] for number in missing]):
            number = missing[place]
            logits[number, start : start + len(features)] = features.astype(np.float32) @ weight.T + bias
            if number == 0 or number in kept_at:
                held = found.setdefault(number, np.empty((len(rows), features.shape[1]), np.float16))
                held[start : start + len(features)] = features
            advance(len(features))
    for number in found.keys() & kept_at.keys():
        save_arrays(kept_at[number], {"features": found[number]})
    plain = known.get(0, found.get(0))
    return Predictions(ids=tuple(ids), classes=card.classes, logits=logits, features=plain, labels=labels)


def _paths(
    model: Classifier, card: ModelCard, rows: np.ndarray, views: Sequence[ViewLike], store: str, context: Context
) -> dict[int, Path]:
    """Return where the features of each view are kept, by its number; none where they would be too many."""
    if 2 * len(views) * len(rows) * model.head.in_features > _MOST_KEPT:
        return {}
    key = digest_of(
        f"seen-1 {card.backbone} {card.levels} {card.policy} {card.precision}", store,
        weights_digest(model.backbone), repr(card.preprocessing), np.asarray(rows, np.int64).tobytes(),
    )  # fmt: skip
    return {
        number: context.cached("features", f"{key}-{view.name.replace(' ', '-')}.npz")
        for number, view in enumerate(views)
    }


def _features(
    model: Classifier, card: ModelCard, gather: Gather, rows: np.ndarray, views: Sequence[ViewLike]
) -> Iterator[tuple[int, int, np.ndarray]]:
    """Yield (first row, view, float16 features), all views of a batch one after the other."""
    batches = [rows[start : start + _BATCH] for start in range(0, len(rows), _BATCH)]
    # Each item is a batch seen through one view: the network takes one at a time, the threads run ahead.
    items, threads = len(batches) * len(views), max(1, min(_MOST_THREADS, usable_cores() - 1))
    make = _ViewsOfBatches(gather, batches, views, card.preprocessing.size)
    made = prefetch(make, range(items), threads=threads, ahead=threads + 1, name="etude-views")
    outputs = outputs_of(
        model.backbone, lambda item: next(made), items, card.preprocessing, precision=card.precision, batch_size=1
    )
    with closing(made), closing(outputs):
        for item, features in enumerate(outputs):
            place, view = divmod(item, len(views))
            yield place * _BATCH, view, features


class _ViewsOfBatches:
    """Makes the views of batches, in several threads, and gathers each batch once a size."""

    def __init__(self, gather: Gather, batches: Sequence[np.ndarray], views: Sequence[ViewLike], size: int) -> None:
        self.gather, self.batches, self.views, self.size = gather, batches, views, size
        self._lock, self._gathered = Lock(), dict[tuple[int, int], np.ndarray]()
        self._left = [len(views)] * len(batches)

    def __call__(self, item: int) -> np.ndarray:
        """Return a batch through a view; items run through the views of the first batch, then of the next."""
        place, number = divmod(item, len(self.views))
        view = self.views[number]
        images = view(self._images(place, input_size(view, self.size)))
        with self._lock:
            self._left[place] -= 1
            if not self._left[place]:
                self._gathered = {key: held for key, held in self._gathered.items() if key[0] != place}
        return images

    def _images(self, place: int, size: int) -> np.ndarray:
        with self._lock:  # whoever comes second needs what the first one is reading
            if (place, size) not in self._gathered:
                self._gathered[place, size] = self.gather(self.batches[place], size)
            return self._gathered[place, size]
