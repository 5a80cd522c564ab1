"""MixUp and CutMix: images and dense targets of a batch mixed with those of a permutation of it."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch

from etude.core.errors import EtudeError


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
    """Return the mean cross-entropy in nats between (N, C) logits and dense targets, weighted by ``weight`` (N,)."""
    losses = -(target * torch.log_softmax(logits.float(), dim=1)).sum(1)
    return (losses * weight).sum() / weight.sum().clamp_min(1e-12)


class Box(NamedTuple):
    """A rectangle of pixels: rows ``top`` to ``bottom``, columns ``left`` to ``right``, the ends left out."""

    top: int
    bottom: int
    left: int
    right: int


def mixup(
    images: torch.Tensor, targets: torch.Tensor, lam: float, permutation: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ``lam * x + (1 - lam) * x[permutation]`` of images and of targets (Zhang et al. 2017).

    Args:
        images: (B, ...), float or uint8; uint8 is mixed in float32 and rounded.
        targets: float (B, C) or (B,).
        lam: share of the image itself, in [0, 1]; 1 is the identity.
        permutation: int64 (B,), the partner of each image.

    Raises:
        EtudeError: ``lam`` lies outside [0, 1], or targets are not floats.

    >>> mixup(torch.tensor([[0.0], [4.0]]), torch.eye(2), 0.75, torch.tensor([1, 0]))
    (tensor([[1.],
            [3.]]), tensor([[0.7500, 0.2500],
            [0.2500, 0.7500]]))
    """
    if not 0.0 <= lam <= 1.0:
        raise EtudeError(f"the share of MixUp is {lam}; it must lie in [0, 1]")
    return _blend(images, lam, permutation), _blend(_floats(targets), lam, permutation)


def cutmix(
    images: torch.Tensor, targets: torch.Tensor, box: Box, permutation: torch.Tensor, *, channels_last: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Paste ``box`` of each image's partner into it; targets are mixed by the area that is left (Yun et al. 2019).

    Args:
        images: (B, C, H, W), or (B, H, W, C) with ``channels_last``; any dtype.
        targets: float (B, C) or (B,).
        box: within the image; an empty one is the identity.
        permutation: int64 (B,), the partner of each image.

    Raises:
        EtudeError: the box reaches beyond the images, or targets are not floats.

    >>> _, targets = cutmix(torch.zeros(2, 1, 4, 4), torch.eye(2), Box(0, 2, 0, 2), torch.tensor([1, 0]))
    >>> targets[0].tolist()
    [0.75, 0.25]
    """
    height, width = images.shape[1:3] if channels_last else images.shape[-2:]
    top, bottom, left, right = box
    if not (0 <= top <= bottom <= height and 0 <= left <= right <= width):
        raise EtudeError(f"the box of CutMix is {tuple(box)}; it must lie within images of {height} × {width} pixels")
    lam = 1.0 - (bottom - top) * (right - left) / (height * width)
    pasted = images.clone()
    inside = (slice(None) if channels_last else ..., slice(top, bottom), slice(left, right))
    pasted[inside] = images[inside][permutation]
    return pasted, _blend(_floats(targets), lam, permutation)


def draw_lambda(alpha: float, rng: np.random.Generator) -> float:
    """Draw a share from Beta(``alpha``, ``alpha``); an ``alpha`` of 0 gives 1, which mixes nothing.

    Raises:
        EtudeError: ``alpha`` is negative or not a finite number.

    >>> draw_lambda(0.0, np.random.default_rng(0))
    1.0
    """
    check_alpha(alpha)
    return float(rng.beta(alpha, alpha)) if alpha > 0.0 else 1.0


def check_alpha(alpha: float) -> None:
    """Refuse an ``alpha`` that no Beta distribution has."""
    if not 0.0 <= alpha < math.inf:
        raise EtudeError(f"alpha is {alpha}; it must be a number of at least 0, and 0 mixes nothing")


def draw_box(height: int, width: int, lam: float, rng: np.random.Generator) -> Box:
    """Draw a box of the images' proportions and of ``1 - lam`` of their area, its centre uniform over the pixels.

    What reaches beyond the edge is cut off, as in the paper: :func:`cutmix` mixes the targets by the area that is left.
    """
    share = math.sqrt(1.0 - lam)
    tall, wide = round(height * share), round(width * share)
    top, left = int(rng.integers(height)) - tall // 2, int(rng.integers(width)) - wide // 2
    return Box(max(0, top), min(height, top + tall), max(0, left), min(width, left + wide))


def with_weights(targets: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Return (N, C + 1): targets times their images' weights, and the weights; a mixture has the mixed weight."""
    weights = weights.to(targets.dtype)[:, None]
    return torch.cat([targets * weights, weights], 1)


def without_weights(weighted: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Undo :func:`with_weights`: return targets (N, C) and weights (N,); targets of weight 0 are zeros."""
    targets, weights = weighted[:, :-1], weighted[:, -1]
    return targets / weights[:, None].clamp_min(1e-12), weights


def _blend(values: torch.Tensor, lam: float, permutation: torch.Tensor) -> torch.Tensor:
    if lam == 1.0:
        return values
    if values.dtype == torch.uint8:
        return _blend(values.float(), lam, permutation).round_().to(torch.uint8)
    return values * lam + values[permutation] * (1.0 - lam)


def _floats(targets: torch.Tensor) -> torch.Tensor:
    if not targets.is_floating_point():
        raise EtudeError(
            f"targets to be mixed are {targets.dtype}; they must be floats, such as one_hot(labels, num_classes)"
        )
    return targets
