"""``Ensemble``: blends several models in the way that labelled images show to be the best."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Self, cast, get_args

import numpy as np
from numpy.typing import NDArray

from etude.core.errors import EtudeError, listed, nearest
from etude.core.metrics import Gain, metric_named, paired_bootstrap
from etude.core.predictions import Predictions
from etude.refine.base import require_classes
from etude.refine.blend import aligned, average, common_labels, geometric_mean, majority_vote, rank_mean, shares_of
from etude.refine.cross_fit import FEWEST_ROWS, fold_numbers
from etude.refine.ensemble_selection import mixture_weights, select_ensemble

Method = Literal["auto", "mean", "geometric", "rank", "vote", "likelihood", "selection", "best"]
METHODS = get_args(Method)
FIXED = ("mean", "geometric", "rank", "vote")  # ways that fit no weights
TRIED = ("geometric", "likelihood", "selection", "best")


class Ensemble:
    """One set of predictions from those of M models, scikit-learn style.

    ``"mean"``, ``"geometric"``, ``"rank"`` and ``"vote"`` (of predicted classes) take the weights given, by default
    equal ones; ``"likelihood"`` takes the mean with the weights of least log loss (EM), ``"selection"`` with those of
    Caruana's forward selection, and ``"best"`` the one model that is best by the metric, since a partner with far more
    errors costs. ``"auto"`` takes the mean, unless another way beats it, cross-fitted over folds, beyond its noise.
    Calibrate afterwards, not before.

    Args:
        method: one of the above.
        metric: that selection, ``"best"`` and ``"auto"`` go by; see :func:`etude.core.metrics.metric_named`.
        size, bags, share: of :func:`select_ensemble`.
        folds, seed: of folds and bags.
        weights: M weights for the ways that fit none.

    Attributes:
        method_: the way taken.
        weights_: (M,) of the models, in their order.
        gains_: with ``"auto"``, the cross-fitted gain of each other way over the mean.

    >>> rng = np.random.default_rng(0)
    >>> labels = rng.integers(2, size=200)
    >>> noisy = [3 * np.eye(2)[labels] + rng.normal(scale=s, size=(200, 2)) for s in (1, 1, 9)]
    >>> models = [Predictions([str(i) for i in range(200)], ["x", "y"], z[None], labels=labels) for z in noisy]
    >>> ensemble = Ensemble("likelihood").fit(models)
    >>> bool(ensemble.weights_[2] < 0.1), ensemble.transform(models).logits.shape
    (True, (1, 200, 2))
    """

    def __init__(
        self,
        method: Method = "auto",
        metric: str = "log_loss",
        *,
        size: int = 50,
        bags: int = 10,
        share: float = 1.0,
        folds: int = 5,
        seed: int = 0,
        weights: Sequence[float] | None = None,
    ) -> None:
        self.method: Method = method
        self.metric, self.size, self.bags, self.share = metric, size, bags, share
        self.folds, self.seed, self.weights = folds, seed, weights

    def fit(self, models: Sequence[Predictions]) -> Self:
        """Learn from out-of-fold predictions of the M models on the same images; labels may come from any of them.

        Without labels only the ways that need none can be fitted.

        Raises:
            EtudeError: the predictions do not match, labels are needed and missing, or an argument is out of range.
        """
        if self.method not in METHODS:
            hint = nearest(self.method, METHODS)
            raise EtudeError(f"models cannot be blended by {self.method!r}; give one of {listed(METHODS, 9)}.{hint}")
        metric_named(self.metric)
        together = aligned(models)
        self.classes_, self.gains_ = together[0].classes, dict[str, Gain]()
        self.method_ = self.method if self.method != "auto" else "mean"
        if self.method in FIXED:
            self.weights_ = shares_of(self.weights, len(together))
        elif self.weights is not None:
            raise EtudeError(f"models that are blended by {self.method!r} have weights of its own: leave yours out")
        else:
            known = self._known(together)
            self.method_ = self._best_way(known) if self.method == "auto" else self.method
            self.weights_ = self._weights(self.method_, known)
        return self

    def transform(self, models: Sequence[Predictions]) -> Predictions:
        """Return the blend, in one view and without features, of the predictions of the same M models in order.

        Raises:
            EtudeError: nothing was fitted, or the number of models or their classes are others.
        """
        if not hasattr(self, "weights_"):
            raise EtudeError("Ensemble is not fitted yet: call fit with the labelled predictions of the models first")
        if len(models) != len(self.weights_):
            raise EtudeError(f"Ensemble was fitted on {len(self.weights_)} models and got {len(models)}: give the same")
        require_classes(self.classes_, models[0], "Ensemble")
        return _blended(self.method_, models, self.weights_)

    @property
    def described(self) -> str:
        """Such as ``"likelihood: 0.61 0.39 0.00"``."""
        if self.method_ in FIXED and self.weights is None:
            return f"{self.method_} of {len(self.weights_)} models"
        return f"{self.method_}: {' '.join(f'{weight:.2f}' for weight in self.weights_)}"

    def _known(self, together: Sequence[Predictions]) -> list[Predictions]:
        """The labelled images, in the order of their ids: what is drawn then does not depend on that of the rows."""
        labels = common_labels(together)
        if labels is None or not (labels >= 0).any():
            raise EtudeError(
                f"blending by {self.method!r} needs labelled images, and none has a label: "
                "give validation predictions with their labels, or take 'mean'"
            )
        ids = together[0].ids
        rows = [row for row in sorted(range(len(ids)), key=ids.__getitem__) if labels[row] >= 0]
        return [
            Predictions(one.ids, one.classes, one.log_probabilities()[None].astype(np.float32), labels=labels).take(
                rows
            )
            for one in together
        ]

    def _weights(self, method: str, known: Sequence[Predictions]) -> NDArray[np.float64]:
        labels = known[0].labels
        assert labels is not None
        probabilities = [one.probabilities() for one in known]
        if method == "likelihood":
            rows = np.arange(len(labels))
            return mixture_weights(np.stack([one[rows, labels] for one in probabilities]))
        if method == "selection":
            settings: dict[str, Any] = {
                name: getattr(self, name) for name in ("metric", "size", "bags", "share", "seed")
            }
            return select_ensemble(probabilities, labels, **settings)
        if method == "best":
            metric = metric_named(self.metric)
            scores = [metric.sign * metric.value(one.log_probabilities(), labels) for one in known]
            return np.eye(len(known))[int(np.argmax(scores))]
        return np.full(len(known), 1 / len(known))

    def _best_way(self, known: Sequence[Predictions]) -> Method:
        labels = known[0].labels
        assert labels is not None
        if len(known) < 2 or len(labels) < FEWEST_ROWS:
            return "mean"
        metric, numbers = metric_named(self.metric), fold_numbers(known[0], self.folds, self.seed)
        mean = average(known).log_probabilities()
        for way in TRIED:
            held_out = self._cross_fitted(way, known, numbers)
            self.gains_[way] = paired_bootstrap(metric, mean, held_out, labels, 1000, self.seed, level=0.95)
        best = max(TRIED, key=lambda way: self.gains_[way].gain)
        return cast("Method", best) if self.gains_[best].beyond_noise else "mean"

    def _cross_fitted(self, way: str, known: Sequence[Predictions], numbers: NDArray[np.int64]) -> NDArray[np.float64]:
        found = np.empty((len(known[0]), len(self.classes_)))
        for fold in range(int(numbers.max()) + 1):
            held = numbers == fold
            weights = self._weights(way, [one.take(~held) for one in known])
            found[held] = _blended(way, [one.take(held) for one in known], weights).log_probabilities()
        return found


def _blended(method: str, models: Sequence[Predictions], weights: NDArray[np.float64]) -> Predictions:
    ways = {"geometric": geometric_mean, "rank": rank_mean, "vote": majority_vote}
    return ways.get(method, average)(models, weights.tolist())
