"""Dense targets: labels, smoothing and later mixtures share one loss."""

from __future__ import annotations

import torch


def one_hot(labels: torch.Tensor, num_classes: int, smoothing: float = 0.0) -> torch.Tensor:
    """Return float (N, C) targets; ``smoothing`` spreads that share of the mass evenly (Szegedy et al. 2016).

    >>> one_hot(torch.tensor([1]), 2, smoothing=0.2).tolist()
    [[0.10000000149011612, 0.9000000357627869]]
    """
    return smoothed(torch.nn.functional.one_hot(labels, num_classes).float(), smoothing)


def smoothed(target: torch.Tensor, smoothing: float) -> torch.Tensor:
    """Return (N, C) targets with the share ``smoothing`` of their mass spread evenly; 0 is the identity.

    A row keeps its mass: what is nobody's label stays nobody's.

    >>> smoothed(torch.tensor([[0.0, 1.0], [0.0, 0.0]]), 0.5).tolist()
    [[0.25, 0.75], [0.0, 0.0]]
    """
    if not smoothing:
        return target
    return target * (1.0 - smoothing) + target.sum(dim=1, keepdim=True) * (smoothing / target.shape[1])


def cross_entropy(logits: torch.Tensor, target: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Return the weighted mean cross-entropy in nats between (N, C) logits and dense targets.

    Args:
        weight: per-image weights (N,); the mean is taken over their sum.
    """
    losses = -(target * torch.log_softmax(logits.float(), dim=1)).sum(1)
    return (losses * weight).sum() / weight.sum().clamp_min(1e-12)
