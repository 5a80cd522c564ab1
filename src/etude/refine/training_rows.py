"""What refiners that look at the training images share: their features, labels, ids and classes, checked and shown."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from etude.core.errors import EtudeError, listed
from etude.core.predictions import Predictions
from etude.refine.base import Refiner, require_classes, with_log_probabilities
from etude.refine.distances import Floats
from etude.refine.knn_votes import mixed
from etude.refine.neighbours import checked_features


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
