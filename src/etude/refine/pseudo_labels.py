"""Pseudo-labels in rounds: which predictions become targets, with what weight, and how they move between rounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from etude.core.errors import EtudeError
from etude.core.metrics import FloatArray, IntArray
from etude.core.predictions import Predictions
from etude.refine.base import LOG_ZERO, difference, normalised, require_classes
from etude.refine.prior.correction import parse_prior

_LEAST_SHARE = 1e-6  # of a class in the predictions, as it divides


@dataclass(frozen=True, slots=True, eq=False)
class Selected:
    """Pseudo-labels of N images."""

    targets: NDArray[np.float32]
    weights: NDArray[np.float32]

    @property
    def described(self) -> str:
        """Such as ``"3,412 of 3,900 images, mean weight 0.91"``, the mean being that of the images that are used."""
        used = self.weights[self.weights > 0]
        mean = f", mean weight {used.mean():.2f}" if len(used) else ""
        return f"{len(used):,} of {len(self.weights):,} images{mean}"


@dataclass(frozen=True, slots=True, eq=False)
class PseudoLabelRule:
    """What becomes of predictions of unlabelled images. Calibrate them first: their confidences decide.

    Probabilities p are aligned to the prior, p · prior / mean p over its sum (Berthelot et al. 2020, ReMixMatch); an
    image's confidence is then its largest one. It is used if that reaches the threshold and its class has room, and
    weighs exp(-min(confidence - μ, 0)² / (2σ² / n²)), with μ and σ over all images (Chen et al. 2023, SoftMatch).

    Args:
        kind: ``"soft"``, probabilities, or ``"hard"``, the most probable class alone.
        temperature: of soft ones: p^(1/T) over its sum; below 1 sharpens them.
        threshold: least confidence, one number or one for each class.
        quotas: most images of each class, the surest first, (C,); None: all.
        weights: by confidence, ``"softmatch"``, or all equal, ``"none"``.
        n: a confidence one σ below the mean weighs exp(-n² / 2).
        prior: (C,), shares of the classes among these images; None: not aligned.

    Raises:
        EtudeError: an argument is out of its range.

    >>> three = Predictions.from_probabilities(["a", "b", "c"], ["x", "y"], [[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]])
    >>> chosen = PseudoLabelRule("hard", threshold=0.7, weights="none").select(three)
    >>> chosen.targets.tolist(), chosen.weights.tolist()
    ([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]], [1.0, 1.0, 0.0])
    """

    kind: Literal["soft", "hard"] = "soft"
    temperature: float = 1.0
    threshold: float | Sequence[float] = 0.0
    quotas: Sequence[int] | None = None
    weights: Literal["softmatch", "none"] = "softmatch"
    n: float = 2.0
    prior: ArrayLike | None = None

    def __post_init__(self) -> None:
        for name, known in (("kind", ("soft", "hard")), ("weights", ("softmatch", "none"))):
            if (value := getattr(self, name)) not in known:
                raise EtudeError(f"a pseudo-label rule got {name}={value!r}; it is {known[0]!r} or {known[1]!r}")
        if not (0.0 < self.temperature < float("inf") and 0.0 < self.n < float("inf")):
            raise EtudeError(
                f"a pseudo-label rule got temperature={self.temperature} and n={self.n}; both are numbers above 0"
            )
        levels = np.asarray(self.threshold, dtype=np.float64)
        if levels.ndim > 1 or not ((levels >= 0) & (levels <= 1)).all():
            raise EtudeError(
                f"a pseudo-label rule got threshold={self.threshold!r}; it takes a confidence in [0, 1], or one a class"
            )
        room = np.zeros(0) if self.quotas is None else np.asarray(self.quotas)
        if room.ndim != 1 or (room < 0).any():
            raise EtudeError(f"a pseudo-label rule got quotas={self.quotas!r}; it takes a number of images a class")

    def select(self, predictions: Predictions) -> Selected:
        """Return targets and weights of the images that ``predictions`` are of; their labels are not read."""
        classes, log_p = len(predictions.classes), predictions.log_probabilities()
        if self.prior is not None:
            running = np.maximum(np.exp(log_p).mean(axis=0), _LEAST_SHARE)
            with np.errstate(divide="ignore"):
                ratio = np.log(_shares(self.prior, predictions.classes) / running)
            log_p = normalised(log_p + np.maximum(ratio, LOG_ZERO))  # what cannot be is left to last
        likeliest = log_p.argmax(axis=1)
        confidence: FloatArray = np.exp(log_p.max(axis=1))
        least = _one_each(self.threshold, classes, "thresholds")[likeliest]
        used = confidence >= least
        if self.quotas is not None:
            room = _one_each(self.quotas, classes, "quotas")
            used &= _rank_in_class(np.where(used, confidence, -1.0), likeliest, predictions.ids) < room[likeliest]
        weights = _softmatch(confidence, self.n) if self.weights == "softmatch" else np.ones(len(confidence))
        targets = np.eye(classes)[likeliest] if self.kind == "hard" else np.exp(normalised(log_p / self.temperature))
        return Selected(targets.astype(np.float32), np.where(used, weights, 0.0).astype(np.float32))


@dataclass(frozen=True, slots=True, eq=False)
class Drift:
    """How pseudo-labels moved from one round to the next."""

    changed: float
    histogram: IntArray
    from_prior: float | None
    described: str


def drift(before: Predictions, after: Predictions, prior: ArrayLike | None = None) -> Drift:
    """Return how predictions of the same unlabelled images moved, and how far their classes are from the prior.

    A network that believes its own mistakes shows it here before validation does: class shares leave the prior.

    Args:
        before, after: of the last round and of this one; the images may come in another order.
        prior: (C,), the shares that the classes should have; None: unknown.
    """
    require_classes(before.classes, after, "the drift of pseudo-labels")
    place = {name: row for row, name in enumerate(before.ids)}
    if place.keys() != set(after.ids):
        raise EtudeError(
            "the drift of pseudo-labels needs predictions of the same images, and the later set "
            f"{difference(before.ids, after.ids)}"
        )
    predicted = after.predicted()
    changed = float((predicted != before.predicted()[[place[name] for name in after.ids]]).mean())
    histogram = np.bincount(predicted, minlength=len(after.classes)).astype(np.int64)
    text = f"{changed:.1%} of labels changed"
    if prior is None:
        return Drift(changed, histogram, None, text)
    expected, shares = _shares(prior, after.classes), histogram / len(after)
    gap = np.abs(shares - expected)
    distance, most = float(gap.sum() / 2), int(gap.argmax())
    text += f"; class shares {distance:.2f} from the prior"
    if distance > 0:
        text += f", {after.classes[most]!r} farthest: {shares[most]:.1%} where {expected[most]:.1%} are expected"
    return Drift(changed, histogram, distance, text)


def _softmatch(confidence: FloatArray, n: float) -> FloatArray:
    below = np.minimum(confidence - confidence.mean(), 0.0)
    # Where all are equal, rounding is no difference.
    return np.exp(-(below**2) * n**2 / (2.0 * max(float(confidence.var()), 1e-12)))


def _rank_in_class(confidence: FloatArray, classes: IntArray, ids: tuple[str, ...]) -> IntArray:
    """Return each image's place among those of its class, (N,) from 0, the surest first; equals by id."""
    order = np.lexsort((np.array(ids), -confidence, classes))
    ordered = classes[order]
    starts = np.searchsorted(ordered, ordered)  # where the class of each begins
    ranks = np.empty(len(order), dtype=np.int64)
    ranks[order] = np.arange(len(order)) - starts
    return ranks


def _one_each(values: float | Sequence[float], classes: int, what: str) -> FloatArray:
    """Return (C,): the values, or one value for all."""
    numbers = np.asarray(values, dtype=np.float64)
    if numbers.ndim and len(numbers) != classes:
        raise EtudeError(f"a pseudo-label rule got {len(numbers):,} {what} for {classes:,} classes: give one for each")
    return np.broadcast_to(numbers, (classes,))


def _shares(prior: ArrayLike, classes: tuple[str, ...]) -> FloatArray:
    shares = parse_prior(np.asarray(prior, dtype=np.float64).ravel(), classes)
    assert shares is not None  # only "estimate" has none
    return shares
