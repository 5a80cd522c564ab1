"""What keeps unlabelled images from harm: no near-duplicates of validation images, label shift, a student must gain."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from etude.core.context import Context
from etude.core.metrics import accuracy
from etude.core.paired import Gain, mean_gain
from etude.core.predictions import Predictions
from etude.data.dataset import Dataset
from etude.health.duplicates import near_duplicates
from etude.refine.calibration import Temperature
from etude.refine.prior.correction import em_prior, shift_p_value
from etude.study.unlabelled.pool import Pool

Array = NDArray[np.float64]

_THUMBNAIL = 16  # side in pixels at which two files of a picture are the same, however the file was changed
_SAME_PICTURE = 0.99  # cosine of centred thumbnails
_CONFIRMED = 0.9  # that of near-duplicates which features propose
_MOST_PAIRS = 1_000_000
_MOST_VIEWS, _SHOWN = 8, 1_000  # of an image; images times views that are enough for a comparison
_SHIFTED = 0.05  # p-value at which class shares are taken to differ
_LEAST_SHARE = 1e-4  # of a class, so that a ratio of two shares stays finite
_COLLAPSE = 0.25  # total variation that the predicted class shares may move away from the expected ones
_LOST = 0.1  # of its expected share that a class keeps at least
_COMMON = 0.02  # share from which on a class is expected to show


@dataclass(frozen=True, slots=True)
class EvaluatedModel:
    """A model's predictions of the validation images and the pool, both calibrated on the first."""

    valid: Predictions
    pool: Predictions
    losses: Array  # (N,) mean log loss of each validation image over the views by which it is evaluated

    @classmethod
    def calibrated(cls, valid: Predictions, pool: Predictions) -> EvaluatedModel:
        """Return predictions at the temperature that fits ``valid`` best, whose first views are ``pool``'s."""
        same = replace(valid, logits=valid.logits[: len(pool.logits)])
        fitted = Temperature().fit(same)
        return cls(fitted.transform(same), fitted.transform(pool), _losses_of_views(valid))

    @property
    def scores(self) -> tuple[float, float]:
        assert self.valid.labels is not None
        return accuracy(self.valid.predicted(), self.valid.labels), float(self.losses.mean())


@dataclass(frozen=True, slots=True)
class LabelShift:
    """Class shares (C,) of the labelled training images and, by EM, of the unlabelled ones; p-value of equal shares."""

    labelled: Array
    estimated: Array
    p_value: float

    @property
    def is_there(self) -> bool:
        return self.p_value <= _SHIFTED

    @property
    def expected(self) -> Array:
        """The class shares (C,) that the unlabelled images should have: the labelled ones' unless a shift is there."""
        return self.estimated if self.is_there else self.labelled

    def prior(self, kind: str) -> Array | None:
        """Return the class shares (C,) that pseudo-labels are aligned to by ``unlabeled.prior``; None for none."""
        if kind == "none":
            return None
        known = {"uniform": np.ones(len(self.labelled)), "estimate": self.expected}
        prior = np.maximum(known.get(kind, self.labelled), _LEAST_SHARE)
        return prior / prior.sum()

    def described(self, classes: tuple[str, ...]) -> str:
        if not self.is_there:
            return f"class shares of the unlabelled images agree with the labelled ones' (p = {self.p_value:.2g})"
        moved = int(np.abs(self.estimated - self.labelled).argmax())
        return (
            f"class shares of the unlabelled images differ from the labelled ones' (p = {self.p_value:.2g}), most of "
            f"all {classes[moved]!r}: {self.labelled[moved]:.0%} of the labels, about {self.estimated[moved]:.0%} here"
        )


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether a student takes its teacher's place."""

    gain: Gain  # in log loss on the validation images, after calibration of both
    before: tuple[float, float]  # accuracy and log loss of the teacher there
    after: tuple[float, float]  # those of the student
    images: int
    keep_at: float  # the least probability of being better
    collapse: str = ""  # what speaks against it at any validation score

    @property
    def keeps(self) -> bool:
        return not self.collapse and self.gain.probability >= self.keep_at

    @property
    def text(self) -> str:
        figures = (
            f"log loss {self.before[1]:.4f} → {self.after[1]:.4f}, accuracy {self.before[0]:.1%} → {self.after[0]:.1%} "
            f"on {self.images:,} validation images; better with probability {self.gain.probability:.2f}"
        )
        if self.collapse:
            return f"thrown away: {self.collapse} ({figures})"
        return f"kept: {figures}" if self.keeps else f"thrown away: {figures}, and {self.keep_at:.2f} is asked for"

    def as_dict(self) -> dict[str, Any]:
        names = ("accuracy", "log_loss")
        return {
            "kept": self.keeps,
            "verdict": self.text,
            "before": dict(zip(names, self.before, strict=True)),
            "after": dict(zip(names, self.after, strict=True)),
            "gain": {"log_loss": self.gain.gain, "low": self.gain.low, "high": self.gain.high},
            "probability": self.gain.probability,
            "collapse": self.collapse or None,
        }


def apart_from_validation(
    pool: Pool, data: Dataset, valid: np.ndarray, features: tuple[np.ndarray, np.ndarray] | None = None
) -> np.ndarray:
    """Return the positions, ascending, of the pool's images that are no near-duplicates of validation images.

    They are found by thumbnails of their pixels. Where ``features`` (pool, D) and (N, D) are known, those propose more,
    and similar pixels confirm them: images of one class may be as close in features as near-duplicates are.
    """
    shown, own = np.concatenate([_thumbnails(part.data, part.rows) for part in pool.parts]), _thumbnails(data, valid)
    found = {pair.first for pair in near_duplicates(shown, own, _SAME_PICTURE, most=_MOST_PAIRS)}
    for pair in [] if features is None else near_duplicates(features[0], features[1][valid]):
        one, other = shown[pair.first], own[pair.second]
        if one @ other >= _CONFIRMED * np.sqrt((one @ one) * (other @ other)):
            found.add(pair.first)
    return np.setdiff1d(np.arange(len(pool)), sorted(found))


def label_shift(evaluated: EvaluatedModel, labels: np.ndarray, rng: np.random.Generator) -> LabelShift:
    """Return how the class shares of the pool differ from those of the labelled training images, ``labels`` (N,)."""
    classes = len(evaluated.valid.classes)
    shares = np.maximum(np.bincount(labels, minlength=classes) / len(labels), _LEAST_SHARE)
    shares /= shares.sum()
    valid, pool = evaluated.valid.probabilities(), evaluated.pool.probabilities()
    p_value = shift_p_value(pool, valid, rng)
    return LabelShift(shares, em_prior(pool, shares), p_value)


def compare_student(
    before: EvaluatedModel, after: EvaluatedModel, expected: Array, *, keep_at: float, context: Context = Context()
) -> Decision:
    """Return whether a student may take its teacher's place; ``expected`` (C,) are the class shares of the pool."""
    gain = mean_gain(before.losses - after.losses, seed=context.seed)
    collapse = collapsed(before.pool, after.pool, expected)
    return Decision(gain, before.scores, after.scores, len(before.losses), keep_at, collapse)


def collapsed(before: Predictions, after: Predictions, expected: Array) -> str:
    """Return in words how a common class is lost or class shares leave the expected ones; nothing otherwise."""
    old, new = _shares(before), _shares(after)
    lost = (expected >= _COMMON) & (new < _LOST * expected) & (old >= _LOST * expected)
    if lost.any():
        first = int(lost.argmax())
        return f"class {after.classes[first]!r} is predicted for {new[first]:.1%} of the unlabelled images"
    far, farther = np.abs(old - expected).sum() / 2, np.abs(new - expected).sum() / 2
    if farther > max(_COLLAPSE, far + _COLLAPSE / 2):
        return f"predicted class shares are {farther:.0%} away from the expected ones ({far:.0%} before)"
    return ""


def _shares(predictions: Predictions) -> Array:
    return np.bincount(predictions.predicted(), minlength=len(predictions.classes)) / len(predictions)


def views_to_compare(images: int) -> int:
    """Return through how many views each validation image is evaluated: an image barely known is lost in some views."""
    return min(_MOST_VIEWS, max(1, _SHOWN // images))


def _losses_of_views(valid: Predictions) -> Array:
    """Return (N,) log losses, the mean over views; the views are calibrated together, as images of their own."""
    views, count, _ = valid.logits.shape
    assert valid.labels is not None
    labels = np.tile(valid.labels, views)
    each = Predictions(
        tuple(f"{view}/{name}" for view in range(views) for name in valid.ids), valid.classes,
        valid.logits.reshape(1, views * count, -1), labels=labels,
    )  # fmt: skip
    log_p = Temperature().fit(each).transform(each).log_probabilities()[np.arange(len(labels)), labels]
    return -log_p.reshape(views, count).mean(axis=0)


def _thumbnails(data: Dataset, rows: np.ndarray) -> np.ndarray:
    """Return float32 (M, D) small pictures, each of mean zero, so that brightness does not count."""
    size = min(_THUMBNAIL, data.build.store.size)
    blocks = [
        data.build.store.gather(rows[start : start + 1024], size).reshape(-1, size * size * data.build.store.channels)
        for start in range(0, len(rows), 1024)
    ]
    pictures = np.concatenate(blocks).astype(np.float32)
    return pictures - pictures.mean(axis=1, keepdims=True)
