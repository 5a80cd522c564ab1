"""A recipe's timeline: from settings to phases, and from phases to the steps of a run of known size."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, cast

from etude.core.errors import EtudeError, listed
from etude.recipe.settings import PlateauSettings, Recipe, Settings, changed
from etude.timeline import (
    QUANTITIES,
    Constant,
    Curve,
    Joined,
    Linear,
    Moment,
    Pace,
    Phase,
    Plateau,
    RunSize,
    Scaled,
    Shape,
    Timeline,
    parse_length,
    preset,
    step_progress,
)
from etude.timeline.curves import lengths_in
from etude.timeline.plan import rounded
from etude.timeline.tree import phase_from_tree

METRICS = ("valid_loss", "valid_accuracy")
SMALLEST_SIZE, LARGEST_SIZE = 8, 2048  # sides in pixels that the settings accept
SAMPLES = 512  # points of the run at which batch and image sizes are read for their means
SHAPING = ("warmup", "cycle", "batch_scaling", "base_batch_size")  # settings that shape some timelines only
_known_moments: dict[str, list[Moment]] = {}  # of the last recipe: a run reads them a dozen times
ROUNDS = 20  # at most; a few settle how lengths, batch sizes and the number of steps depend on each other


def timeline_of(recipe: Recipe) -> Timeline:
    """Return the timeline that the recipe describes, its lengths as they were written.

    Every phase schedules the learning rate, the image size and the augmentation, and what any phase schedules: where
    a phase of your own leaves something out, the recipe's constant stands, so that no moment depends on the past.
    """
    try:
        timeline = _of_own_phases(recipe) if recipe.timeline.phases else _of_preset(recipe)
        return _completed(timeline, recipe)
    except (ValueError, ArithmeticError) as error:
        where = ", timeline.phases" if recipe.timeline.phases else ""
        raise EtudeError(f"recipe {recipe.name!r}{where}: {error}") from None


def _of_preset(recipe: Recipe) -> Timeline:
    shape, train = recipe.timeline, recipe.train
    start, final = shape.growing_sizes(shape.model_fields_set)
    if start > final:
        raise ValueError(
            f"timeline.start_size={start} is above timeline.final_size={final}; images grow during training or stay as "
            "they are, so lower the first or raise the second"
        )
    base = shape.base_batch_size or train.batch_size
    own = {name: getattr(shape, name) for name in ("size_multiple", "warmup", "finish", "cycle", "fade")}
    own |= {"mixup": recipe.augment.mixup, "cutmix": recipe.augment.cutmix, "batch_size": train.batch_size}
    own |= {"base_batch_size": base, "plateau": _plateau(recipe.plateau)}
    plan = preset(shape.preset, Shape(train.lr, start, final, **own))
    scaling = shape.batch_scaling if "batch_scaling" in shape.model_fields_set else plan.batch_scaling
    changes = shape.batch_growth != 1.0 or (scaling != "none" and base != train.batch_size)
    sizes = _growing_batches(train.batch_size, shape.batch_growth, len(plan.phases))
    phases = (
        replace(phase, batch_size=size if changes else None) for phase, size in zip(plan.phases, sizes, strict=True)
    )
    return replace(plan, phases=tuple(phases), batch_scaling=scaling, base_batch_size=base)


def _of_own_phases(recipe: Recipe) -> Timeline:
    shape = recipe.timeline
    phases: list[Phase] = []
    for number, table in enumerate(shape.phases, 1):
        phase = phase_from_tree(table, f"phase {number}")
        if phase.plateau is not None and phase.plateau.metric not in METRICS:
            raise ValueError(
                f"phase {phase.name!r} watches the metric {phase.plateau.metric!r}; the metrics are {listed(METRICS)}"
            )
        lr = phase.curve("lr")
        phases.append(replace(phase, lr=None if lr is None else Scaled(lr, recipe.train.lr)))
    base = shape.base_batch_size or recipe.train.batch_size
    return Timeline(tuple(phases), shape.size_multiple, shape.batch_scaling, base)


def _plateau(settings: PlateauSettings) -> Plateau:
    values: dict[str, Any] = settings.model_dump()
    if settings.mode == "auto":
        values["mode"] = "max" if settings.metric == "valid_accuracy" else "min"
    return Plateau(**values)


def _growing_batches(batch_size: int, growth: float, phases: int) -> Iterator[Curve]:
    """Yield the batch sizes of each phase: constant, growing in the last but one, and grown in the last."""
    for left in reversed(range(phases)):
        start, end = (1.0 if left else growth), (1.0 if left > 1 else growth)
        yield Constant(batch_size * start) if start == end else Linear(batch_size * start, batch_size * end)


def _completed(timeline: Timeline, recipe: Recipe) -> Timeline:
    """Schedule in every phase what any phase schedules, and drop what changes nothing."""
    train, augment = recipe.train, recipe.augment
    constants: dict[str, float] = {
        "lr": train.lr,
        "momentum": train.momentum,
        "image_size": recipe.timeline.growing_sizes(recipe.timeline.model_fields_set)[1],
        "augment": 1.0,
        "mixup": augment.mixup,
        "cutmix": augment.cutmix,
        "dropout": train.dropout,
        "drop_path": train.drop_path,
        "batch_size": train.batch_size,
        "label_smoothing": train.label_smoothing,
        "unlabeled_weight": recipe.unlabeled.weight,
    }
    given = {quantity: [phase.curve(quantity) for phase in timeline.phases] for quantity in QUANTITIES}
    on = {quantity for quantity, curves in given.items() if any(curve is not None for curve in curves)}
    on |= {"lr", "image_size", "augment"} | {quantity for quantity in ("mixup", "cutmix") if constants[quantity]}
    on -= {
        quantity
        for quantity in ("mixup", "cutmix")
        if not constants[quantity] and all(curve in (None, Constant(0.0)) for curve in given[quantity])
    }

    def whole(phase: Phase) -> Phase:
        curves = {name: phase.curve(name) or constants.get(name) if name in on else None for name in QUANTITIES}
        return replace(phase, **cast(dict[str, Any], curves))

    follows = "batch_size" in on and timeline.batch_scaling != "none"
    return replace(
        timeline,
        phases=tuple(whole(phase) for phase in timeline.phases),
        batch_scaling=timeline.batch_scaling if follows else "none",
        base_batch_size=timeline.base_batch_size if follows else None,
    )


def needs_pace(recipe: Recipe) -> bool:
    """Return whether a step must be timed before the run's steps are known: some length is in minutes or seconds."""
    if "finetune" not in recipe.stages:
        return False
    lengths = [recipe.timeline.length, recipe.train.validate_every]
    for phase in timeline_of(recipe).phases:
        lengths += lengths_in((phase.length, *phase.curves().values()))
    return any(parse_length(length)[1] == "s" for length in lengths if length not in (None, "auto"))


def resolved_run(recipe: Recipe, images: int, pace: Pace | None = None) -> tuple[Timeline, RunSize]:
    """Return the recipe's timeline resolved for ``images`` training images, with the steps of the run and of an epoch.

    The length of the run is ``timeline.length``; else the sum of phases that all have fixed lengths; else
    ``train.epochs``. Batches run on from epoch to epoch, so no image is left out. ``pace`` is that of a step at
    ``train.batch_size``, needed when something counts in minutes (:func:`needs_pace`).
    """
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
    sizes = [moment.image_size or SMALLEST_SIZE for moment in plan.moments(SAMPLES)]
    if min(sizes) < SMALLEST_SIZE or max(sizes) > LARGEST_SIZE:
        raise EtudeError(
            f"recipe {recipe.name!r} takes images from {min(sizes):,.6g} to {max(sizes):,.6g} px; "
            f"give sizes from {SMALLEST_SIZE} to {LARGEST_SIZE:,}"
        )
    if recipe.unlabeled.method == "online":
        plan = with_ramp(plan, recipe.unlabeled.weight, *recipe.unlabeled.ramp)
    return plan, size


def nominal_timeline(recipe: Recipe) -> Timeline:
    """Return the timeline resolved for an assumed number of images; EtudeError when its lengths fit none."""
    refusal = EtudeError("")
    for epoch_steps in (1_000, 20, 50_000, 5, 1):
        for seconds in (0.1, 10.0, 0.001) if needs_pace(recipe) else (0.1,):
            try:
                return resolved_run(recipe, epoch_steps * recipe.train.batch_size, Pace(seconds))[0]
            except EtudeError as error:
                refusal = error
    raise refusal


def timeline_warnings(
    recipe: Recipe, median_side: int | None = None, timeline: Timeline | None = None, given: Recipe | None = None
) -> list[str]:
    """Return what is allowed but seldom meant, a sentence each: a last phase that ends with images still changed, image
    sizes above the images' own (``median_side``, pixels), learning rates that jump, and settings that change nothing.

    ``given`` is the recipe before its open settings were decided, which shows what was set by hand.
    """
    plan, found = timeline or nominal_timeline(recipe), list[str]()
    end = plan.at(1.0)
    values = {"augment": end.augment, "mixup": end.mixup, "cutmix": end.cutmix}
    if on := [f"{name}={value:g}" for name, value in values.items() if value]:
        found.append(
            f"the last phase {end.phase!r} ends with {' and '.join(on)}, so the network ends on images unlike those it "
            "will see; set them to 0 in that phase, or let them fall to 0"
        )
    # Default sizes are left alone: a pretrained network wants the size it was trained at.
    shape = (given or recipe).timeline
    by_hand = shape.phases or {"start_size", "final_size"} & shape.model_fields_set
    size = max(moment.image_size or 0 for moment in plan.moments(SAMPLES))
    if median_side is not None and by_hand and size - plan.size_multiple >= median_side:
        found.append(
            f"the timeline takes images to {size:,} px, above their own median side of {median_side:,} px: enlarging "
            f"takes time and brings no detail; about {rounded(median_side, plan.size_multiple):,} px show all there is"
        )
    return [*found, *_idle(recipe), *plan.jumps()]


def _idle(recipe: Recipe) -> Iterator[str]:
    """Yield settings that were given, but leave the timeline as it is without them."""
    plan = timeline_of(recipe)
    kind = "phases of your own" if recipe.timeline.phases else f"the timeline {recipe.timeline.preset!r}"
    shapes = {"timeline": SHAPING, "plateau": PlateauSettings.model_fields.keys()}
    for section, names in shapes.items():
        settings: Settings = getattr(recipe, section)
        for name in sorted(settings.model_fields_set & set(names)):
            value, default = getattr(settings, name), type(settings).model_fields[name].default
            if value != default and timeline_of(changed(recipe, {f"{section}.{name}": default})) == plan:
                yield f"{section}.{name}={value} changes nothing in {kind}"


def _fixed_point(timeline: Timeline, recipe: Recipe, images: int, pace: Pace | None) -> tuple[Timeline, RunSize]:
    """Resolve the timeline though its steps may depend on batch and image sizes, which depend on its steps.

    The first guess is a long run, into which every fixed length fits.
    """
    batch = min(recipe.train.batch_size, images)
    varied = "batch_size" in timeline.quantities()
    mean_batch, seconds = 1.0 if varied else batch, pace and pace.at(recipe.timeline.final_size) * 0.05
    plan, size = timeline, RunSize(1)
    for _ in range(ROUNDS):
        size = RunSize(_steps(recipe, timeline, images / mean_batch, seconds, pace), images / mean_batch, pace)
        plan = timeline.resolved(size)
        if not varied and (recipe.timeline.length is None or pace is None):
            break
        before = mean_batch, seconds
        moments = list(plan.moments(SAMPLES))
        batches = [batch if one.batch_size is None else min(one.batch_size, images) for one in moments]
        mean_batch = math.fsum(batches) / SAMPLES
        if pace is not None:
            each = (pace.at(one.image_size) * size / batch for one, size in zip(moments, batches, strict=True))
            seconds = math.fsum(each) / SAMPLES
        if math.isclose(before[0], mean_batch) and math.isclose(before[1] or 0.0, seconds or 0.0):
            break
    return plan, size


def _steps(recipe: Recipe, timeline: Timeline, epoch_steps: float, seconds: float | None, pace: Pace | None) -> int:
    length = recipe.timeline.length
    if length is None:
        fixed = timeline.fixed_steps(epoch_steps, pace)
        return max(1, round(recipe.train.epochs * epoch_steps if fixed is None else fixed))
    amount, unit = parse_length(length)
    steps = {"st": amount, "ep": amount * epoch_steps, "s": amount / (seconds or 1.0)}
    return max(1, round(steps[unit]))


def _length_in_words(recipe: Recipe, timeline: Timeline) -> str:
    if recipe.timeline.length is not None:
        return f"the run's length is timeline.length={recipe.timeline.length}"
    if not any(phase.is_share for phase in timeline.phases):
        return "the run's length is the sum of its phases'"
    return f"the run's length is train.epochs={recipe.train.epochs:g}"


def with_ramp(timeline: Timeline, weight: float, start: float, end: float) -> Timeline:
    """Return a resolved timeline whose ``unlabeled_weight`` rises from 0 to ``weight`` between two shares of the run.

    Phases count their own progress, so each gets its piece of the rise. A timeline that schedules the weight by itself
    stays as it is.
    """
    if "unlabeled_weight" in timeline.quantities():
        return timeline

    def risen(t: float) -> float:
        if t >= end:
            return weight
        return 0.0 if t <= start else weight * (t - start) / (end - start)

    def piece(left: float, right: float) -> Iterator[tuple[float, Curve]]:
        inner = [point for point in (start, end) if left < point < right]
        points = [left, *dict.fromkeys(inner), right]
        for one, other in pairwise(points):
            # Where the weight jumps (start = end), the value just after the point is that of the whole piece.
            low, high = (weight, weight) if one >= end else (0.0, 0.0) if other <= start else (risen(one), risen(other))
            yield (other - one) / (right - left), Constant(low) if low == high else Linear(low, high)

    phases: list[Phase] = []
    for phase, (_, left, right) in zip(timeline.phases, timeline.spans(), strict=True):
        parts = tuple(piece(left, right))
        phases.append(replace(phase, unlabeled_weight=parts[0][1] if len(parts) == 1 else Joined(parts)))
    return replace(timeline, phases=tuple(phases))


@dataclass(frozen=True, slots=True)
class ImageSizes:
    """Sides of the square training images, in pixels, rounded as the timeline does."""

    first: int
    final: int
    largest: int


def image_sizes(recipe: Recipe) -> ImageSizes:
    """Return the first, last and largest image size of the recipe's timeline."""
    sizes = [moment.image_size or recipe.timeline.final_size for moment in _moments(recipe)]
    return ImageSizes(sizes[0], sizes[-1], max(sizes))


def maximum_of(recipe: Recipe, quantity: str) -> float:
    """Return the largest value of a quantity in the recipe's timeline; 0 where it is not scheduled."""
    return max(getattr(moment, quantity) or 0.0 for moment in _moments(recipe))


def _moments(recipe: Recipe) -> list[Moment]:
    """Return moments of the whole run, both ends of every phase among them: a phase may last a few steps only."""
    key = recipe.model_dump_json()  # a recipe with phases of its own cannot be hashed
    if (known := _known_moments.get(key)) is None:
        timeline = nominal_timeline(recipe)
        ends = [point for _, start, stop in timeline.spans() for point in (start, max(start, stop - 1e-6))]
        between = [step_progress(step, SAMPLES) for step in range(SAMPLES)]
        known = [timeline.at(point) for point in sorted({0.0, 1.0, *ends, *between})]
        _known_moments.clear()
        _known_moments[key] = known
    return known
