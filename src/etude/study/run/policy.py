"""Which symmetries the images have, measured with the stage 1 head instead of guessed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from etude.core.context import Context
from etude.core.paired import matched_interval
from etude.data.split import Fold
from etude.inference.views import IDENTITY, SYMMETRIES
from etude.models.features import extract_features
from etude.models.head import LinearHead
from etude.study.run.frozen import FrozenFeatures
from etude.study.run.prepare import Prepared
from etude.study.run.session import Session

_IMAGES = 192  # evaluated at most; a few seconds on a CPU
_TOLERANCE = 0.15  # of the plain view's accuracy beyond chance that a view may lose, by the lower end of its interval
_PROBES = ("flip", "turn 180", "turn 90")


@dataclass(frozen=True, slots=True)
class PolicyChoice:
    """An augmentation policy and why it was chosen; ``measured`` on validation images or not."""

    policy: str
    reason: str
    measured: bool = False


def choose_policy(
    prepared: Prepared, features: FrozenFeatures, fold: Fold, head: LinearHead, context: Context
) -> PolicyChoice:
    """Return the widest policy whose symmetries leave the labels recognisable.

    The head has never seen a turned or mirrored image; where it still knows the classes, the symmetry keeps the label.
    """
    rows = fold.valid[np.sort(context.rng("symmetry").permutation(len(fold.valid))[:_IMAGES])]
    truth, gather = prepared.data.labels[rows], prepared.data.build.store.gather
    right: dict[str, NDArray[np.bool_]] = {}
    for view in SYMMETRIES:
        if view == IDENTITY:
            values = features.values[rows]
        elif view.name in _PROBES:
            values = extract_features(
                features.frozen.backbone.module, lambda rows, size, view=view: view(gather(rows, size)), rows,
                features.preprocessing, context=context, precision=prepared.precision, name=f"symmetry ({view.name})",
            )  # fmt: skip
        else:
            continue
        right[view.name] = head.logits(values).argmax(1) == truth
    return decide(right, chance=float(np.bincount(truth).max() / len(truth)))


def decide(right: Mapping[str, NDArray[np.bool_]], chance: float) -> PolicyChoice:
    """Return the policy, by which of the same images the head gets right in the plain view and in each probed one.

    A symmetry is taken where the 90% interval of its gain in accuracy over the plain view does not lie below zero, and
    even its lower end is a loss of at most 15% of the plain view's accuracy beyond chance.

    >>> known = np.arange(192) < 180
    >>> right = {"plain": known, "flip": known, "turn 180": known[::-1] & known, "turn 90": ~known}
    >>> decide(right, chance=0.1).policy
    'photos'
    >>> decide({name: hits[:16] for name, hits in right.items()}, chance=0.5).policy
    'none'
    """
    plain, count = right["plain"], len(right["plain"])
    measured = ", ".join(f"{name} {hits.mean():.1%}" for name, hits in right.items())
    reason = f"stage 1 accuracy on {count} validation images: {measured}"
    policy = "none"
    steps = (("flip", "photos", "mirror images"), ("turn 180", "flips", "images upside down"))
    for name, wider, named in (*steps, ("turn 90", "symmetric", "quarter turns")):
        wins, losses = int((right[name] & ~plain).sum()), int((plain & ~right[name]).sum())
        low, high = matched_interval(wins, losses, count)
        if high < 0.0:
            return PolicyChoice(policy, f"{reason}; {named} lose their class", measured=True)
        if low < -_TOLERANCE * max(0.0, float(plain.mean()) - chance):
            return PolicyChoice(policy, f"{reason}; too few to tell whether {named} keep their class", measured=True)
        policy = wider
    return PolicyChoice(policy, reason, measured=True)


def settle_policy(session: Session, prepared: Prepared, fold: Fold, head: LinearHead | None) -> PolicyChoice:
    """Return the augmentation policy that the recipe names, or the one that the images allow."""
    recipe, features = prepared.recipe, prepared.features
    asked = recipe.augment.policy
    if asked != "auto":
        return PolicyChoice(asked, "as the recipe says")
    if recipe.stages == ("head",) and recipe.predict.tta == recipe.head.views == 1:
        return PolicyChoice("none", "this recipe neither trains on images nor averages over views")
    if features is None or head is None:
        return PolicyChoice("photos", "there is no stage 1 head to measure symmetries with")
    with session.stage("symmetry"):
        return choose_policy(prepared, features, fold, head, session.context)
