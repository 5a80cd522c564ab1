"""``KNN``: blends the vote of the nearest training images into a network's probabilities."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from itertools import product
from typing import ClassVar, Literal, Self, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from etude.core.errors import EtudeError, listed, nearest
from etude.core.predictions import Predictions
from etude.refine.base import (
    Refiner,
    occurring,
    require_classes,
    require_features,
    require_labelled,
    with_log_probabilities,
)
from etude.refine.cross_fit import NOISE, SMALLEST, choose, fold_numbers, fold_sums
from etude.refine.neighbours.index import Floats, Method, NeighbourIndex, Neighbours, UnitRows, checked_features

Metric = Literal["log_loss", "accuracy"]
SCALE_OF = 10  # neighbours whose mean distance is a row's scale
_SMALLEST_SCALE = 1e-6  # a row among copies of itself lies at distance zero from them
_TIE = 1e-9  # how much log loss counts beside a hit: it only decides between equal accuracies


def votes(
    found: Neighbours, labels: NDArray[np.int64], classes: int, temperature: float, ks: Sequence[int]
) -> Iterator[NDArray[np.float64]]:
    """Yield p_knn, (Q, C), for each k in the ascending ``ks``: Σ exp(-d / T) over neighbours of a class, over all k.

    Args:
        found: at least ``max(ks)`` neighbours of Q queries, or as many as there are.
        labels: (N,) class of each row of the index.
        classes: C.
        temperature: T.
        ks: ascending.

    >>> found = Neighbours(np.array([[0, 1, 2]]), np.array([[0.0, 0.0, np.log(2)]]))
    >>> [vote.round(2).tolist() for vote in votes(found, np.array([1, 1, 0]), 2, 1.0, [2, 3])]
    [[[0.0, 1.0]], [[0.2, 0.8]]]
    """
    present = found.positions >= 0
    # Only ratios count, so the nearest one gets weight 1: at a small T all would vanish otherwise.
    nearest = np.where(present.any(axis=1), found.distances.min(axis=1), 0.0)[:, None]
    weights = np.where(present, np.exp(-(np.where(present, found.distances, nearest) - nearest) / temperature), 0.0)
    cells = np.arange(len(weights))[:, None] * classes + labels[found.positions]
    total, start = np.zeros(len(weights) * classes), 0
    for k in ks:
        part = slice(start, k)
        total += np.bincount(cells[:, part].ravel(), weights[:, part].ravel(), minlength=len(total))
        start = k
        table = total.reshape(-1, classes)
        yield table / np.maximum(table.sum(axis=1, keepdims=True), np.finfo(np.float64).tiny)


def mixed(vote: NDArray[np.float64], network: NDArray[np.float64], weight: float) -> NDArray[np.float64]:
    """Return log(λ p_knn + (1 - λ) p_net), (N, C), from log p_net; the network alone where nobody voted.

    >>> np.exp(mixed(np.array([[1.0, 0.0], [0.0, 0.0]]), np.log([[0.5, 0.5], [0.2, 0.8]]), 0.5)).round(2).tolist()
    [[0.75, 0.25], [0.2, 0.8]]
    """
    with np.errstate(divide="ignore"):  # the log of zero is minus infinity, as it should be
        blend = np.logaddexp(np.log(weight) + np.log(vote), np.log1p(-weight) + network)
    return np.where(vote.any(axis=1, keepdims=True), blend, network)


def row_gains(
    vote: NDArray[np.float64],
    network: NDArray[np.float64],
    labels: NDArray[np.int64],
    weights: Sequence[float],
    metric: Metric,
) -> NDArray[np.float64]:
    """Return what each λ in ``weights`` gains over the network alone, (weights, N): in log loss, or in hits."""
    rows, lam = np.arange(len(labels)), np.asarray(weights)[:, None]
    lam = np.where(vote.any(axis=1), lam, 0.0)
    before = np.maximum(network[rows, labels], SMALLEST)
    after = np.maximum(lam * vote[rows, labels] + (1 - lam) * network[rows, labels], SMALLEST)
    gains = np.log(after) - np.log(before)
    if metric == "log_loss":
        return gains
    hit_before = network.argmax(axis=1) == labels
    hits = np.array([(one[:, None] * vote + (1 - one[:, None]) * network).argmax(axis=1) == labels for one in lam])
    return hits.astype(np.float64) - hit_before + _TIE * gains


def expanded(index: NeighbourIndex, queries: UnitRows, own: NDArray[np.int64] | None, count: int) -> UnitRows:
    """Return each query's mean with its ``count`` nearest rows, scaled to length one again (query expansion)."""
    found = index.nearest(queries, count, own)
    total = queries.values.astype(np.float64)
    for positions in found.positions.T:
        total += np.where(positions[:, None] >= 0, index.rows.values[positions], 0)
    return UnitRows.of(total, np.zeros_like(index.centre))


def own_scales(index: NeighbourIndex) -> NDArray[np.float64]:
    """Return the mean distance of each row of the index to its ten nearest others, (N,)."""
    return _mean_distance(index.among_themselves(SCALE_OF))


def locally_scaled(found: Neighbours, scales: NDArray[np.float64], k: int) -> Neighbours:
    """Return the nearest ``k`` of ``found`` with d / sqrt(s_q s_x) as their distance, nearest first.

    s_q is the mean distance of the query to its first ten, s_x that of each row to its own. The neighbours are those
    that are nearest by d; scaling changes their order and weights.
    """
    own = _mean_distance(Neighbours(found.positions[:, :SCALE_OF], found.distances[:, :SCALE_OF]))
    positions = found.positions[:, :k]
    distances = found.distances[:, :k] / np.sqrt(own[:, None] * scales[positions])
    order = np.lexsort((positions, distances), axis=1)
    return Neighbours(np.take_along_axis(positions, order, axis=1), np.take_along_axis(distances, order, axis=1))


def _mean_distance(found: Neighbours) -> NDArray[np.float64]:
    present = found.positions >= 0
    total = np.where(present, found.distances, 0).sum(axis=1)
    return np.maximum(total / np.maximum(present.sum(axis=1), 1), _SMALLEST_SCALE)


class OnTrainingRows(Refiner):
    """A refiner whose ``train_...`` arguments hold the training images; its repr tells their size only.

    Attributes:
        train_features: (M, D) floats of the same backbone as the features of the predictions.
        train_labels: (M,) positions in ``train_classes``, -1 where unknown.
        train_ids: M ids, or None.
        train_classes: names of the classes; None when they are those of the predictions, in that order.
        classes_: of the predictions it was fitted on.
        weight_: λ, the share of the training rows' vote; 0 where nothing is gained.
        learned_: (C,) bool, the classes with training rows; the others keep the network's probability.
    """

    needs_features = True
    train_features: ArrayLike
    train_labels: ArrayLike
    train_ids: Sequence[str] | None
    train_classes: Sequence[str] | None
    classes_: tuple[str, ...]
    weight_: float
    learned_: NDArray[np.bool_]

    @abstractmethod
    def vote(self, predictions: Predictions) -> NDArray[np.float64]:
        """Return the class probabilities, (N, C), that the training rows speak for."""

    def transform(self, predictions: Predictions) -> Predictions:
        """Return λ p_vote + (1 - λ) p_net; features are needed unless λ is 0.

        Raises:
            EtudeError: the classes are not those of ``fit``, or features are missing.
        """
        self.require_fitted()
        require_classes(self.classes_, predictions, type(self).__name__)
        network = predictions.log_probabilities()
        if not self.weight_:
            return with_log_probabilities(predictions, network)
        vote = self.completed(self.vote(predictions), np.exp(network))
        return with_log_probabilities(predictions, mixed(vote, network, self.weight_))

    def completed(self, vote: NDArray[np.float64], network: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the vote, (N, C), within what the network, (N, C), leaves for the classes that have training rows.

        Nobody votes on an image that the network predicts to be of another class.
        """
        if self.learned_.all():
            return vote
        share = network[:, self.learned_].sum(axis=1, keepdims=True)
        counts = vote.any(axis=1) & self.learned_[network.argmax(axis=1)]
        return np.where(self.learned_, vote * share, network) * counts[:, None]

    def __repr__(self) -> str:
        rest = [f"{name}={value!r}" for name, value in self.params().items() if not name.startswith("train_")]
        shape = np.shape(self.train_features)
        return f"{type(self).__name__}({', '.join([f'{shape} training features', *rest])})"

    def known_rows(self, predictions: Predictions) -> tuple[Floats, NDArray[np.int64], tuple[str, ...] | None]:
        """Return features, labels and ids of the training rows whose label is known.

        Raises:
            EtudeError: the ``train_...`` arguments do not fit together.
        """
        who = type(self).__name__
        features, labels = checked_features(self.train_features, "the training images"), np.asarray(self.train_labels)
        if labels.shape != (len(features),) or labels.dtype.kind not in "iu":
            raise EtudeError(f"{who} needs {len(features):,} training labels, one a row, as integers")
        count = len(predictions.classes if self.train_classes is None else self.train_classes)
        if labels.min() < -1 or labels.max() >= count or labels.max() < 0:
            raise EtudeError(
                f"training labels of {who} must be positions from 0 to {count - 1}, or -1 where unknown, and at least "
                f"one must be known; they go from {labels.min()} to {labels.max()}"
            )
        if self.train_ids is not None and len(self.train_ids) != len(features):
            raise EtudeError(f"{who} got {len(self.train_ids):,} training ids for {len(features):,} rows of features")
        known = np.flatnonzero(labels >= 0)
        names, rows = self.train_ids, known.tolist()
        ids = None if names is None else tuple(names[row] for row in rows)
        return features[known], labels[known].astype(np.int64), ids

    def columns_in(self, predictions: Predictions) -> NDArray[np.int64]:
        """Return the column in ``predictions`` of each training class.

        Raises:
            EtudeError: a training class is not among those of ``predictions``.
        """
        classes = predictions.classes if self.train_classes is None else tuple(self.train_classes)
        position = {name: column for column, name in enumerate(predictions.classes)}
        if foreign := [name for name in classes if name not in position]:
            raise EtudeError(
                f"the training classes of {type(self).__name__} hold {listed(foreign)}, which the predictions do not: "
                "give predictions of a model that was trained on the same classes"
            )
        return np.array([position[name] for name in classes])


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
