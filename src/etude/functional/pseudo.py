"""Pseudo-labels: a teacher's predictions of unlabelled images turned into targets and weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from etude.core.errors import EtudeError
from etude.functional.distill import log_of, soften
from etude.functional.mix import one_hot

_LEAST_SHARE = 1e-6  # of a class in running predictions, as it divides
_LEAST_VARIANCE = 1e-8  # of confidences: float32 rounds equal ones to within 1e-7 of each other


def lee_weight(step: float, t1: float, t2: float, final: float = 3.0) -> float:
    """Return α(t), the weight of the loss on pseudo-labels (Lee 2013): 0 before ``t1``, rising to ``final`` at ``t2``.

    Args:
        step, t1, t2: steps, epochs or progress, 0 <= t1 <= t2; a jump where both are the same.
        final: at least 0; the paper's 3.

    Raises:
        EtudeError: these numbers make no ramp.

    >>> [lee_weight(epoch, 100, 600) for epoch in (0, 100, 350, 600, 900)]
    [0.0, 0.0, 1.5, 3.0, 3.0]
    """
    if not (0.0 <= t1 <= t2 and final >= 0.0):
        given = f"t1={t1}, t2={t2}, final={final}"
        raise EtudeError(f"lee_weight got {given}; the weight rises from t1 to t2, 0 <= t1 <= t2, final >= 0")
    if step >= t2:
        return float(final)
    return final * (step - t1) / (t2 - t1) if step > t1 else 0.0


def sharpen(probabilities: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return p^(1/T) over its sum, (N, C): more decided below a temperature of 1; 0 leaves the largest alone.

    Args:
        probabilities: (N, C); rows of sum 1.
        temperature: at least 0; 1 is the identity.

    Raises:
        EtudeError: the temperature is negative or no finite number.

    >>> sharpen(torch.tensor([[0.75, 0.25]]), 0.5)
    tensor([[0.9000, 0.1000]])
    >>> sharpen(torch.tensor([[0.75, 0.25]]), 0.0)
    tensor([[1., 0.]])
    """
    if temperature == 1.0:
        return probabilities
    if temperature == 0.0:
        return one_hot(probabilities.argmax(1), probabilities.shape[1]).to(probabilities.dtype)
    return soften(log_of(probabilities), temperature)


def align(probabilities: torch.Tensor, prior: torch.Tensor, running: torch.Tensor) -> torch.Tensor:
    """Return p · prior / running over its sum, (N, C): distribution alignment (Berthelot et al. 2020, ReMixMatch).

    A class that is predicted more often than it occurs loses probability in every image.

    Args:
        probabilities: (N, C).
        prior: (C,), the classes' true shares.
        running: (C,), their shares in the predictions so far.

    >>> align(torch.tensor([[0.5, 0.5]]), torch.tensor([0.5, 0.5]), torch.tensor([0.8, 0.2]))
    tensor([[0.2000, 0.8000]])
    """
    aligned = probabilities * (prior / running.clamp_min(_LEAST_SHARE))
    return aligned / aligned.sum(1, keepdim=True).clamp_min(torch.finfo(aligned.dtype).tiny)


def softmatch_weight(
    confidence: torch.Tensor, mean: torch.Tensor | float, variance: torch.Tensor | float, n: float = 2.0
) -> torch.Tensor:
    """Return exp(-min(p - μ, 0)² / (2σ² / n²)), (N,): 1 from the mean confidence on, less below (Chen et al. 2023).

    Args:
        confidence: (N,), the largest probability of each image.
        mean: μ of the confidences.
        variance: σ² of the confidences; where they are all equal, all weigh 1.
        n: how narrow: a confidence σ below the mean weighs exp(-n² / 2).

    Raises:
        EtudeError: ``n`` is not above 0.

    >>> softmatch_weight(torch.tensor([0.9, 0.7, 0.6]), 0.7, 0.01)
    tensor([1.0000, 1.0000, 0.1353])
    """
    if not n > 0.0:
        raise EtudeError(f"SoftMatch's n is {n}; it must be above 0, and 2 is usual")
    spread = torch.as_tensor(variance, device=confidence.device, dtype=confidence.dtype).clamp_min(_LEAST_VARIANCE)
    return torch.exp(-(confidence - mean).clamp_max(0.0).square() * (n * n / 2.0) / spread)


@dataclass(frozen=True, slots=True, eq=False)
class Confidence:
    """A teacher's recent confidence: its mean and variance, and the mean probability of each class."""

    mean: torch.Tensor
    variance: torch.Tensor
    shares: torch.Tensor
    batches: int = 0

    @classmethod
    def none(cls, num_classes: int) -> Confidence:
        """Return what holds before the first batch: any class, never sure."""
        return cls(torch.tensor(1.0 / num_classes), torch.tensor(0.0), torch.full((num_classes,), 1.0 / num_classes))

    def updated(
        self,
        probabilities: torch.Tensor,
        momentum: float,
        prior: torch.Tensor | None = None,
        total: Callable[[torch.Tensor], torch.Tensor] = lambda sums: sums,
    ) -> Confidence:
        """Return the exponential averages after one more batch (B, C); a batch without images changes nothing.

        The first batches are averaged equally, until ``momentum`` reaches back no farther than they do. The variance is
        that of the mixture of all batches; SoftMatch averages the batches' own. With ``prior`` (C,), confidences are
        those of aligned probabilities. ``total`` adds a tensor up over processes, which must all call it.
        """
        if not 0.0 <= momentum < 1.0:
            raise EtudeError(f"the momentum of the confidences is {momentum}; it must be at least 0 and below 1")
        mean, variance, shares = (one.to(probabilities.device) for one in (self.mean, self.variance, self.shares))
        counted = total(torch.cat([probabilities.sum(0), probabilities.new_tensor([float(len(probabilities))])]))
        if not bool(counted[-1] > 0):
            return self
        part = max(1.0 - momentum, 1.0 / (self.batches + 1))
        shares = torch.lerp(shares, counted[:-1] / counted[-1], part)
        confidence = (probabilities if prior is None else align(probabilities, prior, shares)).amax(1)
        sums = total(torch.stack([confidence.sum(), confidence.square().sum()])) / counted[-1]
        gap, own = sums[0] - mean, (sums[1] - sums[0].square()).clamp_min(0.0)
        variance = (1.0 - part) * (variance + part * gap.square()) + part * own
        return Confidence(mean + part * gap, variance, shares, self.batches + 1)
