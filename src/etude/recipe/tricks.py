"""The tricks of a recipe: what switches each on and off, so that a recipe can be had with and without it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from etude.core.errors import EtudeError, listed, nearest
from etude.recipe.load import flat
from etude.recipe.settings import Recipe, changed
from etude.recipe.timeline import timeline_of

Changes = dict[str, Any]
"""Settings by dotted name."""


@dataclass(frozen=True, slots=True)
class Trick:
    """One trick; ``on`` and ``off`` are the settings, by dotted name, with and without it."""

    name: str
    what: str
    on: Mapping[str, Any]
    off: Mapping[str, Any]
    stage: str | None = "finetune"  # a recipe without this stage cannot have it; None: any recipe can
    is_choice: bool = False  # on only where the settings equal `on`; otherwise on where they differ from `off`

    def is_on(self, recipe: Recipe) -> bool:
        """Whether a resolved recipe has it."""
        own = {key: list(value) if isinstance(value, tuple) else value for key, value in flat(recipe).items()}
        if self.is_choice:
            return all(own[key] == value for key, value in self.on.items())
        return any(own[key] != value for key, value in self.off.items())

    def changes(self, recipe: Recipe, on: bool) -> Changes:
        """Return the settings to change for the recipe to have it, or not."""
        return {} if self.is_on(recipe) == on else dict(self.on if on else self.off)

    def is_idle(self, recipe: Recipe) -> bool:
        """Whether the recipe is the same with and without it: it lacks the stage, or its timeline ignores it."""
        if self.stage is not None and self.stage not in recipe.stages:
            return True
        if not all(key.startswith("timeline.") for key in (*self.on, *self.off)):
            return False
        return timeline_of(changed(recipe, self.on)) == timeline_of(changed(recipe, self.off))


def _one(name: str, what: str, key: str, on: Any, off: Any, **more: Any) -> Trick:
    """Return a trick that one setting switches."""
    return Trick(name, what, {key: on}, {key: off}, **more)


_TRIVIAL = "one random change of random strength an image, in place of the policy for these images"
_BOTH = ["head", "finetune"]
_ALL = (
    _one("warmup", "the learning rate climbs from 0 at the start", "timeline.warmup", 0.1, "1st"),
    _one("augment", "random changes of the training images", "augment.policy", "auto", "none"),
    _one("trivial", _TRIVIAL, "augment.policy", "trivial", "auto", is_choice=True),
    _one("fade", "augmentation fades out at the end, not at once", "timeline.fade", True, False),
    _one("mixup", "blends of two images and their targets", "augment.mixup", 0.2, 0.0),
    _one("cutmix", "a box of one image in another", "augment.cutmix", 1.0, 0.0),
    _one("label-smoothing", "a share of each target spread over all classes", "train.label_smoothing", 0.1, 0.0),
    _one("dropout", "features dropped before the head", "train.dropout", 0.2, 0.0),
    _one("drop-path", "residual blocks skipped at random", "train.drop_path", 0.1, 0.0),
    _one("weight-decay", "weights pulled towards 0", "train.weight_decay", 0.02, 0.0),
    _one("clip", "gradients kept below a norm", "train.clip", 1.0, 0.0),
    _one("ema", "a moving average of the weights", "train.ema", 0.98, 0.0),
    Trick(
        "swa",
        "the equal average of the weights over the last phase, in place of ema's",
        {"train.swa": True, "train.ema": 0.0},
        {"train.swa": False},
        is_choice=True,
    ),
    _one("layer-decay", "lower learning rates towards the image", "train.layer_decay", 0.93, 1.0),
    _one("freeze", "the first layers kept as they are", "train.freeze", 0.35, 0.0),
    _one("freeze-depthwise", "depthwise filters kept as they are", "train.freeze_depthwise", True, False),
    _one("batch-growth", "larger batches at the end", "timeline.batch_growth", 4.0, 1.0),
    *(
        _one(name, what, "timeline.preset", preset, "default", is_choice=True)
        for name, preset, what in (
            ("resize", "progressive", "small images first, then growing ones"),
            ("one-cycle", "one-cycle", "one rise and one fall of the learning rate"),
            ("cyclic", "cyclic", "triangles of the learning rate"),
            ("plateau", "plateau", "a learning rate that falls when a metric stops improving"),
        )
    ),
    _one(
        "head", "stage 1: a linear head on frozen features, kept where it is the better one", "stages", _BOTH, _BOTH[1:]
    ),
    _one("levels", "frozen features of several depths", "model.levels", 3, 0, stage="head"),
    _one("views", "a head fitted on augmented views too", "head.views", 4, 1, stage="head"),
    _one("tta", "predictions averaged over views", "predict.tta", 4, 1, stage=None),
)

TRICKS = {trick.name: trick for trick in _ALL}
"""All tricks by name, in the order of reports."""


def tricks_named(names: Sequence[str], recipe: Recipe | None = None) -> tuple[Trick, ...]:
    """Return the tricks of these names, once each; a resolved recipe must differ with and without each of them."""
    found: list[Trick] = []
    for name in dict.fromkeys(name.strip() for name in names if name.strip()):
        if name not in TRICKS:
            raise EtudeError(f"there is no trick {name!r}; the tricks are {', '.join(TRICKS)}.{nearest(name, TRICKS)}")
        found.append(TRICKS[name])
    if not found:
        raise EtudeError(f"--tricks names no trick; the tricks are {', '.join(TRICKS)}")
    if recipe is not None and (idle := [trick.name for trick in found if trick.is_idle(recipe)]):
        raise EtudeError(
            f"recipe {recipe.name!r} is the same with and without {listed(idle)}: leave that out, or choose a recipe "
            "that has a use for it"
        )
    return tuple(found)


def tricks_of(recipe: Recipe) -> tuple[Trick, ...]:
    """Return the tricks that a resolved recipe has."""
    return tuple(trick for trick in TRICKS.values() if not trick.is_idle(recipe) and trick.is_on(recipe))


def switched(recipe: Recipe, tricks: Sequence[Trick], on: Collection[str]) -> Changes:
    """Return the settings to change for a resolved recipe to have those of the ``tricks`` that ``on`` names, no others.

    Two of them may need different values of one setting, such as two shapes of the learning rate: EtudeError.
    """
    changes: Changes = {}
    for trick in tricks:
        changes |= trick.changes(recipe, trick.name in on)
    made = changed(recipe, changes)
    if odd := [trick.name for trick in tricks if trick.is_on(made) != (trick.name in on)]:
        wanted = ", ".join(trick.name for trick in tricks if trick.name in on) or "none"
        raise EtudeError(
            f"{listed(odd)} shares a setting with another of {', '.join(trick.name for trick in tricks)}, so there is "
            f"no recipe with just these on: {wanted}; give fewer --tricks, or --mode add-one-in, which has one on at a "
            "time"
        )
    return changes
