"""``etude timeline``."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from etude.cli.common import AsJson, print_json, screen_for
from etude.core.errors import EtudeError
from etude.core.text import LABELS, UNITS, short_number
from etude.study.run.request import Flag, Words
from etude.timeline import PRESETS, Pace, Plateau, RunSize, Timeline, timeline_to_tree

if TYPE_CHECKING:
    from etude.journal.screen import Screen
    from etude.recipe import Recipe

_SAMPLES = 2000  # of a phase; enough for hundreds of cycles
_BEFORE = 1e-6  # of a phase: its end already belongs to the next one
_MOST_COLUMNS = 5  # phases as columns; more of them are rows
_STEPS = 1000
_STEP_SECONDS = 0.1


def timeline(
    recipe: str = "default",
    *,
    settings: Annotated[Words, Parameter(name="--set")] = (),
    plot: Path | None = None,
    list_: Annotated[Flag, Parameter(name="--list")] = False,
    as_json: AsJson = False,
    steps: int | None = None,
    epoch_steps: float | None = None,
    step_seconds: float | None = None,
) -> None:
    """Show the timeline of a recipe: what changes in which phase, before any image is read.

    Lengths in epochs, steps or minutes depend on the run: --steps, --epoch-steps and --step-seconds describe it.

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
    steps
        Optimiser steps of the whole run; by default 1000, or the product of --epoch-steps and the recipe's own length.
    epoch_steps
        Optimiser steps of an epoch; by default the whole run's, divided by the recipe's epochs.
    step_seconds
        Seconds of a step at the final image size, for lengths in minutes; by default 0.1.
    """
    screen = screen_for()
    if list_:
        if settings or any(option is not None for option in (plot, steps, epoch_steps, step_seconds)):
            raise EtudeError("--list shows the named timelines only: give it alone, or with --json")
        lines = {name: preset.line for name, preset in PRESETS.items()}
        if as_json:
            print_json(lines)
            return
        screen.plan("Named timelines", list(lines.items()))
        screen.say("show one: etude timeline NAME --plot timeline.png")
        screen.say("train with it: etude fit TRAIN --recipe NAME")
        return

    from etude.recipe import load_recipe
    from etude.recipe.timeline import needs_pace, timeline_warnings

    for option, value in (("--steps", steps), ("--epoch-steps", epoch_steps), ("--step-seconds", step_seconds)):
        if value is not None and not 0 < value < math.inf:
            raise EtudeError(f"{option} is {value}; give a number above 0")
    chosen = load_recipe(recipe, settings)
    if "finetune" not in chosen.stages:
        raise EtudeError(
            f"recipe {chosen.name!r} has no timeline, since its stages {list(chosen.stages)} train no network: "
            "choose another recipe, or add the stage 'finetune'"
        )
    plan, size = _resolved(chosen, steps, epoch_steps, step_seconds or _STEP_SECONDS)
    if plot is not None:
        from etude.journal.figures import save_figure
        from etude.journal.figures.timeline import timeline_figure

        title = f"Timeline of {chosen.name}"
        save_figure(timeline_figure(plan, size.steps, title=title, epoch_steps=size.epoch_steps), plot)
    warnings = timeline_warnings(chosen, timeline=plan)
    if as_json:
        run = {"recipe": chosen.name, "steps": size.steps, "epoch_steps": size.epoch_steps}
        tree = timeline_to_tree(plan)
        print_json({**run, "phases": summary_of(plan, size), "timeline": tree, "warnings": warnings})
        return
    _show(screen, chosen, plan, size, assumed_pace=needs_pace(chosen) and step_seconds is None)
    for warning in warnings:
        screen.warn(warning)
    if plot is not None:
        screen.say(f"{plot} shows it")


def _resolved(
    recipe: Recipe, steps: int | None, epoch_steps: float | None, step_seconds: float
) -> tuple[Timeline, RunSize]:
    from etude.recipe.timeline import resolved_run, timeline_of

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
    return resolved_run(recipe, images, pace)


def _show(screen: Screen, recipe: Recipe, plan: Timeline, size: RunSize, *, assumed_pace: bool) -> None:
    from etude.recipe.resolve import TINY_SIDE

    phases = summary_of(plan, size)
    head = ["", *(phase["name"] for phase in phases)]
    rows = [["share", *(f"{100 * (phase['end'] - phase['start']):.3g}%" for phase in phases)]]
    rows.append(["steps", *(short_number(phase["steps"]) for phase in phases)])
    if size.epoch_steps:
        rows.append(["epochs", *(short_number(phase["steps"] / size.epoch_steps) for phase in phases)])
    for quantity in plan.quantities():
        name = LABELS[quantity] + (f" ({UNITS[quantity]})" if quantity in UNITS else "")
        rows.append([name, *(_in_words(phase["quantities"].get(quantity)) for phase in phases)])
    plateaus = {phase.name: phase.plateau for phase in plan.phases}
    if any(plateaus.values()):
        rows.append(["plateau", *(_plateau_in_words(plateaus[phase["name"]]) for phase in phases)])
    if len(phases) > _MOST_COLUMNS:
        head, *rows = (list(column) for column in zip(head, *rows, strict=True))
    epochs = f", {short_number(size.steps / size.epoch_steps)} epochs" if size.epoch_steps else ""
    screen.table(f"Timeline of {recipe.name}, shown for a run of {size.steps:,} steps{epochs}", head, rows)
    if assumed_pace:
        screen.say(f"minutes are counted as if a step took {_STEP_SECONDS:g} s; --step-seconds changes that")
    if recipe.model.backbone == "auto":
        screen.say(f"images of {TINY_SIDE} px and below get sizes and a learning rate of their own, where none are set")


def summary_of(timeline: Timeline, size: RunSize) -> list[dict[str, Any]]:
    """Return what each phase does: its place in the run, its steps, and by quantity its course."""
    found: list[dict[str, Any]] = []
    for name, start, end in timeline.spans():
        if end <= start:
            continue
        steps = (end - start) * size.steps
        found.append({"name": name, "start": start, "end": end, "steps": steps, "quantities": {}})
        stop = end if end >= 1.0 else end - _BEFORE * (end - start)
        moments = [timeline.at(min(stop, start + (stop - start) * n / _SAMPLES)) for n in range(_SAMPLES + 1)]
        for quantity in timeline.quantities():
            values = [getattr(moment, quantity) for moment in moments]
            if None not in values:
                found[-1]["quantities"][quantity] = _course([float(f"{value:.5g}") for value in values])
    return found


def _course(values: list[float]) -> dict[str, Any]:
    rises = [after > before for before, after in pairwise(values) if after != before]
    turns = [rising for rising, later in pairwise(rises) if rising != later]
    ends = {"from": values[0], "to": values[-1], "lowest": min(values), "highest": max(values)}
    return {**ends, "peaks": sum(turns), "turns": len(turns)}


def _in_words(course: dict[str, Any] | None) -> str:
    if course is None:
        return ""
    first, last, low, high = (short_number(course[key]) for key in ("from", "to", "lowest", "highest"))
    if first == last == low == high:
        return first
    if course["turns"] == 0:
        return f"{first} → {last}"
    if course["turns"] == 1:
        return f"{first} → {high if course['peaks'] else low} → {last}"
    return f"{low} … {high}, {course['peaks']} peaks"


def _plateau_in_words(plateau: Plateau | None) -> str:
    if plateau is None:
        return ""
    if plateau.reductions == 0:
        return f"{plateau.metric}: next phase, patience {plateau.patience}"
    times = "" if plateau.reductions is None else f", {plateau.reductions} times, then next phase"
    return f"{plateau.metric}: lr × {plateau.factor:g}, patience {plateau.patience}{times}"
