"""Distillation: a student learns from teachers' probabilities and its labels (Hinton, Vinyals & Dean 2015)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from etude.core.errors import EtudeError


def soften(log_probabilities: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return softmax(log p / T), (N, C), of logarithms of probabilities or logits; flatter than p above a T of 1."""
    check_temperature(temperature)
    return torch.softmax(log_probabilities if temperature == 1.0 else log_probabilities / temperature, dim=1)


def distillation_loss(
    logits: torch.Tensor, target: torch.Tensor, weight: torch.Tensor, teacher: torch.Tensor,
    temperature: float, share: float,
) -> torch.Tensor:  # fmt: skip
    """Return the weighted mean of share · T² · CE(soft teacher, student / T) + (1 - share) · CE(target), in nats.

    T² keeps the size of the soft term's gradients at any temperature. An image without a label has a target of zeros,
    and so the soft term alone.

    Args:
        logits: (N, C) of the student.
        target: dense targets (N, C).
        weight: (N,) per image; the mean is taken over their sum.
        teacher: (N, C) probabilities, each row of sum 1.
        temperature: T, above 0, for teacher and student.
        share: of the soft term, in [0, 1]; 0 is :func:`~etude.functional.mix.cross_entropy`.

    Raises:
        EtudeError: temperature or share lie outside their limits, or the teacher knows other classes.

    >>> logits, label, ones = torch.tensor([[2.0, 0.0]]), torch.tensor([[1.0, 0.0]]), torch.ones(1)
    >>> [round(distillation_loss(logits, label, ones, logits.softmax(1), 4.0, share).item(), 3) for share in (0, 1)]
    [0.127, 10.606]
    """
    if not 0.0 <= share <= 1.0:
        raise EtudeError(f"the share of the teachers' loss is {share}; it must lie in [0, 1], such as 0.5")
    if teacher.shape != logits.shape:
        raise EtudeError(
            f"the teachers give probabilities {tuple(teacher.shape)} and the student logits {tuple(logits.shape)}: "
            "both need the same images and the same classes in the same order"
        )
    check_temperature(temperature)
    logits = logits.float()
    losses = -(target * torch.log_softmax(logits, dim=1)).sum(1) * (1.0 - share)
    if share > 0.0:
        soft = soften(log_of(teacher.float()), temperature)
        losses = losses - (soft * torch.log_softmax(logits / temperature, dim=1)).sum(1) * (share * temperature**2)
    return (losses * weight).sum() / weight.sum().clamp_min(1e-12)


@torch.no_grad()
def mean_probabilities(
    models: Sequence[Callable[[torch.Tensor], torch.Tensor]], images: torch.Tensor, who: str = "a teacher"
) -> torch.Tensor:
    """Return the mean over ``models``, ``who`` in messages, of the softmax of their logits (N, C); no gradients."""
    logits = [model(images) for model in models]
    for one in logits:
        if one.ndim != 2 or len(one) != len(images) or one.shape != logits[0].shape:
            raise EtudeError(
                f"{who} gives {tuple(one.shape)} for {len(images)} images; logits (images, classes) are needed, of the "
                f"same classes from all"
            )
    return torch.stack([one.float().softmax(1) for one in logits]).mean(0)


def check_temperature(temperature: float) -> None:
    """Refuse what is not a finite number above 0."""
    if not 0.0 < temperature < float("inf"):
        raise EtudeError(f"the temperature is {temperature}; it must be a number above 0, and 1 changes nothing")


def log_of(probabilities: torch.Tensor) -> torch.Tensor:
    """Return finite logarithms, also of zero."""
    return probabilities.clamp_min(torch.finfo(probabilities.dtype).tiny).log()
