"""What an ablation leaves: ``ablation.json``, the lift chart, and the recipe with what helped."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any, get_args

from etude.core.files import replacing, write_json
from etude.core.metrics import Metric
from etude.core.paired import LEVEL, Verdict
from etude.journal.figures.lift import Lift, LiftPanel, draw_lift
from etude.journal.record import RunRecord
from etude.journal.screen import Screen
from etude.recipe import NAMED, Recipe, load_recipe
from etude.recipe.load import changes_of
from etude.recipe.settings import Settings
from etude.recipe.tricks import TRICKS, Changes, Trick, changed
from etude.study.ablation.design import Design, Division, Mode
from etude.study.ablation.runs import ArmRun, Found, scale_of, unit_of
from etude.study.run.plan import duration
from etude.study.run.request import Request

_BASE = "default"  # what a recipe file starts from when it names nothing else


def best_changes(recipe: Recipe, found: Sequence[Found]) -> tuple[Changes, list[str]]:
    """Return the settings to change in a resolved recipe, and in a sentence each what could not be had besides.

    A trick that helps is switched on and one that hurts off. One of which nothing can be told, or that helps beside the
    others and hurts alone, stays as the recipe has it.
    """
    said: dict[str, set[Verdict]] = {}
    for one in found:
        said.setdefault(one.contrast.trick, set()).add(one.verdict)
    clear = {name: verdicts - {"cannot tell"} for name, verdicts in said.items()}
    hurt = [name for name, verdicts in clear.items() if verdicts == {"hurts"}]
    changes: Changes = {}
    for name in hurt:
        changes |= TRICKS[name].changes(recipe, on=False)
    kept: list[str] = []
    told: list[str] = []
    by_gain = sorted(found, key=lambda one: -one.comparison.gain)
    for name in dict.fromkeys(one.contrast.trick for one in by_gain):
        if clear[name] != {"helps"}:
            continue
        more = {**changes, **TRICKS[name].changes(recipe, on=True)}
        made = changed(recipe, more)
        if rivals := [other for other in (*kept, *hurt) if TRICKS[other].is_on(made) != (other in kept)]:
            told.append(f"{name} helps too, but shares a setting with {', '.join(rivals)}, which weighs more")
            continue
        changes, kept = more, [*kept, name]
    return changes, told


def write_recipe(path: Path, recipe: Recipe, comments: Sequence[str] = ()) -> None:
    """Write the recipe as a file that :func:`etude.recipe.load_recipe` reads back to the same settings.

    What the recipe leaves open stays open: only what was given by name or by hand is written.

    Args:
        path: of the file, .toml.
        recipe: not resolved.
        comments: lines above it.
    """
    tree = recipe.model_dump(exclude_unset=True, exclude={"name"})
    for section, values in NAMED[_BASE].items():  # what the base brings must not win over the recipe's own
        own = getattr(recipe, section)
        if isinstance(own, Settings):
            tree[section] = {**tree.get(section, {}), **{key: getattr(own, key) for key in values}}
        else:
            tree[section] = own
    lines = [*(f"# {_one_line(comment)}" for comment in comments), f"base = {_toml(_BASE)}"]
    tables = {name: values for name, values in tree.items() if isinstance(values, dict)}
    lines += [f"{name} = {_toml(value)}" for name, value in tree.items() if name not in tables]
    for name, values in tables.items():
        written = [
            f"{key} = {_toml(value)}" for key, value in values.items() if not _is_default_none(recipe, name, key)
        ]
        lines += ["", f"[{name}]", *written] if written else []
    with replacing(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_best(
    path: Path, name_or_file: str, settings: Mapping[str, Any] | Sequence[str], changes: Changes, found: Sequence[Found]
) -> Recipe:
    """Write the recipe with ``changes`` over its own ``settings``, the verdicts above it; return it."""
    recipe = load_recipe(name_or_file, changes_of(settings) | changes)
    comments = [f"What etude ablate found to help, over the recipe {name_or_file}.", *(one.in_words() for one in found)]
    write_recipe(path, recipe, comments)
    return recipe


def _is_default_none(recipe: Recipe, section: str, key: str) -> bool:
    """Whether a setting is None as it is by default, for which TOML has no word and needs none."""
    settings: Settings = getattr(recipe, section)
    return getattr(settings, key) is None and type(settings).model_fields[key].default is None


def _toml(value: Any) -> str:
    if value is None:
        return '"none"'  # the settings that are not None by default take this word for it
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_toml(str(key))} = {_toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    return json.dumps(value)  # strings, numbers and booleans are written alike in TOML


def _one_line(text: str) -> str:
    return " ".join(text.split())


SCHEMA_VERSION = 1
HEADINGS: dict[Mode, str] = {
    "leave-one-out": "what each trick adds to all the others",
    "add-one-in": "what each trick brings alone",
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """An ablation that has ended.

    Args:
        seeds: that all arms have.
        epochs: of every run, or None for the recipe's own length.
        runs: of each arm, one a seed.
        found: a trick each, the largest gain first.
        failed: why arms were left out.
        best: settings that the recipe ``best.toml`` changes.
        told: what could not be had in it, a sentence each.
    """

    folder: Path
    metric: Metric
    seeds: tuple[int, ...]
    epochs: float | None
    design: Design
    runs: Mapping[str, Sequence[ArmRun]]
    found: Sequence[Found]
    failed: Mapping[str, str]
    best: dict[str, Any] = field(default_factory=dict)
    told: list[str] = field(default_factory=list)

    def of_mode(self, mode: Mode) -> list[Found]:
        """Return what was found in one mode, the largest gain first."""
        return [one for one in self.found if one.contrast.mode == mode]

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {
            "schema_version": SCHEMA_VERSION,
            "folder": str(self.folder),
            "metric": self.metric.name,
            "level": LEVEL,
            "correction": "holm",
            "seeds": list(self.seeds),
            "epochs": self.epochs,
            "tricks": [one.as_dict() for one in self.found],
            "arms": [self._arm(name) for name in self.runs],
            "failed": dict(self.failed),
            "best": self.best,
        }

    def _arm(self, name: str) -> dict[str, Any]:
        changes = next(arm.changes for arm in self.design.arms if arm.name == name)
        columns = ("accuracy", "log_loss", "seconds")
        return {"name": name, "changes": changes} | {
            column: [getattr(run, column) for run in self.runs[name]] for column in columns
        }


def write_outcome(outcome: Outcome, request: Request, recipe: Recipe, record: RunRecord) -> None:
    """Write all files, and the result into the record.

    Args:
        recipe: resolved for the images, that the tricks were judged in.
    """
    changes, told = best_changes(recipe, outcome.found)
    outcome.best.update(changes)
    outcome.told.extend(told)
    folder = outcome.folder
    write_best(folder / "best.toml", request.recipe, request.settings, changes, outcome.found)
    write_json(folder / "ablation.json", outcome.as_dict())
    names = ["best.toml", "ablation.json"]
    if panels := _panels(outcome):
        title = f"What each trick bought: {recipe.name}, {_images(outcome)}"
        for name in ("lift.png", "lift.svg"):
            unit = f"{unit_of(outcome.metric)}, with {LEVEL:.0%} intervals over seeds and images"
            draw_lift(folder / name, panels, title=title, unit=unit)
        names += ["lift.png", "lift.svg"]
    for name in names:
        record.artefact(folder / name)
    base = outcome.runs[outcome.design.baselines[0]]
    verdicts = {f"{one.contrast.trick}, {one.contrast.mode}": one.verdict for one in outcome.found}
    scores = {"accuracy": mean(run.accuracy for run in base), "log_loss": mean(run.log_loss for run in base)}
    record.set("result", {**scores, "arm": outcome.design.baselines[0], "verdicts": verdicts, "best": changes})


def _panels(outcome: Outcome) -> list[LiftPanel]:
    scale = scale_of(outcome.metric)
    panels: list[LiftPanel] = []
    for mode in get_args(Mode):
        rows = [_lift(one, scale) for one in outcome.of_mode(mode)]
        if rows:
            panels.append(LiftPanel(f"{mode}: {HEADINGS[mode]}", rows))
    return panels


def _lift(one: Found, scale: float) -> Lift:
    gain, ends = one.comparison.gain * scale, one.comparison.interval()
    low, high = (gain, gain) if ends is None else (end * scale for end in ends)
    return Lift(one.contrast.trick, gain, low, high, one.verdict, one.gain, one.cost)


def _images(outcome: Outcome) -> str:
    images = outcome.found[0].comparison.images if outcome.found else 0.0
    return f"{len(outcome.seeds)} seeds × {images:,.0f} images"


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
