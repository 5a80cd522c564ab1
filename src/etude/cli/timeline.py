"""``etude timeline``."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

if TYPE_CHECKING:
    from etude.journal.screen import Screen
    from etude.recipe import Recipe
    from etude.timeline import RunSize, Timeline

_STEPS = 1000
_STEP_SECONDS = 0.1


def timeline(
    recipe: str = "default",
    *,
    settings: Annotated[list[str] | None, Parameter(name="--set", negative="")] = None,
    plot: Path | None = None,
    list_: Annotated[bool, Parameter(name="--list", negative="")] = False,
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
    steps: int | None = None,
    epoch_steps: float | None = None,
    step_seconds: float | None = None,
) -> None:
    """Show the timeline of a recipe: what moves in which phase, before any image is read.

    Lengths in epochs, steps or minutes need to know the run: --steps, --epoch-steps and --step-seconds stand in for it.

    Parameters
    ----------
    recipe
        A named recipe or a TOML file.
    settings
        Change a setting, such as --set timeline.warmup=0.05; may be repeated.
    plot
        Draw all quantities over one axis into this file, .png or .svg.
    list_
        Show the named timelines with a line each.
    as_json
        Print JSON instead of tables.
    steps
        Optimiser steps of the whole run; by default 1000, or what --epoch-steps and the recipe's own length make.
    epoch_steps
        Optimiser steps of an epoch; by default the whole run's, divided by the recipe's epochs.
    step_seconds
        Seconds of a step at the final image size, for lengths in minutes; by default 0.1.
    """
    from etude.journal.screen import Screen

    screen = Screen()
    from etude.core.errors import EtudeError

    if list_:
        if any(option is not None for option in (settings, plot, steps, epoch_steps, step_seconds)):
            raise EtudeError("--list shows the named timelines only: give it alone, or with --json")
        _tell_presets(screen, as_json)
        return

    from etude.recipe import load_recipe
    from etude.recipe.timeline import needs_pace, timeline_warnings

    _refuse_odd_sizes(steps, epoch_steps, step_seconds)
    chosen = load_recipe(recipe, settings or ())
    if "finetune" not in chosen.stages:
        raise EtudeError(
            f"recipe {chosen.name!r} has no timeline, since its stages {list(chosen.stages)} train no network: "
            "choose another recipe, or add the stage 'finetune'"
        )
    plan, size = _resolved(chosen, steps, epoch_steps, step_seconds or _STEP_SECONDS)
    if plot is not None:
        from etude.journal.timeline_figure import draw_timeline

        draw_timeline(plot, plan, size.steps, title=f"Timeline of {chosen.name}", epoch_steps=size.epoch_steps)
    warnings = timeline_warnings(chosen, timeline=plan)
    if as_json:
        _print_json(chosen.name, plan, size, warnings)
        return
    _tell_plan(screen, chosen, plan, size, assumed_pace=needs_pace(chosen) and step_seconds is None)
    for warning in warnings:
        screen.warn(warning)
    if plot is not None:
        screen.say(f"{plot} shows it")


def _refuse_odd_sizes(steps: int | None, epoch_steps: float | None, step_seconds: float | None) -> None:
    from etude.core.errors import EtudeError

    for option, value in (("--steps", steps), ("--epoch-steps", epoch_steps), ("--step-seconds", step_seconds)):
        if value is not None and not 0 < value < math.inf:
            raise EtudeError(f"{option} is {value}; give a number above 0")


def _resolved(
    recipe: Recipe, steps: int | None, epoch_steps: float | None, step_seconds: float
) -> tuple[Timeline, RunSize]:
    """Return the timeline resolved for a run of the given size, and that size."""
    from etude.core.errors import EtudeError
    from etude.recipe.timeline import resolved_timeline, run_size, timeline_of
    from etude.timeline import Pace, RunSize

    pace = Pace(step_seconds, recipe.timeline.final_size)
    if steps is not None:
        size = RunSize(steps, epoch_steps or steps / recipe.train.epochs, pace)
        try:
            return timeline_of(recipe).resolved(size), size
        except ValueError as error:
            raise EtudeError(
                f"recipe {recipe.name!r} in {steps:,} steps: {error}; --steps and --epoch-steps say how long a run is"
            ) from None
    images = max(1, round((epoch_steps or _STEPS / recipe.train.epochs) * recipe.train.batch_size))
    return resolved_timeline(recipe, images, pace)[0], run_size(recipe, images, pace)


def _tell_presets(screen: Screen, as_json: bool) -> None:
    from etude.timeline import PRESETS

    if as_json:
        print(json.dumps({name: preset.line for name, preset in PRESETS.items()}, indent=2))
        return
    screen.plan("Named timelines", [(name, preset.line) for name, preset in PRESETS.items()])
    screen.say("show one: etude timeline NAME --plot timeline.png")
    screen.say("train with it: etude fit TRAIN --recipe NAME")


def _tell_plan(screen: Screen, recipe: Recipe, plan: Timeline, size: RunSize, *, assumed_pace: bool) -> None:
    from etude.journal.quantities import short_number
    from etude.journal.timeline_table import timeline_table
    from etude.recipe.resolve import TINY_SIDE

    epochs = f", {short_number(size.steps / size.epoch_steps)} epochs" if size.epoch_steps else ""
    columns, rows = timeline_table(plan, size)
    screen.table(f"Timeline of {recipe.name}, shown for a run of {size.steps:,} steps{epochs}", columns, rows)
    if assumed_pace:
        screen.say(f"minutes are counted as if a step took {_STEP_SECONDS:g} s; --step-seconds changes that")
    if recipe.model.backbone == "auto":
        screen.say(f"images of {TINY_SIDE} px and below get sizes and a learning rate of their own, where none are set")


def _print_json(name: str, plan: Timeline, size: RunSize, warnings: list[str]) -> None:
    from etude.journal.timeline_table import summary_of
    from etude.timeline import timeline_to_tree

    tree = {
        "recipe": name,
        "steps": size.steps,
        "epoch_steps": size.epoch_steps,
        "phases": summary_of(plan, size),
        "timeline": timeline_to_tree(plan),
        "warnings": warnings,
    }
    print(json.dumps(tree, indent=2))
