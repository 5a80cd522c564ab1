"""What of a recipe fits into a budget."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace

from etude.core.errors import EtudeError
from etude.core.text import counted, plain_name, rough_duration
from etude.recipe.settings import Recipe, changed
from etude.recipe.timeline import timeline_of
from etude.recipe.tricks import Changes
from etude.study.run.plan import Plan
from etude.timeline import parse_length

_SHARE = 0.9  # of the time that is left: a plan is not exact
_LATE = 20.0  # seconds that the least there is may take more
_LENGTHS = (0.5, 0.25, 0.125, 0.0625, 0.03125)  # shares of the training's length


def fitted(plan: Plan, left: float, pinned: Collection[str] = ()) -> Plan:
    """Return the plan with as much of its recipe as fits into ``left`` seconds; settings ``pinned`` stay.

    What gains least for its time is given up first, and had again where there is time once the rest is settled.
    """
    time_left = _SHARE * left

    def cost(plan: Plan) -> float:
        try:
            return sum(seconds for _, seconds in plan.seconds())
        except EtudeError:  # phases of fixed length do not fit into so short a training
            return math.inf

    dropped: list[Changes] = []
    for changes in _steps(plan.recipe):
        if cost(with_changes(plan, dropped)) <= time_left:
            break
        if changes and changes.keys().isdisjoint(pinned) and cost(with_changes(plan, [*dropped, changes])) < math.inf:
            dropped.append(changes)
    if (least := cost(with_changes(plan, dropped))) > max(time_left, left + _LATE):
        raise EtudeError(
            f"--budget leaves {rough_duration(max(0.0, left))}, and the least of this recipe takes about "
            f"{rough_duration(least / _SHARE)} here: give more time, or --sample to train on fewer images"
        )
    for changes in reversed([one for one in dropped if "stages" not in one]):
        fewer = [one for one in dropped if one is not changes]
        if cost(with_changes(plan, fewer)) <= time_left:
            dropped = fewer
    found, lengths = with_changes(plan, dropped), {share: _length(plan.recipe, share) for share in _LENGTHS}
    used = [share for share, changes in lengths.items() if changes in dropped]
    if found.training is None or not used:
        return found
    spared, whole = time_left - cost(found), cost(with_changes(found, [_length(plan.recipe, 1.0)])) - cost(found)
    if not 0.0 < whole < math.inf:
        return found
    share = min(used) + (1.0 - min(used)) * min(1.0, max(0.0, spared / whole))
    longer = with_changes(found, [_length(plan.recipe, share)])
    return longer if cost(longer) < math.inf else found


def _steps(recipe: Recipe) -> Iterator[Changes]:
    """Yield changes that save time, that which costs least accuracy first."""
    both, tiny = {"head", "finetune"} <= set(recipe.stages), recipe.model.backbone == "tiny"
    yield {"train.networks": 1}  # further ones are trained where time is left in the end
    if both and tiny:  # small images gain nothing from features of large ones
        yield {"stages": ("finetune",)}
    yield _length(recipe, 0.5)
    yield {"predict.tta": min(2, recipe.predict.tta)}
    yield _length(recipe, 0.25)
    yield {"predict.tta": 1}
    yield {"model.others": ()}
    if both and not tiny:
        yield {"stages": ("head",)}
    for share in _LENGTHS[2:]:
        yield _length(recipe, share)
    for side in (160, 112):
        yield {"model.feature_size": min(side, recipe.model.feature_size)}


def _length(recipe: Recipe, share: float) -> Changes:
    """Return the changes for a training of that share of its length; none where all phases have fixed lengths."""
    if recipe.timeline.length is not None:
        amount, unit = parse_length(recipe.timeline.length)
        return {"timeline.length": f"{amount * share:g}{unit}"}
    if any(phase.is_share for phase in timeline_of(recipe).phases):
        return {"train.epochs": recipe.train.epochs * share}
    return {}


def with_changes(plan: Plan, changes: Sequence[Changes]) -> Plan:
    """Return the plan of a changed recipe, without the networks that it leaves out."""
    recipe = plan.recipe
    for one in changes:
        recipe = changed(recipe, one)
    others = plan.others if recipe.model.others else ()
    features = plan.features if "head" in recipe.stages else None
    training, mode = (plan.training, plan.mode) if "finetune" in recipe.stages else (None, None)
    return replace(plan, recipe=recipe, others=others, features=features, training=training, mode=mode)


def described(whole: Recipe, recipe: Recipe) -> str:
    """Return what a recipe leaves out of a whole one, in words."""
    left_out = [name for name in whole.stages if name not in recipe.stages]
    words = [f"no {plain_name(name)}" for name in left_out]
    if "finetune" in recipe.stages and recipe.train.epochs != whole.train.epochs:
        words.append(f"{recipe.train.epochs:.3g} of {whole.train.epochs:g} epochs")
    if recipe.timeline.length != whole.timeline.length:
        words.append(f"a length of {recipe.timeline.length} in place of {whole.timeline.length}")
    if recipe.predict.tta != whole.predict.tta:
        words.append(f"{counted(recipe.predict.tta, 'view')} of {whole.predict.tta}")
    if recipe.model.others != whole.model.others:
        words.append("no heads on further networks")
    if "head" in recipe.stages and recipe.model.feature_size != whole.model.feature_size:
        words.append(f"features at {recipe.model.feature_size} px in place of {whole.model.feature_size}")
    return ", ".join(words) or "all of the recipe"
