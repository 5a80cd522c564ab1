"""Which symmetries the images have, measured with the stage 1 head instead of guessed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from etude.core.progress import Progress
from etude.core.scores import standard_error
from etude.core.seeds import rng_for
from etude.data.dataset import Dataset
from etude.inference.views import SYMMETRIES, seen_through
from etude.models.features import extract_features
from etude.models.head import LinearHead
from etude.study.fold import Fold
from etude.study.frozen import FrozenFeatures

_IMAGES = 192  # judged at most; a few seconds on a CPU
_TOLERANCE = 0.15  # of the plain view's accuracy beyond chance that a view may lose, plus one standard error
_PROBES = ("flip", "turn 180", "turn 90")


@dataclass(frozen=True, slots=True)
class PolicyChoice:
    """An augmentation policy and why it was chosen."""

    policy: str
    reason: str


def choose_policy(
    data: Dataset,
    fold: Fold,
    features: FrozenFeatures,
    head: LinearHead,
    *,
    precision: str,
    seed: int,
    progress: Progress,
) -> PolicyChoice:
    """Return the widest policy whose symmetries leave the labels recognisable.

    The head has never seen a turned or mirrored image; where it still knows the classes, the symmetry keeps the label.
    """
    rows = fold.valid[np.sort(rng_for(seed, "symmetry").permutation(len(fold.valid))[:_IMAGES])]
    truth = data.labels[rows]
    kept = {"plain": _accuracy(head, features.values[rows], truth)}
    for view in SYMMETRIES:
        if view.name in _PROBES:
            seen = extract_features(
                features.frozen.backbone.module, seen_through(view, data.build.store.gather), rows,
                features.preprocessing, progress=progress, precision=precision, name=f"symmetry ({view.name})",
            )  # fmt: skip
            kept[view.name] = _accuracy(head, seen, truth)
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
