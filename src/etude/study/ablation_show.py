"""What ``etude ablate`` says: the plan before, the table after."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

from etude.core.paired import LEVEL
from etude.journal.screen import Screen
from etude.recipe.tricks import Trick
from etude.study.ablation_arms import Design, Mode
from etude.study.ablation_budget import Division
from etude.study.ablation_files import HEADINGS, Outcome
from etude.study.ablation_outcome import Found, unit_of
from etude.study.plan import duration
from etude.study.request import Request


def show_plan(
    screen: Screen,
    request: Request,
    design: Design,
    tricks: Sequence[Trick],
    mode: str,
    division: Division,
    budget: str | None,
) -> None:
    """Say what will be trained, and how long that should take."""
    runs = len(design.arms) * division.seeds
    epochs = "" if division.epochs is None else f" of {division.epochs:g} epochs"
    rows = [
        ("tricks", ", ".join(trick.name for trick in tricks)),
        ("mode", mode),
        ("arms", ", ".join(arm.name for arm in design.arms)),
        ("runs", f"{len(design.arms)} arms × {division.seeds} seeds = {runs}{epochs}"),
    ]
    if division.seconds is not None:
        rows.append(("time", f"about {duration(division.seconds)} in all"))
    if budget is not None:
        rows.append(("budget", budget))
    screen.plan(f"Ablation of recipe {request.recipe}, seeds from {request.seed}", rows)


def show_outcome(screen: Screen, outcome: Outcome) -> None:
    """Show a table a mode, how to read it, and where everything is."""
    for mode in get_args(Mode):
        if rows := outcome.of_mode(mode):
            screen.say("")
            screen.table(
                f"{mode}: {HEADINGS[mode]}, in {unit_of(outcome.metric)}",
                ["trick", "gain", f"{LEVEL:.0%} interval", "p", "verdict", "finds", "seconds"],
                [_row(one) for one in rows],
            )
    if outcome.found:
        count = len(outcome.found)
        screen.say("")
        screen.say(f"p: corrected for {count} comparisons by Holm's rule; below {1 - LEVEL:.2f} it is a verdict")
        screen.say("finds: the true gain that these seeds and images find 4 times of 5")
        screen.say("seconds: that a run takes longer with the trick, the median over the seeds")
    for name, reason in outcome.failed.items():
        screen.say(f"left out: {name}, since {reason}")
    for sentence in outcome.told:
        screen.say(sentence)
    _tell_best(screen, outcome)


def _row(one: Found) -> list[str | float | None]:
    p = f"{one.p:.3f}" if one.p >= 0.001 else "<0.001"
    return [one.contrast.trick, one.gain, one.interval, p, one.verdict, one.detectable, one.cost]


def _tell_best(screen: Screen, outcome: Outcome) -> None:
    screen.say("")
    if outcome.best:
        changes = ", ".join(f"{key}={value}" for key, value in outcome.best.items())
        screen.say(f"{outcome.folder / 'best.toml'}: the recipe with what helped ({changes})")
    else:
        screen.say(f"{outcome.folder / 'best.toml'}: the recipe as it was, since nothing says to change it")
    screen.say(f"{outcome.folder / 'lift.png'} shows the gains, {outcome.folder / 'ablation.json'} holds them")
    screen.say(f"train by it: etude fit TRAIN --recipe {outcome.folder / 'best.toml'}")
