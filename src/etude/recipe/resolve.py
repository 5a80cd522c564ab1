"""Recipes made from recipes: ``auto`` decided by the images, and the settings of training with unlabelled images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from etude.core.errors import EtudeError
from etude.recipe.settings import Recipe, changed
from etude.recipe.timeline import nominal_timeline
from etude.timeline.plan import rounded

TINY_SIDE = 40  # pixels; at this side and below a pretrained network sees mostly padding and strides
DEFAULT_BACKBONE = "tf_efficientnet_lite0"
MANY_IMAGES = 20_000  # above it the last depth alone is pooled: a few thousand features an image would fill the memory

FROM_SCRATCH: dict[str, Any] = {
    "train.epochs": 30,
    "train.lr": 1e-3,
    "train.weight_decay": 0.05,
    "train.layer_decay": 1.0,
    "train.batchnorm": "train",
    "train.freeze": 0.0,
    "train.freeze_depthwise": False,
}
"""Random weights have no statistics and no layers worth keeping."""

TINY: dict[str, Any] = {
    **FROM_SCRATCH,
    "model.feature_size": 64,
    "train.batch_size": 64,
    "train.lr": 4e-3,
    "train.ema": 0.99,
    "train.dropout": 0.0,
    "timeline.size_multiple": 4,
}

SMALL_NETWORKS = 3  # that are averaged, in place of heads on further backbones

# Consistency lives on many unlabelled images a step (FixMatch takes seven times as many as labelled ones). Each of them
# costs more than two labelled ones, so it starts from what the labels alone have taught.
ONLINE: dict[str, Any] = {"unlabeled.labeled_share": "auto", "unlabeled.kind": "hard", "unlabeled.start": "warm"}

RATES_BY_NORM = {"lamb": 5e-3, "lars": 0.3}
"""Learning rates of optimisers that move each layer by a share of its own norm, so that one suits any network.

With LARS's usual trust coefficient of 0.001 and momentum of 0.9, both come to about 0.3% to 0.5% a step.
"""

MIN_SHARE, MAX_SHARE = 0.125, 0.7  # of labelled images in a batch, where the share is decided by their number
SAFE_SHARE = (0.65, 0.75)  # in pseudo-label rounds, as competitors use it; any other is allowed with a warning


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """What the scan of the images found."""

    median_side: int  # median of the shorter sides, in pixels
    channels: int  # 1 when every image is grey, otherwise 3
    count: int = 0  # training images
    multiple: int = 1  # of which image sides must be whole multiples, such as the patch of a transformer, in pixels
    required_size: int | None = None  # the one image side in pixels that the network takes; None: others too
    unlabelled: bool = False  # whether images are given to learn from without labels


def resolve(recipe: Recipe, facts: ImageFacts, warn: Callable[[str], object] = lambda text: None) -> Recipe:
    """Return the recipe with every ``auto`` that depends on the images decided; settings given by hand stay.

    Images of at most 40 px (median of the shorter side) get the small network and its own training settings. Image
    sizes become whole multiples of the timeline's, so that validation and prediction see the size that was trained at
    last; ``warn`` is given a sentence where that changes one.
    """
    backbone, given = recipe.model.backbone, set(recipe.timeline.model_fields_set)
    tiny = backbone == "tiny" or (backbone == "auto" and facts.median_side <= TINY_SIDE)
    chosen = "tiny" if tiny else DEFAULT_BACKBONE if backbone == "auto" else backbone
    recipe = changed(recipe, {"model.backbone": chosen})
    if (rate := RATES_BY_NORM.get(recipe.train.optimizer)) is not None:
        recipe = changed(recipe, {"train.lr": rate}, unset_only=True)
    if tiny:
        side = max(8, 4 * ((facts.median_side + 3) // 4))  # the small network halves the side three times
        recipe = changed(recipe, TINY | _sizes(side, side), unset_only=True)
        if "auto" in recipe.model.others and "finetune" in recipe.stages:  # features of large images cost more than
            recipe = changed(recipe, {"train.networks": SMALL_NETWORKS}, unset_only=True)  # they bring
            recipe = changed(recipe, {"model.others": [name for name in recipe.model.others if name != "auto"]})
    elif recipe.model.weights == "none":
        recipe = changed(recipe, FROM_SCRATCH, unset_only=True)
    recipe = changed(recipe, _sizes(*recipe.timeline.growing_sizes(given)))
    if facts.required_size is not None:
        side = facts.required_size
        _refuse_other_sizes(recipe, given, side)
        recipe = changed(recipe, {"model.feature_size": side, "timeline.size_multiple": side, **_sizes(side, side)})
    if facts.multiple > 1:
        recipe = _in_multiples(recipe, facts.multiple)
    if facts.count > MANY_IMAGES:
        recipe = changed(recipe, {"model.levels": 0}, unset_only=True)
    recipe = _with_unlabelled(recipe, facts.unlabelled, tiny)
    if recipe.augment.policy == "auto" and tiny and facts.channels == 1:
        recipe = changed(recipe, {"augment.policy": "digits"})
    return _at_trained_sizes(recipe, warn)


def backbone_reason(asked: Recipe, side: int) -> str:
    """Return what ``auto`` chose by the median of the images' shorter sides; nothing where a backbone is named."""
    if asked.model.backbone != "auto":
        return ""
    if side <= TINY_SIDE:
        return f"small, of random weights, since the images' shorter sides are {side} px (up to {TINY_SIDE})"
    return f"{DEFAULT_BACKBONE}, since the images' shorter sides are {side} px (above {TINY_SIDE})"


def weights_file(weights: str) -> Path | None:
    """Return the file that ``model.weights`` names, which must exist; None where it is a word."""
    if weights in ("auto", "bundled", "hub", "none"):
        return None
    if not (path := Path(weights)).exists():
        raise EtudeError(
            f"the weights file {path} does not exist; give a .safetensors file, 'bundled', 'hub' or 'none'"
        )
    return path


def _with_unlabelled(recipe: Recipe, are_there: bool, tiny: bool) -> Recipe:
    """Decide what learns from unlabelled images: what gained most for its time over the development data sets."""
    method, has_head = recipe.unlabeled.method, "head" in recipe.stages
    if method == "rounds" and recipe.stages == ("head",):
        return changed(recipe, {"unlabeled.method": "head"})
    if method != "auto":
        return recipe
    if are_there and tiny and "finetune" in recipe.stages:
        return changed(changed(recipe, ONLINE, unset_only=True), {"unlabeled.method": "online"})
    return changed(recipe, {"unlabeled.method": "off" if not are_there else "head" if has_head else "rounds"})


def _sizes(start: int, final: int) -> dict[str, Any]:
    return {"timeline.start_size": start, "timeline.final_size": final}


def _at_trained_sizes(recipe: Recipe, warn: Callable[[str], object]) -> Recipe:
    multiple = recipe.timeline.size_multiple
    wanted = _sizes(recipe.timeline.start_size, recipe.timeline.final_size)
    trained = {name: rounded(size, multiple) for name, size in wanted.items()}
    changes = [f"{name} {size} becomes {trained[name]}" for name, size in wanted.items() if size != trained[name]]
    if changes and "finetune" in recipe.stages:
        warn(
            f"training takes multiples of {multiple} px, so {' and '.join(changes)}; "
            "--set timeline.size_multiple=1 allows any size"
        )
    return changed(recipe, trained)


def labelled_share(recipe: Recipe, labelled: int, unlabelled: int) -> float:
    """Return the share of each batch that is labelled; ``auto`` is the images' own, within limits."""
    share = recipe.unlabeled.labeled_share
    if isinstance(share, float):
        return share
    return min(MAX_SHARE, max(MIN_SHARE, labelled / (labelled + unlabelled)))


def share_caution(recipe: Recipe) -> str | None:
    """Return a warning where rounds train at another share of labelled images than competitors use."""
    share, (low, high) = recipe.unlabeled.labeled_share, SAFE_SHARE
    if recipe.unlabeled.method != "rounds" or not isinstance(share, float) or low <= share <= high:
        return None
    return (
        f"unlabeled.labeled_share={share:g}: {low:.0%} to {high:.0%} labelled images a batch keep pseudo-labels from "
        "taking over; fewer follow the teacher's mistakes sooner, and more use little of the unlabelled images"
    )


def mixed_recipe(recipe: Recipe) -> Recipe:
    """Return the recipe of a training with unlabelled images: their own length and batch size in place of the usual."""
    own = recipe.unlabeled
    wanted = {"train.batch_size": own.batch_size, "timeline.length": own.length}
    return changed(recipe, {key: value for key, value in wanted.items() if value is not None})


def supervised_recipe(recipe: Recipe) -> Recipe:
    """Return the recipe of a training on the labelled images alone."""
    return changed(recipe, {"unlabeled.method": "off"})


def _refuse_other_sizes(recipe: Recipe, given: set[str], side: int) -> None:
    """Refuse sizes set by hand that the network cannot take."""
    sizes = {"start_size", "final_size"} & given
    by_hand = {f"timeline.{name}": getattr(recipe.timeline, name) for name in sorted(sizes)}
    if "feature_size" in recipe.model.model_fields_set:
        by_hand["model.feature_size"] = recipe.model.feature_size
    for phase in nominal_timeline(recipe).phases if recipe.timeline.phases else ():
        curve = phase.curve("image_size")
        by_hand |= {f"phase {phase.name!r}": round(curve.at(point)) for point in (0.0, 1.0)} if curve else {}
    for name, size in by_hand.items():
        if size != side:
            raise EtudeError(
                f"{name} asks for images of {size} px, and backbone {recipe.model.backbone!r} takes {side} px alone: "
                f"leave it out, or give {side}"
            )


def _in_multiples(recipe: Recipe, multiple: int) -> Recipe:
    """Give the network sides that are whole multiples; those set by hand must be."""
    sides = {"model.feature_size": recipe.model.feature_size, "timeline.size_multiple": recipe.timeline.size_multiple}
    for name, side in sides.items():
        section, leaf = name.split(".")
        if side % multiple and leaf in getattr(recipe, section).model_fields_set:
            raise EtudeError(
                f"{name}={side} is no multiple of {multiple} px, the patch of backbone {recipe.model.backbone!r}: give "
                f"{rounded(side, multiple)}, or leave it out"
            )
    size, step = sides.values()
    fitting = {
        "model.feature_size": rounded(size, multiple),
        "timeline.size_multiple": multiple if step % multiple else step,
    }
    return changed(recipe, fitting)
