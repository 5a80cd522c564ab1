"""The plan that is printed before the work starts, with the time each stage should take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from etude.core.errors import EtudeError
from etude.data.mix import epoch_images
from etude.recipe.settings import Recipe
from etude.recipe.sizes import image_sizes
from etude.recipe.timeline import resolved_timeline, timeline_of
from etude.study.mixture import labelled_share, mixed_recipe
from etude.study.speed import Speed, training_seconds
from etude.timeline import Pace

_SOLVER_STEPS = 50  # of L-BFGS, as seen on features of EfficientNet-Lite0
_FLOPS = 8e10  # a second, in float32 matrix products on two cores
_SECONDS_A_FIT = 0.1  # besides the arithmetic


@dataclass(frozen=True, slots=True)
class Amounts:
    """How many images each stage works on.

    Args:
        labelled: images with labels, validation included.
        train: training images of one fold.
        valid: validation images of one fold.
        test: images to predict.
        folds: models to train.
        unlabelled: images without labels, the test images aside.
    """

    labelled: int
    train: int
    valid: int
    test: int
    folds: int
    unlabelled: int = 0


def expected_seconds(
    recipe: Recipe,
    amounts: Amounts,
    decode: float,
    features: Speed | None,
    training: Speed | None,
    head_weights: int = 0,
) -> list[tuple[str, float]]:
    """Return (stage, seconds) for the stages of the recipe, in order.

    Args:
        decode: seconds an image to read, decode and resize, on all threads together.
        features: speed of the frozen backbone, or None without stage 1.
        training: speed of the trained backbone, or None without stage 2.
        head_weights: numbers in stage 1's head, features times classes.
    """
    stages = [("store", decode * (amounts.labelled + amounts.test + amounts.unlabelled))]
    if features is not None:
        views = recipe.head.views  # of each training image; folds share them
        seen = amounts.labelled + (views - 1) * (amounts.train if amounts.folds == 1 else amounts.labelled)
        stages.append(("features", features.infer_at(recipe.model.feature_size) * seen))
        stages.append(("head", _head_seconds(recipe, amounts, head_weights) * views * amounts.folds))
    if training is not None:
        timeline, steps = resolved_timeline(recipe, amounts.train, pace_of(training, recipe, amounts))
        one = training_seconds(training, timeline, steps, min(recipe.train.batch_size, amounts.train))
        stages.append(("fine-tune", one * amounts.folds))
        if recipe.unlabeled.is_on:
            stages.append(("unlabelled", _unlabelled_seconds(recipe, amounts, training) * amounts.folds))
    predictor = training or features
    size = image_sizes(recipe).final if training is not None else recipe.model.feature_size
    if predictor is not None and amounts.test:
        views = recipe.predict.tta * amounts.folds
        stages.append(("predict test", predictor.infer_at(size) * amounts.test * views))
    return stages


def pool_size(recipe: Recipe, amounts: Amounts) -> int:
    """Return how many unlabelled images there are to learn from, copies counted in."""
    return amounts.unlabelled + (amounts.test if recipe.unlabeled.use_test else 0)


def pace_of(training: Speed, recipe: Recipe, amounts: Amounts) -> Pace:
    """Return the measured seconds of a training step, by which lengths in minutes become steps."""
    return Pace(training.train * min(recipe.train.batch_size, amounts.train), training.size)


def _unlabelled_seconds(recipe: Recipe, amounts: Amounts, training: Speed) -> float:
    """Return seconds of all rounds on a fold; few runs come to the last of them."""
    recipe, rounds = mixed_recipe(recipe), recipe.unlabeled.rounds
    pool = pool_size(recipe, amounts)
    share = labelled_share(recipe, amounts.train, pool)
    images = epoch_images(amounts.train, pool, share)
    timeline, steps = resolved_timeline(recipe, images, pace_of(training, recipe, amounts))
    seconds = training_seconds(training, timeline, steps, recipe.train.batch_size)
    if recipe.unlabeled.method == "online":
        rounds, seconds = 1, seconds + training.infer * recipe.train.batch_size * (1 - share) * steps
    return rounds * (seconds + training.infer * pool * recipe.predict.tta)


def _head_seconds(recipe: Recipe, amounts: Amounts, weights: int) -> float:
    """Estimate the fits of the head from their arithmetic; right within a factor of about two."""
    searched = min(amounts.train, recipe.head.search_rows) * (recipe.head.folds - 1)
    candidates = len(recipe.head.inverse_regularization)
    rows = searched * candidates + amounts.train
    fits = recipe.head.folds * candidates + 1
    return 4.0 * weights * rows * _SOLVER_STEPS / _FLOPS + fits * _SECONDS_A_FIT


def at_trained_sizes(recipe: Recipe, warn: Callable[[str], None]) -> Recipe:
    """Return the recipe with the image sizes that training really takes: whole multiples of the timeline's.

    Validation and prediction then see images of the size that was trained at last. ``warn`` is told of any change.
    """
    asked, timeline = recipe.timeline, timeline_of(recipe)
    sizes = {"start_size": asked.start_size, "final_size": asked.final_size}
    taken = {name: timeline.rounded_size(size) for name, size in sizes.items()}
    changes = [f"timeline.{name} {size} becomes {taken[name]}" for name, size in sizes.items() if size != taken[name]]
    if changes and "finetune" in recipe.stages:
        warn(
            f"training takes multiples of {asked.size_multiple} px, so {' and '.join(changes)}; "
            "--set timeline.size_multiple=1 allows any size"
        )
    return recipe.model_copy(update={"timeline": asked.model_copy(update=taken)})


def refuse_single_images(recipe: Recipe, train: int) -> None:
    """Refuse steps of one image where batch norm needs statistics over several.

    Raises:
        EtudeError: with the settings to change.
    """
    if "finetune" in recipe.stages and recipe.train.batchnorm == "train" and min(recipe.train.batch_size, train) < 2:
        raise EtudeError(
            f"train.batch_size is {recipe.train.batch_size} with {train:,} training images, and train.batchnorm=train "
            "needs statistics over several images a step: give 2 or more, or --set train.batchnorm=keep"
        )


def in_words(stages: Sequence[tuple[str, float]]) -> str:
    """Return the stages with their times for the plan.

    >>> in_words([("features", 16.2), ("fine-tune", 245.0)])
    'features ~16 s, fine-tune ~4 min; about 4 min in all'
    """
    each = ", ".join(f"{name} {_about(seconds, '~')}" for name, seconds in stages)
    return f"{each}; {_about(sum(seconds for _, seconds in stages), 'about ')} in all"


def _about(seconds: float, sign: str) -> str:
    return duration(seconds) if seconds < 1 else f"{sign}{duration(seconds)}"


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
