"""``LastLayer``: the head fitted again on cached features, for the classes' shares in the target."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from itertools import product
from typing import NamedTuple, Self

import numpy as np

from etude.core.errors import EtudeError
from etude.core.metrics import FloatArray, IntArray
from etude.core.predictions import Predictions
from etude.core.standardise import Standardised as Standardised  # saved refiners name it by this module
from etude.refine.base import (
    labels_of,
    minimised,
    normalised,
    occurring,
    require_classes,
    require_features,
    require_labelled,
    require_target,
)
from etude.refine.cross_fit import NOISE, choose, fold_numbers, fold_sums
from etude.refine.neighbours.index import Floats, checked_features
from etude.refine.neighbours.knn import OnTrainingRows, row_gains
from etude.refine.prior.correction import PriorCorrection, PriorSpec


@dataclass(frozen=True, eq=False)
class Head:
    """A linear layer, W (D, C) and b (C,): log p = x W + b, normalised."""

    weights: FloatArray
    bias: FloatArray

    def log_probabilities(self, rows: FloatArray, offset: FloatArray | None = None) -> FloatArray:
        """Return log p of (N, D) standardised rows, (N, C); ``offset`` (N, C) is added to the logits."""
        logits = rows @ self.weights + self.bias
        return normalised(logits if offset is None else logits + offset)


def fit_head(
    rows: FloatArray, labels: IntArray, classes: int, strength: float, *,
    importance: FloatArray | None = None, offset: FloatArray | None = None, start: Head | None = None, most: int = 200,
) -> Head:  # fmt: skip
    """Return the W and b that minimise Σ_i w_i (-log p_i(label)) / Σ w + |W|² / (2 strength Σ w), by L-BFGS.

    ``strength`` is scikit-learn's ``C``; its LogisticRegression knows no ``offset``, (N, C) logits that the head
    corrects. With one, b is drawn to zero as W is; without, every class must occur.
    """
    count, columns = rows.shape
    weight = np.ones(count) if importance is None else importance
    ridge = np.full((columns + 1, classes), 1 / (strength * weight.sum()))
    ridge[-1] *= offset is not None
    share: FloatArray = weight / weight.sum()
    picked = np.arange(len(labels))

    def loss(flat: FloatArray) -> tuple[float, FloatArray]:
        table = flat.reshape(ridge.shape)
        log_p = Head(table[:-1], table[-1]).log_probabilities(rows, offset)
        value = -(share @ log_p[picked, labels]) + (ridge * table**2).sum() / 2
        slope = np.exp(log_p) * share[:, None]
        slope[picked, labels] -= share
        gradient = np.concatenate([rows.T @ slope, slope.sum(axis=0)[None]]) + ridge * table
        return float(value), gradient.ravel()

    first = np.zeros(ridge.shape) if start is None else np.concatenate([start.weights, start.bias[None]])
    found = minimised(loss, first.ravel(), rows.size * classes, maxiter=most, ftol=1e-11, gtol=1e-7)
    table = found.reshape(ridge.shape)
    return Head(table[:-1], table[-1])


class _Rows(NamedTuple):
    """What a head is fitted on; the last ``pseudo`` rows are pseudo-labelled."""

    features: Floats
    columns: IntArray
    importance: FloatArray
    pseudo: int = 0


@dataclass(eq=False, repr=False)
class LastLayer(OnTrainingRows):
    """p = λ p_head + (1 - λ) p_net: multinomial logistic regression on standardised features of the training images.

    A training image of class c weighs q_c / s_c, the target's share of the class over that among the training images
    (importance weighting: the loss is then the one expected on the target). Target images of which the network is
    confident join with their predicted class. Strength and λ are chosen on labelled images, weighted likewise; λ = 0,
    the network alone, is kept unless the gain in log loss, cross-fitted over folds, exceeds its noise; λ = 1 replaces
    the network's head.

    Args:
        train_features, train_labels, train_ids, train_classes: as :class:`~etude.refine.neighbours.knn.KNN` has them;
            training images that are among the labelled ones too are left out.
        prior: of the target: ``"estimate"``, used if :class:`PriorCorrection` finds a shift worth correcting; what
            :func:`~etude.refine.prior.correction.parse_prior` reads; or None for that of the training images.
        pseudo_share: weight of all pseudo-labelled target images, below 1; 0 leaves them out.
        confidence: probability from which a target image is pseudo-labelled, after correction to ``prior``.
        strengths, weights: values of scikit-learn's ``C`` and of λ that are tried.
        folds, noise: as in KNN.
        most: steps of each fit at most.
        seed: of the test for a shift.

    Attributes:
        prior_, corrects_: the target's prior, (C,), and whether images are weighted by it.
        pseudo_labels_: how many target images joined.
        strength_, weight_: what was chosen; ``weight_`` is 0 where nothing is gained.
        gain_, error_: the cross-fitted gain in log loss and its standard error.

    Source: importance weighting: Shimodaira 2000; with estimated priors: Lipton et al. 2018
    (https://arxiv.org/abs/1802.03916); last layer only: Kirichenko et al. 2022 (https://arxiv.org/abs/2204.02937).

    >>> rng = np.random.default_rng(0)
    >>> labels = np.arange(300) % 2
    >>> features = (np.eye(2)[labels] + rng.normal(scale=0.3, size=(300, 2))).astype(np.float32)
    >>> ids = tuple(f"{row}" for row in range(300))
    >>> unsure = Predictions(ids, ("cat", "dog"), np.zeros((1, 300, 2)), features, labels)
    >>> labelled, target = unsure.take(range(100)), unsure.take(range(100, 200))
    >>> last = LastLayer(features[200:], labels[200:], prior=None).fit(labelled, target)
    >>> last.weight_, bool((last.transform(target).predicted() == target.labels).mean() > 0.9)
    (1.0, True)
    """

    fits_on = frozenset({"labelled", "target"})
    _: KW_ONLY
    prior: PriorSpec | None = "estimate"
    pseudo_share: float = 0.3
    confidence: float = 0.95
    strengths: Sequence[float] = (0.001, 0.01, 0.1, 1.0)
    weights: Sequence[float] = (0.25, 0.5, 0.75, 1.0)
    folds: int = 5
    noise: float | None = NOISE
    most: int = 100
    seed: int = 0

    def fit(self, labelled: Predictions | None = None, target: Predictions | None = None) -> Self:
        """Fit heads on the training images and confident ``target`` ones; choose among them on ``labelled``."""
        self._check()
        known, target = require_labelled(labelled, "LastLayer"), require_target(target, "LastLayer")
        require_classes(known.classes, target, "LastLayer")
        for one in (known, target):
            require_features(one, "LastLayer")
        self.classes_, self.corrects_, self.pseudo_labels_ = known.classes, False, 0
        self.prior_ = np.full(len(self.classes_), 1 / len(self.classes_))
        self.strength_, self.weight_, self.gain_, self.error_ = min(self.strengths), 0.0, 0.0, 0.0
        if len(self.classes_) > 1:  # one class is certain already
            self._choose(self._rows(known, target), known)
        return self

    def vote(self, predictions: Predictions) -> FloatArray:
        """Return the chosen head's probabilities, (N, C)."""
        self.require_fitted()
        return self._head_vote(self.head_, predictions)

    def _described(self) -> str:
        if not self.weight_:
            return f"λ = 0: a new head gains {self.gain_:+.4f} (standard error {self.error_:.4f}), not more than noise"
        parts = [f"C = {self.strength_:g}", f"λ = {self.weight_:.2f}", f"{self.pseudo_labels_:,} pseudo-labels"]
        return ", ".join(parts + ["weighted to the target's prior"] * self.corrects_)

    def _check(self) -> None:
        if not 0 <= self.pseudo_share < 1 or not 0 < self.confidence <= 1:
            given = f"{self.pseudo_share} and {self.confidence}"
            raise EtudeError(f"LastLayer needs a pseudo_share from 0 to below 1 and a confidence up to 1, not {given}")
        if not self.strengths or not min(self.strengths) > 0 or self.folds < 2 or self.most < 1:
            raise EtudeError("LastLayer needs strengths above 0, at least 2 folds and at least one step")
        if not self.weights or not (min(self.weights) >= 0 and max(self.weights) <= 1):
            raise EtudeError(f"LastLayer needs values of λ from 0 to 1, not {list(self.weights)}")

    def _rows(self, known: Predictions, target: Predictions) -> _Rows:
        features, positions, ids = self.known_rows(known)
        columns = self.columns_in(known)[positions]
        if ids is not None:
            alone = ~np.isin(ids, known.ids)
            if not alone.any():
                raise EtudeError("every training image of LastLayer is a labelled one too: give other labelled images")
            features, columns = features[alone], columns[alone]
        sure = require_features(target, "LastLayer")
        checked_features(sure, "the target", features.shape[1], "the training images")
        self.learned_ = occurring(columns, len(known.classes))
        corrected = target
        if self.prior is not None:
            correction = PriorCorrection(self.prior, seed=self.seed).fit(known, target)
            self.prior_, self.corrects_ = correction.prior_, correction.corrects_
            corrected = correction.transform(target)
        importance = shift_weights(columns, self.prior_) if self.corrects_ else np.ones(len(columns))
        occurs = importance > 0  # a class without weight would drive its bias to minus infinity
        features, columns, importance = features[occurs], columns[occurs], importance[occurs]
        probabilities = corrected.probabilities()
        confident = np.flatnonzero(probabilities.max(axis=1) >= self.confidence)
        if not len(confident) or not self.pseudo_share:
            return _Rows(features, columns, importance)
        mass = importance.sum() * self.pseudo_share / (1 - self.pseudo_share)
        return _Rows(
            np.concatenate([features, sure[confident]]),
            np.concatenate([columns, probabilities[confident].argmax(axis=1)]),
            np.concatenate([importance, np.full(len(confident), mass / len(confident))]),
            len(confident),
        )

    def _choose(self, rows: _Rows, known: Predictions) -> None:
        self.pseudo_labels_ = rows.pseudo
        network, numbers, labels = known.probabilities(), fold_numbers(known, self.folds), labels_of(known)
        importance = shift_weights(labels, self.prior_) if self.corrects_ else np.ones(len(known))
        heads = self._heads(rows)
        self.learned_[self.present_] = True  # those of pseudo-labels too
        votes = [self.completed(self._head_vote(head, known), network) for head in heads]
        grid = list(product(range(len(heads)), self.weights))

        def gains(head: int, weights: Sequence[float]) -> FloatArray:
            return row_gains(votes[head], network, labels, weights, "log_loss") * importance

        sums = np.concatenate([fold_sums(gains(head, self.weights), numbers) for head in range(len(heads))])
        choice = choose(sums, lambda one: gains(grid[one][0], (grid[one][1],))[0], numbers, self.noise)
        self.gain_, self.error_ = choice.gain, choice.error
        if choice.best is not None:
            head, self.weight_ = grid[choice.best]
            self.head_, self.strength_ = heads[head], sorted(self.strengths)[head]

    def _heads(self, rows: _Rows) -> list[Head]:
        """A head for each strength, strongest pull to zero first; each begins where the one before ended."""
        self.scaling_ = Standardised.of(rows.features[: len(rows.features) - rows.pseudo])
        self.present_, labels = np.unique(rows.columns, return_inverse=True)
        table, heads, start = self.scaling_.apply(rows.features), list[Head](), None
        for strength in sorted(self.strengths):
            start = fit_head(
                table, labels.astype(np.int64), len(self.present_), strength,
                importance=rows.importance, start=start, most=self.most,
            )  # fmt: skip
            heads.append(start)
        return heads

    def _head_vote(self, head: Head, predictions: Predictions) -> FloatArray:
        """Return p_head, (N, C); a class that no training image has gets nothing."""
        features = require_features(predictions, "LastLayer")
        checked_features(features, "the predictions", len(self.scaling_.mean), "the training images")
        vote = np.zeros((len(features), len(self.classes_)))
        vote[:, self.present_] = np.exp(head.log_probabilities(self.scaling_.apply(features)))
        return vote


def shift_weights(labels: IntArray, prior: FloatArray) -> FloatArray:
    """Return q_c / s_c for the class c of each image, (N,), of mean one, s the shares in ``labels``; else all one."""
    shares = np.bincount(labels, minlength=len(prior)) / len(labels)
    weights = prior[labels] / shares[labels]
    return weights / weights.mean() if weights.any() else np.ones(len(labels))
