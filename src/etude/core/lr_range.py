"""The learning rate that a range test suggests, from its losses."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from etude.core.errors import EtudeError

MIN_RATES = 10  # fewer show no shape
DIVERGED = 4.0  # times the best smoothed loss: the sweep is over
_MEMORY = 0.04  # of the sweep: what the smoothing remembers on each side
_WINDOW = 0.1  # of the sweep: the line whose slope counts
_SURE = 4.0  # standard errors of the fall that it must exceed
_LEAST_FALL = 0.01  # of the first losses


class NoDescentError(EtudeError):
    """No learning rate of the test lowered the loss by more than its noise."""


@dataclass(frozen=True, slots=True)
class LrSuggestion:
    """The result of a range test."""

    lr: float  # the suggested peak learning rate
    steepest: float  # rate at which the loss falls fastest against the logarithm of the rate
    lowest: float  # rate at the smoothed minimum
    diverged_at: float | None  # first rate whose smoothed loss exceeds four times the best, or is not finite
    smoothed: NDArray[np.float64]  # (N,) losses, NaN from ``diverged_at`` on


def suggest_lr(rates: ArrayLike, losses: ArrayLike) -> LrSuggestion:
    """Read a range test (Smith 2015): one training run whose learning rate rises from step to step.

    The losses are smoothed exponentially, with the bias of the start corrected, once forwards and once backwards,
    since a forward average alone lags behind. The suggestion is the geometric mean of two rules with independent
    errors: the rate of steepest descent, whose slope is uncertain on a noisy curve, and a tenth of the rate at the
    minimum, which ignores how the loss fell. It always stays below a third of the rate at the minimum.

    ``rates`` (N,) are positive and rise, N at least 10; ``losses`` (N,) after the first that is not finite are ignored.
    NoDescentError: no descent stands out from the noise.
    """
    rate, loss = _checked(rates, losses)
    decay = 1.0 - 1.0 / max(1.0, _MEMORY * len(rate))
    count = _count_before_divergence(loss, decay)
    diverged_at = float(rate[count]) if count < len(rate) else None
    if count < MIN_RATES:
        raise EtudeError(
            f"the learning-rate range test broke down after {count} of {len(rate)} rates, at {rate[count]:.3g}: "
            "start it a hundred times lower (a loss that is not finite even there comes from the model or its data)"
        )
    loss = loss[:count]
    curve = (_running_mean(loss, decay) + _running_mean(loss[::-1], decay)[::-1]) / 2.0
    width = min(max(3, round(_WINDOW * len(rate))), count // 3)
    low = int(np.argmin(curve))
    _require_descent(rate, loss, low, width)
    steepest = float(rate[_steepest(np.log(rate[: low + 1]), curve[: low + 1], width)])
    lowest = float(rate[low])
    smoothed = np.full(len(rate), np.nan)
    smoothed[:count] = curve
    return LrSuggestion(math.sqrt(steepest * lowest / 10), steepest, lowest, diverged_at, smoothed)


def _checked(rates: ArrayLike, losses: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    rate, loss = np.asarray(rates, dtype=np.float64), np.asarray(losses, dtype=np.float64)
    if rate.ndim != 1 or rate.shape != loss.shape:
        raise EtudeError(
            f"the learning-rate range test has rates of shape {rate.shape} and losses of shape {loss.shape}: "
            "give one loss for each rate"
        )
    if len(rate) < MIN_RATES:
        raise EtudeError(
            f"the learning-rate range test has {len(rate)} rates, too few: give at least {MIN_RATES}, better 100"
        )
    if not (np.isfinite(rate).all() and rate[0] > 0 and (np.diff(rate) > 0).all()):
        raise EtudeError("the rates of the learning-rate range test must be positive and rise from step to step")
    return rate, loss


def _count_before_divergence(loss: NDArray[np.float64], decay: float) -> int:
    bad = np.flatnonzero(~np.isfinite(loss))
    end = int(bad[0]) if len(bad) else len(loss)
    if end == 0:
        return 0
    running = _running_mean(loss[:end], decay)
    best = np.minimum.accumulate(running)
    broken = np.flatnonzero(running > best + (DIVERGED - 1.0) * np.abs(best))
    return int(broken[0]) if len(broken) else end


def _running_mean(values: NDArray[np.float64], decay: float) -> NDArray[np.float64]:
    """Return the exponential running mean; dividing by the weights so far corrects the bias of the start."""
    means = np.empty(len(values))
    total = weight = 0.0
    for index, value in enumerate(values):
        total, weight = decay * total + (1.0 - decay) * value, decay * weight + (1.0 - decay)
        means[index] = total / weight
    return means


def _require_descent(rate: NDArray[np.float64], loss: NDArray[np.float64], low: int, width: int) -> None:
    """Refuse losses that are around ``low`` no further below the first ones than their noise explains."""
    begin = min(max(0, low - width // 2), len(loss) - width)
    start, bottom = float(loss[:width].mean()), float(loss[begin : begin + width].mean())
    # Differences of neighbours show the noise on any curve; the median ignores the steep part.
    noise = float(np.median(np.abs(np.diff(loss)))) / (math.sqrt(2.0) * 0.6745)
    needed = max(_SURE * noise * math.sqrt(2.0 / width), _LEAST_FALL * abs(start))
    if start - bottom <= needed:
        raise NoDescentError(
            f"the loss does not fall between the learning rates {rate[0]:.3g} and {rate[len(loss) - 1]:.3g} "
            f"(from {start:.4g} to {bottom:.4g} at best, within its noise), so this test suggests no rate: give one "
            "by hand, or test with larger batches"
        )


def _steepest(log_rate: NDArray[np.float64], curve: NDArray[np.float64], width: int) -> int:
    """Return the middle of the window of ``width`` points whose least-squares line falls fastest."""
    width = min(width, len(curve))
    x = np.lib.stride_tricks.sliding_window_view(log_rate, width)
    y = np.lib.stride_tricks.sliding_window_view(curve, width)
    x = x - x.mean(axis=1, keepdims=True)
    slopes = (x * y).sum(axis=1) / (x * x).sum(axis=1)
    return int(np.argmin(slopes)) + (width - 1) // 2
