"""What the callbacks have in common."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any, cast

import etude.compat  # noqa: F401  (before lightning)

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import (
    Checkpoint,
    LearningRateFinder,
    LearningRateMonitor,
    StochasticWeightAveraging,
    WeightAveraging,
)

from etude.core.errors import EtudeError

# Each with the reason why it stands before those below it.
ORDER: dict[str, str] = {
    "Clock": "it sets the moment that all others ask for",
    "TimeLimit": "a phase that it ends is over for all after it",
    "ProgressiveResize": "the tricks after it then work on fewer pixels",
    "PseudoLabels": "its teacher sees an image before it is changed for the student",
    "AugmentRamp": "single images are changed before they are mixed",
    "MixUp": "it draws which of the two mixes a batch",
    "CutMix": "targets are mixed before they are smoothed, and images before teachers see them",
    "LabelSmoothing": "targets are smoothed before teachers add to them, and changed before anything is recorded",
    "Distill": "batches are changed before anything is recorded of them",
    "averaging": "what is recorded are the averaged weights' scores",
    "History": "the row is written before other code sees it",
    "Hooks": "the bar moves after everything of its step is done",
    "TrainingProgress": "checkpoints hold the state of all others",
    "checkpoints": "",
}
_PLACES = tuple(ORDER)
_SETS_RATES = {
    StochasticWeightAveraging: "use etude's SWA, which leaves the learning rate to the timeline",
    LearningRateFinder: "find the rate in a run of its own (etude lr-find) and give it to the timeline",
}


def place_of(callback: pl.Callback) -> str | None:
    """Return the name in ``ORDER`` that ``callback`` falls under, or None for one that may stand anywhere."""
    if isinstance(callback, Checkpoint):
        return "checkpoints"
    if isinstance(callback, WeightAveraging):
        return "averaging"
    # By name, since the modules of these classes import this one.
    for kind in type(callback).__mro__:
        if kind.__module__.startswith("etude.callbacks.") and kind.__name__ in ORDER:
            return kind.__name__
    return None


def arrange(callbacks: Iterable[pl.Callback]) -> list[pl.Callback]:
    """Return the callbacks in a right order; those that may stand anywhere stay behind the one they followed."""
    rank, ranked = 0.0, []
    for callback in callbacks:
        place = place_of(callback)
        rank = rank if place is None else float(_PLACES.index(place))
        ranked.append((max(rank, 0.5) if isinstance(callback, LearningRateMonitor) else rank, callback))
    return [callback for _, callback in sorted(ranked, key=lambda pair: pair[0])]


def check_order(callbacks: Sequence[pl.Callback]) -> None:
    """Refuse callbacks that stand in a wrong order or undo each other's work."""
    placed = [(callback, place) for callback in callbacks if (place := place_of(callback)) is not None]
    for place, one in (("Clock", "one timeline runs a training"), ("averaging", "each swaps the network's weights")):
        kind = StochasticWeightAveraging if place == "averaging" else ()  # which may stand anywhere
        found = [callback for callback in callbacks if place_of(callback) == place or isinstance(callback, kind)]
        names = [type(callback).__name__ for callback in found]
        if len(names) > 1:
            raise EtudeError(f"the callbacks hold {' and '.join(names)}, but {one}: keep one of them")
    for (former, before), (latter, after) in pairwise(placed):
        if _PLACES.index(before) > _PLACES.index(after):
            names = [type(callback).__name__ for callback in arrange(callbacks) if place_of(callback)]
            raise EtudeError(
                f"{type(former).__name__} stands before {type(latter).__name__} among the callbacks, and must come "
                f"after it ({ORDER[after]}): list them as {', '.join(names)}, or pass them "
                "through etude.callbacks.arrange"
            )
    for callback in callbacks if _rate_clock(callbacks) else ():
        for kind, way_on in _SETS_RATES.items():
            if isinstance(callback, kind):
                raise EtudeError(
                    f"{kind.__name__} sets the learning rate, and so does the Clock's timeline: {way_on}, "
                    "or leave lr out of the timeline's phases"
                )
    for number, callback in enumerate(callbacks):
        if isinstance(callback, LearningRateMonitor) and _rate_clock(callbacks[number:]):
            raise EtudeError(
                f"{type(callback).__name__} stands before the Clock among the callbacks, and would log the rate of the "
                "step before: put it after the Clock, or pass the callbacks through etude.callbacks.arrange"
            )


def _rate_clock(callbacks: Sequence[pl.Callback]) -> bool:
    clocks = (callback for callback in callbacks if place_of(callback) == "Clock")
    return any("lr" in cast(Any, clock).timeline.quantities() for clock in clocks)


_STEP_HOOKS = (
    *("on_train_batch_start", "on_before_zero_grad", "on_before_backward", "on_after_backward"),
    *("on_before_optimizer_step", "on_train_batch_end"),
)


class EtudeCallback(pl.Callback):
    """A callback that checks its place among the others before training starts."""

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        check_order(callbacks_of(trainer))
        kind = type(self)
        self.leave_out(trainer, *(name for name in _STEP_HOOKS if getattr(kind, name) is getattr(pl.Callback, name)))

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.lr_scheduler_configs and _rate_clock(callbacks_of(trainer)):
            name = type(trainer.lr_scheduler_configs[0].scheduler).__name__
            raise EtudeError(
                f"configure_optimizers returns the scheduler {name}, and the Clock's timeline schedules the learning "
                "rate too: return the optimiser alone, or leave lr out of the timeline's phases"
            )

    def leave_out(self, trainer: pl.Trainer, *hooks: str) -> None:
        """Spare Lightning's calls of hooks of a step; a callback that another one calls keeps them."""
        if any(self is one for one in callbacks_of(trainer)):
            for name in hooks:
                if name not in vars(self):
                    setattr(self, name, None)

    def undo(self) -> None:
        """Undo at the end of training, also one that fails, what was changed outside the callback."""

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        for name in _STEP_HOOKS:
            if vars(self).get(name, self) is None:
                delattr(self, name)
        self.undo()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        EtudeCallback.teardown(self, trainer, pl_module, "fit")


def callbacks_of(trainer: pl.Trainer) -> list[pl.Callback]:
    """Return the trainer's callbacks, an attribute that Lightning sets without declaring it."""
    return cast(list[pl.Callback], cast(Any, trainer).callbacks)


def ends_step(trainer: pl.Trainer, batch_idx: int) -> bool:
    """Return whether a batch is the last of those that its step's gradients are accumulated over."""
    return (batch_idx + 1) % trainer.accumulate_grad_batches == 0 or batch_idx + 1 == trainer.num_training_batches


def loss_of(trainer: pl.Trainer, outputs: Any) -> torch.Tensor | None:
    """Return the undivided loss of a batch from ``on_train_batch_end``'s outputs; None where the step had none."""
    loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
    if not isinstance(loss, torch.Tensor):
        return None
    batches = trainer.accumulate_grad_batches
    return loss.detach() if batches == 1 else loss.detach() * batches
