"""Plateaus: what to do when a metric stops improving, by the rules of PyTorch's ``ReduceLROnPlateau``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Reaction = Literal["scale", "end"]


@dataclass(frozen=True, slots=True)
class Plateau:
    """Scale the learning rate when a metric stops improving, and possibly end the phase.

    The rules are those of ``torch.optim.lr_scheduler.ReduceLROnPlateau``, counted in validations. Each plateau
    multiplies the learning rate by ``factor`` for the rest of the run, so warmup and any curve chain with it.
    """

    metric: str = "valid_loss"  # name of a logged metric
    mode: Literal["min", "max"] = "min"  # "min" when lower is better, "max" when higher is
    factor: float = 0.1  # of the learning rate, in (0, 1)
    patience: int = 2  # validations without improvement that are tolerated; the next one is a plateau
    threshold: float = 1e-4  # smallest change that counts as an improvement
    threshold_mode: Literal["rel", "abs"] = "rel"  # "rel": a share of the best value; "abs": in the metric's unit
    cooldown: int = 0  # validations after a plateau that are not counted
    min_lr: float = 0.0  # no plateau takes the learning rate below it
    reductions: int | None = None  # scalings after which the next plateau ends the phase; 0: the first one; None: none

    def __post_init__(self) -> None:
        if not self.metric:
            raise ValueError("a plateau needs the name of a metric, such as 'valid_loss'")
        if self.mode not in ("min", "max"):
            raise ValueError(f"mode of a plateau is {self.mode!r}; give 'min' or 'max'")
        if self.threshold_mode not in ("rel", "abs"):
            raise ValueError(f"threshold_mode of a plateau is {self.threshold_mode!r}; give 'rel' or 'abs'")
        if not 0.0 < self.factor < 1.0:
            raise ValueError(f"factor of a plateau is {self.factor}; it must lie between 0 and 1")
        if not 0.0 <= self.threshold < (1.0 if self.threshold_mode == "rel" else math.inf):
            raise ValueError(f"threshold of a plateau is {self.threshold}; give a small number, such as 1e-4")
        if not 0.0 <= self.min_lr < math.inf:
            raise ValueError(f"min_lr of a plateau is {self.min_lr}; it must be at least 0")
        for name in ("patience", "cooldown", "reductions"):
            count = getattr(self, name)
            if count is not None and count < 0:
                raise ValueError(f"{name} of a plateau is {count}; it must be at least 0")


@dataclass(frozen=True, slots=True)
class Event:
    """A reaction to a plateau: the only state of a run that its timeline does not hold."""

    progress: float  # of the run at which it happened, in [0, 1]
    kind: Reaction  # "scale": the learning rate was multiplied; "end": the phase was ended
    phase: str  # name of the phase that ran
    factor: float = 1.0  # of the learning rate, for "scale"
    min_lr: float = 0.0  # the learning rate below which the factor does not take it

    def __post_init__(self) -> None:
        if not 0.0 <= self.progress <= 1.0:
            raise ValueError(f"progress of an event is {self.progress}, it must lie in [0, 1]")
        if self.kind not in ("scale", "end"):
            raise ValueError(f"kind of an event is {self.kind!r}; give 'scale' or 'end'")
        if not 0.0 < self.factor <= 1.0:
            raise ValueError(f"factor of an event is {self.factor}; it must lie above 0 and at most at 1")
        if not 0.0 <= self.min_lr < math.inf:
            raise ValueError(f"min_lr of an event is {self.min_lr}; it must be at least 0")


class PlateauWatch:
    """Watch a metric over the validations of one phase.

    >>> watch = PlateauWatch(Plateau(patience=1, reductions=1))
    >>> [watch.observe(loss) for loss in (1.0, 0.5, 0.5, 0.5, 0.5, 0.5)]
    [None, None, None, 'scale', None, 'end']
    """

    def __init__(self, plateau: Plateau) -> None:
        self.plateau = plateau
        self._worst = math.inf if plateau.mode == "min" else -math.inf
        self._best = self._worst
        self._bad = 0
        self._cooldown = 0
        self._reductions = 0

    def observe(self, value: float) -> Reaction | None:
        """Return the reaction to the metric of one validation, if any; NaN counts as no improvement."""
        if self._improves(value):
            self._best, self._bad = value, 0
        else:
            self._bad += 1
        if self._cooldown:
            self._cooldown, self._bad = self._cooldown - 1, 0
        if self._bad <= self.plateau.patience:
            return None
        self._cooldown, self._bad = self.plateau.cooldown, 0
        if self.plateau.reductions is not None and self._reductions >= self.plateau.reductions:
            return "end"
        self._reductions += 1
        return "scale"

    def state_dict(self) -> dict[str, float | None]:
        """Return the state as plain numbers; ``best`` is None before the first improvement."""
        return {
            "best": None if self._best == self._worst else self._best,
            "bad": self._bad,
            "cooldown": self._cooldown,
            "reductions": self._reductions,
        }

    def load_state_dict(self, state: Mapping[str, float | None]) -> None:
        """Restore what ``state_dict`` returned."""
        best = state["best"]
        self._best = self._worst if best is None else float(best)
        self._bad, self._cooldown, self._reductions = (
            int(state[name] or 0) for name in ("bad", "cooldown", "reductions")
        )

    def _improves(self, value: float) -> bool:
        threshold, best = self.plateau.threshold, self._best
        if self.plateau.mode == "min":
            return value < (best * (1.0 - threshold) if self.plateau.threshold_mode == "rel" else best - threshold)
        return value > (best * (1.0 + threshold) if self.plateau.threshold_mode == "rel" else best + threshold)
