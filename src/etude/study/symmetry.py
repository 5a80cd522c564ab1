"""Which symmetries the images have, measured with the stage 1 head instead of guessed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import nn

from etude.core.progress import Progress
from etude.core.scores import standard_error
from etude.core.seeds import rng_for
from etude.inference.views import SYMMETRIES, seen_through
from etude.models.classifier import Preprocessing
from etude.models.features import Gather, extract_features
from etude.models.head import LinearHead

_IMAGES = 192  # judged at most; a few seconds on a CPU
_TOLERANCE = 0.15  # of the plain view's accuracy beyond chance that a view may lose, plus one standard error
_PROBES = ("flip", "turn 180", "turn 90")


@dataclass(frozen=True, slots=True)
class PolicyChoice:
    """An augmentation policy and why it was chosen."""

    policy: str
    reason: str


def choose_policy(
    head: LinearHead,
    backbone: nn.Module,
    gather: Gather,
    rows: np.ndarray,
    labels: np.ndarray,
    plain_features: np.ndarray,
    preprocessing: Preprocessing,
    *,
    precision: str,
    seed: int,
    progress: Progress,
) -> PolicyChoice:
    """Return the widest policy whose symmetries leave the labels recognisable.

    The head has never seen a turned or mirrored image; where it still knows the classes, the symmetry keeps the label.
    """
    chosen = np.sort(rng_for(seed, "symmetry").permutation(len(rows))[:_IMAGES])
    truth = labels[chosen]
    kept = {"plain": _accuracy(head, plain_features[chosen], truth)}
    for view in SYMMETRIES:
        if view.name in _PROBES:
            features = extract_features(
                backbone, seen_through(view, gather), rows[chosen], preprocessing,
                progress=progress, precision=precision, name=f"symmetry ({view.name})",
            )  # fmt: skip
            kept[view.name] = _accuracy(head, features, truth)
    return decide(kept, chance=float(np.bincount(truth).max() / len(truth)), count=len(truth))


def decide(accuracy: dict[str, float], chance: float, count: int) -> PolicyChoice:
    """Return the policy for the accuracies of the plain view and the probed ones.

    >>> decide({"plain": 0.9, "flip": 0.9, "turn 180": 0.5, "turn 90": 0.4}, chance=0.1, count=192).policy
    'photos'
    """
    plain = accuracy["plain"]
    margin = _TOLERANCE * max(0.0, plain - chance) + standard_error(plain, count)
    holds = {name: value >= plain - margin for name, value in accuracy.items()}
    measured = ", ".join(f"{name} {value:.1%}" for name, value in accuracy.items())
    reason = f"stage 1 accuracy on {count} validation images: {measured}"
    if not holds["flip"]:
        return PolicyChoice("none", f"{reason}; mirror images lose their class")
    if not holds["turn 180"]:
        return PolicyChoice("photos", f"{reason}; images have an up and a down")
    return PolicyChoice("symmetric" if holds["turn 90"] else "flips", reason)


def _accuracy(head: LinearHead, features: np.ndarray, truth: np.ndarray) -> float:
    return float((head.logits(features).argmax(1) == truth).mean())
