"""Principal axes of features, and ridge regression, straight or bent, that predicts each row by all others."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from etude.core.processor import blas_threads_for
from etude.core.seeds import rng_for
from etude.refine.distances import Floats

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
