"""Paired comparison of two ways to train, over seeds and images; and verdicts when many are compared at once.

The two ways share each seed's split, so what is hard about an image or unlucky about a split is common to both and
drops out. What remains differs between seeds (another split, other initial weights) and between images; a claim about
the next training on the next images has to allow for both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal, cast

import numpy as np
import scipy.special  # pyright: ignore[reportMissingTypeStubs]
from numpy.typing import ArrayLike

from etude.core.errors import EtudeError, listed
from etude.core.metrics import Metric, metric_named
from etude.core.predictions import Predictions
from etude.core.sign_flips import FEW, sign_flips
from etude.core.tally import FloatArray

Verdict = Literal["helps", "hurts", "cannot tell"]

LEVEL = 0.95
FEWEST_SEEDS = 2  # one tells nothing of how much seeds differ

_special = cast(Any, scipy.special)


@dataclass(frozen=True, eq=False, slots=True)
class Scored:
    """What one model scored on its validation images.

    Args:
        ids: N unique image ids.
        values: (N,) float64, the score of each image; larger is better, and their mean is the model's score.
    """

    ids: tuple[str, ...]
    values: FloatArray


@dataclass(frozen=True, slots=True)
class Comparison:
    """How much better one way to train is than another.

    Args:
        gain: mean over seeds; positive is better.
        error: its standard error, over seeds and images.
        degrees: of freedom of that error.
        seeds: that were compared.
        images: a seed, on average.
        exact_p: two-sided, of the exact test over images; 0 where many images have changed, and it is not needed.
    """

    gain: float
    error: float
    degrees: float
    seeds: int
    images: float
    exact_p: float = 0.0

    @property
    def p(self) -> float:
        """Two-sided p value of a gain of zero: Student's t, or the exact test's where that is larger."""
        if self.error == 0.0:
            return 1.0
        return min(1.0, max(self.exact_p, 2.0 * _student_share(self.degrees, -abs(self.gain) / self.error)))

    def interval(self, level: float = LEVEL) -> tuple[float, float] | None:
        """Return the ends of the confidence interval of the gain; None where no image has changed."""
        if self.error == 0.0:
            return None
        reach = self.error * _student_point(self.degrees, (1.0 + level) / 2.0)
        return self.gain - reach, self.gain + reach

    def power(self, effect: float, tests: int = 1, level: float = LEVEL) -> float:
        """Return the chance that a true gain of ``effect`` is found beyond the noise that was seen here.

        Args:
            tests: comparisons made at once; the strictest step of Holm's correction is counted with.
        """
        if self.error == 0.0:
            return 0.0
        needed = _student_point(self.degrees, 1.0 - (1.0 - level) / (2.0 * tests))
        return _student_share(self.degrees, abs(effect) / self.error - needed)

    def detectable(self, tests: int = 1, power: float = 0.8, level: float = LEVEL) -> float | None:
        """Return the true gain that would be found with chance ``power``; the inverse of :meth:`power`.

        None where no image has changed: how much images and seeds differ is not known then.

        >>> seen = Comparison(gain=0.002, error=0.002, degrees=4.0, seeds=5, images=800)
        >>> round(seen.power(seen.detectable(tests=5), tests=5), 6)
        0.8
        """
        if self.error == 0.0:
            return None
        needed = _student_point(self.degrees, 1.0 - (1.0 - level) / (2.0 * tests))
        return self.error * (needed + _student_point(self.degrees, power))


def paired_metric(name: str) -> Metric:
    """Return the metric ``name``, by which each image has a score of its own.

    Raises:
        EtudeError: there is none of that name, or it is no mean over images.
    """
    metric = metric_named(name)
    if metric.per_image is None:
        raise EtudeError(
            f"the metric {metric.name!r} is no mean over images, which a paired comparison needs: "
            "give accuracy, log_loss or map@k"
        )
    return metric


def scored(predictions: Predictions, metric: Metric) -> Scored:
    """Return the score of each labelled image; a loss is turned round, so that larger is better.

    Args:
        metric: from :func:`paired_metric`.

    Raises:
        EtudeError: an image is unlabelled.
    """
    if metric.per_image is None:
        raise ValueError(f"{metric.name} is no mean over images; paired_metric refuses it with a sentence")
    if predictions.labels is None or (predictions.labels < 0).any():
        raise EtudeError("a paired comparison needs a label for every image, and these predictions lack some")
    values = metric.per_image(predictions.log_probabilities(), predictions.labels)
    return Scored(predictions.ids, metric.sign * values)


def compare(before: Sequence[Scored], after: Sequence[Scored]) -> Comparison:
    """Return the gain from ``before`` to ``after``, one model a seed on each side, paired by seed and image.

    With d(s, i) the gain at seed s on image i, m(s) its mean over the images, and S seeds, the variance of the mean
    gain is estimated without bias as

        var(m) / S  +  mean over pairs s ≠ t of  Σ_i (d(s, i) - m(s)) (d(t, i) - m(t)) / (n(s) n(t))

    under d(s, i) = gain + seed(s) + image(i) + rest(s, i): the first part holds what differs between seeds, the second
    what the images that several seeds validate on have in common (all of them where the validation images are given,
    a few where each seed draws its own). The first part is at least what images alone would give, the second at least
    zero. Its degrees of freedom are Satterthwaite's (1946, An approximate distribution of estimates of variance
    components). A bootstrap over so few seeds would be too sure: it leaves out a factor S / (S - 1).

    Where fewer than 30 images have changed at any seed, the exact test over the images,
    :func:`etude.core.sign_flips.sign_flips`, has to find the gain too: the error is at least what makes the interval at
    95% as wide as the exact one.

    Raises:
        EtudeError: fewer than two seeds, or the two sides were not scored on the same images.

    >>> one = Scored(("a", "b"), np.array([0.0, 1.0]))
    >>> compare([one, one], [one, one]).gain
    0.0
    """
    differences = _differences(before, after)
    means = np.array([float(values.mean()) for values in differences.values()])
    seeds = len(means)
    images = np.array([len(values) for values in differences.values()])
    centred = [values - mean for values, mean in zip(differences.values(), means, strict=True)]
    within = float(np.mean([values @ values / max(1, len(values) - 1) / len(values) for values in centred])) / seeds
    between = max(float(means.var(ddof=1)) / seeds, within)
    ids = [before[seed].ids for seed in differences]
    shared, rows = _shared_variance(ids, centred)
    variance = between + shared
    degrees = float(seeds - 1)
    if variance > 0.0 and rows > 1:
        degrees = variance**2 / (between**2 / (seeds - 1) + shared**2 / (rows - 1))
    gain, error, exact_p = float(means.mean()), math.sqrt(variance), 0.0
    shares = _by_image(ids, list(differences.values()))
    changed = shares[:, shares.any(0)].sum(0) / seeds
    if len(changed) < FEW or variance == 0.0:  # every image changed alike: seeds and images tell no spread
        exact = sign_flips(changed * (-1.0 if gain < 0 else 1.0), LEVEL)
        error = max(error, (exact.high - exact.low) / 2.0 / _student_point(degrees, (1.0 + LEVEL) / 2.0))
        exact_p = min(1.0, 2.0 * exact.p)
    return Comparison(gain, error, degrees, seeds, float(images.mean()), exact_p)


def holm(p_values: ArrayLike) -> FloatArray:
    """Return adjusted p values: calling real what lies below 0.05 errs, once or more, in at most 5% of families.

    Holm 1979, A simple sequentially rejective multiple test procedure: no weaker than Bonferroni's anywhere, and like
    it in need of no assumption about how the tests depend on each other (they share a baseline).

    >>> holm([0.01, 0.04, 0.03]).tolist()
    [0.03, 0.06, 0.06]
    """
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    stepped = p[order] * (len(p) - np.arange(len(p)))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(stepped))
    return adjusted


def verdicts(comparisons: Sequence[Comparison], level: float = LEVEL) -> list[tuple[float, Verdict]]:
    """Return the p value after Holm's correction over all of the comparisons, and the verdict, of each.

    In a family of tricks that all do nothing, one or more are called otherwise in at most 1 - ``level`` of cases. There
    is no verdict that a trick does nothing: the interval says how much it may do.

    >>> verdicts([Comparison(0.02, 0.001, 4.0, 5, 800), Comparison(0.001, 0.001, 4.0, 5, 800)])[1][1]
    'cannot tell'
    """
    found: list[tuple[float, Verdict]] = []
    for one, p in zip(comparisons, holm([one.p for one in comparisons]).tolist(), strict=True):
        beyond_noise = p <= 1.0 - level
        found.append((p, ("helps" if one.gain > 0 else "hurts") if beyond_noise else "cannot tell"))
    return found


def _differences(before: Sequence[Scored], after: Sequence[Scored]) -> dict[int, FloatArray]:
    """Return the gain of each image by the position of the seed."""
    if len(before) != len(after) or len(before) < FEWEST_SEEDS:
        raise EtudeError(
            f"a paired comparison needs the same {FEWEST_SEEDS} seeds or more on both sides, "
            f"not {len(before)} and {len(after)}"
        )
    found: dict[int, FloatArray] = {}
    for seed, (old, new) in enumerate(zip(before, after, strict=True)):
        place = {name: row for row, name in enumerate(new.ids)}
        if odd := set(old.ids) ^ place.keys():
            raise EtudeError(
                f"the two sides of a paired comparison were scored on other images: {listed(sorted(odd), 3)} "
                "came on one side only, so score both on the same split"
            )
        found[seed] = new.values[[place[name] for name in old.ids]] - old.values
    return found


def _shared_variance(ids: Sequence[tuple[str, ...]], centred: Sequence[FloatArray]) -> tuple[float, int]:
    """Return the variance of the mean that seeds have in common through shared images, and how many those are."""
    whole, there = _by_image(ids, centred), _by_image(ids, [np.ones(len(names)) for names in ids]) > 0
    products = [float(whole[one] @ whole[other]) for one, other in combinations(range(len(ids)), 2)]
    return max(0.0, float(np.mean(products))), int((there.sum(0) > 1).sum())


def _by_image(ids: Sequence[tuple[str, ...]], values: Sequence[FloatArray]) -> FloatArray:
    """Return (seeds, images) what each image adds to the mean of its seed's values; zero where it is not among them."""
    places = {name: row for row, name in enumerate(dict.fromkeys(name for names in ids for name in names))}
    whole = np.zeros((len(ids), len(places)))
    for seed, (names, own) in enumerate(zip(ids, values, strict=True)):
        whole[seed, [places[name] for name in names]] = own / len(own)
    return whole


def _student_share(degrees: float, value: float) -> float:
    """Return the share of Student's t distribution below ``value``."""
    return float(_special.stdtr(degrees, value))


def _student_point(degrees: float, share: float) -> float:
    """Return the value below which ``share`` of Student's t distribution lies."""
    return float(_special.stdtrit(degrees, share))
