"""Label shift: class shares of a target, known or estimated, and ``PriorCorrection``, which predictions follow there.

In functions p is (N, C): calibrated probabilities of a model whose classes have the shares ``source``, (C,).
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, cast, get_args

import numpy as np

from etude.core.errors import EtudeError, listed, nearest
from etude.core.files import reading
from etude.core.metrics import FloatArray, IntArray
from etude.core.predictions import Predictions
from etude.core.seeds import rng_for
from etude.core.tables import csv_rows
from etude.refine.base import (
    Refiner,
    known_rows,
    labels_of,
    mixture_by_em,
    normalised,
    require_classes,
    require_labelled,
    require_target,
)
from etude.refine.calibration import VectorScaling

_linalg: Any = np.linalg
Method = Literal["em", "bbse"]
_WHO = "PriorCorrection"
# A class that is never predicted still has a share, so that the ratio of two priors stays finite.
_SMALLEST_SHARE = 1e-12
PriorSpec = str | Path | Mapping[str, float] | Sequence[float] | FloatArray


def parse_prior(prior: PriorSpec, classes: tuple[str, ...]) -> FloatArray | None:
    """Return the prior that ``prior`` stands for, (C,) float64 that sums to one; None when it is to be estimated.

    Args:
        prior: ``"uniform"``; ``"estimate"``; the path of a ``.json`` file (an object of class to share or count) or a
            ``.csv`` file (two columns, class and share or count, with or without a header); such a mapping itself;
            or C numbers in the order of the classes. Shares and counts are divided by their sum; zero is accepted.
        classes: the classes that the prior must name, each once.

    Raises:
        EtudeError: the file cannot be read, a class is unknown, missing or named twice, or a number cannot be used.

    >>> parse_prior({"cat": 30, "dog": 10}, ("dog", "cat")).tolist()
    [0.25, 0.75]
    >>> parse_prior("estimate", ("dog", "cat")) is None
    True
    """
    if isinstance(prior, (str, Path)):
        if prior == "estimate":
            return None
        if prior == "uniform":
            return np.full(len(classes), 1 / len(classes))
        path = Path(prior)
        return _shares(_in_order(_read(path), classes, str(path)), classes, str(path))
    if isinstance(prior, Mapping):
        return _shares(_in_order([*prior.items()], classes, "the prior"), classes, "the prior")
    numbers = list(prior)
    if len(numbers) != len(classes):
        raise EtudeError(f"a prior of {len(classes):,} classes needs as many numbers, and got {len(numbers):,}")
    return _shares(numbers, classes, "the prior")


def correct(log_probabilities: FloatArray, source: FloatArray, target: FloatArray) -> FloatArray:
    """Return log p + log(target / source), normalised: the predictions of a model of one prior under another, (N, C).

    Bayes' rule when only the shares of the classes change and the look of each class stays (label shift; Saerens et
    al. 2002). Unchanged where both priors, (C,) that sum to one, are equal. A class that the target does not have
    gets nothing.

    Raises:
        EtudeError: the target has a class that the source lacks.

    >>> np.exp(correct(np.log([[0.5, 0.5]]), np.array([0.5, 0.5]), np.array([0.9, 0.1]))).round(2).tolist()
    [[0.9, 0.1]]
    """
    if (unseen := (source <= 0) & (target > 0)).any():
        raise EtudeError(
            f"the target prior holds {int(unseen.sum()):,} classes whose share was zero where the model learned (the "
            f"first is number {int(np.argmax(unseen))}): no ratio of the two exists, so give those a small source share"
        )
    ratio = np.divide(target, source, out=np.zeros_like(source), where=source > 0)
    with np.errstate(divide="ignore"):
        return normalised(log_probabilities + np.log(ratio))


def _read(path: Path) -> list[tuple[str, Any]]:
    readers = {".json": _read_json, ".csv": _read_csv}
    if path.suffix.lower() not in readers:
        raise EtudeError(
            f"a prior is 'uniform', 'estimate' or the path of a .json or .csv file, not {str(path)!r}."
            f"{nearest(str(path), ['uniform', 'estimate'])}"
        )
    with reading(path, "a readable prior", "give a class and its share or count for each class"):
        return readers[path.suffix.lower()](path)


def _read_json(path: Path) -> list[tuple[str, Any]]:
    content: Any = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=list)
    pairs = cast("list[Any]", content) if isinstance(content, list) else []
    if not pairs or not all(isinstance(pair, tuple) for pair in pairs):
        raise ValueError('it must be an object such as {"cat": 0.7, "dog": 0.3}')
    return cast("list[tuple[str, Any]]", pairs)


def _read_csv(path: Path) -> list[tuple[str, Any]]:
    cells = [[cell.strip() for cell in row] for _, row in csv_rows(path, strict=False)]
    rows = [row for row in cells if any(row)]
    if not rows or any(len(row) != 2 for row in rows):
        raise ValueError("it must have two columns, the class and its share or count")
    return [(name, value) for name, value in rows[_number(rows[0][1]) is None :]]  # the first may be a header


def _in_order(pairs: Sequence[tuple[str, Any]], classes: tuple[str, ...], where: str) -> list[Any]:
    named = dict(pairs)
    if len(named) < len(pairs):
        repeated = [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]
        raise EtudeError(f"{where} names {listed(repeated)} more than once: give each class one line")
    if unknown := [name for name in named if name not in set(classes)]:
        raise EtudeError(
            f"{where} names {listed(unknown)}, which the predictions do not have among their classes "
            f"{listed(classes)}.{nearest(unknown[0], classes)}"
        )
    if missing := [name for name in classes if name not in named]:
        raise EtudeError(f"{where} lacks {listed(missing)}: give every class its share, 0 where it cannot occur")
    return [named[name] for name in classes]


def _shares(values: Sequence[Any], classes: tuple[str, ...], where: str) -> FloatArray:
    numbers = [_number(value) for value in values]
    for name, value, number in zip(classes, values, numbers, strict=True):
        if number is None or number < 0:
            raise EtudeError(f"{where} gives {name!r} the share {value!r}: it must be a number of zero or more")
    shares = np.array(numbers, dtype=np.float64)
    largest = float(shares.max())
    if largest <= 0:
        raise EtudeError(f"{where} gives every class a share of zero: at least one must be above")
    shares /= largest  # first, so that huge counts do not overflow in the sum
    return shares / shares.sum()


def _number(value: Any) -> float | None:
    """``value`` as a finite number, or None where it is none."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) and not isinstance(value, bool) else None


def em_prior(p: FloatArray, source: FloatArray, tolerance: float = 1e-6, most: int = 1000) -> FloatArray:
    """Return the shares (C,) of the classes among the images of p, by EM from ``source`` (Saerens et al. 2002)."""
    return mixture_by_em(np.divide(p, source, out=np.zeros_like(p), where=source > 0), source, tolerance, most)


def bbse_prior(p: FloatArray, valid: FloatArray, labels: IntArray, source: FloatArray) -> FloatArray:
    """Return the shares of the classes among the images of p, (C,), by black-box shift estimation (Lipton et al. 2018).

    w = C⁻¹ μ, with the soft confusion C[i, j], the sum of valid[:, i] over the images of label j divided by M, and μ
    the mean of p; a negative w counts as zero. A class without labels keeps its share in ``source``.
    """
    own = np.eye(len(source))[labels] / len(labels)
    confusion: FloatArray = valid.T @ own
    solved: FloatArray = _linalg.lstsq(confusion, p.mean(axis=0), rcond=None)[0]
    weight = np.maximum(solved, 0.0)
    labelled: FloatArray = own.sum(axis=0)
    shares = np.where(labelled > 0, weight * labelled, source)
    return shares / shares.sum() if shares.sum() > 0 else source.copy()


def shift_p_value(p: FloatArray, valid: FloatArray, rng: np.random.Generator, draws: int = 500) -> float:
    """Return how often two random parts of all images differ as much as ``p`` and ``valid``, (M, C), do.

    A permutation test on the squared distance of the mean predictions, measured by the covariance of all.
    """
    together = np.concatenate([p, valid])
    centred = together - together.mean(axis=0)
    covariance = centred.T @ centred / len(centred)
    # One direction, all ones, has no variance, and those of classes never predicted next to none: leave both out.
    inverse: FloatArray = _linalg.pinv(covariance, rcond=1e-9, hermitian=True)
    # The sums of two parts are opposites, so that of the smaller one gives the distance of their means.
    few = min(len(p), len(valid))
    sums = np.stack([centred[rng.choice(len(centred), few, replace=False, shuffle=False)].sum(0) for _ in range(draws)])
    null: FloatArray = ((sums @ inverse) * sums).sum(axis=1)
    own: FloatArray = centred[len(p) :].sum(axis=0)
    # What rounding leaves of a distance of zero is no distance.
    observed = float(own @ inverse @ own) * (1 - 1e-9) - 1e-15
    return float((1 + (null >= observed).sum()) / (1 + draws))


def expected_gain(p: FloatArray, before: IntArray) -> tuple[float, float]:
    """Return the mean and standard deviation of the accuracy gained by predicting argmax p in place of ``before``.

    If p is right, an image whose predicted class changes from a to b is won with probability p[b] and lost with p[a].
    """
    rows = np.arange(len(p))
    after = p.argmax(axis=1)
    won, lost = np.where(after == before, 0.0, [p[rows, after], p[rows, before]])
    variance = won + lost - (won - lost) ** 2
    return float((won - lost).mean()), float(np.sqrt(variance.sum()) / len(p))


@dataclass(eq=False, repr=False)
class PriorCorrection(Refiner):
    """Calibrate, then multiply by target prior / source prior: log p + log(q / q_s), normalised.

    The source prior q_s is the mean calibrated prediction on labelled images. The target prior q is known, or estimated
    from the unlabelled target by EM on calibrated predictions (Saerens et al. 2002; Alexandari et al. 2020) or by BBSE
    (Lipton et al. 2018). An estimated prior is used only if both hold:

    1. the mean predictions of target and labelled images differ: bootstrap p-value of at most ``alpha``;
    2. the gain in accuracy that the corrected probabilities promise exceeds ``caution`` of its standard deviations,
       which count the luck of the n target images and of the m labelled ones: sd sqrt(1 + n / m).

    Else predictions stay exactly as they are: with a small shift a correction loses as often as it gains.

    Args:
        prior: of the target: ``"estimate"``, or what :func:`~etude.refine.prior.correction.parse_prior` reads. A known
            prior is used without a test.
        method: ``"em"`` or ``"bbse"``, to estimate with.
        calibrate: fit :class:`~etude.refine.calibration.VectorScaling` first. Without it, EM trusts every confidence.
        alpha: the largest p-value of a shift; None corrects always, without either test.
        caution: how many standard deviations the promised gain must exceed.
        source: the prior of the model in place of the mean prediction, written as ``prior`` is; with it and without
            ``calibrate``, EM needs no labelled images (and then makes the second test alone).
        seed: of the bootstrap.

    Attributes:
        source_, prior_: both priors, (C,); ``prior_`` is the estimate also where it is not used.
        p_value_: of no shift; None when it was not tested.
        gain_, gain_sd_: promised gain in accuracy and its standard deviation; None for a known prior.
        corrects_: whether ``transform`` changes anything.
    """

    fits_on = frozenset({"labelled", "target"})
    prior: PriorSpec = "estimate"
    method: Method = "em"
    calibrate: bool = True
    alpha: float | None = 0.05
    caution: float = 2.0
    source: PriorSpec | None = None
    seed: int = 0

    def fit(self, labelled: Predictions | None = None, target: Predictions | None = None) -> Self:
        """Calibrate on ``labelled``; estimate and test the prior of ``target``, which a known prior does not need."""
        self._check_arguments()
        classes = self._classes(labelled, target)
        self.calibrator_ = VectorScaling().fit(labelled) if self.calibrate else None
        valid, labels = None, None
        if labelled is not None and labelled.labels is not None and (labelled.labels >= 0).any():
            rows = known_rows(labelled)
            valid, labels = self._calibrated(rows).probabilities(), labels_of(rows)
        self.source_ = self._source(valid, classes)
        known = parse_prior(self.prior, classes)
        self.p_value_, self.gain_, self.gain_sd_, self.corrects_ = None, None, None, True
        if known is not None:
            self.prior_ = known
        else:
            self._estimate(require_target(target, _WHO), valid, labels)
        self.classes_ = classes
        return self

    def _refined(self, predictions: Predictions) -> FloatArray:
        if not self.corrects_:
            return predictions.log_probabilities()
        return correct(self._calibrated(predictions).log_probabilities(), self.source_, self.prior_)

    def _described(self) -> str:
        moved = int(np.argmax(np.abs(np.log(np.maximum(self.prior_, _SMALLEST_SHARE) / self.source_)) * self.prior_))
        change = f"{self.classes_[moved]!r} from {self.source_[moved]:.1%} to {self.prior_[moved]:.1%}"
        found = f"p = {self.p_value_:.2g}" if self.p_value_ is not None else "not tested"
        if self.gain_ is None or self.gain_sd_ is None:
            return f"known prior: {change}"
        promise = f"{100 * self.gain_:+.1f} points promised, standard deviation {100 * self.gain_sd_:.1f}"
        if self.corrects_:
            return f"{self.method.upper()}: {change} ({found}, {promise})"
        if self.p_value_ is not None and self.alpha is not None and self.p_value_ > self.alpha:
            return f"no shift worth correcting ({found})"
        return f"no shift worth correcting ({found}, but only {promise})"

    def _check_arguments(self) -> None:
        if self.method not in get_args(Method):
            hint = nearest(self.method, get_args(Method))
            raise EtudeError(f"method must be 'em' or 'bbse', not {self.method!r}.{hint}")
        if self.alpha is not None and not 0 < self.alpha <= 1:
            raise EtudeError(f"alpha is a p-value above 0 and at most 1, or None to correct always, not {self.alpha}")
        if not (np.isfinite(self.caution) and self.caution >= 0):
            raise EtudeError(f"caution is a number of standard deviations, zero or more, not {self.caution}")

    def _classes(self, labelled: Predictions | None, target: Predictions | None) -> tuple[str, ...]:
        """The classes of both; refuses what is missing."""
        estimated = isinstance(self.prior, str) and self.prior == "estimate"
        if self.source is None or self.calibrate or (self.method == "bbse" and estimated):
            require_labelled(labelled, _WHO)
        if estimated:
            require_target(target, _WHO)
        given = [one for one in (labelled, target) if one is not None]
        if not given:
            raise EtudeError(f"{_WHO} learns the classes from predictions and got none: give labelled or target ones")
        require_classes(given[0].classes, given[-1], _WHO)
        return given[0].classes

    def _calibrated(self, predictions: Predictions) -> Predictions:
        return predictions if self.calibrator_ is None else self.calibrator_.transform(predictions)

    def _source(self, valid: FloatArray | None, classes: tuple[str, ...]) -> FloatArray:
        given = None if self.source is None else parse_prior(self.source, classes)
        if given is None:
            if valid is None:
                raise EtudeError("the source prior is known or read off labelled images; 'estimate' is for the target")
            given = valid.mean(axis=0)
        shares = np.maximum(given, _SMALLEST_SHARE)
        return shares / shares.sum()

    def _estimate(self, target: Predictions, valid: FloatArray | None, labels: IntArray | None) -> None:
        log_p = self._calibrated(target).log_probabilities()
        p = np.exp(normalised(log_p))
        if self.method == "bbse":
            assert valid is not None
            assert labels is not None
            self.prior_ = bbse_prior(p, valid, labels, self.source_)
        else:
            self.prior_ = em_prior(p, self.source_)
        corrected = np.exp(correct(log_p, self.source_, self.prior_))
        gain, luck = expected_gain(corrected, target.predicted())
        share = len(p) / len(valid) if valid is not None else 0.0
        self.gain_, self.gain_sd_ = gain, luck * float(np.sqrt(1 + share))
        if self.alpha is not None:
            if valid is not None:
                self.p_value_ = shift_p_value(p, valid, rng_for(self.seed, "label shift"))
            shifted = self.p_value_ is None or self.p_value_ <= self.alpha
            self.corrects_ = shifted and self.gain_ > self.caution * self.gain_sd_
