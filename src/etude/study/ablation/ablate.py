"""``etude ablate``: every trick of a recipe with and without, over several seeds, and a recipe of what helped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any, get_args

from etude.core.errors import EtudeError
from etude.core.files import replacing, write_json
from etude.core.paired import LEVEL, Verdict, paired_metric
from etude.core.text import rough_duration, toml
from etude.data.scan import scan_images
from etude.journal.figures import save_figure
from etude.journal.figures.lift import Lift, lift_figure
from etude.journal.record import read_run
from etude.journal.runs import FILE_NAME, is_complete, working_on
from etude.journal.screen import Screen
from etude.recipe import NAMED, Recipe, load_recipe, resolve
from etude.recipe.load import changes_of
from etude.recipe.settings import Settings
from etude.recipe.tricks import TRICKS, Changes, changed, tricks_named, tricks_of
from etude.study.ablation.design import AblationMode, design_of, modes_named, seconds_of
from etude.study.ablation.runs import (
    ALONE,
    AblationPlan,
    ArmRun,
    Division,
    Found,
    Runs,
    compare_arms,
    costs_of,
    divide,
    unit_of,
)
from etude.study.diagnostics import send
from etude.study.doctor.doctor import choose_subject
from etude.study.run.request import Request, claim_run_folder, data_name
from etude.study.run.session import (
    Session,
    naming_resume,
    open_record,
    recording,
    refuse_other_inputs,
    refuse_other_settings,
    report,
    resumable_folder,
)
from etude.study.run.sources import Sources, inputs_of

_SECTION = "ablation"  # of the record: what a resumed ablation continues with
_USUAL: Mapping[str, Any] = {"tricks": None, "mode": "leave-one-out", "metric": "accuracy", "seeds": 5, "budget": None}


def ablate(
    sources: Sources,
    screen: Screen,
    *,
    tricks: Sequence[str] | None = None,
    mode: str | None = None,
    seeds: int | None = None,
    budget: str | None = None,
    metric: str | None = None,
) -> Outcome:
    """Train every arm on every seed, or what is missing, and write verdicts; None is the resumed or usual value."""
    request = sources.request
    folder, begun = _begun(request)
    given = {"tricks": tricks, "mode": mode, "metric": metric, "seeds": seeds, "budget": budget}
    asked = {**_USUAL, **begun.get(_SECTION, {}), **{name: value for name, value in given.items() if value is not None}}
    plan = _planned(sources, screen, asked, seconds_of(asked["budget"]))
    if folder is not None and begun:
        refuse_other_inputs(folder, begun.get, plan.inputs)
    folder = folder or claim_run_folder(Path(f"ablate-{data_name(request.train)}"))
    with working_on(folder, screen.warn), naming_resume(folder):
        record = open_record(folder, request, load_recipe(request.recipe, request.settings), kind="ablate")
        session = Session(request, record, screen)
        with recording(session):
            record.set(
                _SECTION,
                {
                    "tricks": [trick.name for trick in plan.tricks],
                    "mode": plan.mode,
                    "metric": plan.metric.name,
                    "seeds": plan.division.seeds,
                    "epochs": plan.division.epochs,
                    "budget": asked["budget"],
                    "fingerprint": plan.inputs["images"],
                    "arms": dict(plan.design.arms),
                },
            )
            record.set("inputs", plan.inputs)
            show_design(session, plan, asked["budget"])
            outcome = _run(session, plan, begun.get("seconds", 0.0))
        report(folder, screen)
        send(session)
        record.set("reported", True)
    show_outcome(screen, outcome)
    return outcome


def _run(session: Session, plan: AblationPlan, spent: float) -> Outcome:
    runs = Runs(session, plan, spent)
    first = session.request.seed
    done = runs.over(range(first, first + plan.division.seeds))
    found = compare_arms(plan.design, done, plan.metric)
    seeds = range(first, first + len(next(iter(done.values()))))
    outcome = Outcome(session.folder, plan, seeds, done, found, runs.failed, *best_changes(plan.recipe, found))
    write_outcome(outcome, session)
    return outcome


def _planned(sources: Sources, screen: Screen, asked: Mapping[str, Any], limit: float | None) -> AblationPlan:
    """Settle tricks and arms; every arm's recipe is checked before the first is trained."""
    metric, modes = paired_metric(asked["metric"]), modes_named(asked["mode"])
    request, images = sources.request, sources.labelled
    subject = choose_subject(sources.recipe, images, screen)
    recipe = subject.recipe
    tricks = tricks_of(recipe) if asked["tricks"] is None else tricks_named(asked["tricks"], recipe)
    if not tricks:
        raise EtudeError(
            f"recipe {recipe.name!r} has no trick that could be left out: name some with --tricks ({', '.join(TRICKS)})"
        )
    design = design_of(recipe, tricks, modes)
    recipes = {
        name: resolve(load_recipe(request.recipe, request.changes | ALONE | changes), subject.facts)
        for name, changes in design.arms.items()
    }
    inputs = {**inputs_of(recipe, images, len(images)), "images": scan_images(images, screen).fingerprint}
    if "epochs" in asked:  # a resumed ablation keeps its epochs, since its runs have them
        division = Division(asked["seeds"], asked["epochs"])
    else:
        by_epochs = "finetune" in recipe.stages and recipe.timeline.length is None and not recipe.timeline.phases
        epochs = recipe.train.epochs if by_epochs else None
        division = divide(*costs_of(recipes, subject), limit, asked["seeds"], epochs)
    return AblationPlan(recipe, tricks, asked["mode"], metric, design, division, inputs, limit)


def _begun(request: Request) -> tuple[Path | None, dict[str, Any]]:
    """Return the folder and the record of the ablation that is resumed; of a new one the folder as asked."""
    if not request.resume:
        return request.out, {}
    finished = request.out is not None and (request.out / FILE_NAME).is_file() and is_complete(read_run(request.out))
    # One that has finished can have more seeds, or another metric.
    named = replace(request, train=Path(f"ablate-{data_name(request.train)}"))
    folder = request.out if finished else resumable_folder(named)
    assert folder is not None
    record = read_run(folder)
    if record.get(_SECTION) is None:
        raise EtudeError(f"{folder} does not hold an ablation that has begun: give the --out of the one to resume")
    refuse_other_settings(folder, load_recipe(request.recipe, request.settings), request)
    return folder, record


_BASE = "default"  # what a recipe file starts from when it names nothing else


def best_changes(recipe: Recipe, found: Sequence[Found]) -> tuple[Changes, list[str]]:
    """Return the settings to change in a resolved recipe, and a sentence for each trick that helps but is left out.

    A trick without a clear verdict, or that helps with the others and hurts alone, stays as the recipe has it.
    """
    clear: dict[str, set[Verdict]] = {one.contrast.trick: set() for one in found}
    for one in found:
        if one.verdict != "cannot tell":
            clear[one.contrast.trick].add(one.verdict)
    hurt = [name for name, verdicts in clear.items() if verdicts == {"hurts"}]
    changes: Changes = {}
    for name in hurt:
        changes |= TRICKS[name].changes(recipe, on=False)
    kept: list[str] = []
    left_out: list[str] = []
    by_gain = sorted(found, key=lambda one: -one.comparison.gain)
    for name in dict.fromkeys(one.contrast.trick for one in by_gain):
        if clear[name] != {"helps"}:
            continue
        more = {**changes, **TRICKS[name].changes(recipe, on=True)}
        made = changed(recipe, more)
        if rivals := [other for other in (*kept, *hurt) if TRICKS[other].is_on(made) != (other in kept)]:
            left_out.append(f"{name} helps too, but shares a setting with {', '.join(rivals)}, which weighs more")
            continue
        changes, kept = more, [*kept, name]
    return changes, left_out


def write_recipe(path: Path, recipe: Recipe, comments: Sequence[str] = ()) -> None:
    """Write what a recipe was given, and leave open what it leaves open, as a TOML file that ``load_recipe`` reads."""
    tree = recipe.model_dump(exclude_unset=True, exclude={"name"})
    for section, values in NAMED[_BASE].items():  # what the base brings must not override the recipe's own
        own = getattr(recipe, section)
        is_section = isinstance(own, Settings)
        tree[section] = {**tree.get(section, {}), **{key: getattr(own, key) for key in values}} if is_section else own
    lines = [*(f"# {' '.join(comment.split())}" for comment in comments), f"base = {toml(_BASE)}"]
    lines += [f"{name} = {toml(value)}" for name, value in tree.items() if not isinstance(value, dict)]
    for name, values in ((name, values) for name, values in tree.items() if isinstance(values, dict)):
        fields = type(getattr(recipe, name)).model_fields
        # TOML has no word for None, and a setting that is None by default needs none.
        given = [key for key, value in values.items() if value is not None or fields[key].default is not None]
        lines += ["", f"[{name}]", *(f"{key} = {toml(values[key])}" for key in given)] if given else []
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


HEADINGS: dict[AblationMode, str] = {
    "leave-one-out": "what each trick adds to all the others",
    "add-one-in": "what each trick adds alone",
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """An ablation that has ended."""

    folder: Path
    plan: AblationPlan
    seeds: Sequence[int]
    runs: Mapping[str, Sequence[ArmRun]]  # of each arm, one a seed
    found: Sequence[Found]  # the largest gain first
    failed: Mapping[str, str]  # why arms were left out
    best: Changes  # settings that best.toml changes
    left_out: Sequence[str]  # what could not be combined in it, a sentence each

    def of_mode(self, mode: AblationMode) -> list[Found]:
        return [one for one in self.found if one.contrast.mode == mode]

    def as_dict(self) -> dict[str, Any]:
        return {
            "schema_version": 1,
            "folder": str(self.folder),
            "metric": self.plan.metric.name,
            "level": LEVEL,
            "correction": "holm",
            "seeds": list(self.seeds),
            "epochs": self.plan.division.epochs,
            "tricks": [one.as_dict() for one in self.found],
            "arms": [
                {"name": name, "changes": self.plan.design.arms[name]}
                | {column: [getattr(run, column) for run in runs] for column in ("accuracy", "log_loss", "seconds")}
                for name, runs in self.runs.items()
            ],
            "failed": dict(self.failed),
            "best": self.best,
        }


def write_outcome(outcome: Outcome, session: Session) -> None:
    folder, plan, record, request = outcome.folder, outcome.plan, session.record, session.request
    write_best(folder / "best.toml", request.recipe, request.settings, outcome.best, outcome.found)
    write_json(folder / "ablation.json", outcome.as_dict())
    names = ["best.toml", "ablation.json"]
    if outcome.found:
        images = outcome.found[0].comparison.images
        title = f"Gain of each trick: {plan.recipe.name}, {len(outcome.seeds)} seeds × {images:,.0f} images"
        unit = f"{unit_of(plan.metric)}, with {LEVEL:.0%} intervals over seeds and images"
        panels = {
            f"{mode}: {HEADINGS[mode]}": [_lift(one) for one in rows]
            for mode in get_args(AblationMode)
            if (rows := outcome.of_mode(mode))
        }
        for name in ("lift.png", "lift.svg"):
            save_figure(lift_figure(panels, title=title, unit=unit), folder / name)
            names.append(name)
    for name in names:
        record.artefact(folder / name)
    verdicts = {f"{one.contrast.trick}, {one.contrast.mode}": one.verdict for one in outcome.found}
    base = plan.design.baselines[0]
    scores = {name: mean(getattr(run, name) for run in outcome.runs[base]) for name in ("accuracy", "log_loss")}
    record.set("result", {**scores, "arm": base, "verdicts": verdicts, "best": outcome.best})


def _lift(one: Found) -> Lift:
    gain = one.comparison.gain
    low, high = one.comparison.interval() or (gain, gain)
    ends = gain * one.scale, low * one.scale, high * one.scale
    return Lift(one.contrast.trick, *ends, one.verdict, one.gain, one.cost)


def show_design(session: Session, plan: AblationPlan, budget: str | None) -> None:
    arms, (seeds, length, seconds) = plan.design.arms, plan.division
    epochs = "" if length is None else f" of {length:g} epochs"
    rows = [
        ("tricks", ", ".join(trick.name for trick in plan.tricks)),
        ("mode", plan.mode),
        ("arms", ", ".join(arms)),
        ("runs", f"{len(arms)} arms × {seeds} seeds = {len(arms) * seeds}{epochs}"),
    ]
    if seconds is not None:
        rows.append(("time", f"about {rough_duration(seconds)} in all"))
    if budget is not None:
        rows.append(("budget", budget))
    session.screen.plan(f"Ablation of recipe {session.request.recipe}, seeds from {session.request.seed}", rows)


def show_outcome(screen: Screen, outcome: Outcome) -> None:
    """Show a table a mode, how to read it, and where everything is."""
    for mode in get_args(AblationMode):
        if rows := outcome.of_mode(mode):
            screen.say("")
            screen.table(
                f"{mode}: {HEADINGS[mode]}, in {unit_of(outcome.plan.metric)}",
                ["trick", "gain", f"{LEVEL:.0%} interval", "p", "verdict", "finds", "seconds"],
                [
                    [
                        one.contrast.trick, one.gain, one.interval, f"{one.p:.3f}" if one.p >= 0.001 else "<0.001",
                        one.verdict, one.detectable, one.cost,
                    ]
                    for one in rows
                ],
            )  # fmt: skip
    best = outcome.folder / "best.toml"
    changes = ", ".join(f"{key}={value}" for key, value in outcome.best.items())
    notes = [
        "",
        f"p: corrected for {len(outcome.found)} comparisons by Holm's rule; below {1 - LEVEL:.2f} it is a verdict",
        "finds: minimum detectable effect, the true gain that these seeds and images find 4 times of 5",
        "seconds: that a run takes longer with the trick, the median over the seeds",
    ]
    for line in (
        *(notes if outcome.found else ()),
        *(f"left out: {name}, since {reason}" for name, reason in outcome.failed.items()),
        *outcome.left_out,
        "",
        f"{best}: the recipe with what helped ({changes})" if changes else f"{best}: the recipe unchanged",
        f"{outcome.folder / 'lift.png'} shows the gains, {outcome.folder / 'ablation.json'} holds them",
        f"train by it: etude fit TRAIN --recipe {best}",
    ):
        screen.say(line)
