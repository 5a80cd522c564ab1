"""Suspected label errors: images whose class is denied by classifiers that learned from all other images."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import softmax  # pyright: ignore[reportMissingTypeStubs]
from sklearn.decomposition import PCA
from sklearn.kernel_approximation import Nystroem
from sklearn.metrics import euclidean_distances
from sklearn.preprocessing import StandardScaler

from etude.core.context import Context
from etude.core.errors import EtudeError
from etude.core.processor import blas_threads_for
from etude.core.seeds import derive_seed
from etude.refine.neighbours.index import Floats, checked_features

Array = NDArray[np.float64]
Labels = NDArray[np.int64]

PENALTIES = tuple(10.0**power for power in np.arange(-3.0, 2.1, 0.5))  # parts of the mean eigenvalue
AXES, LANDMARKS = 384, 512
_OWN = 1e-6  # least part of a prediction that is of other rows; a larger one lets a flexible fit repeat its own target
_WIDTH = 0.75
_SHARPNESS = tuple(float(value) for value in np.geomspace(1.0, 64.0, 13))
_CHOSEN_ON = 2_000  # rows that the sharpness is chosen on; all of them would be no more certain
_FEWEST = 3  # images of a class below which its labels cannot be checked by the others
_FLOOR = 0.02  # least probability that counts when the sharpness is chosen: some of the labels are wrong
_DRAWS = 10  # wrong labels that are tried on each row
_ERRORS = 2.0  # standard errors of a count of suspects by which more may be wrong than counted
_linalg: Any = np.linalg


def principal(features: Floats, most: int, context: Context = Context()) -> NDArray[np.float32]:
    """Return (N, q) float32 scores on the first q = min(most, N - 1, D) principal axes of standardised features."""
    x: Any = np.asarray(features, np.float32)
    # A feature that varies by rounding alone says nothing, and a scale of its own would make it as large as the others.
    varies = x.std(0, dtype=np.float64) > 1e-6 * max(1.0, float(np.abs(x.mean(0, dtype=np.float64)).max()))
    x = StandardScaler().fit_transform(np.where(varies, x, np.float32(0)))
    kept = max(1, min(most, len(x) - 1, x.shape[1]))
    options: dict[str, Any] = {"random_state": derive_seed(context.seed, "principal") % 2**32, "iterated_power": 2}
    axes = PCA(kept, svd_solver="randomized", n_oversamples=16, **options)
    with blas_threads_for(x.size * kept), np.errstate(invalid="ignore", divide="ignore"):  # shares of no variance
        return np.asarray(axes.fit_transform(x), np.float32)


def landmark_features(z: Floats, most: int, width: float, context: Context = Context()) -> NDArray[np.float32]:
    """Return (N, q) float32 whose products are about exp(-width |x - y|² / median): ridge on them bends."""
    rows = z.astype(np.float64)
    landmarks = rows[context.rng("landmarks").permutation(len(z))[:most]]
    with blas_threads_for(len(z) * len(landmarks) * max(len(landmarks), z.shape[1])):
        middle = max(float(np.median(euclidean_distances(rows, landmarks, squared=True))), 1e-30)
        kernel: Any = Nystroem(gamma=width / middle, n_components=len(landmarks), random_state=0).fit(landmarks)
        return np.asarray(kernel.transform(rows), np.float32)


def leave_one_out(z: Floats, targets: Array) -> Array:
    """Return what ridge regression, its penalty that of the least error, predicts for each row from the others, (N, C).

    ŷ_i = y_i - (y_i - f(z_i)) / (1 - h_i), where f is fitted to all rows and h_i is the row's own leverage: exact.
    RidgeCV decomposes the rows rather than their products, and keeps 11 N C predictions.
    """
    with blas_threads_for(z.size * z.shape[1]):
        centred = z.astype(np.float64) - z.mean(axis=0, dtype=np.float64)
        values, vectors = _linalg.eigh(centred.T @ centred)
        kept = values > 1e-9 * max(float(values.max(initial=0.0)), 1e-30)
        u, eigenvalues = centred @ (vectors[:, kept] / np.sqrt(values[kept])), np.asarray(values[kept], np.float64)
        mean = targets.mean(axis=0, keepdims=True)
        inner = u.T @ (targets - mean)
        best, least = targets, np.inf
        for penalty in PENALTIES:
            shrunk = eigenvalues / (eigenvalues + penalty * eigenvalues.sum() / max(1, len(eigenvalues)))
            residual = targets - mean - u @ (shrunk[:, None] * inner)
            leverage = (u**2) @ shrunk + 1 / len(z)
            residual = residual / np.maximum(1 - leverage, _OWN)[:, None]
            error = float((residual**2).mean())
            if error < least:
                best, least = targets - residual, error
        return best


@dataclass(frozen=True, eq=False)
class LabelSuspects:
    """How likely each of N labels is wrong."""

    scores: Array  # (N,) from 0 to 1, to rank by: (1 + p(suggested) - p(given)) / 2; 0 where a class is too small
    suggested: Labels  # (N,) the most probable class other than the given one
    rows: Labels  # (S,) the rows under suspicion, the most suspect first; not more of them than can be wrong
    probabilities: Array  # (N, C), each row's from the other rows alone
    doubted: int  # rows that another class fits better, wrong labels and hard images together
    most: float  # how many labels can be wrong, or too many of them would be doubted; see most_wrong
    agreement: float  # share of the labels that are the most probable class


def suspect_labels(
    features: ArrayLike, labels: ArrayLike, classes: int, *, context: Context = Context()
) -> LabelSuspects:
    """Find labels that all other images speak against.

    A row is under suspicion where another class is more probable than its own, and as probable as that class is on
    average among its own images (confident learning): a class that is hard to recognise needs less, an easy one more.
    What features do not show looks wrong too, so only as many rows are returned as can be wrong by :func:`most_wrong`.

    Args:
        features: (N, D) floats.
        labels: (N,) integers from 0 to ``classes`` - 1.
        classes: C, two or more.
        context: its seed is that of the principal axes, the landmarks and the labels that are tried.

    Source: Northcutt, Jiang & Chuang 2021, "Confident Learning: Estimating Uncertainty in Dataset Labels"
    (https://arxiv.org/abs/1911.00068).

    Raises:
        EtudeError: the features or labels cannot be used.

    >>> rng = np.random.default_rng(0)
    >>> labels = np.arange(90) % 3
    >>> features = np.eye(3)[labels] + rng.normal(scale=0.1, size=(90, 3))
    >>> given = labels.copy()
    >>> given[[4, 50]] = 2, 1
    >>> found = suspect_labels(features, given, 3)
    >>> sorted(found.rows.tolist()), found.suggested[[4, 50]].tolist()
    ([4, 50], [1, 2])
    """
    table, given = checked_features(features, "the images"), _checked_labels(labels, classes)
    if len(table) != len(given):
        raise EtudeError(f"there are {len(given):,} labels for {len(table):,} rows of features: give one label a row")
    counts = np.bincount(given, minlength=classes)
    checked = counts[given] >= _FEWEST
    if len(np.unique(given[checked])) < 2:
        raise EtudeError(f"labels can be checked where two classes have {_FEWEST} images or more, and fewer have")
    probabilities = held_out_probabilities(table, given, classes, context)
    rows = np.arange(len(given))
    own = probabilities[rows, given]
    others = probabilities.copy()
    others[rows, given] = -1.0
    suggested = others.argmax(axis=1).astype(np.int64)
    scores = np.where(checked, doubts(probabilities, given[:, None])[:, 0], 0.0)
    usual = np.bincount(given, own, classes) / np.maximum(counts, 1)
    confident = np.where(others >= usual, others, -1.0).max(axis=1)
    suspects = np.flatnonzero(checked & (confident > own))
    suspects = suspects[np.argsort(-scores[suspects], kind="stable")]
    most = most_wrong(probabilities[checked], given[checked], context)
    agreement = float((own[checked] >= others[checked].max(axis=1)).mean())
    kept = suspects[: math.ceil(most)]
    return LabelSuspects(scores, suggested, kept, probabilities, len(suspects), most, agreement)


def most_wrong(probabilities: Array, labels: Labels, context: Context) -> float:
    """Return about how many labels can be wrong, such that chance explains that no more of them are doubted.

    A wrong label is doubted by a height t or more with a probability P(t), known from other rows' labels in its place.
    With U(t) doubted so, (sqrt(U(t) + 1) + z / 2)² / P(t) can be wrong, at the t that allows the fewest. Source: the
    mixture proportion of Blanchard, Lee & Scott 2010, with the square-root bound of a Poisson count.
    """
    heights = -np.sort(-doubts(probabilities, labels[:, None])[:, 0])
    tried = labels[context.rng("wrong labels").integers(len(labels), size=(len(labels), _DRAWS))]
    wrong = np.sort(doubts(probabilities, tried)[tried != labels[:, None]])
    # Just above each height the labels before it are doubted, and above none of them nobody is.
    above = np.searchsorted(wrong, heights, "right")
    reached = 1 - above / max(1, len(wrong))
    allowed = (np.sqrt(np.arange(len(heights)) + 1) + _ERRORS / 2) ** 2
    return float(np.min(allowed / np.maximum(reached, 1e-9), initial=len(labels)))


def doubts(probabilities: Array, labels: Labels) -> Array:
    """Return how much each row denies labels (N, K): (1 + the largest other probability - the label's) / 2, (N, K)."""
    ordered = np.sort(probabilities, axis=1)
    is_best = probabilities.argmax(axis=1)[:, None] == labels
    other: Array = np.where(is_best, ordered[:, -2:-1], ordered[:, -1:])
    return (1 + other - np.take_along_axis(probabilities, labels, axis=1)) / 2


def held_out_probabilities(table: Floats, labels: Labels, classes: int, context: Context = Context()) -> Array:
    """Return (N, C) probabilities of each row from the others: two ridge regressions, straight and bent."""
    z = principal(table, AXES, context)
    targets = np.eye(classes)[labels]
    bent = leave_one_out(landmark_features(z, LANDMARKS, _WIDTH, context), targets)
    fitted = (leave_one_out(z, targets) + bent) / 2
    part = np.arange(0, len(labels), max(1, len(labels) // _CHOSEN_ON))

    def loss(sharpness: float) -> float:
        own = softmax(sharpness * fitted[part], axis=1)[np.arange(len(part)), labels[part]]
        return float(-np.log(np.maximum(own, _FLOOR)).mean())

    return np.asarray(softmax(min(_SHARPNESS, key=loss) * fitted, axis=1), np.float64)


def _checked_labels(labels: ArrayLike, classes: int) -> Labels:
    given = np.asarray(labels)
    if classes < 2:
        raise EtudeError(f"label errors need two classes or more, not {classes}")
    if given.ndim != 1 or not len(given) or given.dtype.kind not in "iu":
        raise EtudeError(f"labels must be integers (N,), at least one, not {given.dtype} of {given.shape}")
    if given.min() < 0 or given.max() >= classes:
        raise EtudeError(
            f"labels must lie between 0 and {classes - 1}, and {int(given.min())} to {int(given.max())} came: "
            "give labelled images only"
        )
    return given.astype(np.int64)
