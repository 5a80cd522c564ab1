"""``KNN``: blends the vote of the nearest training images into a network's probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import ClassVar, Self, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from etude.core.errors import EtudeError, nearest
from etude.core.predictions import Predictions
from etude.refine.base import occurring, require_features, require_labelled
from etude.refine.cross_fit import NOISE, choose, fold_numbers, fold_sums
from etude.refine.knn_votes import SCALE_OF, Metric, expanded, locally_scaled, own_scales, row_gains, votes
from etude.refine.neighbours import Method, NeighbourIndex, Neighbours
from etude.refine.training_rows import OnTrainingRows

KS = tuple(2**power for power in range(10))
TEMPERATURES = (1e-4, 1e-3, 1e-2, 0.03, 0.1, 0.3, 1.0, 10.0)
WEIGHTS = tuple(round(0.05 * step, 2) for step in range(1, 20))


class KNN(OnTrainingRows):
    """p = λ p_knn + (1 - λ) p_net, where the k nearest training images vote with the weights exp(-d / T).

    d is the distance of :class:`NeighbourIndex`: Euclidean, between centred features of length one. k, T and λ are
    chosen on labelled images that the network did not train on; λ = 0, the network alone, is kept unless the gain,
    cross-fitted over folds, exceeds its noise. An image that is itself in the index does not vote for itself.

    Args:
        train_features: (M, D) floats.
        train_labels: (M,) positions in ``train_classes``, -1 where unknown.
        train_ids: M unique ids; without them every row may vote on every image.
        train_classes: class names of the labels; None when they are those of the predictions, in the same order.
        ks, temperatures, weights: the values of k, T and λ that are tried.
        metric: what the choice maximises: ``"log_loss"`` (less of it) or ``"accuracy"``, log loss deciding on a tie.
        local_scaling: divides d by sqrt(s_q s_x), the mean distances of both to their own ten nearest rows, so that
            rows in crowded and in empty places count alike.
        query_expansion: how many nearest rows are averaged into each query, which is then asked again; 0 is none.
        method: of :class:`NeighbourIndex`.
        folds: of the cross-fitting.
        noise: standard errors that the gain must exceed; None takes the best values of all in any case.

    Attributes:
        index_: the :class:`NeighbourIndex` over the labelled training rows.
        k_, temperature_, weight_: what was chosen; ``weight_`` is 0 where nothing is gained.
        gain_, error_: the cross-fitted gain in the metric and its standard error.

    Source: Khandelwal et al. 2020 (https://arxiv.org/abs/1911.00172) and Jia et al. 2021
    (https://arxiv.org/abs/2112.08459) for the blend; Zelnik-Manor & Perona 2004, Self-tuning spectral clustering, for
    local scaling; Chum et al. 2007, Total recall, for query expansion.

    >>> rng = np.random.default_rng(0)
    >>> labels = np.arange(120) % 2
    >>> features = (np.eye(2)[labels] + rng.normal(scale=0.2, size=(120, 2))).astype(np.float32)
    >>> ids = tuple(f"{row}" for row in range(60))
    >>> unsure = Predictions(ids, ("cat", "dog"), np.zeros((1, 60, 2)), features[:60], labels[:60])
    >>> knn = KNN(features[60:], labels[60:]).fit(unsure)
    >>> float((knn.transform(unsure).predicted() == labels[:60]).mean())
    1.0
    """

    fits_on: ClassVar[frozenset[str]] = frozenset({"labelled"})

    def __init__(
        self,
        train_features: ArrayLike,
        train_labels: ArrayLike,
        train_ids: Sequence[str] | None = None,
        train_classes: Sequence[str] | None = None,
        *,
        ks: Sequence[int] = KS,
        temperatures: Sequence[float] = TEMPERATURES,
        weights: Sequence[float] = WEIGHTS,
        metric: Metric = "log_loss",
        local_scaling: bool = False,
        query_expansion: int = 0,
        method: Method = "auto",
        folds: int = 5,
        noise: float | None = NOISE,
    ) -> None:
        self.train_features, self.train_labels = train_features, train_labels
        self.train_ids, self.train_classes = train_ids, train_classes
        self.ks, self.temperatures, self.weights = ks, temperatures, weights
        self.metric: Metric = metric
        self.local_scaling, self.query_expansion = local_scaling, query_expansion
        self.method: Method = method
        self.folds, self.noise = folds, noise

    def fit(self, labelled: Predictions | None = None, target: Predictions | None = None) -> Self:
        """Choose k, T and λ on ``labelled``; ``target`` is not used.

        Raises:
            EtudeError: there are no labels or features, or an argument cannot be used.
        """
        self._check()
        require_labelled(labelled, "KNN")
        assert labelled is not None
        require_features(labelled, "KNN")
        self.classes_ = labelled.classes
        self.k_, self.temperature_, self.weight_, self.gain_, self.error_ = min(self.ks), 1.0, 0.0, 0.0, 0.0
        features, labels, ids = self.known_rows(labelled)
        self.index_ = NeighbourIndex(features, ids, self.method)
        self._scales = own_scales(self.index_) if self.local_scaling else None
        if len(labelled.classes) > 1:  # one class is certain already
            self._columns = self.columns_in(labelled)[labels]
            self.learned_ = occurring(self._columns, len(labelled.classes))
            assert labelled.labels is not None
            self._choose(labelled.take(labelled.labels >= 0))
        return self

    def vote(self, predictions: Predictions) -> NDArray[np.float64]:
        """Return p_knn, (N, C), for the chosen k and T; zero throughout for an image without any neighbour."""
        self.require_fitted()
        return self._vote(self._found(predictions, self.k_), self.temperature_, self.k_)

    def neighbours_of(self, predictions: Predictions, k: int = 5) -> list[list[tuple[str, float]]]:
        """Return (id, distance) of the ``k`` nearest training images of each image, nearest first, for a report."""
        self.require_fitted()
        return self.index_.neighbours_of(require_features(predictions, "KNN"), k, predictions.ids)

    @property
    def described(self) -> str:
        """Such as ``"k = 16, T = 0.1, λ = 0.30"``."""
        self.require_fitted()
        if not self.weight_:
            return f"λ = 0: neighbours gain {self.gain_:+.4f} ± {self.error_:.4f}, not more than noise"
        return f"k = {self.k_}, T = {self.temperature_:g}, λ = {self.weight_:.2f}"

    def _check(self) -> None:
        if self.metric not in get_args(Metric):
            hint = nearest(self.metric, get_args(Metric))
            raise EtudeError(f"the metric of KNN must be 'log_loss' or 'accuracy', not {self.metric!r}.{hint}")
        if not self.ks or not self.temperatures or not self.weights:
            raise EtudeError("KNN needs at least one value each of k, T and λ to choose from")
        if (
            min(self.ks) < 1
            or not min(self.temperatures) > 0
            or not (min(self.weights) >= 0 and max(self.weights) <= 1)
        ):
            raise EtudeError(
                f"KNN needs k of at least 1, T above 0 and λ from 0 to 1, not k from {min(self.ks)}, "
                f"T from {min(self.temperatures)} and λ from {min(self.weights)} to {max(self.weights)}"
            )
        if self.query_expansion < 0 or self.folds < 2:
            given = f"{self.query_expansion} and {self.folds}"
            raise EtudeError(f"KNN needs query_expansion of at least 0 and at least 2 folds, not {given}")

    def _choose(self, known: Predictions) -> None:
        ks = sorted({min(k, len(self.index_)) for k in self.ks})
        grid = [(k, t, w) for t, k, w in product(self.temperatures, ks, self.weights)]
        found, numbers = self._found(known, ks[-1]), fold_numbers(known, self.folds)
        network, labels = known.probabilities(), known.labels
        assert labels is not None
        classes = len(known.classes)
        sums = [
            fold_sums(row_gains(self.completed(vote, network), network, labels, self.weights, self.metric), numbers)
            for temperature in self.temperatures
            for vote in votes(found, self._columns, classes, temperature, ks)
        ]

        def gains_of(candidate: int) -> NDArray[np.float64]:
            k, temperature, weight = grid[candidate]
            vote = self.completed(self._vote(found, temperature, k), network)
            return row_gains(vote, network, labels, (weight,), self.metric)[0]

        choice = choose(np.concatenate(sums), gains_of, numbers, self.noise)
        self.gain_, self.error_ = choice.gain, choice.error
        if choice.best is not None:
            self.k_, self.temperature_, self.weight_ = grid[choice.best]

    def _vote(self, found: Neighbours, temperature: float, k: int) -> NDArray[np.float64]:
        return next(votes(found, self._columns, len(self.classes_), temperature, (k,)))

    def _found(self, predictions: Predictions, k: int) -> Neighbours:
        index = self.index_
        queries, own = index.directions(require_features(predictions, "KNN")), index.own_rows(predictions.ids)
        if self.query_expansion:
            queries = expanded(index, queries, own, self.query_expansion)
        if self._scales is None:
            return index.nearest(queries, k, own)
        found = index.nearest(queries, max(k, SCALE_OF), own)
        return locally_scaled(found, self._scales, k)
