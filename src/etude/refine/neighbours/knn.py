"""``KNN``: blends the vote of the nearest training images into a network's probabilities."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass, field
from itertools import product
from typing import Literal, Self, get_args

import numpy as np
from numpy.typing import ArrayLike

from etude.core.errors import EtudeError, listed, nearest
from etude.core.metrics import SMALLEST, FloatArray, IntArray
from etude.core.predictions import Predictions
from etude.refine.base import BoolArray, Refiner, labels_of, occurring, require_features, require_labelled
from etude.refine.cross_fit import NOISE, choose, fold_numbers, fold_sums
from etude.refine.neighbours.index import Floats, Method, NeighbourIndex, Neighbours, checked_features

Metric = Literal["log_loss", "accuracy"]
_TIE = 1e-9  # weight of log loss next to a hit: it only decides between equal accuracies


def votes(
    found: Neighbours, labels: IntArray, classes: int, temperature: float, ks: Sequence[int]
) -> Iterator[FloatArray]:
    """Yield p_knn, (Q, C), for each k in the ascending ``ks``: Σ exp(-d / T) over neighbours of a class, over all k."""
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


def mixed(vote: FloatArray, network: FloatArray, weight: float) -> FloatArray:
    """Return log(λ p_knn + (1 - λ) p_net), (N, C), from log p_net; the network alone where nobody voted."""
    with np.errstate(divide="ignore"):  # the log of zero is minus infinity, as it should be
        blend = np.logaddexp(np.log(weight) + np.log(vote), np.log1p(-weight) + network)
    return np.where(vote.any(axis=1, keepdims=True), blend, network)


def row_gains(
    vote: FloatArray, network: FloatArray, labels: IntArray, weights: Sequence[float], metric: Metric
) -> FloatArray:
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


@dataclass(eq=False, repr=False)
class OnTrainingRows(Refiner):
    """A refiner that blends in what training images vote, λ p_vote + (1 - λ) p_net; its repr shows their size only.

    ``weight_`` is λ; classes without training rows, where ``learned_`` is false, keep the network's probability.
    """

    needs_features = True
    train_features: ArrayLike
    train_labels: ArrayLike
    train_ids: Sequence[str] | None = None
    train_classes: Sequence[str] | None = None
    weight_: float = field(init=False)
    learned_: BoolArray = field(init=False)

    @abstractmethod
    def vote(self, predictions: Predictions) -> FloatArray:
        """Return the class probabilities, (N, C), that the training rows speak for."""

    def _refined(self, predictions: Predictions) -> FloatArray:
        network = predictions.log_probabilities()
        if not self.weight_:
            return network
        return mixed(self.completed(self.vote(predictions), np.exp(network)), network, self.weight_)

    def completed(self, vote: FloatArray, network: FloatArray) -> FloatArray:
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

    def known_rows(self, predictions: Predictions) -> tuple[Floats, IntArray, tuple[str, ...] | None]:
        """Return features, labels and ids of the training rows whose label is known."""
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
        ids = None if self.train_ids is None else tuple(self.train_ids[row] for row in known.tolist())
        return features[known], labels[known].astype(np.int64), ids

    def columns_in(self, predictions: Predictions) -> IntArray:
        """Return the column in ``predictions`` of each training class."""
        classes = predictions.classes if self.train_classes is None else tuple(self.train_classes)
        column = {name: number for number, name in enumerate(predictions.classes)}
        if foreign := [name for name in classes if name not in column]:
            raise EtudeError(
                f"the training classes of {type(self).__name__} hold {listed(foreign)}, which the predictions do not: "
                "give predictions of a model that was trained on the same classes"
            )
        return np.array([column[name] for name in classes])


@dataclass(eq=False, repr=False)
class KNN(OnTrainingRows):
    """p = λ p_knn + (1 - λ) p_net, where the k nearest training images vote with the weights exp(-d / T).

    d is the distance of :class:`NeighbourIndex`: Euclidean, between centred features of length one. k, T and λ are
    chosen on labelled images that the network did not train on; λ = 0, the network alone, is kept unless the gain,
    cross-fitted over folds, exceeds its noise. An image that is itself in the index does not vote for itself.

    Args:
        train_features: (M, D) floats of the same backbone as the features of the predictions.
        train_labels: (M,) positions in ``train_classes``, -1 where unknown.
        train_ids: M unique ids; without them every row may vote on every image.
        train_classes: class names of the labels; None when they are those of the predictions, in the same order.
        ks, temperatures, weights: the values of k, T and λ that are tried.
        metric: what the choice maximises: ``"log_loss"`` (less of it) or ``"accuracy"``, log loss deciding on a tie.
        method: of :class:`NeighbourIndex`.
        folds: of the cross-fitting.
        noise: standard errors that the gain must exceed; None takes the best values of all in any case.

    Attributes:
        index_: the :class:`NeighbourIndex` over the labelled training rows.
        k_, temperature_, weight_: what was chosen; ``weight_`` is 0 where nothing is gained.
        gain_, error_: the cross-fitted gain in the metric and its standard error.

    Source: Khandelwal et al. 2020 (https://arxiv.org/abs/1911.00172) and Jia et al. 2021
    (https://arxiv.org/abs/2112.08459).

    >>> rng = np.random.default_rng(0)
    >>> labels = np.arange(120) % 2
    >>> features = (np.eye(2)[labels] + rng.normal(scale=0.2, size=(120, 2))).astype(np.float32)
    >>> ids = tuple(f"{row}" for row in range(60))
    >>> unsure = Predictions(ids, ("cat", "dog"), np.zeros((1, 60, 2)), features[:60], labels[:60])
    >>> knn = KNN(features[60:], labels[60:]).fit(unsure)
    >>> float((knn.transform(unsure).predicted() == labels[:60]).mean())
    1.0
    """

    fits_on = frozenset({"labelled"})
    _: KW_ONLY
    ks: Sequence[int] = tuple(2**power for power in range(10))
    temperatures: Sequence[float] = (1e-4, 1e-3, 1e-2, 0.03, 0.1, 0.3, 1.0, 10.0)
    weights: Sequence[float] = tuple(round(0.05 * step, 2) for step in range(1, 20))
    metric: Metric = "log_loss"
    method: Method = "auto"
    folds: int = 5
    noise: float | None = NOISE

    def fit(self, labelled: Predictions | None = None, target: Predictions | None = None) -> Self:
        """Choose k, T and λ on ``labelled``; ``target`` is not used."""
        self._check()
        known = require_labelled(labelled, "KNN")
        require_features(known, "KNN")
        self.classes_ = known.classes
        self.k_, self.temperature_, self.weight_, self.gain_, self.error_ = min(self.ks), 1.0, 0.0, 0.0, 0.0
        features, labels, ids = self.known_rows(known)
        self.index_ = NeighbourIndex(features, ids, self.method)
        if len(known.classes) > 1:  # one class is certain already
            self._columns = self.columns_in(known)[labels]
            self.learned_ = occurring(self._columns, len(known.classes))
            self._choose(known)
        return self

    def vote(self, predictions: Predictions) -> FloatArray:
        """Return p_knn, (N, C), for the chosen k and T; zero throughout for an image without any neighbour."""
        self.require_fitted()
        return self._vote(self._found(predictions, self.k_), self.temperature_, self.k_)

    def neighbours_of(self, predictions: Predictions, k: int = 5) -> list[list[tuple[str, float]]]:
        """Return (id, distance) of the ``k`` nearest training images of each image, nearest first, for a report."""
        self.require_fitted()
        return self.index_.neighbours_of(require_features(predictions, "KNN"), k, predictions.ids)

    def _described(self) -> str:
        if not self.weight_:
            return f"λ = 0: neighbours gain {self.gain_:+.4f} (standard error {self.error_:.4f}), not more than noise"
        return f"k = {self.k_}, T = {self.temperature_:g}, λ = {self.weight_:.2f}"

    def _check(self) -> None:
        if self.metric not in get_args(Metric):
            hint = nearest(self.metric, get_args(Metric))
            raise EtudeError(f"the metric of KNN must be 'log_loss' or 'accuracy', not {self.metric!r}.{hint}")
        if not self.ks or not self.temperatures or not self.weights:
            raise EtudeError("KNN needs at least one value each of k, T and λ to choose from")
        in_range = 0 <= min(self.weights) <= max(self.weights) <= 1
        if min(self.ks) < 1 or not min(self.temperatures) > 0 or not in_range:
            raise EtudeError(
                f"KNN needs k of at least 1, T above 0 and λ from 0 to 1, not k from {min(self.ks)}, "
                f"T from {min(self.temperatures)} and λ from {min(self.weights)} to {max(self.weights)}"
            )
        if self.folds < 2:
            raise EtudeError(f"KNN needs at least 2 folds, not {self.folds}")

    def _choose(self, known: Predictions) -> None:
        ks = sorted({min(k, len(self.index_)) for k in self.ks})
        grid = [(k, t, w) for t, k, w in product(self.temperatures, ks, self.weights)]
        found, numbers = self._found(known, ks[-1]), fold_numbers(known, self.folds)
        network, labels, classes = known.probabilities(), labels_of(known), len(known.classes)
        sums = [
            fold_sums(row_gains(self.completed(vote, network), network, labels, self.weights, self.metric), numbers)
            for temperature in self.temperatures
            for vote in votes(found, self._columns, classes, temperature, ks)
        ]

        def gains_of(candidate: int) -> FloatArray:
            k, temperature, weight = grid[candidate]
            vote = self.completed(self._vote(found, temperature, k), network)
            return row_gains(vote, network, labels, (weight,), self.metric)[0]

        choice = choose(np.concatenate(sums), gains_of, numbers, self.noise)
        self.gain_, self.error_ = choice.gain, choice.error
        if choice.best is not None:
            self.k_, self.temperature_, self.weight_ = grid[choice.best]

    def _vote(self, found: Neighbours, temperature: float, k: int) -> FloatArray:
        return next(votes(found, self._columns, len(self.classes_), temperature, (k,)))

    def _found(self, predictions: Predictions, k: int) -> Neighbours:
        return self.index_.query(require_features(predictions, "KNN"), k, predictions.ids)
