"""The design of an ablation: its arms, what is compared, and how many epochs and seeds fit into a time limit."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from etude.core.errors import EtudeError, nearest
from etude.core.metrics import Metric
from etude.core.text import rough_duration
from etude.models.device import best_device, choose_precision
from etude.recipe import Recipe
from etude.recipe.timeline import image_sizes
from etude.recipe.tricks import Changes, Trick, switched
from etude.study.doctor.doctor import Subject, stage_seconds
from etude.study.run.frozen import build_frozen, trainable_backbone
from etude.study.run.plan import Speed, measure_speed

Mode = Literal["leave-one-out", "add-one-in"]
MODES: dict[str, tuple[Mode, ...]] = {**{mode: (mode,) for mode in get_args(Mode)}, "both": get_args(Mode)}


@dataclass(frozen=True, slots=True)
class Contrast:
    """Two arms, by name, that differ in one trick."""

    trick: str
    mode: Mode
    without: str
    with_it: str


@dataclass(frozen=True, slots=True)
class Design:
    """What each arm changes in the recipe, by its name, and the contrasts between arms."""

    arms: Mapping[str, Changes]
    contrasts: Sequence[Contrast]

    @property
    def baselines(self) -> tuple[str, ...]:
        """Names of the arms that others are compared with: without them there is no result."""
        return tuple(name for name in self.arms if name in ("full", "bare"))


def modes_named(mode: str) -> tuple[Mode, ...]:
    if mode not in MODES:
        raise EtudeError(f"--mode is {mode!r}; give {', '.join(MODES)}.{nearest(mode, MODES)}")
    return MODES[mode]


def design_of(recipe: Recipe, tricks: Sequence[Trick], modes: Sequence[Mode]) -> Design:
    """Return the arms for tricks of a resolved recipe; arms that come to the same are trained once.

    Leave-one-out compares the recipe with all of the tricks, ``full``, with all but one; add-one-in the recipe with
    none of them, ``bare``, with one alone.
    """
    names = {trick.name for trick in tricks}
    arms: dict[frozenset[str], tuple[str, Changes]] = {}

    def arm(name: str, on: set[str]) -> str:
        return arms.setdefault(frozenset(on), (name, switched(recipe, tricks, on)))[0]

    bases = {mode: arm("full", names) if mode == "leave-one-out" else arm("bare", set()) for mode in modes}
    contrasts: dict[tuple[str, str], Contrast] = {}
    for mode in modes:
        for trick in tricks:
            if mode == "leave-one-out":
                ends = arm(f"without-{trick.name}", names - {trick.name}), bases[mode]
            else:
                ends = bases[mode], arm(f"with-{trick.name}", {trick.name})
            contrasts.setdefault(ends, Contrast(trick.name, mode, *ends))
    return Design(dict(arms.values()), tuple(contrasts.values()))


BUDGET_SEEDS = 3  # that a time limit leaves; given by hand, two are enough
SHORTEST = 0.25  # of the recipe's epochs: a shorter training is another one, in which other tricks help
_STARTING = 3.0  # seconds of a run besides its stages: reading, planning, writing

_TRAINED = ("freeze", "freeze_depthwise", "batchnorm", "precision")  # settings of a step's time


class Cost(NamedTuple):
    """Expected seconds of one run: of what does not depend on its length, and of fine-tuning over all its epochs."""

    fixed: float
    training: float


class Division(NamedTuple):
    """What is run: the seeds of every arm, epochs (None for the recipe's own length), and expected seconds in all."""

    seeds: int
    epochs: float | None = None
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class AblationPlan:
    """What is settled before the first run."""

    recipe: Recipe  # resolved for the images
    tricks: Sequence[Trick]
    mode: str
    metric: Metric
    design: Design
    division: Division
    inputs: Mapping[str, str]  # fingerprints
    limit: float | None = None  # seconds for everything, the time before a resume included


def divide(costs: Mapping[str, Cost], once: float, budget: float | None, seeds: int, epochs: float | None) -> Division:
    """Return how many epochs and seeds fit into ``budget`` seconds: epochs are cut first, to a quarter of the recipe's.

    ``once`` is what all runs share; ``epochs`` is None where the length is not given by epochs, and so stays.
    """
    fixed = sum(cost.fixed for cost in costs.values())
    training = sum(cost.training for cost in costs.values())

    def seconds(count: int, share: float = 1.0) -> float:
        return once + count * (fixed + share * training)

    least = 1.0 if epochs is None else min(1.0, max(SHORTEST, 1.0 / epochs))
    for count in range(seeds, min(seeds, BUDGET_SEEDS) - 1, -1):
        if budget is None or seconds(count) <= budget:
            return Division(count, None, seconds(count))
        if epochs is not None and seconds(count, least) <= budget:
            share = (budget - seconds(count, 0.0)) / (count * training)
            fitting = max(least * epochs, math.floor(10.0 * share * epochs) / 10.0)
            return Division(count, fitting, seconds(count, fitting / epochs))
    count = min(seeds, BUDGET_SEEDS)
    length = "" if epochs is None else f" of {least * epochs:.3g} epochs"
    raise EtudeError(
        f"--budget {rough_duration(budget or 0.0)} is too short: {len(costs)} arms by {count} seeds{length} take about "
        f"{rough_duration(seconds(count, least))} here; give more time, fewer --tricks, a smaller network or --sample"
    )


def costs_of(recipes: Mapping[str, Recipe], subject: Subject) -> tuple[dict[str, Cost], float]:
    """Return the expected cost of a run of each arm, and the seconds of what all share, measured on this machine."""
    speeds: dict[tuple[object, ...], Speed] = {}
    costs: dict[str, Cost] = {}
    once = 0.0
    for name, recipe in recipes.items():
        stages = dict(_stages(recipe, subject, speeds))
        once = max(once, stages.get("store", 0.0) + stages.get("features", 0.0))
        costs[name] = Cost(_STARTING + stages.get("head", 0.0) + stages["predict"], stages.get("fine-tune", 0.0))
    return costs, once


def _stages(recipe: Recipe, subject: Subject, speeds: dict[tuple[object, ...], Speed]) -> list[tuple[str, float]]:
    """Return (stage, seconds) of one arm's run; ``speeds`` keeps what was measured for the next arm."""
    assert subject.images is not None
    channels, precision = subject.facts.channels, choose_precision(recipe.train.precision, best_device())
    frozen, features, training = build_frozen(recipe, channels), None, None
    size = recipe.model.feature_size
    if frozen is not None:
        key = ("frozen", frozen.name, frozen.levels, size)
        features = speeds.get(key) or measure_speed(frozen.backbone, size, precision)
        speeds[key] = features
    if "finetune" in recipe.stages:
        first, size = image_sizes(recipe).first, image_sizes(recipe).final
        key = ("trained", recipe.model.backbone, first, *(getattr(recipe.train, name) for name in _TRAINED))
        training = speeds.get(key) or measure_speed(trainable_backbone(recipe, channels, precision), first, precision)
        speeds[key] = training
    stages = stage_seconds(recipe, subject.images, 0.0, frozen, features, training)
    predictor, predicted = training or features, max(1, round(len(subject.images) * recipe.data.valid))
    seconds = 0.0 if predictor is None else predictor.infer_at(size) * predicted * (recipe.predict.tta + 1)
    return [*stages, ("predict", seconds)]
