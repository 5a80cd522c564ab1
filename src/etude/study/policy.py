"""Which augmentation policy a run uses, and why."""

from __future__ import annotations

from etude.models.head import LinearHead
from etude.study.fold import Fold
from etude.study.prepare import Prepared
from etude.study.session import Session
from etude.study.symmetry import PolicyChoice, choose_policy


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
        return choose_policy(
            prepared.data, fold, features, head,
            precision=prepared.precision, seed=session.request.seed, progress=session.screen,
        )  # fmt: skip
