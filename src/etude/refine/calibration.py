"""Calibration: probabilities that are right as often as they claim. Fit it after averaging views or models, not before.

Both maps take z, the log of the mean probability over views, and minimise the log loss on labelled predictions that
the model did not train on (Guo et al. 2017, "On Calibration of Modern Neural Networks"; Alexandari et al. 2020,
"Maximum Likelihood with Bias-Corrected Calibration is Hard-To-Beat at Label Shift Adaptation").
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import scipy.optimize  # pyright: ignore[reportMissingTypeStubs]
from numpy.typing import ArrayLike

from etude.core.errors import EtudeError, listed
from etude.core.metrics import FloatArray, IntArray, log_loss
from etude.core.predictions import Predictions
from etude.refine.base import (
    BoolArray,
    Refiner,
    labels_of,
    minimised,
    normalised,
    occurring,
    only_among,
    require_labelled,
)

_optimize: Any = scipy.optimize
# Log temperatures beyond this are not tried: T from 1/1100 to 1100.
_WIDEST = 7.0


class Temperature(Refiner):
    """softmax(z / T): one number that makes all predictions less sure (T > 1) or more; no prediction changes class.

    T minimises Σ -log p(label) + (log T)² / 2. The second term is a prior, log T ~ N(0, 1): it weighs less than one
    image, and it keeps T finite where every label is right.

    Attributes:
        temperature_: T.

    >>> sure = Predictions(("a", "b", "c", "d"), ("x", "y"), [4 * np.eye(2)[[0, 0, 1, 1]]], labels=[0, 1, 1, 1])
    >>> Temperature().fit(sure).described
    'T = 2.21'
    """

    fits_on = frozenset({"labelled"})

    def fit(self, labelled: Predictions | None = None, target: Predictions | None = None) -> Self:
        """Find T on ``labelled``; ``target`` is not used."""
        known = require_labelled(labelled, "Temperature")
        self.temperature_ = float(np.exp(_log_temperature(known.log_probabilities(), labels_of(known))))
        self.classes_ = known.classes
        return self

    def _refined(self, predictions: Predictions) -> FloatArray:
        return predictions.log_probabilities() / self.temperature_

    def _described(self) -> str:
        return f"T = {self.temperature_:.2f}"


@dataclass(eq=False, repr=False)
class VectorScaling(Refiner):
    """softmax(z / T + b): a temperature and a bias for each class, called bias-corrected temperature scaling (BCTS).

    T and b minimise Σ -log p(label) + (log T)² / 2 + ridge Σ b² / 2. The ridge gives the biases their mean of zero. A
    class without labelled images keeps its share in softmax(z / T); T and b are fitted among the others.

    Args:
        ridge: precision of the prior b ~ N(0, 1 / ridge).

    Attributes:
        temperature_: T.
        bias_: b, (C,) float64, of mean zero; 0 for a class without labelled images.
        learned_: (C,) bool, the classes with labelled images.

    Raises:
        EtudeError: the ridge is not above zero.
    """

    fits_on = frozenset({"labelled"})
    ridge: float = 0.1

    def fit(self, labelled: Predictions | None = None, target: Predictions | None = None) -> Self:
        """Find T and b on ``labelled``; ``target`` is not used."""
        if not (np.isfinite(self.ridge) and self.ridge > 0):
            raise EtudeError(f"the ridge of VectorScaling must be above zero, not {self.ridge}: the default is 0.1")
        known = require_labelled(labelled, "VectorScaling")
        z, labels = known.log_probabilities(), labels_of(known)
        self.learned_ = occurring(labels, z.shape[1])
        columns = np.cumsum(self.learned_) - 1  # of each class among those with labels
        self.bias_ = np.zeros(z.shape[1])
        self.temperature_, self.bias_[self.learned_] = _temperature_and_bias(
            normalised(z[:, self.learned_]), columns[labels], self.ridge
        )
        self.classes_ = known.classes
        return self

    def _refined(self, predictions: Predictions) -> FloatArray:
        z = predictions.log_probabilities() / self.temperature_
        return only_among(self.learned_, z + self.bias_, normalised(z))

    def _described(self) -> str:
        without = [self.classes_[column] for column in np.flatnonzero(~self.learned_)]
        rest = f", none for {listed(without)} (no labels)" if without else ""
        return f"T = {self.temperature_:.2f}, b from {self.bias_.min():.2f} to {self.bias_.max():.2f}{rest}"


def calibration_error(
    probabilities: ArrayLike, labels: ArrayLike, *, bins: int = 15, per_class: bool = False, debiased: bool = False
) -> float:
    """Return how far confidence is from accuracy, over bins of equal mass: 0 when every "90% sure" is right 9 in 10.

    Plain: Σ_b (n_b / n) |accuracy_b - confidence_b|, the expected calibration error (ECE). On n images it is above zero
    even for a perfect model, by about sqrt(bins / n) / 4, so compare it on the same images only.

    Args:
        probabilities: (N, C).
        labels: (N,) integers, all known.
        bins: how many; images of equal confidence share one.
        per_class: compare each class's probability with how often the class occurs, and take the mean over classes;
            else the probability of the predicted class.
        debiased: the root of Σ_b (n_b / n) ((accuracy_b - confidence_b)² - accuracy_b (1 - accuracy_b) / (n_b - 1))
            instead, which has no such excess (Kumar et al. 2019, "Verified Uncertainty Calibration").

    Raises:
        EtudeError: shapes, probabilities or labels cannot be used, or there is no bin.

    >>> calibration_error([[0.8, 0.2]] * 5, [0, 0, 0, 0, 1])
    0.0
    >>> round(calibration_error([[0.8, 0.2]] * 4, [0, 0, 1, 1]), 3)
    0.3
    """
    if bins < 1:
        raise EtudeError(f"calibration is measured in at least one bin, not {bins}")
    log_loss(probabilities, labels)  # refuses what has no score
    values, truth = np.asarray(probabilities, dtype=np.float64), np.asarray(labels)
    if per_class:
        return float(np.mean([_binned_error(p, truth == c, bins, debiased) for c, p in enumerate(values.T)]))
    return _binned_error(values.max(axis=1), values.argmax(axis=1) == truth, bins, debiased)


def _binned_error(confidence: FloatArray, hits: BoolArray, bins: int, debiased: bool) -> float:
    starts = np.sort(confidence)[np.arange(1, bins) * len(confidence) // bins]
    _, which = np.unique(np.searchsorted(starts, confidence, side="right"), return_inverse=True)
    count = np.bincount(which)
    accuracy = np.bincount(which, weights=hits.astype(np.float64)) / count
    gap = accuracy - np.bincount(which, weights=confidence) / count
    share = count / count.sum()
    if not debiased:
        return float(share @ np.abs(gap))
    noise = accuracy * (1 - accuracy) / np.maximum(count - 1, 1)
    return float(np.sqrt(max(share @ (gap**2 - noise), 0.0)))


def _log_temperature(z: FloatArray, labels: IntArray) -> float:
    given = z[np.arange(len(z)), labels].sum()

    def slope(log_t: float) -> float:
        scale = np.exp(-log_t)
        expected = (np.exp(normalised(z * scale)) * z).sum()
        return float(scale * (given - expected) + log_t)

    # The slope is far below zero at the left end; at the right end it can be only where nothing but noise is left.
    if slope(_WIDEST) <= 0:
        return _WIDEST
    return float(_optimize.brentq(slope, -_WIDEST, _WIDEST, xtol=1e-10))


def _temperature_and_bias(z: FloatArray, labels: IntArray, ridge: float) -> tuple[float, FloatArray]:
    n, classes = z.shape
    counts = np.bincount(labels, minlength=classes).astype(np.float64)
    given = z[np.arange(n), labels].sum()

    def loss(x: FloatArray) -> tuple[float, FloatArray]:
        log_t, bias, scale = x[0], x[1:], np.exp(-x[0])
        log_p = normalised(z * scale + bias)
        value = -log_p[np.arange(n), labels].sum() + log_t**2 / 2 + ridge * (bias @ bias) / 2
        p = np.exp(log_p)
        slope = np.concatenate([[scale * (given - (p * z).sum()) + log_t], p.sum(axis=0) - counts + ridge * bias])
        return value / n, slope / n

    start = np.concatenate([[_log_temperature(z, labels)], np.zeros(classes)])
    bounds = [(-_WIDEST, _WIDEST)] + [(None, None)] * classes
    found = minimised(loss, start, z.size, bounds, maxiter=1000, maxcor=20, ftol=1e-15, gtol=1e-9)
    return float(np.exp(found[0])), found[1:] - found[1:].mean()
