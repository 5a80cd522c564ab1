"""From a recipe's settings to the phases of its timeline."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, cast

from etude.core.errors import EtudeError, listed
from etude.recipe.settings import PlateauSettings, Recipe
from etude.timeline import QUANTITIES, Constant, Curve, Linear, Phase, Plateau, Scaled, Shape, Timeline, preset
from etude.timeline.tree import phase_from_tree

METRICS = ("valid_loss", "valid_accuracy")


def timeline_of(recipe: Recipe) -> Timeline:
    """Return the timeline that the recipe describes, its lengths as they were written.

    Every phase schedules the learning rate, the image size and the augmentation, and what any phase schedules: where
    a phase of your own leaves something out, the recipe's constant stands, so that no moment depends on the past.

    Raises:
        EtudeError: the settings make no timeline, told in one sentence.

    >>> [phase.name for phase in timeline_of(Recipe()).phases]
    ['warmup', 'grow', 'finish']
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
    plan = preset(
        shape.preset,
        Shape(
            peak_lr=train.lr,
            start_size=start,
            final_size=final,
            size_multiple=shape.size_multiple,
            warmup=shape.warmup,
            finish=shape.finish,
            cycle=shape.cycle,
            fade=shape.fade,
            mixup=recipe.augment.mixup,
            cutmix=recipe.augment.cutmix,
            batch_size=train.batch_size,
            base_batch_size=base,
            plateau=_plateau(recipe.plateau),
        ),
    )
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
    told = settings.model_dump()
    if settings.mode == "auto":
        told["mode"] = "max" if settings.metric == "valid_accuracy" else "min"
    return Plateau(**told)


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
