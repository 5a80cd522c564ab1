"""Blends of several models: means, ranks, votes, fitted weights, ``Ensemble``, which chooses among them, and advice."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from itertools import combinations
from typing import Literal, Self, cast, get_args

import numpy as np
from numpy.typing import NDArray

from etude.core.context import Context
from etude.core.errors import EtudeError, listed, nearest
from etude.core.ids import match_ids, spelled_as
from etude.core.metrics import SMALLEST, FloatArray, IntArray, log_odds, metric_named, ties
from etude.core.paired import Gain, paired_bootstrap
from etude.core.predictions import Predictions
from etude.refine.base import (
    LOG_ZERO,
    BoolArray,
    difference,
    labels_of,
    minimised,
    mixture_by_em,
    normalised,
    require_classes,
    with_columns,
)
from etude.refine.cross_fit import FEWEST_ROWS, NOISE, exceeds_noise, fold_numbers, out_of_fold, standard_error_of

Score = Callable[[FloatArray], float]
"""Scores the mean of some models' arrays; larger is better."""

Method = Literal["auto", "mean", "geometric", "rank", "vote", "likelihood", "selection", "best"]
METHODS = get_args(Method)
FIXED = ("mean", "geometric", "rank", "vote")  # ways that fit no weights
TRIED = ("geometric", "likelihood", "selection", "best")


def average(predictions: Sequence[Predictions], weights: Sequence[float] | None = None) -> Predictions:
    """Return the (weighted) mean of the probabilities of M models over the same images and classes.

    Rows and columns have the order of the first. The result has one view, no features, and the labels of any model.

    Args:
        predictions: those of each model, at least one.
        weights: M weights of zero or more, not all zero; equal ones when None. Only their ratios count.

    Raises:
        EtudeError: there are none, the ids, classes or labels differ, or the weights are not usable.

    >>> sure = Predictions.from_probabilities(["a"], ["cat", "dog"], [[1.0, 0.0]])
    >>> unsure = Predictions.from_probabilities(["a"], ["cat", "dog"], [[0.4, 0.6]])
    >>> average([sure, unsure]).probabilities().round(3).tolist()
    [[0.7, 0.3]]
    """
    return _weighted(predictions, weights, Predictions.probabilities)


def geometric_mean(predictions: Sequence[Predictions], weights: Sequence[float] | None = None) -> Predictions:
    """Return the (weighted) mean of the log probabilities of M models, normalised: p = Π_m p_m^w_m / Z.

    A class needs every model's consent: one model that is sure of the opposite counts for more than in
    :func:`average`. The rest is as there.

    >>> sure = Predictions.from_probabilities(["a"], ["cat", "dog"], [[0.9, 0.1]])
    >>> unsure = Predictions.from_probabilities(["a"], ["cat", "dog"], [[0.5, 0.5]])
    >>> geometric_mean([sure, unsure]).probabilities().round(3).tolist()
    [[0.75, 0.25]]
    """
    return _weighted(
        predictions, weights, lambda one: np.maximum(one.log_probabilities(), LOG_ZERO),
        lambda mean: np.exp(normalised(mean)),
    )  # fmt: skip


def rank_mean(predictions: Sequence[Predictions], weights: Sequence[float] | None = None) -> Predictions:
    """Return the (weighted) mean of the ranks that M models give to the images within each class.

    The image with the k-th smallest probability of a class has rank (k - 1/2) / N there, equal ones the mean of their
    ranks; the mean ranks of each image are divided by their sum. Only the order of a model's probabilities counts, so
    badly calibrated models can be blended for such scores as AUC. The result is no probability, and one model alone
    does not stay as it is. The rest is as in :func:`average`.

    >>> one = Predictions.from_probabilities(["a", "b"], ["cat", "dog"], [[0.9, 0.1], [0.99, 0.01]])
    >>> rank_mean([one]).probabilities().round(3).tolist()
    [[0.25, 0.75], [0.75, 0.25]]
    """

    def ranks(one: Predictions) -> FloatArray:
        return np.apply_along_axis(_ranks, 0, log_odds(one.log_probabilities()))

    return _weighted(predictions, weights, ranks)


def majority_vote(predictions: Sequence[Predictions], weights: Sequence[float] | None = None) -> Predictions:
    """Return the class that most of M models predict, each with its weight; on a tie the first model in it decides.

    The probabilities are the shares of the votes; that of a class which wins a tie is larger by a millionth. The rest
    is as in :func:`average`.

    >>> votes = [Predictions.from_probabilities(["a"], ["cat", "dog"], [p]) for p in ([1, 0], [0, 1], [0.4, 0.6])]
    >>> majority_vote(votes).probabilities().round(2).tolist()
    [[0.33, 0.67]]
    >>> majority_vote(votes[:2]).predicted().tolist(), majority_vote(votes[1::-1]).predicted().tolist()
    ([0], [1])
    """
    together, shares = aligned(predictions), shares_of(weights, len(predictions))
    rows, chosen = np.arange(len(together[0].ids)), [one.predicted() for one in together]
    votes = np.zeros((len(rows), len(together[0].classes)))
    for share, classes in zip(shares, chosen, strict=True):
        votes[rows, classes] += share
    tied = votes > votes.max(axis=1, keepdims=True) - 1e-9
    decides = [tied[rows, classes] & (share > 0) for share, classes in zip(shares, chosen, strict=True)]
    votes[rows, np.stack(chosen)[np.argmax(decides, axis=0), rows]] += 1e-6
    return _of_models(votes, together)


def _weighted(
    predictions: Sequence[Predictions], weights: Sequence[float] | None,
    table_of: Callable[[Predictions], FloatArray], probabilities_of: Callable[[FloatArray], FloatArray] = np.asarray,
) -> Predictions:  # fmt: skip
    """Return the predictions whose probabilities are made of the weighted mean of a table of each model."""
    together, shares = aligned(predictions), shares_of(weights, len(predictions))
    mean = np.zeros((len(together[0].ids), len(together[0].classes)))
    for share, one in zip(shares, together, strict=True):
        mean += share * table_of(one)
    return _of_models(probabilities_of(mean), together)


def aligned(predictions: Sequence[Predictions]) -> list[Predictions]:
    """Return the predictions of M models with rows and columns in the order of the first, without features."""
    if not predictions:
        raise EtudeError("there is nothing to blend: give the predictions of at least one model")
    first = predictions[0]
    return [first, *(_aligned(other, first, number) for number, other in enumerate(predictions[1:], start=2))]


def shares_of(weights: Sequence[float] | None, count: int) -> FloatArray:
    """Return ``count`` weights divided by their sum; equal ones when None."""
    given = np.asarray([1.0] * count if weights is None else weights, dtype=np.float64)
    if given.shape != (count,):
        raise EtudeError(f"a blend of {count} models needs {count} weights, and got {given.size}")
    if not np.isfinite(given).all() or (given < 0).any() or not given.any():
        raise EtudeError(f"blend weights must be zero or more and not all zero, not {given.tolist()}")
    return given / given.sum()


def _aligned(other: Predictions, first: Predictions, number: int) -> Predictions:
    """Return ``other`` with the rows and columns of ``first``; ``number`` counts the models from 1, for messages."""
    ids, names = match_ids(other.ids, first.ids), spelled_as(other.classes, first.classes)
    for what, parts in (("ids", difference(ids.missing, ids.extra)), ("classes", difference(first.classes, names))):
        if parts:
            raise EtudeError(
                f"only predictions with the same {what} can be blended, and model {number} {parts} against the first: "
                "predict the same images with models of the same classes"
            )
    sorted_rows = replace(replace(other, features=None).take(ids.rows), ids=first.ids)
    return with_columns(sorted_rows, [names.index(name) for name in first.classes], first.classes)


def common_labels(together: Sequence[Predictions]) -> IntArray | None:
    """Return the labels that any of the aligned predictions carry, or None."""
    merged: IntArray | None = None
    for labels in (one.labels for one in together if one.labels is not None):
        if merged is None:
            merged = labels
        if (differ := (labels >= 0) & (merged >= 0) & (labels != merged)).any():
            where = together[0].ids[int(np.argmax(differ))]
            raise EtudeError(
                f"the predictions to blend carry different labels for {int(differ.sum()):,} images (the first is "
                f"{where!r}): they were made from different label files, so predict again from one of them"
            )
        merged = np.where(merged >= 0, merged, labels)
    return merged


def labelled_models(
    models: Sequence[Predictions], who: str, hint: str = ""
) -> tuple[list[Predictions], IntArray, NDArray[np.intp]]:
    """Return the aligned predictions of the labelled images by M models, one view each, their labels and their rows."""
    together = aligned(models)
    labels = common_labels(together)
    if labels is None or not (labels >= 0).any():
        raise EtudeError(
            f"{who} needs labelled images, and none has a label: give validation predictions with labels{hint}"
        )
    known = np.flatnonzero(labels >= 0)
    found = [Predictions(one.ids, one.classes, one.logits, labels=labels).take(known) for one in together]
    return found, labels[known], known


def _of_models(values: FloatArray, together: Sequence[Predictions]) -> Predictions:
    first = together[0]
    return Predictions.from_probabilities(first.ids, first.classes, values, labels=common_labels(together))


def _ranks(values: FloatArray) -> FloatArray:
    """Return (rank - 1/2) / N of each value, (N,), equal ones sharing the mean of their ranks."""
    order, starts = ties(values)
    counts = np.diff(starts, append=len(values))
    ranks = np.empty(len(values))
    ranks[order] = np.repeat(starts + counts / 2, counts) / len(values)
    return ranks


def forward_selection(
    models: Sequence[FloatArray], score: Score, size: int = 50, sorted_start: bool = True
) -> FloatArray:
    """Return the weights (M,) of a bag of up to ``size`` models, drawn greedily with replacement.

    The bag starts with the best models, as many as score best together (``sorted_start``), or empty. Each step adds
    the model that makes the mean of the bag score best. The weights are the shares in the bag where it scored best.
    Ties go to the earlier model and to the smaller bag.

    Args:
        models: of each of the M models an array, all of one shape.
        score: of a mean of such arrays.
        size: of the bag.

    Source: Caruana et al. 2004, Ensemble selection from libraries of models.

    >>> a, b, c = np.array([1.0, 0.0]), np.array([0.0, 1.0]), np.array([0.0, 0.0])
    >>> forward_selection([c, a, b], lambda mean: -abs(mean - [0.6, 0.3]).sum(), size=4).round(2).tolist()
    [0.25, 0.5, 0.25]
    """
    if size < 1 or not len(models):
        raise EtudeError(f"forward selection needs at least one model and a size of at least 1, not {size}")

    def score_of(mean: FloatArray) -> float:
        return round(score(mean), 12)  # scores that differ by rounding only are equal

    bag = _best_together(models, score_of, size) if sorted_start else []
    total = np.sum([models[number] for number in bag], axis=0) if bag else np.zeros_like(models[0])
    best_bag, best = list(bag), score_of(total / len(bag)) if bag else -np.inf
    while len(bag) < size:
        scores = [score_of((total + model) / (len(bag) + 1)) for model in models]
        chosen = int(np.argmax(scores))
        bag.append(chosen)
        total = total + models[chosen]
        if scores[chosen] > best:
            best_bag, best = list(bag), scores[chosen]
    return np.bincount(best_bag, minlength=len(models)) / len(best_bag)


def select_ensemble(
    probabilities: Sequence[FloatArray],
    labels: IntArray,
    *,
    metric: str = "log_loss",
    size: int = 50,
    bags: int = 10,
    share: float = 1.0,
    sorted_start: bool = True,
    context: Context = Context(),
) -> FloatArray:
    """Return the mean of the weights (M,) that :func:`forward_selection` finds in ``bags`` resamples of the N images.

    Each keeps every model with the probability ``share`` (0.5 suits libraries of dozens). One bag is the plain
    selection, on all images and models.

    Args:
        probabilities: (N, C) of each of the M models, rows and columns in the same order.
        labels: (N,).
        metric: a name that :func:`etude.core.metrics.metric_named` knows.
        context: with the seed of the resamples.

    Raises:
        EtudeError: an argument is out of range, or the metric is unknown.
    """
    if bags < 1 or not 0 < share <= 1:
        raise EtudeError(
            f"ensemble selection needs at least one bag and a share above 0 up to 1, not {bags} and {share}"
        )
    weights = np.zeros(len(probabilities))
    for bag in range(bags):
        rows, some = np.arange(len(labels)), [*range(len(probabilities))]
        if bags > 1:
            rng = context.rng("bag of models", bag)
            rows = rng.integers(len(labels), size=len(labels))
            kept = np.flatnonzero(rng.random(len(probabilities)) < share)
            some = (kept if len(kept) else rng.integers(len(probabilities), size=1)).tolist()
        arrays, score = scored([probabilities[number][rows] for number in some], labels[rows], metric)
        weights[some] += forward_selection(arrays, score, size, sorted_start)
    return weights / weights.sum()


def scored(probabilities: Sequence[FloatArray], labels: IntArray, metric: str) -> tuple[list[FloatArray], Score]:
    """Return what of each model's (N, C) the metric depends on, and the score of a mean of such arrays."""
    chosen = metric_named(metric)
    if chosen.name == "log_loss":
        rows = np.arange(len(labels))
        given = [one[rows, labels] for one in probabilities]
        return given, lambda mean: float(np.log(np.maximum(mean, SMALLEST)).mean())
    if chosen.name == "accuracy":
        return list(probabilities), lambda mean: float((mean.argmax(axis=1) == labels).mean())
    return list(probabilities), lambda mean: chosen.sign * chosen.value(np.log(np.maximum(mean, SMALLEST)), labels)


def mixture_weights(given: FloatArray, tolerance: float = 1e-6, most: int = 10_000) -> FloatArray:
    """Return the weights w (M,) on the simplex that maximise Σ_i log Σ_m w_m p_mi: those of the least log loss.

    Expectation maximisation, whose every step raises the likelihood; the problem is concave.

    Args:
        given: (M, N) probability that each model gives to each image's label; below 1e-15 it counts as that.
        tolerance: it ends when no weights at all can lower the mean log loss by more, in nats.
        most: steps at most.

    >>> mixture_weights(np.array([[0.9, 0.9, 0.1], [0.1, 0.1, 0.9]])).round(3).tolist()
    [0.708, 0.292]
    """
    start = np.full(len(given), 1 / len(given))
    return mixture_by_em(np.maximum(given, SMALLEST).T, start, tolerance, most, by_gain=True)


def log_linear(log_p: FloatArray, weights: FloatArray | Sequence[float]) -> FloatArray:
    """Return the log probabilities (..., C) of p ∝ Π_m p_m^w_m, given those of M models, (M, ..., C)."""
    return normalised(np.tensordot(np.asarray(weights), np.maximum(log_p, LOG_ZERO), 1))


def blend_views(parts: Sequence[Predictions], weights: Sequence[float]) -> Predictions:
    """Return the :func:`log_linear` blend, view by view, of M models' predictions of the same images in equal views.

    Labels and features are those of the first.
    """
    log_p = np.stack([normalised(one.logits.astype(np.float64)) for one in parts])
    return replace(parts[0], logits=log_linear(log_p, weights).astype(np.float32))


def mean_of_blends(parts: Sequence[Predictions], weights: Sequence[Sequence[float]] | None) -> Predictions:
    """Return what a run's models predict together: the mean over folds of the blend of each fold's models.

    Args:
        parts: of each model, fold after fold, in equal views.
        weights: of each fold's models; None: every model is a fold of its own.
    """
    left, folds = [*parts], list[Predictions]()
    for fold in weights or [[1.0]] * len(parts):
        own, left = left[: len(fold)], left[len(fold) :]
        folds.append(own[0] if len(own) == 1 else blend_views(own, fold))
    return folds[0] if len(folds) == 1 else average(folds)


def log_linear_weights(log_p: FloatArray, labels: IntArray, prior: float = 4.0) -> FloatArray:
    """Return the weights w (M,), zero or more, with which :func:`log_linear` has the least log loss.

    Their sum is free, so that the blend is calibrated with its models. ``prior`` M Σ_m (w_m - 1/M)² nats are added to
    the loss of all images together: few images leave the weights near 1/M, and copies of a model count as one. The
    problem is convex.

    Args:
        log_p: log probabilities (M, N, C).
        labels: (N,).

    Source: Genest & Zidek 1986, Combining probability distributions (logarithmic opinion pools).

    >>> rng, labels = np.random.default_rng(0), np.arange(600) % 3
    >>> good, useless = 2.0 * np.eye(3)[labels] + rng.normal(size=(600, 3)), 2.0 * rng.normal(size=(600, 3))
    >>> weights = log_linear_weights(np.stack([normalised(good), normalised(useless)]), labels)
    >>> bool(weights[0] > 0.9), bool(weights[1] < 0.05)
    (True, True)
    """
    log_p, rows, even = np.maximum(log_p, LOG_ZERO), np.arange(len(labels)), 1 / len(log_p)
    strength = prior * len(log_p)

    def loss(weights: FloatArray) -> tuple[float, FloatArray]:
        mixed = log_linear(log_p, weights)
        slope = (np.exp(mixed) * log_p).sum(axis=(1, 2)) - log_p[:, rows, labels].sum(axis=1)
        pull = weights - even
        return float(strength * pull @ pull - mixed[rows, labels].sum()), slope + 2 * strength * pull

    return minimised(loss, np.full(len(log_p), even), log_p.size, [(0.0, None)] * len(log_p))


def _best_together(models: Sequence[FloatArray], score: Score, size: int) -> list[int]:
    alone = [score(model) for model in models]
    order = sorted(range(len(models)), key=lambda number: (-alone[number], number))
    total, scores = np.zeros_like(models[0]), list[float]()
    for count, number in enumerate(order[:size], start=1):
        total = total + models[number]
        scores.append(score(total / count))
    return order[: int(np.argmax(scores)) + 1]


@dataclass(eq=False, repr=False)
class Ensemble:
    """One set of predictions from those of M models, scikit-learn style.

    ``"mean"``, ``"geometric"``, ``"rank"`` and ``"vote"`` (of predicted classes) take the weights given, by default
    equal ones; ``"likelihood"`` takes the mean with the weights of :func:`mixture_weights`, ``"selection"`` with those
    of :func:`select_ensemble`, and ``"best"`` the one model that is best by the metric. ``"auto"`` takes the mean,
    unless another way beats it, cross-fitted over folds, beyond its noise. Calibrate afterwards, not before.

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

    method: Method = "auto"
    metric: str = "log_loss"
    _: KW_ONLY
    size: int = 50
    bags: int = 10
    share: float = 1.0
    folds: int = 5
    seed: int = 0
    weights: Sequence[float] | None = None

    def fit(self, models: Sequence[Predictions]) -> Self:
        """Learn from out-of-fold predictions of the M models on the same images; labels may come from any of them.

        Without labels only the ways that need none can be fitted.
        """
        if self.method not in METHODS:
            hint = nearest(self.method, METHODS)
            raise EtudeError(f"models cannot be blended by {self.method!r}; give one of {listed(METHODS, 9)}.{hint}")
        metric_named(self.metric)
        together = aligned(models)
        self.classes_, self.gains_ = together[0].classes, dict[str, Gain]()
        self.method_ = self.method
        if self.method in FIXED:
            self.weights_ = shares_of(self.weights, len(together))
        elif self.weights is not None:
            raise EtudeError(f"models that are blended by {self.method!r} have weights of its own: leave yours out")
        else:
            known, _, _ = labelled_models(together, f"blending by {self.method!r}", ", or take 'mean'")
            # In the order of their ids, and in one view: what is drawn then does not depend on that of the rows.
            order = sorted(range(len(known[0])), key=known[0].ids.__getitem__)
            known = [replace(one, logits=one.log_probabilities()[None].astype(np.float32)).take(order) for one in known]
            if self.method == "auto":
                self.method_ = self._best_way(known)
            self.weights_ = self._weights(self.method_, known)
        return self

    def transform(self, models: Sequence[Predictions]) -> Predictions:
        """Return the blend, in one view and without features, of the predictions of the same M models in order."""
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

    def _weights(self, method: str, known: Sequence[Predictions]) -> FloatArray:
        labels = labels_of(known[0])
        probabilities = [one.probabilities() for one in known]
        if method == "likelihood":
            return mixture_weights(np.stack(scored(probabilities, labels, "log_loss")[0]))
        if method == "selection":
            return select_ensemble(
                probabilities, labels, metric=self.metric, size=self.size, bags=self.bags, share=self.share,
                context=Context(seed=self.seed),
            )  # fmt: skip
        if method == "best":
            metric = metric_named(self.metric)
            scores = [metric.sign * metric.value(one.log_probabilities(), labels) for one in known]
            return np.eye(len(known))[int(np.argmax(scores))]
        return np.full(len(known), 1 / len(known))

    def _best_way(self, known: Sequence[Predictions]) -> Method:
        labels = labels_of(known[0])
        if len(known) < 2 or len(labels) < FEWEST_ROWS:
            return "mean"
        metric, numbers = metric_named(self.metric), fold_numbers(known[0], self.folds, Context(seed=self.seed))
        mean = average(known).log_probabilities()
        for way in TRIED:

            def of_others(train: BoolArray, held: BoolArray, way: str = way) -> FloatArray:
                weights = self._weights(way, [one.take(train) for one in known])
                return _blended(way, [one.take(held) for one in known], weights).log_probabilities()

            held_out = out_of_fold(numbers, of_others)
            self.gains_[way] = paired_bootstrap(metric, mean, held_out, labels, 1000, self.seed, level=0.95)
        best = max(TRIED, key=lambda way: self.gains_[way].gain)
        return cast("Method", best) if self.gains_[best].beyond_noise else "mean"


def _blended(method: str, models: Sequence[Predictions], weights: FloatArray) -> Predictions:
    ways = {"geometric": geometric_mean, "rank": rank_mean, "vote": majority_vote}
    return ways.get(method, average)(models, weights.tolist())


@dataclass(frozen=True)
class PairDiversity:
    """How two models, by name, differ on labelled images."""

    first: str
    second: str
    disagreement: float  # share of the images for which they predict different classes
    double_fault: float  # share for which both are wrong
    q: float  # Yule's Q: 1 when they err together, 0 when independently, below when one is right where the other errs


def diversity(models: Mapping[str, Predictions]) -> list[PairDiversity]:
    """Return a row for each pair of models by name, the most similar first; double fault decides between equals.

    Source: Kuncheva & Whitaker 2003, Measures of diversity in classifier ensembles.
    """
    together, labels, _ = labelled_models([*models.values()], "diversity")
    guesses = [(name, one.predicted()) for name, one in zip(models, together, strict=True)]
    rows = [_pair(first, second, labels) for first, second in combinations(guesses, 2)]
    return sorted(rows, key=lambda row: (row.disagreement, -row.double_fault))


def advice(models: Mapping[str, Predictions], blended: Sequence[str] | None = None) -> list[str]:
    """Return sentences: which model to drop from the mean of those ``blended``, which of the others to add.

    Each change is judged by the log loss of the mean of probabilities on the labelled images, and its paired error.

    Args:
        models: predictions by name, on the same images.
        blended: names of those in the blend; all when None.

    Raises:
        EtudeError: as :func:`diversity`, or a name is unknown.
    """
    together, labels, _ = labelled_models([*models.values()], "diversity")
    chosen = list(models) if blended is None else list(dict.fromkeys(blended))
    if unknown := [name for name in chosen if name not in models]:
        raise EtudeError(f"there is no model {unknown[0]!r} among {listed(models)}.{nearest(unknown[0], models)}")
    if not chosen:
        raise EtudeError("a blend needs at least one model: name those that it holds")
    by_name = dict(zip(models, together, strict=True))
    given = {name: one.probabilities()[np.arange(len(labels)), labels] for name, one in by_name.items()}
    whole = _losses(chosen, given)
    gains = {name: whole - _losses([*chosen, name], given) for name in given if name not in chosen}
    useful = sorted((name for name in gains if exceeds_noise(gains[name])), key=lambda name: -gains[name].mean())
    sentences = _to_drop(chosen, given, whole)
    sentences += [f"Add {name!r}: with it the log loss of the blend falls by {_text(gains[name])}." for name in useful]
    sentences = sentences or [f"Keep the blend of {listed(chosen)} as it is: no change of one model beats its noise."]
    if len(chosen) > 1:
        closest = diversity({name: by_name[name] for name in chosen})[0]
        if closest.disagreement < 0.01:
            sentences.append(
                f"{closest.first!r} and {closest.second!r} predict the same class for {1 - closest.disagreement:.1%} "
                "of the images: one of them does almost all that both do."
            )
    return sentences


def _pair(first: tuple[str, IntArray], second: tuple[str, IntArray], labels: IntArray) -> PairDiversity:
    (first_name, one), (second_name, other) = first, second
    right, also = one == labels, other == labels
    both, neither = int((right & also).sum()), int((~right & ~also).sum())
    only, alone = int((right & ~also).sum()), int((~right & also).sum())
    together, odd = both * neither, only * alone
    q = (together - odd) / (together + odd) if together + odd else float("nan")
    return PairDiversity(first_name, second_name, float((one != other).mean()), neither / len(labels), q)


def _losses(names: Sequence[str], given: Mapping[str, FloatArray]) -> FloatArray:
    return -np.log(np.maximum(np.mean([given[name] for name in names], axis=0), SMALLEST))


def _to_drop(chosen: list[str], given: Mapping[str, FloatArray], whole: FloatArray) -> list[str]:
    """A sentence on the model without which the blend is best, if it is no worse than with it."""
    if len(chosen) < 2:
        return []
    gains = {name: whole - _losses([other for other in chosen if other != name], given) for name in chosen}
    worst = max(chosen, key=lambda name: gains[name].mean())
    change = _text(gains[worst])
    if exceeds_noise(gains[worst]):
        return [f"Drop {worst!r}: without it the log loss of the blend falls by {change}."]
    if gains[worst].mean() + NOISE * standard_error_of(gains[worst]) >= 0:
        no_more = f"changes by no more than noise: {change} less"
        return [f"{worst!r} can go: without it the log loss of the blend {no_more}."]
    return []


def _text(gains: FloatArray) -> str:
    return f"{gains.mean():.4f} (standard error {standard_error_of(gains):.4f})"
