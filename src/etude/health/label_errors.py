"""Suspected label errors: images whose class is denied by classifiers that learned from all other images."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from etude.core.errors import EtudeError
from etude.core.processor import blas_threads_for
from etude.core.seeds import rng_for
from etude.refine.neighbours.index import Floats, checked_features

Array = NDArray[np.float64]
PENALTIES = tuple(10.0**power for power in np.arange(-3.0, 2.1, 0.5))
"""Penalties that are tried, as parts of the mean eigenvalue."""

_OVERSAMPLED = 16
_ROUNDING = 1e-6  # part of the largest eigenvalue of a float32 kernel below which there is only rounding
_OWN = 1e-6  # least part of a prediction that is of other rows; a larger one lets a flexible fit repeat its own target
_linalg: Any = np.linalg


def principal(features: Floats, most: int, seed: int = 0) -> NDArray[np.float32]:
    """Return (N, q) float32 scores on the first q = min(most, N - 1, D) principal axes of standardised features.

    A column that does not vary counts for nothing. Source: Halko, Martinsson & Tropp 2011, "Finding structure with
    randomness", with two power iterations.

    >>> rows = np.outer(np.arange(6.0), [1.0, -2.0])
    >>> np.abs(principal(rows, 1)).astype(float).round(2).ravel().tolist()
    [2.07, 1.24, 0.41, 0.41, 1.24, 2.07]
    """
    x = np.array(features, np.float32)
    mean = x.mean(axis=0, dtype=np.float64)
    x -= mean.astype(np.float32)
    spread = np.sqrt(np.einsum("nd,nd->d", x, x, dtype=np.float64) / len(x))
    varies = spread > 1e-6 * max(1.0, float(np.abs(mean).max(initial=0.0)))
    x *= np.where(varies, 1 / np.maximum(spread, 1e-30), 0.0).astype(np.float32)
    count, columns = x.shape
    kept = max(1, min(most, count - 1, columns))
    tried = min(kept + _OVERSAMPLED, count, columns)
    basis: Floats = rng_for(seed, "principal").standard_normal((columns, tried)).astype(np.float32)
    with blas_threads_for(x.size * tried):
        for _ in range(2):
            basis = x.T @ _linalg.qr(x @ basis)[0]
        axes: Floats = _linalg.qr(basis)[0]
        scores = x @ axes
        wide = scores.astype(np.float64)
        turn = _linalg.eigh(wide.T @ wide)[1][:, ::-1]  # the right singular vectors alone, a tenth of the cost of all
        return np.asarray(wide @ turn[:, :kept], np.float32)


def whitened(rows: Floats, most: int) -> NDArray[np.float32]:
    """Return (N, q) float32 scores on the first q = min(most, D) principal axes of ``rows``, each of unit variance.

    What all rows share no longer outweighs what tells them apart (Jégou & Chum 2012, "Negative evidences and
    co-occurences in image retrieval"). An axis along which nothing varies stays zero.

    >>> corners = np.array([[0.0, 0.0], [9.0, 0.0], [0.0, 1.0], [9.0, 1.0]])
    >>> whitened(corners, 2).std(axis=0).astype(float).round(3).tolist()
    [1.0, 1.0]
    """
    x = rows.astype(np.float64) - rows.mean(axis=0, dtype=np.float64)
    with blas_threads_for(x.size * x.shape[1]):
        values, vectors = _linalg.eigh(x.T @ x / len(x))
        values, vectors = values[::-1][:most], vectors[:, ::-1][:, :most]
        real = values > 1e-9 * max(float(values.max(initial=0.0)), 1e-30)
        return np.asarray(x @ (vectors * np.where(real, 1 / np.sqrt(np.maximum(values, 1e-300)), 0.0)), np.float32)


def landmark_features(z: Floats, most: int, width: float, seed: int = 0) -> NDArray[np.float32]:
    """Return (N, q) float32 whose products are about a Gaussian kernel, q ≤ min(most, N): ridge on them bends.

    k(x, y) = exp(-width |x - y|² / m), where m is the median of the squared distances between rows and landmarks, the
    ``most`` rows L that are drawn. The features are K_zL K_LL^(-1/2), which takes N q² steps in place of the N³ of the
    kernel itself.

    Args:
        z: (N, D), such as :func:`principal` returns.
        most: landmarks.
        width: how fast the likeness of two rows falls with their distance.
        seed: of the landmarks.

    Source: Williams & Seeger 2000, "Using the Nyström Method to Speed Up Kernel Machines".

    >>> z = np.array([[0.0], [1.0], [3.0]])
    >>> rows = landmark_features(z, 3, 1.0)
    >>> (rows @ rows.T).astype(float).round(2)[0].tolist()  # the median is 1
    [1.0, 0.37, 0.0]
    """
    drawn = rng_for(seed, "landmarks").permutation(len(z))[:most]
    rows = z.astype(np.float32)
    squares = np.einsum("nd,nd->n", rows, rows)
    with blas_threads_for(len(z) * len(drawn) * max(len(drawn), z.shape[1])):
        apart = np.maximum(squares[:, None] + squares[drawn] - 2 * (rows @ rows[drawn].T), 0)
        middle = max(float(np.median(apart)), 1e-30)
        kernel: Floats = np.exp(apart * np.float32(-width / middle))
        among = kernel[drawn].astype(np.float64)
        values, vectors = _linalg.eigh((among + among.T) / 2)
        kept = values > _ROUNDING * values[-1]
        return np.asarray(kernel @ (vectors[:, kept] / np.sqrt(values[kept])).astype(np.float32), np.float32)


def leave_one_out(z: Floats, targets: Array) -> Array:
    """Return what ridge regression predicts for each row when all rows but it are fitted, (N, C) float64.

    ŷ_i = y_i - (y_i - f(z_i)) / (1 - h_i), where f is fitted to all rows and h_i is the row's own leverage: exact, and
    no fold is drawn. The penalty is the one of the least squared error of these predictions.

    Args:
        z: (N, q), such as :func:`principal` returns; its columns are centred here.
        targets: (N, C), such as one-hot labels.

    >>> z = np.array([[-1.0], [-0.9], [1.1], [0.9]])
    >>> leave_one_out(z, np.array([[0.0], [0.0], [1.0], [1.0]])).round(1).ravel().tolist()[1:]
    [0.1, 1.1, 0.9]
    """
    with blas_threads_for(z.size * z.shape[1]):
        u, eigenvalues, mean = _decomposed(z, targets)
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


def predict_ridge(z: Floats, targets: Array, fresh: Floats, penalty: float = 0.1) -> Array:
    """Return the predictions (M, C) for ``fresh`` (M, q) of a regression fitted to ``z`` (N, q) and its targets (N, C).

    >>> z = np.array([[0.0], [1.0], [2.0], [3.0]])
    >>> predict_ridge(z, 2 * z + 1, np.array([[4.0]]), penalty=1e-9).round(3).ravel().tolist()
    [9.0]
    """
    middle = z.mean(axis=0, dtype=np.float64)
    with blas_threads_for(z.size * z.shape[1]):
        u, eigenvalues, mean = _decomposed(z, targets)
        shrunk = eigenvalues / (eigenvalues + penalty * eigenvalues.sum() / max(1, len(eigenvalues)))
        # z - middle = u sqrt(eigenvalues) vᵀ, so v sqrt(eigenvalues) = (z - middle)ᵀ u
        turned = (fresh.astype(np.float64) - middle) @ ((z.astype(np.float64) - middle).T @ u) / eigenvalues
        return mean + (turned * shrunk) @ (u.T @ (targets - mean))


def _decomposed(z: Floats, targets: Array) -> tuple[Array, Array, Array]:
    """Return orthonormal columns (N, q) that span z, their eigenvalues (q,), and the mean of the targets (1, C)."""
    centred = z.astype(np.float64) - z.mean(axis=0, dtype=np.float64)
    values, vectors = _linalg.eigh(centred.T @ centred)
    kept = values > 1e-9 * max(float(values.max(initial=0.0)), 1e-30)
    u = centred @ (vectors[:, kept] / np.sqrt(values[kept]))
    return u, np.asarray(values[kept], np.float64), targets.mean(axis=0, keepdims=True)


AXES = 384
LANDMARKS = 512
_WIDTH = 0.75
_SHARPNESS = tuple(float(value) for value in np.geomspace(1.0, 64.0, 13))
_JUDGED_BY = 2_000  # rows that the sharpness is chosen on; all of them would be no more certain
_FEWEST = 3  # images of a class below which its labels cannot be judged by the others
_FLOOR = 0.02  # least probability that counts when the sharpness is chosen: some of the labels are wrong
_DRAWS = 10  # wrong labels that are tried on each row
_ERRORS = 2.0  # standard errors of a count of suspects by which more may be wrong than it says

Labels = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class LabelSuspects:
    """How likely each of N labels is wrong.

    Args:
        scores: (N,) float64 from 0 to 1, to rank by: (1 + p(suggested) - p(given)) / 2; 0 where a class has too few
            images to judge.
        suggested: (N,) int64 the most probable class other than the given one.
        rows: (S,) int64 the rows under suspicion, the most suspect first; not more of them than can be wrong.
        probabilities: (N, C) float64, each row's from the other rows alone.
        doubted: rows that another class fits better, wrong labels and hard images together.
        most: how many labels can be wrong, or too many of them would be doubted; see :func:`most_wrong`.
        agreement: share of the labels that are the most probable class.
    """

    scores: Array
    suggested: Labels
    rows: Labels
    probabilities: Array
    doubted: int
    most: float
    agreement: float


def suspect_labels(features: ArrayLike, labels: ArrayLike, classes: int, *, seed: int = 0) -> LabelSuspects:
    """Find labels that all other images speak against.

    A row is under suspicion where another class is more probable than its own, and as probable as that class is on
    average among its own images (confident learning): a class that is hard to tell needs less, an easy one more. What
    features cannot tell looks wrong too, so only as many rows are returned as can be wrong by :func:`most_wrong`.

    Args:
        features: (N, D) floats.
        labels: (N,) integers from 0 to ``classes`` - 1.
        classes: C, two or more.
        seed: of the random projection that finds the principal axes, the landmarks and the labels that are tried.

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
    judged = counts[given] >= _FEWEST
    if len(np.unique(given[judged])) < 2:
        raise EtudeError(f"labels can be judged where two classes have {_FEWEST} images or more, and fewer have")
    probabilities = held_out_probabilities(table, given, classes, seed=seed)
    rows = np.arange(len(given))
    own = probabilities[rows, given]
    others = probabilities.copy()
    others[rows, given] = -1.0
    suggested = others.argmax(axis=1).astype(np.int64)
    scores = np.where(judged, doubts(probabilities, given[:, None])[:, 0], 0.0)
    usual = np.bincount(given, own, classes) / np.maximum(counts, 1)
    confident = np.where(others >= usual, others, -1.0).max(axis=1)
    suspects = np.flatnonzero(judged & (confident > own))
    suspects = suspects[np.argsort(-scores[suspects], kind="stable")]
    most = most_wrong(probabilities[judged], given[judged], seed=seed)
    agreement = float((own[judged] >= others[judged].max(axis=1)).mean())
    kept = suspects[: math.ceil(most)]
    return LabelSuspects(scores, suggested, kept, probabilities, len(suspects), most, agreement)


def most_wrong(probabilities: Array, labels: Labels, *, seed: int = 0) -> float:
    """Return about how many labels can be wrong, such that chance explains that no more of them are doubted.

    A wrong label is doubted by a height t or more with a probability P(t), which is known: a row's probabilities do not
    depend on its own label, so other rows' labels are tried in its place. With U(t) labels that are doubted so,
    (sqrt(U(t) + 1) + z / 2)² / P(t) can be wrong, and the t that allows the fewest decides. Where features tell little,
    right labels are doubted as wrong ones would be, and many can be wrong.

    Args:
        probabilities: (N, C), each row's from the other rows alone.
        labels: (N,) as given.
        seed: of the labels that are tried.

    Source: the mixture proportion of Blanchard, Lee & Scott 2010, "Semi-Supervised Novelty Detection", with the
    square-root bound of a Poisson count.

    >>> sure = np.eye(2)[np.arange(100) % 2] * 0.98 + 0.01
    >>> given = np.arange(100) % 2
    >>> round(most_wrong(sure, given)), round(most_wrong(sure, np.r_[1 - given[:9], given[9:]]))
    (4, 19)
    """
    heights = -np.sort(-doubts(probabilities, labels[:, None])[:, 0])
    tried = labels[rng_for(seed, "wrong labels").integers(len(labels), size=(len(labels), _DRAWS))]
    wrong = np.sort(doubts(probabilities, tried)[tried != labels[:, None]])
    # Just above each height the labels before it are doubted, and above none of them nobody is.
    above = np.searchsorted(wrong, heights, "right")
    reached = 1 - above / max(1, len(wrong))
    allowed = (np.sqrt(np.arange(len(heights)) + 1) + _ERRORS / 2) ** 2
    return float(np.min(allowed / np.maximum(reached, 1e-9), initial=len(labels)))


def doubts(probabilities: Array, labels: Labels) -> Array:
    """Return how much each row denies labels (N, K): (1 + the largest other probability - the label's) / 2, (N, K).

    >>> doubts(np.array([[0.7, 0.2, 0.1]]), np.array([[0, 1, 2]])).round(2).tolist()
    [[0.25, 0.75, 0.8]]
    """
    ordered = np.sort(probabilities, axis=1)
    is_best = probabilities.argmax(axis=1)[:, None] == labels
    other: Array = np.where(is_best, ordered[:, -2:-1], ordered[:, -1:])
    return (1 + other - np.take_along_axis(probabilities, labels, axis=1)) / 2


def held_out_probabilities(features: ArrayLike, labels: Labels, classes: int, *, seed: int = 0) -> Array:
    """Return (N, C) class probabilities of each row by what the other rows say.

    The mean of two regressions of the labels that leave each row out: a straight one on the principal axes, and one
    that bends, by the likeness of images to landmarks among them. The sharpness of the softmax on top is that of the
    least log loss on the given labels. Takes O(N (D q + q²)) steps, q = 512.

    Args:
        features: (N, D) floats.
        labels: (N,) from 0 to ``classes`` - 1.
        classes: C.
        seed: of the projection and the landmarks.
    """
    z = principal(checked_features(features, "the images"), AXES, seed)
    targets = np.eye(classes)[labels]
    bent = leave_one_out(landmark_features(z, LANDMARKS, _WIDTH, seed), targets)
    fitted = (leave_one_out(z, targets) + bent) / 2
    part = slice(None, None, max(1, len(labels) // _JUDGED_BY))
    sharpness = min(_SHARPNESS, key=lambda a: _loss(_softmax(a * fitted[part]), labels[part]))
    return _softmax(sharpness * fitted)


def _loss(probabilities: Array, labels: Labels) -> float:
    own = probabilities[np.arange(len(labels)), labels]
    return float(-np.log(np.maximum(own, _FLOOR)).mean())


def _softmax(logits: Array) -> Array:
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)


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
