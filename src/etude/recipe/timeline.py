"""A recipe's timeline: from settings to phases, and from phases to the steps of a run of known size."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from typing import NamedTuple, cast

from etude.core.errors import EtudeError
from etude.recipe.phases import timeline_of
from etude.recipe.ramp import with_ramp
from etude.recipe.settings import PlateauSettings, Recipe, Settings
from etude.timeline import Moment, Pace, Phase, RunSize, Timeline, parse_length

__all__ = [
    "needs_pace",
    "nominal_timeline",
    "resolved_run",
    "resolved_timeline",
    "run_size",
    "run_steps",
    "timeline_of",
    "timeline_warnings",
]

SMALLEST_SIZE, LARGEST_SIZE = 8, 2048  # sides in pixels that the settings accept
SAMPLES = 512  # points of the run at which batch and image sizes are read for their means
SHAPING = ("warmup", "cycle", "batch_scaling", "base_batch_size")  # have a say in some timelines only
ROUNDS = 20  # at most; a few settle how lengths, batch sizes and the number of steps depend on each other


class _Mean(NamedTuple):
    """What a step takes on the average of a run."""

    images: float
    seconds: float | None


def needs_pace(recipe: Recipe) -> bool:
    """Return whether a step must be timed before the run's steps are known: some length is in minutes or seconds.

    >>> needs_pace(Recipe())
    False
    """
    if "finetune" not in recipe.stages:
        return False
    lengths = [recipe.timeline.length, *_lengths(timeline_of(recipe).phases)]
    if recipe.train.validate_every != "auto":
        lengths.append(recipe.train.validate_every)
    return any(parse_length(length)[1] == "s" for length in lengths if length is not None)


def run_steps(recipe: Recipe, images: int, pace: Pace | None = None) -> int:
    """Return the optimiser steps of the recipe's run over ``images`` training images.

    The length of the run is ``timeline.length``; else the sum of phases that all have fixed lengths; else
    ``train.epochs``. Batches run on from epoch to epoch, so no image is left out.

    Args:
        pace: of a step at ``train.batch_size``; needed when something counts in minutes (:func:`needs_pace`).

    Raises:
        EtudeError: the lengths do not fit the run, or the pace is missing.

    >>> run_steps(Recipe(), images=100)
    25
    """
    return run_size(recipe, images, pace).steps


def resolved_run(recipe: Recipe, images: int, pace: Pace | None = None) -> tuple[Timeline, RunSize]:
    """Return the resolved timeline with the steps of the run and of an epoch; errors as :func:`run_steps`."""
    if images < 1:
        raise ValueError(f"a run needs at least 1 training image, got {images}")
    timeline = timeline_of(recipe)
    if pace is None and needs_pace(recipe):
        raise EtudeError(
            f"recipe {recipe.name!r} counts in minutes or seconds, so the time of a step must be known before its "
            "steps are; give a pace, or lengths in epochs ('3ep'), steps ('500st') or shares"
        )
    try:
        plan, size = _fixed_point(timeline, recipe, images, pace)
    except (ValueError, ArithmeticError) as error:
        raise EtudeError(f"recipe {recipe.name!r}: {error} ({_length_in_words(recipe, timeline)})") from None
    _check_sizes(recipe, plan)
    if recipe.unlabeled.method == "online":
        plan = with_ramp(plan, recipe.unlabeled.weight, *recipe.unlabeled.ramp)
    return plan, size


def run_size(recipe: Recipe, images: int, pace: Pace | None = None) -> RunSize:
    """Return the steps of the run, and of an epoch at its mean batch size; the same errors as :func:`run_steps`."""
    return resolved_run(recipe, images, pace)[1]


def resolved_timeline(recipe: Recipe, images: int, pace: Pace | None = None) -> tuple[Timeline, int]:
    """Return the timeline resolved for ``images`` training images, and its steps; errors as :func:`run_steps`.

    >>> timeline, steps = resolved_timeline(Recipe(), images=100)
    >>> timeline.is_resolved, steps
    (True, 25)
    """
    timeline, size = resolved_run(recipe, images, pace)
    return timeline, size.steps


def nominal_timeline(recipe: Recipe) -> tuple[Timeline, int]:
    """Return the timeline as it is on images of no particular number: for a figure, or a look ahead.

    Raises:
        EtudeError: its lengths fit no run.
    """
    refusal = EtudeError("")
    for epoch_steps in (1_000, 20, 50_000, 5, 1):
        for seconds in (0.1, 10.0, 0.001) if needs_pace(recipe) else (0.1,):
            try:
                return resolved_timeline(recipe, epoch_steps * recipe.train.batch_size, Pace(seconds))
            except EtudeError as error:
                refusal = error
    raise refusal


def timeline_warnings(
    recipe: Recipe, median_side: int | None = None, timeline: Timeline | None = None, given: Recipe | None = None
) -> list[str]:
    """Return what is allowed but seldom meant, a sentence each.

    Told are a last phase that ends with images still changed, image sizes asked for that are above the images' own,
    learning rates that jump, and settings that change nothing.

    Args:
        median_side: median of the images' shorter sides in pixels, where it is known.
        timeline: resolved for the run, where its size is known.
        given: the recipe as it was before its open settings were decided, which tells what was asked for by hand.

    Raises:
        EtudeError: the settings make no timeline.

    >>> timeline_warnings(Recipe(), median_side=300)
    []
    """
    plan = timeline or nominal_timeline(recipe)[0]
    end = plan.at(1.0)
    told = [_unsettled(end), _enlarged(given or recipe, plan, median_side)]
    return [sentence for sentence in told if sentence] + [*_idle(recipe), *plan.jumps()]


def _unsettled(end: Moment) -> str:
    values = {"augment": end.augment, "mixup": end.mixup, "cutmix": end.cutmix}
    on = [f"{name}={value:g}" for name, value in values.items() if value]
    if not on:
        return ""
    return (
        f"the last phase {end.phase!r} ends with {' and '.join(on)}, so the network ends on images unlike those it "
        "will see; set them to 0 in that phase, or let them fall to 0"
    )


def _enlarged(recipe: Recipe, plan: Timeline, median_side: int | None) -> str:
    """Sizes that nobody asked for are left alone: a pretrained network wants the size it was trained at."""
    asked = recipe.timeline.phases or {"start_size", "final_size"} & recipe.timeline.model_fields_set
    size = plan.largest_size(SAMPLES)
    if median_side is None or not asked or size - plan.size_multiple < median_side:
        return ""
    return (
        f"the timeline takes images to {size:,} px, above their own median side of {median_side:,} px: enlarging takes "
        f"time and brings no detail; about {plan.rounded_size(median_side):,} px show all there is"
    )


def _idle(recipe: Recipe) -> Iterator[str]:
    """Yield settings that were given, but leave the timeline as it is without them."""
    plan = timeline_of(recipe)
    kind = "phases of your own" if recipe.timeline.phases else f"the timeline {recipe.timeline.preset!r}"
    shapes = {"timeline": SHAPING, "plateau": PlateauSettings.model_fields.keys()}
    for section, names in shapes.items():
        settings: Settings = getattr(recipe, section)
        for name in sorted(settings.model_fields_set & set(names)):
            value, default = getattr(settings, name), type(settings).model_fields[name].default
            without = recipe.model_copy(update={section: settings.model_copy(update={name: default})})
            if value != default and timeline_of(without) == plan:
                yield f"{section}.{name}={value} changes nothing in {kind}"


def _fixed_point(timeline: Timeline, recipe: Recipe, images: int, pace: Pace | None) -> tuple[Timeline, RunSize]:
    """Resolve the timeline though its steps may depend on batch and image sizes, which depend on its steps.

    The first guess is a long run, into which every fixed length fits.
    """
    batch = min(recipe.train.batch_size, images)
    varied = "batch_size" in timeline.quantities()
    mean = _Mean(1.0 if varied else batch, pace and pace.at(recipe.timeline.final_size) * 0.05)
    plan, size = timeline, RunSize(1)
    for _ in range(ROUNDS):
        size = RunSize(_steps(recipe, timeline, images / mean.images, mean.seconds, pace), images / mean.images, pace)
        plan = timeline.resolved(size)
        if not varied and (recipe.timeline.length is None or pace is None):
            break
        before, mean = mean, _mean(plan, batch, images, pace)
        if math.isclose(before.images, mean.images) and math.isclose(before.seconds or 0.0, mean.seconds or 0.0):
            break
    return plan, size


def _steps(recipe: Recipe, timeline: Timeline, epoch_steps: float, seconds: float | None, pace: Pace | None) -> int:
    length = recipe.timeline.length
    if length is None:
        fixed = timeline.fixed_steps(epoch_steps, pace)
        return max(1, round(recipe.train.epochs * epoch_steps if fixed is None else fixed))
    amount, unit = parse_length(length)
    in_unit: dict[str, Callable[[], float]] = {
        "st": lambda: amount,
        "ep": lambda: amount * epoch_steps,
        "s": lambda: amount / (seconds or 1.0),
    }
    return max(1, round(in_unit[unit]()))


def _mean(plan: Timeline, batch: int, images: int, pace: Pace | None) -> _Mean:
    def size(moment: Moment) -> int:
        return batch if moment.batch_size is None else min(moment.batch_size, images)

    moments = list(plan.moments(SAMPLES))
    seconds = pace and math.fsum(pace.at(moment.image_size) * size(moment) / batch for moment in moments) / SAMPLES
    return _Mean(math.fsum(size(moment) for moment in moments) / SAMPLES, seconds)


def _check_sizes(recipe: Recipe, plan: Timeline) -> None:
    sizes = [moment.image_size or SMALLEST_SIZE for moment in plan.moments(SAMPLES)]
    if min(sizes) < SMALLEST_SIZE or max(sizes) > LARGEST_SIZE:
        raise EtudeError(
            f"recipe {recipe.name!r} takes images from {min(sizes):,.6g} to {max(sizes):,.6g} px; "
            f"give sizes from {SMALLEST_SIZE} to {LARGEST_SIZE:,}"
        )


def _length_in_words(recipe: Recipe, timeline: Timeline) -> str:
    if recipe.timeline.length is not None:
        return f"the run's length is timeline.length={recipe.timeline.length}"
    if not any(phase.is_share for phase in timeline.phases):
        return "the run's length is the sum of its phases'"
    return f"the run's length is train.epochs={recipe.train.epochs:g}"


def _lengths(tree: object) -> Iterator[str]:
    """Yield every length written with a unit in phases and the curves within them."""
    if isinstance(tree, Phase):
        yield from _lengths((tree.length, *tree.curves().values()))
    elif isinstance(tree, str):
        yield tree
    elif isinstance(tree, tuple):
        for part in cast(tuple[object, ...], tree):
            yield from _lengths(part)
    elif is_dataclass(tree):
        yield from _lengths(tuple(getattr(tree, field.name) for field in fields(tree)))
