"""The one place where the timeline is written into the trainer."""

from __future__ import annotations

from typing import Any, cast

import etude.compat  # noqa: F401  (before lightning)

import lightning.pytorch as pl
from torch import nn
from torch.nn.modules.dropout import _DropoutNd  # pyright: ignore[reportPrivateUsage]

from etude.callbacks.base import EtudeCallback, callbacks_of, whole_steps
from etude.core.errors import EtudeError, listed
from etude.timeline import QUANTITIES, Event, Moment, PlateauWatch, RunSize, Timeline, step_progress

_LAYERS = {"dropout": "a torch.nn.Dropout", "drop_path": "a DropPath (timm's drop_path_rate)"}
_ROWS_KEPT = 500  # of what happened, for the figure: a pixel column each


class Clock(EtudeCallback):
    """Set learning rate, momentum and dropout before each step, by the timeline; tell every other trick the time.

    A group's own ``lr_scale`` (layer-wise decay) multiplies the timeline's learning rate. Where a phase has a
    :class:`~etude.timeline.Plateau`, the metric is watched at each validation; the events that follow are the only
    state, and they are kept in the checkpoint.

    Args:
        timeline: the plan; lengths such as ``"3ep"`` are resolved when training starts.
        steps: optimiser steps of the whole run; by default those that the trainer is set to.

    Raises:
        EtudeError: the timeline does not fit the run, a plateau's metric is not logged, or the timeline schedules
            ``drop_path`` or ``dropout`` in a network that has no such layer.

    Example::

        trainer = Trainer(max_epochs=10, callbacks=[Clock(preset("one-cycle", Shape(peak_lr=1e-3)))])
    """

    def __init__(self, timeline: Timeline, steps: int | None = None) -> None:
        super().__init__()
        self.timeline = timeline
        self.steps = steps or 0
        self.moment: Moment | None = None
        self.happened: list[dict[str, Any]] = []
        self._watches: dict[str, PlateauWatch] = {}
        self._loaded: dict[str, Any] = {}
        self._own_momentum: list[float | None] = []
        self._dropouts: list[tuple[nn.Module, float]] = []
        self._drop_paths: list[tuple[nn.Module, float]] = []
        self._known: tuple[Timeline, int, int, Moment] | None = None

    def moment_at(self, step: int) -> Moment:
        """Return what holds at optimiser step ``step``, counted from 0."""
        # Within a step every trick asks for the same moment. Kept whole, since a loader's thread asks too.
        timeline, steps, known = self.timeline, self.steps, self._known
        if known is None or known[0] is not timeline or known[1:3] != (steps, step):
            self._known = known = (timeline, steps, step, timeline.at(step_progress(step, steps)))
        return known[3]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Fit the timeline to the run, and remember what stands in its place where a phase leaves it alone."""
        super().on_train_start(trainer, pl_module)
        if not self.steps:
            self.steps = whole_steps(trainer, "Clock")
        if not self.timeline.is_resolved:
            epoch_steps = trainer.num_training_batches / trainer.accumulate_grad_batches
            try:
                self.timeline = self.timeline.resolved(RunSize(self.steps, epoch_steps))
            except ValueError as problem:
                raise EtudeError(f"the timeline does not fit this run: {problem}") from None
        self._take_up()
        if not self._own_momentum:  # a resumed optimiser holds what was last written, so the checkpoint's is kept
            self._own_momentum = [_momentum_of(group) for group in _groups(trainer)]
        self._find_layers(pl_module)
        self.moment = self.moment_at(trainer.global_step)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Move to the moment of the coming step."""
        step = trainer.global_step
        self.moment = moment = self.moment_at(step)
        self._write_rates(trainer, moment)
        _write(self._dropouts, "p", moment.dropout, relative=False)
        _write(self._drop_paths, "drop_prob", moment.drop_path, relative=True)
        stride = max(1, self.steps // _ROWS_KEPT)
        if step % stride == 0 and (not self.happened or self.happened[-1]["step"] < step):
            self.happened.append({"step": step, "phase": moment.phase, **scheduled_in(moment)})

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop where plateaus have brought the end forward."""
        self._stop_at_the_end(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show the present phase's plateau the metric it watches, and change the plan when it says so."""
        if trainer.sanity_checking or trainer.state.fn != "fit" or not self.steps:
            return
        # The phase of the step that has just been taken: a phase that begins with the next one has seen nothing yet.
        phase = self.timeline.phase_at(step_progress(max(0, trainer.global_step - 1), self.steps))
        if phase.plateau is None:
            return
        watch = self._watches.setdefault(phase.name, PlateauWatch(phase.plateau))
        verdict = watch.observe(_metric(trainer, phase.plateau.metric, phase.name))
        if verdict is None:
            return
        progress = min(1.0, trainer.global_step / self.steps)
        event = Event(progress, verdict, phase.name, phase.plateau.factor, phase.plateau.min_lr)
        self.timeline = self.timeline.with_event(event)
        self._stop_at_the_end(trainer)

    def state_dict(self) -> dict[str, Any]:
        """Return the events and the watches, of plain values."""
        return {
            "steps": self.steps,
            "events": [
                [event.progress, event.kind, event.phase, event.factor, event.min_lr] for event in self.timeline.events
            ],
            "watches": {name: watch.state_dict() for name, watch in self._watches.items()},
            "own_momentum": self._own_momentum,
            "happened": self.happened,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the plan where the checkpoint left it."""
        self.steps = int(state_dict["steps"])
        self._loaded = state_dict
        self._own_momentum = list(state_dict["own_momentum"])
        self.happened = list(state_dict["happened"])
        if self.timeline.is_resolved:
            self._take_up()

    def _take_up(self) -> None:
        """Add the checkpoint's events to the plan; a plan in epochs can take them only once it is resolved."""
        for fields in self._loaded.get("events", ()):
            self.timeline = self.timeline.with_event(Event(*fields))
        plateaus = {phase.name: phase.plateau for phase in self.timeline.phases if phase.plateau is not None}
        for name, state in self._loaded.get("watches", {}).items():
            self._watches[name] = PlateauWatch(plateaus[name])
            self._watches[name].load_state_dict(state)
        self._loaded = {}

    def _stop_at_the_end(self, trainer: pl.Trainer) -> None:
        if self.timeline.events and trainer.global_step >= round(self.timeline.end * self.steps):
            trainer.should_stop = True

    def _write_rates(self, trainer: pl.Trainer, moment: Moment) -> None:
        groups = _groups(trainer)
        # Groups may be added on the way, by Lightning's BackboneFinetuning for one.
        self._own_momentum += [_momentum_of(group) for group in groups[len(self._own_momentum) :]]
        for group, own in zip(groups, self._own_momentum, strict=True):
            if moment.lr is not None:
                group["lr"] = moment.lr * group.get("lr_scale", 1.0)
            momentum = own if moment.momentum is None else moment.momentum
            if momentum is not None:
                if "betas" in group:
                    group["betas"] = (momentum, *group["betas"][1:])
                elif "momentum" in group:
                    group["momentum"] = momentum

    def _find_layers(self, pl_module: pl.LightningModule) -> None:
        scheduled = self.timeline.quantities()
        modules = list(pl_module.modules())
        # A dropout of 0, as inside the blocks of many networks, was left out on purpose and stays so.
        dropped: list[tuple[nn.Module, float]] = [(m, m.p) for m in modules if isinstance(m, _DropoutNd) and m.p > 0]
        self._dropouts = dropped if "dropout" in scheduled else []
        deep = [m for m in modules if isinstance(getattr(m, "drop_prob", None), float)]  # as timm names it
        self._drop_paths = [(m, cast(Any, m).drop_prob) for m in deep] if "drop_path" in scheduled else []
        for quantity, layers in (("dropout", self._dropouts), ("drop_path", self._drop_paths)):
            if quantity in scheduled and not any(own > 0 for _, own in layers):
                raise EtudeError(
                    f"the timeline schedules {quantity}, but the network has no layer of its own for it: build it with "
                    f"{_LAYERS[quantity]} above 0, or leave {quantity} out of the phases"
                )


def clock_of(trainer: pl.Trainer) -> Clock | None:
    """Return the trainer's clock, if it has one."""
    return next((callback for callback in callbacks_of(trainer) if isinstance(callback, Clock)), None)


def scheduled_in(moment: Moment) -> dict[str, float]:
    """Return the quantities that are scheduled at this moment, by name."""
    return {name: value for name in QUANTITIES if (value := getattr(moment, name)) is not None}


def _groups(trainer: pl.Trainer) -> list[dict[str, Any]]:
    return [group for optimizer in trainer.optimizers for group in optimizer.param_groups]


def _momentum_of(group: dict[str, Any]) -> float | None:
    return float(group["betas"][0]) if "betas" in group else group.get("momentum")


def _write(layers: list[tuple[nn.Module, float]], name: str, value: float | None, *, relative: bool) -> None:
    """Set an attribute of layers; ``relative`` keeps their proportions (stochastic depth grows with the depth)."""
    most = max(own for _, own in layers) if layers and relative else 1.0
    for layer, own in layers:
        # Not by the module's own __setattr__, which first looks through its parameters, buffers and modules.
        object.__setattr__(layer, name, own if value is None else value * own / most if relative else value)


def _metric(trainer: pl.Trainer, name: str, phase: str) -> float:
    metrics = trainer.callback_metrics
    if name not in metrics:
        raise EtudeError(
            f"phase {phase!r} watches {name!r} for a plateau, and validation logs no such metric; it logs "
            f"{listed(sorted(metrics)) or 'nothing'}: name one of them, or log {name!r} in validation_step"
        )
    value = metrics[name].detach()
    # Every process must come to the same verdict, or they would train at different rates.
    return float(trainer.strategy.reduce(value, reduce_op="mean") if trainer.world_size > 1 else value)
