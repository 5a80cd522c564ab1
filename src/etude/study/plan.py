"""The plan that is printed before the work starts, with the time each stage should take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from etude.recipe.settings import Recipe
from etude.study.speed import Speed, training_seconds
from etude.training.fit import timeline_of, total_steps


@dataclass(frozen=True, slots=True)
class Amounts:
    """How many images each stage works on.

    Args:
        labelled: images with labels, validation included.
        train: training images of one fold.
        valid: validation images of one fold.
        test: images to predict.
        folds: models to train.
    """

    labelled: int
    train: int
    valid: int
    test: int
    folds: int


def expected_seconds(
    recipe: Recipe, amounts: Amounts, decode: float, features: Speed | None, training: Speed | None
) -> list[tuple[str, float]]:
    """Return (stage, seconds) for the stages of the recipe, in order.

    Args:
        decode: seconds an image to read, decode and resize, on all threads together.
        features: speed of the frozen backbone, or None without stage 1.
        training: speed of the trained backbone, or None without stage 2.
    """
    stages = [("store", decode * (amounts.labelled + amounts.test))]
    if features is not None:
        stages.append(("features", features.infer_at(recipe.model.feature_size) * amounts.labelled))
    if training is not None:
        steps = total_steps(recipe, amounts.train)
        one = training_seconds(training, timeline_of(recipe), steps, min(recipe.train.batch_size, amounts.train))
        stages.append(("fine-tune", one * amounts.folds))
    predictor = training or features
    size = recipe.timeline.final_size if training is not None else recipe.model.feature_size
    if predictor is not None and amounts.test:
        views = recipe.predict.tta * amounts.folds
        stages.append(("predict test", predictor.infer_at(size) * amounts.test * views))
    return stages


def in_words(stages: Sequence[tuple[str, float]]) -> str:
    """Return the stages with their times for the plan.

    >>> in_words([("features", 16.2), ("fine-tune", 245.0)])
    'features ~16 s, fine-tune ~4 min; about 4 min in all'
    """
    each = ", ".join(f"{name} ~{duration(seconds)}" for name, seconds in stages)
    return f"{each}; about {duration(sum(seconds for _, seconds in stages))} in all"


def duration(seconds: float) -> str:
    """Return seconds as a person would say them.

    >>> duration(0.4), duration(59), duration(600), duration(9000)
    ('<1 s', '59 s', '10 min', '2.5 h')
    """
    if seconds < 1:
        return "<1 s"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
