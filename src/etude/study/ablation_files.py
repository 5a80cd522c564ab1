"""What an ablation leaves: ``ablation.json``, the lift chart, and the recipe with what helped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any, get_args

from etude.core.files import write_json
from etude.core.metrics import Metric
from etude.core.paired import LEVEL
from etude.journal.lift_figure import Lift, LiftPanel, draw_lift
from etude.journal.record import RunRecord
from etude.recipe import Recipe
from etude.study.ablation_arms import Design, Mode
from etude.study.ablation_best import best_changes, write_best
from etude.study.ablation_outcome import ArmRun, Found, scale_of, unit_of
from etude.study.request import Request

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
