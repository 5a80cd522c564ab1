"""``PriorCorrection``: for a target whose classes have other shares than the images that the model learned on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Self, get_args

import numpy as np

from etude.core.errors import EtudeError, nearest
from etude.core.metrics import FloatArray, IntArray
from etude.core.predictions import Predictions
from etude.core.seeds import rng_for
from etude.refine.base import (
    Refiner,
    known_rows,
    labels_of,
    normalised,
    require_classes,
    require_labelled,
    require_target,
)
from etude.refine.calibration import VectorScaling
from etude.refine.prior.priors import (
    PriorSpec,
    bbse_prior,
    correct,
    em_prior,
    expected_gain,
    parse_prior,
    shift_p_value,
)

Method = Literal["em", "bbse"]
_WHO = "PriorCorrection"
# A class that is never predicted still has a share, so that the ratio of two priors stays finite.
_SMALLEST_SHARE = 1e-12


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
        prior: of the target: ``"estimate"``, or what :func:`~etude.refine.prior.priors.parse_prior` reads. A known
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

    @property
    def described(self) -> str:
        """What was found, such as ``"no shift worth correcting (p = 0.41)"``."""
        self.require_fitted()
        moved = int(np.argmax(np.abs(np.log(np.maximum(self.prior_, _SMALLEST_SHARE) / self.source_)) * self.prior_))
        change = f"{self.classes_[moved]!r} from {self.source_[moved]:.1%} to {self.prior_[moved]:.1%}"
        found = f"p = {self.p_value_:.2g}" if self.p_value_ is not None else "not tested"
        if self.gain_ is None or self.gain_sd_ is None:
            return f"known prior: {change}"
        promise = f"{100 * self.gain_:+.1f} ± {100 * self.gain_sd_:.1f} points promised"
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
