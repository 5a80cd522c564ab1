"""The design of an ablation: its arms, which of them are compared, and options that are refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from etude.core.errors import EtudeError, nearest
from etude.core.paired import FEWEST_SEEDS, paired_metric
from etude.recipe import Recipe
from etude.recipe.tricks import Changes, Trick, switched, tricks_named
from etude.timeline import parse_length

AblationMode = Literal["leave-one-out", "add-one-in"]
MODES: dict[str, tuple[AblationMode, ...]] = {
    **{mode: (mode,) for mode in get_args(AblationMode)},
    "both": get_args(AblationMode),
}


@dataclass(frozen=True, slots=True)
class ArmContrast:
    """Two arms, by name, that differ in one trick."""

    trick: str
    mode: AblationMode
    without: str
    with_it: str


@dataclass(frozen=True, slots=True)
class Design:
    """What each arm changes in the recipe, by its name, and the contrasts between arms."""

    arms: Mapping[str, Changes]
    contrasts: Sequence[ArmContrast]

    @property
    def baselines(self) -> tuple[str, ...]:
        """Names of the arms that others are compared with: without them there is no result."""
        return tuple(name for name in self.arms if name in ("full", "bare"))


def modes_named(mode: str) -> tuple[AblationMode, ...]:
    if mode not in MODES:
        raise EtudeError(f"--mode is {mode!r}; give {', '.join(MODES)}.{nearest(mode, MODES)}")
    return MODES[mode]


def design_of(recipe: Recipe, tricks: Sequence[Trick], modes: Sequence[AblationMode]) -> Design:
    """Return the arms for tricks of a resolved recipe, and their contrasts; arms that come to the same are one."""
    names = {trick.name for trick in tricks}
    arms: dict[frozenset[str], tuple[str, Changes]] = {}

    def arm(name: str, on: set[str]) -> str:
        return arms.setdefault(frozenset(on), (name, switched(recipe, tricks, on)))[0]

    bases = {mode: arm("full", names) if mode == "leave-one-out" else arm("bare", set()) for mode in modes}
    contrasts: dict[tuple[str, str], ArmContrast] = {}
    for mode in modes:
        for trick in tricks:
            if mode == "leave-one-out":
                ends = arm(f"without-{trick.name}", names - {trick.name}), bases[mode]
            else:
                ends = bases[mode], arm(f"with-{trick.name}", {trick.name})
            contrasts.setdefault(ends, ArmContrast(trick.name, mode, *ends))
    return Design(dict(arms.values()), tuple(contrasts.values()))


def check_asked(
    tricks: Sequence[str] | None, mode: str | None, seeds: int | None, budget: str | None, metric: str | None
) -> None:
    """Refuse options of ``etude ablate`` that mean nothing with any recipe; None where one is left out."""
    if tricks is not None:
        tricks_named(tricks)
    if mode is not None:
        modes_named(mode)
    if metric is not None:
        paired_metric(metric)
    if seeds is not None and seeds < FEWEST_SEEDS:
        raise EtudeError(
            f"--seeds is {seeds}; give {FEWEST_SEEDS} or more: one seed cannot separate the effect of a trick from "
            "that of another seed"
        )
    seconds_of(budget)


def seconds_of(budget: str | None) -> float | None:
    if budget is None:
        return None
    try:
        amount, unit = parse_length(budget)
    except ValueError:
        amount, unit = 0.0, ""
    if unit != "s":
        raise EtudeError(f"--budget is {budget!r}; give a time such as 90s, 30m or 2h")
    return amount
