"""Predict the rows of a store."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from etude.core.predictions import Predictions
from etude.core.progress import Progress
from etude.inference.views import IDENTITY, ViewLike, input_size, views_of
from etude.models.classifier import Classifier, ModelCard
from etude.models.device import best_device
from etude.models.features import Gather, outputs_of

_BATCH = 32


def predict(
    model: Classifier,
    card: ModelCard,
    gather: Gather,
    rows: np.ndarray,
    ids: Sequence[str],
    *,
    progress: Progress,
    tta: int = 1,
    views: Sequence[ViewLike] | None = None,
    labels: np.ndarray | None = None,
    known_features: np.ndarray | None = None,
    name: str = "predict",
) -> Predictions:
    """Return logits (V, N, C) over V views, and the plain view's features.

    A batch is read from the store once, and every view of it is made from that while the network works. The head works
    on the float16 features in both cases, so predictions from cached features and from images agree.

    Args:
        gather: a store's method.
        rows: int (N,), positions in the store.
        ids: N names.
        tta: views asked for; the policy's symmetries may allow fewer.
        views: the views themselves in place of ``tta``, such as those of ``many_views``, which go beyond symmetries.
        labels: int (N,) where they are known.
        known_features: (N, D) features of the plain view, when they have been computed before.
    """
    model.eval().to(best_device())
    weight = model.head.weight.detach().float().cpu().numpy()
    bias = model.head.bias.detach().float().cpu().numpy()
    chosen = tuple(views_of(card.policy, tta) if views is None else views)
    logits = np.empty((len(chosen), len(rows), len(bias)), np.float32)
    plain = known_features if chosen[0] == IDENTITY else None
    if plain is not None:
        for start in range(0, len(rows), _BATCH):  # as many rows at once as below, so that the sums round alike
            logits[0, start : start + _BATCH] = plain[start : start + _BATCH].astype(np.float32) @ weight.T + bias
    skipped = 0 if plain is None else 1
    bar_name = name if len(chosen) == 1 else f"{name} ({len(chosen)} views)"
    with progress.bar(bar_name, len(rows) * (len(chosen) - skipped)) as advance:
        for start, view, features in _features(model, card, gather, rows, chosen[skipped:]):
            logits[view + skipped, start : start + len(features)] = features.astype(np.float32) @ weight.T + bias
            if view + skipped == 0:
                plain = np.empty((len(rows), features.shape[1]), np.float16) if plain is None else plain
                plain[start : start + len(features)] = features
            advance(len(features))
    return Predictions(ids=tuple(ids), classes=card.classes, logits=logits, features=plain, labels=labels)


def _features(
    model: Classifier, card: ModelCard, gather: Gather, rows: np.ndarray, views: Sequence[ViewLike]
) -> Iterator[tuple[int, int, np.ndarray]]:
    """Yield (first row, view, float16 features), all views of a batch one after the other."""
    whole = len(rows) - len(rows) % _BATCH
    for first, last, batch in ((0, whole, _BATCH), (whole, len(rows), len(rows) - whole)):
        if first == last or not views:
            continue
        fetch = _ViewsOfBatches(gather, rows[first:last], views, batch, card.preprocessing.size)
        outputs = outputs_of(
            model.backbone, fetch, (last - first) * len(views), card.preprocessing,
            precision=card.precision, batch_size=batch,
        )  # fmt: skip
        for number, features in enumerate(outputs):
            place, view = divmod(number, len(views))
            yield first + place * batch, view, features


class _ViewsOfBatches:
    """Makes the views of one batch after the other, and gathers each batch once a size."""

    def __init__(self, gather: Gather, rows: np.ndarray, views: Sequence[ViewLike], batch: int, size: int) -> None:
        self.gather, self.rows, self.views, self.batch, self.size = gather, rows, views, batch, size
        self._place, self._gathered = -1, dict[int, np.ndarray]()

    def __call__(self, part: slice) -> np.ndarray:
        """Return a batch through a view; places run through the views of the first batch, then of the next."""
        place, number = divmod(part.start // self.batch, len(self.views))
        if place != self._place:
            self._place, self._gathered = place, {}
        view = self.views[number]
        size = input_size(view, self.size)
        if size not in self._gathered:
            self._gathered[size] = self.gather(self.rows[place * self.batch : (place + 1) * self.batch], size)
        return view(self._gathered[size])


def plain_view(predictions: Predictions) -> Predictions:
    """Return the predictions of the first view alone, to show scores with and without TTA apart."""
    return Predictions(
        ids=predictions.ids,
        classes=predictions.classes,
        logits=predictions.logits[:1],
        features=predictions.features,
        labels=predictions.labels,
    )
