"""Whether one way beats another beyond its noise: on the same images, over seeds and images, and in a family of tests.

:func:`paired_bootstrap` compares two sets of predictions of the same images. :func:`compare` compares two ways to train
over seeds that share their splits, so what is hard about an image or unlucky about a split is common to both and drops
out; what remains differs between seeds and between images, and a claim about the next training has to allow for both.
Where few images have changed, :func:`sign_flips` decides in both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from statistics import NormalDist
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import scipy.special  # pyright: ignore[reportMissingTypeStubs]
from numpy.typing import ArrayLike

from etude.core.errors import EtudeError, listed
from etude.core.metrics import FloatArray, IntArray, Metric, checked, metric_named
from etude.core.predictions import Predictions
from etude.core.seeds import rng_for

Verdict = Literal["helps", "hurts", "cannot tell"]

LEVEL = 0.95
FEWEST_SEEDS = 2  # one does not show how much seeds differ
FEW = 30  # changed images below which a bootstrap passes chance gains too often, and differently by its seed
_STEPS = 2000  # of the largest share, in which all are counted

_special = cast(Any, scipy.special)


class SignFlips(NamedTuple):
    """The interval of a sum, and the chance of one this large or larger where nothing is gained."""

    low: float
    high: float
    p: float


def sign_flips(shares: ArrayLike, level: float) -> SignFlips:
    """Test whether the sum of ``shares`` (M,), what each changed image adds to a gain, is above zero.

    Where nothing is gained, each share might as well have the other sign: the sum is compared with those of all 2^M
    signs (Fisher 1935, The Design of Experiments; Pitman 1937). For right and wrong answers, all shares equal, that is
    McNemar's exact test (1947, Edwards 1948): 5 wins and no loss pass one-sided at 5%, 4 do not. For other metrics it
    takes for granted that gains and losses of one size are equally likely under chance; a rare large loss that none of
    few images shows, no test can see. The distribution is computed and not drawn, so no seed takes part.

    The interval is the sum ± what chance alone reaches; it lies above zero where ``p`` is at most (1 - ``level``) / 2.
    """
    values = np.asarray(shares, dtype=np.float64)
    values = values[values != 0.0]
    if not len(values):
        return SignFlips(0.0, 0.0, 1.0)
    steps = np.rint(np.abs(values) / np.abs(values).max() * _STEPS).astype(np.int64)
    common = int(np.gcd.reduce(steps))
    steps //= common
    unit = float(np.abs(values).max()) * common / _STEPS
    chances = np.ones(1)  # of the sums from -K to K in steps of 2, K the sum so far of all sizes
    for step in steps.tolist():
        chances = (np.pad(chances, (0, step)) + np.pad(chances, (step, 0))) / 2.0
    largest, total = int(steps.sum()), int(np.sign(values) @ steps)
    p = float(chances[(total + largest) // 2 :].sum())
    reach = 2 * int(np.searchsorted(np.cumsum(chances), (1.0 + level) / 2.0 - 1e-12)) - largest
    return SignFlips((total - reach) * unit, (total + reach) * unit, p)


@dataclass(frozen=True, slots=True)
class Gain:
    """How much better one set of predictions is than another, on the same images, with its interval."""

    gain: float  # in the metric's own unit; positive is better, also for a loss
    low: float
    high: float
    probability: float  # that it is positive: share of the resamples; where few images have changed, 1 - the exact p

    @property
    def beyond_noise(self) -> bool:
        """Whether the whole interval is above zero, rounding aside."""
        return self.low > 1e-9

    @property
    def lost(self) -> bool:
        """Whether the whole interval is below zero, rounding aside."""
        return self.high < -1e-9

    @classmethod
    def of_few(cls, shares: FloatArray, level: float) -> Gain:
        """Return the gain that is the sum of ``shares``, one a changed image, by the exact test."""
        found = sign_flips(shares, level)
        return cls(float(shares.sum()), found.low, found.high, 1.0 - found.p if shares.any() else 0.5)


def paired_bootstrap(
    metric: Metric,
    before: ArrayLike,
    after: ArrayLike,
    labels: ArrayLike,
    draws: int = 2000,
    seed: int = 0,
    *,
    level: float = 0.9,
    weights: ArrayLike | None = None,
) -> Gain:
    """Return the gain from ``before`` to ``after``, log probabilities (N, C), with its percentile interval.

    Each draw resamples images, the same ones on both sides, so what both get wrong adds no noise (Efron & Tibshirani
    1993, An Introduction to the Bootstrap). With ``level`` 0.9 the lower end is a one-sided test at 5%.

    Where fewer than 30 images have changed, :func:`sign_flips` takes the bootstrap's place. An
    image has changed where its own score has (accuracy, log loss, map@k), its predicted class (balanced accuracy,
    macro F1, kappa), or its probabilities (AUC). Its share in a score that is no mean over images is the mean of what
    it alone brings to ``before`` and takes from ``after``: exact for balanced accuracy, and up to terms of third
    order for the others. ``weights`` (N,) are the importance of the images.
    """
    _, truth = checked(before, labels)
    importance = np.ones(len(truth)) if weights is None else np.asarray(weights, np.float64)
    old, new = metric.scorer(before, truth), metric.scorer(after, truth)
    gain = float(metric.sign * (new(importance) - old(importance)))
    few = _few_shares(metric, np.asarray(before, np.float64), np.asarray(after, np.float64), truth, importance)
    if few is not None:
        return replace(Gain.of_few(few, level), gain=gain)
    rng = rng_for(seed, "paired bootstrap")
    found = np.empty(draws)
    for draw in range(draws):
        counts = np.bincount(rng.integers(0, len(truth), len(truth)), minlength=len(truth)) * importance
        found[draw] = metric.sign * (new(counts) - old(counts)) if counts.any() else 0.0
    return Gain(gain, *_summed(found, level))


def mean_gain(changes: FloatArray, draws: int = 1000, seed: int = 0, *, level: float = 0.9) -> Gain:
    """Return the mean of ``changes`` (N,), what each image gains, as :func:`paired_bootstrap` has it."""
    if np.count_nonzero(changes) < FEW:
        return Gain.of_few(changes / len(changes), level)
    rng, count = rng_for(seed, "judgement"), len(changes)
    means = np.array([changes[rng.integers(0, count, count)].mean() for _ in range(draws)])
    return Gain(float(changes.mean()), *_summed(means, level))


def _summed(found: FloatArray, level: float) -> tuple[float, float, float]:
    """Return the ends of the percentile interval of resampled gains, and the share of them that is positive."""
    low, high = np.quantile(found, [(1.0 - level) / 2.0, (1.0 + level) / 2.0])
    return float(low), float(high), float((found > 0).mean() + (found == 0).mean() / 2.0)


def _few_shares(
    metric: Metric, before: FloatArray, after: FloatArray, labels: IntArray, weights: FloatArray
) -> FloatArray | None:
    """Return what each changed image adds to the gain, (M,); None where they are not few."""
    if metric.per_image is not None:
        shares = weights * metric.sign * (metric.per_image(after, labels) - metric.per_image(before, labels))
        shares = shares[shares != 0.0] / max(weights.sum(), np.finfo(np.float64).tiny)
        return shares if len(shares) < FEW else None
    moved = before.argmax(1) != after.argmax(1) if metric.of_counts is not None else (before != after).any(1)
    changed = np.flatnonzero(moved & (weights > 0))
    if len(changed) >= FEW:
        return None
    images, scorer = len(labels), metric.scorer(np.concatenate([before, after]), np.tile(labels, 2))
    ends = np.stack([np.append(weights, 0.0 * weights), np.append(0.0 * weights, weights)])
    scores = [scorer(end) for end in ends]
    shares = np.empty(len(changed))
    for place, row in enumerate(changed.tolist()):
        mixed = ends.copy()
        mixed[:, [row, row + images]] = mixed[::-1, [row, row + images]]
        shares[place] = metric.sign * (scorer(mixed[0]) - scores[0] + scores[1] - scorer(mixed[1])) / 2.0
    return shares


def matched_interval(wins: int, losses: int, n: int, level: float = 0.9) -> tuple[float, float]:
    """Return the interval of a gain in accuracy on ``n`` images of which ``wins`` became right and ``losses`` wrong.

    Half an image is added to each of the four counts, so that its width is not zero where nothing has changed. Source:
    Agresti & Min 2005, Simple improved confidence intervals for comparing matched proportions.
    """
    gain, changed = (wins - losses) / (n + 2), (wins + losses + 1) / (n + 2)
    reach = NormalDist().inv_cdf((1 + level) / 2) * math.sqrt((changed - gain**2) / (n + 2))
    return gain - reach, gain + reach


@dataclass(frozen=True, eq=False, slots=True)
class Scored:
    """What one model scored on its validation images."""

    ids: tuple[str, ...]
    values: FloatArray


@dataclass(frozen=True, slots=True)
class Comparison:
    """How much better one way to train is than another."""

    gain: float  # mean over seeds; positive is better
    error: float  # its standard error, over seeds and images
    degrees: float  # of freedom of that error
    seeds: int  # that were compared
    images: float  # a seed, on average
    exact_p: float = 0.0  # two-sided, of the exact test over images; 0 where many have changed, and it is not needed

    @property
    def p(self) -> float:
        """Two-sided p value of a gain of zero: Student's t, or the exact test's where that is larger."""
        if self.error == 0.0:
            return 1.0
        return min(1.0, max(self.exact_p, 2.0 * float(_special.stdtr(self.degrees, -abs(self.gain) / self.error))))

    def interval(self, level: float = LEVEL) -> tuple[float, float] | None:
        """Return the ends of the confidence interval of the gain; None where no image has changed."""
        if self.error == 0.0:
            return None
        reach = self.error * _student_point(self.degrees, (1.0 + level) / 2.0)
        return self.gain - reach, self.gain + reach

    def power(self, effect: float, tests: int = 1, level: float = LEVEL) -> float:
        """Return the chance that a true gain of ``effect`` is found beyond this noise among so many ``tests``."""
        if self.error == 0.0:
            return 0.0
        return float(_special.stdtr(self.degrees, abs(effect) / self.error - self._needed(tests, level)))

    def detectable(self, tests: int = 1, power: float = 0.8, level: float = LEVEL) -> float | None:
        """Return the true gain that would be found with chance ``power``; None where no image has changed."""
        if self.error == 0.0:
            return None
        return self.error * (self._needed(tests, level) + _student_point(self.degrees, power))

    def _needed(self, tests: int, level: float) -> float:
        """Standard errors beyond which a gain is found, by the strictest step of Holm's correction."""
        return _student_point(self.degrees, 1.0 - (1.0 - level) / (2.0 * tests))


def paired_metric(name: str) -> Metric:
    """Return the metric ``name``, by which each image has a score of its own."""
    metric = metric_named(name)
    if metric.per_image is None:
        raise EtudeError(
            f"the metric {metric.name!r} is no mean over images, which a paired comparison needs: "
            "give accuracy, log_loss or map@k"
        )
    return metric


def scored(predictions: Predictions, metric: Metric) -> Scored:
    """Return the score of each labelled image; a loss is turned round, so that larger is better."""
    assert metric.per_image is not None  # see paired_metric
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
    :func:`sign_flips`, has to find the gain too: the error is at least what makes the interval at
    95% as wide as the exact one.
    """
    differences = _differences(before, after)
    means = np.array([float(values.mean()) for values in differences])
    seeds, ids = len(means), [one.ids for one in before]
    images = np.array([len(values) for values in differences])
    centred = [values - mean for values, mean in zip(differences, means, strict=True)]
    within = float(np.mean([values @ values / max(1, len(values) - 1) / len(values) for values in centred])) / seeds
    between = max(float(means.var(ddof=1)) / seeds, within)
    shared, rows = _shared_variance(ids, centred)
    variance = between + shared
    degrees = float(seeds - 1)
    if variance > 0.0 and rows > 1:
        degrees = variance**2 / (between**2 / (seeds - 1) + shared**2 / (rows - 1))
    gain, error, exact_p = float(means.mean()), math.sqrt(variance), 0.0
    shares = _by_image(ids, differences)
    changed = shares[:, shares.any(0)].sum(0) / seeds
    if len(changed) < FEW or variance == 0.0:  # every image changed equally: seeds and images show no spread
        exact = sign_flips(changed * (-1.0 if gain < 0 else 1.0), LEVEL)
        error = max(error, (exact.high - exact.low) / 2.0 / _student_point(degrees, (1.0 + LEVEL) / 2.0))
        exact_p = min(1.0, 2.0 * exact.p)
    return Comparison(gain, error, degrees, seeds, float(images.mean()), exact_p)


def holm(p_values: ArrayLike) -> FloatArray:
    """Return adjusted p values: calling real what lies below 0.05 errs, once or more, in at most 5% of families.

    Holm 1979, A simple sequentially rejective multiple test procedure: no weaker than Bonferroni's anywhere, and like
    it in need of no assumption about how the tests depend on each other (they share a baseline).
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
    """
    found: list[tuple[float, Verdict]] = []
    for one, p in zip(comparisons, holm([one.p for one in comparisons]).tolist(), strict=True):
        beyond_noise = p <= 1.0 - level
        found.append((p, ("helps" if one.gain > 0 else "hurts") if beyond_noise else "cannot tell"))
    return found


def _differences(before: Sequence[Scored], after: Sequence[Scored]) -> list[FloatArray]:
    """Return the gain of each image at each seed."""
    if len(before) != len(after) or len(before) < FEWEST_SEEDS:
        raise EtudeError(
            f"a paired comparison needs the same {FEWEST_SEEDS} seeds or more on both sides, "
            f"not {len(before)} and {len(after)}"
        )
    found: list[FloatArray] = []
    for old, new in zip(before, after, strict=True):
        place = {name: row for row, name in enumerate(new.ids)}
        if odd := set(old.ids) ^ place.keys():
            raise EtudeError(
                f"the two sides of a paired comparison were scored on other images: {listed(sorted(odd), 3)} "
                "came on one side only, so score both on the same split"
            )
        found.append(new.values[[place[name] for name in old.ids]] - old.values)
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


def _student_point(degrees: float, share: float) -> float:
    """Return the value below which ``share`` of Student's t distribution lies."""
    return float(_special.stdtrit(degrees, share))
