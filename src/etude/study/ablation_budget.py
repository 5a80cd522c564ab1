"""How a time limit divides itself over the runs of an ablation: how many epochs and seeds fit."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from etude.core.errors import EtudeError
from etude.models.device import best_device, choose_precision
from etude.recipe import Recipe
from etude.recipe.sizes import image_sizes
from etude.study.backbone import trainable_backbone
from etude.study.doctor import Subject
from etude.study.frozen import build_frozen
from etude.study.plan import Amounts, duration, expected_seconds
from etude.study.speed import Speed, measure_speed

FEWEST_SEEDS = 3  # that a time limit leaves; asked for by hand, two are enough
SHORTEST = 0.25  # of the recipe's epochs: a shorter training is another one, in which other tricks help
_STARTING = 3.0  # seconds of a run besides its stages: reading, planning, writing

_TRAINED = ("freeze", "freeze_depthwise", "batchnorm", "precision")  # settings of a step's time


@dataclass(frozen=True, slots=True)
class Cost:
    """Expected seconds of one run.

    Args:
        fixed: whatever its length.
        training: fine-tuning over all epochs of the recipe.
    """

    fixed: float
    training: float


@dataclass(frozen=True, slots=True)
class Division:
    """What is run.

    Args:
        seeds: of every arm.
        epochs: of every run, or None for the recipe's own length.
        seconds: that it should take in all; None where that is not known.
    """

    seeds: int
    epochs: float | None
    seconds: float | None


def divide(costs: Mapping[str, Cost], once: float, budget: float | None, seeds: int, epochs: float | None) -> Division:
    """Return how many epochs and seeds fit into a time limit: epochs give way first, to a quarter of the recipe's.

    Args:
        costs: of a run of each arm.
        once: seconds of what all runs share.
        budget: in seconds; None for no limit.
        seeds: asked for.
        epochs: of the recipe, or None where its length is not given by epochs and so stays.

    Raises:
        EtudeError: not even the shortest training on the fewest seeds fits.

    >>> divide({"full": Cost(5.0, 60.0), "bare": Cost(5.0, 60.0)}, 10.0, 300.0, seeds=5, epochs=8.0)
    Division(seeds=5, epochs=3.2, seconds=300.0)
    """
    fixed = sum(cost.fixed for cost in costs.values())
    training = sum(cost.training for cost in costs.values())

    def seconds(count: int, share: float = 1.0) -> float:
        return once + count * (fixed + share * training)

    least = 1.0 if epochs is None else min(1.0, max(SHORTEST, 1.0 / epochs))
    for count in range(seeds, min(seeds, FEWEST_SEEDS) - 1, -1):
        if budget is None or seconds(count) <= budget:
            return Division(count, None, seconds(count))
        if epochs is not None and seconds(count, least) <= budget:
            share = (budget - seconds(count, 0.0)) / (count * training)
            fitting = max(least * epochs, math.floor(10.0 * share * epochs) / 10.0)
            return Division(count, fitting, seconds(count, fitting / epochs))
    count = min(seeds, FEWEST_SEEDS)
    length = "" if epochs is None else f" of {least * epochs:.3g} epochs"
    raise EtudeError(
        f"--budget {duration(budget or 0.0)} is too short: {len(costs)} arms by {count} seeds{length} take about "
        f"{duration(seconds(count, least))} here; give more time, fewer --tricks, a smaller network or --sample"
    )


def costs_of(recipes: Mapping[str, Recipe], subject: Subject) -> tuple[dict[str, Cost], float]:
    """Return the expected cost of a run of each arm, and the seconds of what all share, measured on this machine.

    Args:
        recipes: of the arms, resolved.
        subject: the images.
    """
    speeds: dict[tuple[object, ...], Speed] = {}
    costs: dict[str, Cost] = {}
    once = 0.0
    for name, recipe in recipes.items():
        stages = dict(_stages(recipe, subject, speeds))
        once = max(once, stages.get("store", 0.0) + stages.get("features", 0.0))
        costs[name] = Cost(_STARTING + stages.get("head", 0.0) + stages["predict"], stages.get("fine-tune", 0.0))
    return costs, once


def _stages(recipe: Recipe, subject: Subject, speeds: dict[tuple[object, ...], Speed]) -> list[tuple[str, float]]:
    """Return (stage, seconds) of one arm's run; ``speeds`` keeps what was measured for the next."""
    assert subject.images is not None
    images, classes = len(subject.images), len(subject.images.classes)
    held_out = max(1, round(images * recipe.data.valid))
    amounts = Amounts(images, max(1, images - held_out), held_out, 0, folds=1)
    precision = choose_precision(recipe.train.precision, best_device())
    frozen = build_frozen(recipe, subject.channels)
    features = training = None
    if frozen is not None:
        key = ("frozen", frozen.name, frozen.levels, recipe.model.feature_size)
        if key not in speeds:
            speeds[key] = measure_speed(frozen.backbone, recipe.model.feature_size, precision)
        features = speeds[key]
    if "finetune" in recipe.stages:
        key = ("trained", recipe.model.backbone, image_sizes(recipe).first)
        key += tuple(getattr(recipe.train, name) for name in _TRAINED)
        if key not in speeds:
            backbone = trainable_backbone(recipe, subject.channels, precision)
            speeds[key] = measure_speed(backbone, image_sizes(recipe).first, precision)
        training = speeds[key]
    width = 0 if frozen is None else frozen.backbone.num_features
    stages = expected_seconds(recipe, amounts, 0.0, features, training, width * classes)
    views, predictor = recipe.predict.tta + 1, training or features
    size = image_sizes(recipe).final if training is not None else recipe.model.feature_size
    predicting = 0.0 if predictor is None else predictor.infer_at(size) * held_out * views
    return [*stages, ("predict", predicting)]
