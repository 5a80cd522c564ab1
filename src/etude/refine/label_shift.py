"""Label shift: estimating the class shares of unlabelled images, and whether they moved at all.

Everywhere p is (N, C): calibrated probabilities of a model whose classes have the shares ``source``, (C,).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
_linalg: Any = np.linalg


def em_prior(p: Array, source: Array, tolerance: float = 1e-6, most: int = 1000) -> Array:
    """Return the shares q of the classes among the images of p, (C,), by expectation maximisation.

    q starts at ``source``; q ← mean over images of normalise(p q / source), until no share moves by more than
    ``tolerance``. This is the q of the greatest likelihood if p is calibrated (Saerens, Latinne & Decaestecker 2002,
    "Adjusting the Outputs of a Classifier to New a Priori Probabilities").

    >>> em_prior(np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]), np.array([0.5, 0.5])).tolist()
    [0.75, 0.25]
    """
    q = source.copy()
    for _ in range(most):
        weight = np.divide(q, source, out=np.zeros_like(q), where=source > 0)
        total = p @ weight
        step = weight * (p.T @ np.divide(1.0, total, out=np.zeros_like(total), where=total > 0))
        step /= step.sum()
        moved, q = np.abs(step - q).max(), step
        if moved < tolerance:
            break
    return q


def bbse_prior(p: Array, valid: Array, labels: NDArray[np.int64], source: Array) -> Array:
    """Return the shares of the classes among the images of p, (C,), by black-box shift estimation.

    w = C⁻¹ μ, where C[i, j] is the sum of valid[:, i] over the images of label j, divided by M (the soft confusion),
    and μ the mean of p; a negative w counts as zero. The shares are w times those of the labels, (M,); a class without
    labels keeps its share in ``source``. Where C cannot be inverted, the smallest w that fits best is taken. Source:
    Lipton, Wang & Smola 2018, "Detecting and Correcting for Label Shift with Black Box Predictors".
    """
    own = np.zeros((len(labels), len(source)))
    own[np.arange(len(labels)), labels] = 1 / len(labels)
    confusion: Array = valid.T @ own
    solved: Array = _linalg.lstsq(confusion, p.mean(axis=0), rcond=None)[0]
    weight = np.maximum(solved, 0.0)
    labelled: Array = own.sum(axis=0)
    shares = np.where(labelled > 0, weight * labelled, source)
    return shares / shares.sum() if shares.sum() > 0 else source.copy()


def shift_p_value(p: Array, valid: Array, rng: np.random.Generator, draws: int = 500) -> float:
    """Return how often two random parts of all images differ as much as ``p`` and ``valid``, (M, C), do.

    A permutation test, so that a value of 0.05 comes once in twenty times without a shift, however few images there
    are. The statistic is the squared distance of the mean predictions, measured by the covariance of all. Mean
    predictions differ if and only if shares do, as long as the confusion can be inverted (Lipton et al. 2018).
    """
    together = np.concatenate([p, valid])
    centred = together - together.mean(axis=0)
    covariance = centred.T @ centred / len(centred)
    # One direction, all ones, has no variance, and those of classes never predicted next to none: leave both out.
    inverse: Array = _linalg.pinv(covariance, rcond=1e-9, hermitian=True)
    # The sums of two parts are opposites, so that of the smaller one tells the distance of their means.
    few = min(len(p), len(valid))
    sums = np.stack([centred[rng.choice(len(centred), few, replace=False, shuffle=False)].sum(0) for _ in range(draws)])
    null: Array = ((sums @ inverse) * sums).sum(axis=1)
    own: Array = centred[len(p) :].sum(axis=0)
    # What rounding leaves of a distance of zero is no distance.
    observed = float(own @ inverse @ own) * (1 - 1e-9) - 1e-15
    return float((1 + (null >= observed).sum()) / (1 + draws))


def expected_gain(p: Array, before: NDArray[np.int64]) -> tuple[float, float]:
    """Return the mean and standard deviation of the accuracy gained by predicting argmax p in place of ``before``.

    If p is right, an image whose predicted class changes from a to b is won with probability p[b] and lost with p[a].

    >>> gain, spread = expected_gain(np.array([[0.6, 0.3, 0.1], [0.0, 1.0, 0.0]]), np.array([1, 1]))
    >>> round(gain, 3), round(spread, 3)
    (0.15, 0.45)
    """
    rows = np.arange(len(p))
    after = p.argmax(axis=1)
    won, lost = p[rows, after], p[rows, before]
    won, lost = np.where(after == before, 0.0, won), np.where(after == before, 0.0, lost)
    variance = won + lost - (won - lost) ** 2
    return float((won - lost).mean()), float(np.sqrt(variance.sum()) / len(p))
