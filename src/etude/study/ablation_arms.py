"""The arms of an ablation: which recipes are trained, and which two of them tell what a trick bought."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from etude.core.errors import EtudeError, nearest
from etude.recipe import Recipe
from etude.recipe.tricks import Changes, Trick, switched

Mode = Literal["leave-one-out", "add-one-in"]
MODES: dict[str, tuple[Mode, ...]] = {**{mode: (mode,) for mode in get_args(Mode)}, "both": get_args(Mode)}


@dataclass(frozen=True, slots=True)
class Arm:
    """One recipe that is trained.

    Args:
        name: of its folder.
        changes: of the recipe's settings.
    """

    name: str
    changes: Changes


@dataclass(frozen=True, slots=True)
class Contrast:
    """Two arms that differ in one trick.

    Args:
        without: name of the arm without it.
        with_it: name of the arm with it.
    """

    trick: str
    mode: Mode
    without: str
    with_it: str


@dataclass(frozen=True, slots=True)
class Design:
    """All arms, those that others are compared with first, and the contrasts between them."""

    arms: tuple[Arm, ...]
    contrasts: tuple[Contrast, ...]

    @property
    def baselines(self) -> tuple[str, ...]:
        """Names of the arms that others are compared with: nothing can be said without them."""
        return tuple(arm.name for arm in self.arms if arm.name in ("full", "bare"))


def modes_named(mode: str) -> tuple[Mode, ...]:
    """Return the modes that ``--mode`` stands for.

    Raises:
        EtudeError: it is none of them.
    """
    if mode not in MODES:
        raise EtudeError(f"--mode is {mode!r}; give {', '.join(MODES)}.{nearest(mode, MODES)}")
    return MODES[mode]


def design_of(recipe: Recipe, tricks: Sequence[Trick], modes: Sequence[Mode]) -> Design:
    """Return the arms for tricks of a resolved recipe.

    Leave-one-out compares the recipe with all of the tricks, ``full``, with all but one; add-one-in the recipe with
    none of them, ``bare``, with one alone. Arms that come to the same are trained once.

    Raises:
        EtudeError: the tricks cannot be had together, or apart.
    """
    names = {trick.name for trick in tricks}
    arms: dict[str, Arm] = {}

    def arm(name: str, on: set[str]) -> str:
        made = Arm(name, switched(recipe, tricks, on))
        return arms.setdefault(repr(sorted(on)), made).name

    bases = {mode: arm("full", names) if mode == "leave-one-out" else arm("bare", set()) for mode in modes}
    contrasts: dict[tuple[str, str], Contrast] = {}
    for mode in modes:
        for trick in tricks:
            if mode == "leave-one-out":
                ends = arm(f"without-{trick.name}", names - {trick.name}), bases[mode]
            else:
                ends = bases[mode], arm(f"with-{trick.name}", {trick.name})
            contrasts.setdefault(ends, Contrast(trick.name, mode, *ends))
    return Design(tuple(arms.values()), tuple(contrasts.values()))


def as_settings(changes: Mapping[str, Any]) -> list[str]:
    """Return changes as ``--set`` takes them.

    >>> as_settings({"train.ema": 0.0, "stages": ["finetune"]})
    ['train.ema=0.0', 'stages=["finetune"]']
    """
    return [f"{key}={json.dumps(value)}" for key, value in changes.items()]
