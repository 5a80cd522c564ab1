"""The one place where the timeline is written into the trainer."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, cast

import etude.compat  # noqa: F401  (before lightning)

import lightning.pytorch as pl
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from torch import nn
from torch.nn.modules.dropout import _DropoutNd  # pyright: ignore[reportPrivateUsage]
from torch.optim import Optimizer

from etude.callbacks.base import EtudeCallback, callbacks_of, place_of
from etude.core.errors import EtudeError, listed, nearest
from etude.timeline import QUANTITIES, Event, Moment, Phase, PlateauWatch, RunSize, Timeline, step_progress


def run_size(trainer: pl.Trainer, name: str, steps: int = 0) -> RunSize:
    """Return the optimiser steps of the run and of an epoch; in manual optimisation a batch counts as a step."""
    epochs, of_epoch = trainer.max_epochs or -1, _steps_of_epoch(trainer, trainer.accumulate_grad_batches)
    limits = [trainer.max_steps] if trainer.max_steps > 0 else []
    if epochs > 0 and of_epoch < math.inf:
        whole = int(sum(_steps_of_epoch(trainer, _parts(trainer, epoch)) for epoch in range(epochs)))
        limits.append(whole)
        of_epoch = whole / epochs
    if not (steps or limits):
        raise EtudeError(
            f"{name} must know where the run ends: give the Trainer max_steps, or max_epochs and a loader with a "
            "length, or give the Clock steps"
        )
    return RunSize(steps or min(limits), of_epoch if of_epoch < math.inf else None)


def position(trainer: pl.Trainer, batches: int, steps: int = 0) -> tuple[int, int]:
    """Return how many steps are done and how many there are, by the limit that the run is nearer to.

    Where the epochs are limited, each is the same part of the run, however many batches and optimiser steps it has.
    """
    limit, epochs, parts = steps or trainer.max_steps, trainer.max_epochs or -1, trainer.accumulate_grad_batches
    by_steps = (trainer.global_step, limit)
    if steps or epochs <= 0 or (of_epoch := _steps_of_epoch(trainer, parts)) == math.inf:
        return by_steps
    within = of_epoch if batches >= trainer.num_training_batches else batches // parts
    by_epochs = (int(trainer.current_epoch * of_epoch + within), int(epochs * of_epoch))
    return max(by_epochs, by_steps, key=lambda pair: step_progress(*pair)) if limit > 0 else by_epochs


def _steps_of_epoch(trainer: pl.Trainer, parts: int) -> float:
    """Return the optimiser steps of an epoch as long as the present one, each of ``parts`` batches."""
    batches = trainer.num_training_batches  # infinite for a loader without a length
    return math.ceil(batches / parts) if batches < math.inf else math.inf


def _parts(trainer: pl.Trainer, epoch: int) -> int:
    """Return the batches that gradients are accumulated over in an epoch."""
    for callback in callbacks_of(trainer):
        if isinstance(callback, GradientAccumulationScheduler):
            return callback.get_accumulate_grad_batches(epoch)
    return trainer.accumulate_grad_batches


_LAYERS = {"dropout": "a torch.nn.Dropout", "drop_path": "a DropPath (timm's drop_path_rate)"}
_ROWS_KEPT = 500  # of what happened, for the figure: a pixel column each
_TRIAL_DOUBLINGS = 40  # of a trial's few steps, at most


class Clock(EtudeCallback):
    """Set learning rate, momentum and dropout before each step, by the timeline; tell every other trick the time.

    The timeline's learning rate is that of the parameter group whose own rate is the largest, of all optimisers. The
    others keep their ratio to it, as torch's schedulers keep each group's rate. A group's ``lr_scale`` (layer-wise
    decay) multiplies its rate too. A group that joins during training keeps its ratio to the largest rate at that time.
    Momentum is the same in all groups.

    Progress is the share of the Trainer's ``max_steps`` that is used up, or of its ``max_epochs`` if that is larger. A
    run that is resumed or continued with another length follows the plan of that length from there on. Every other
    ``fit`` starts the timeline afresh, so one Clock may serve several folds.

    Where a phase has a :class:`~etude.timeline.Plateau`, the metric is watched at each validation; the events that
    follow are the only state, and they are kept in the checkpoint.

    Args:
        timeline: the plan; lengths such as ``"3ep"`` are resolved when training starts.
        steps: optimiser steps of the whole run, which are counted in place of the trainer's limits.
        warn: called with a sentence when too few validations fall into a phase for its plateau.

    Raises:
        EtudeError: the timeline does not fit the run, a plateau's metric is not logged or nothing is validated, or the
            timeline schedules ``drop_path`` or ``dropout`` in a network that has no such layer.

    Example::

        trainer = Trainer(max_epochs=10, callbacks=[Clock(preset("one-cycle", Shape(peak_lr=1e-3)))])
    """

    def __init__(
        self, timeline: Timeline, steps: int | None = None, warn: Callable[[str], object] = warnings.warn
    ) -> None:
        super().__init__()
        self._given, self._warn = (timeline, steps or 0), warn
        self._start_afresh()

    def _start_afresh(self) -> None:
        self.timeline, self.steps = self._given
        self.moment: Moment | None = None
        self.happened: list[dict[str, Any]] = []
        self._watches: dict[str, PlateauWatch] = {}
        self._loaded: dict[str, Any] = {}
        self._own: list[tuple[float, float | None]] = []  # each group's own learning rate and momentum
        self._ratios: list[float] = []
        self._written: float | None = None  # the timeline's learning rate that the groups hold
        self._dropouts: list[tuple[nn.Module, float]] = []
        self._drop_paths: list[tuple[nn.Module, float]] = []
        self._known: tuple[Timeline, float, Moment] | None = None

    def moment_at(self, step: int) -> Moment:
        """Return what holds at step ``step``, counted from 0, of a run of ``self.steps`` steps."""
        return self._moment(step_progress(step, self.steps))

    def moment_of(self, trainer: pl.Trainer, batch_idx: int) -> Moment:
        """Return what holds at the step that a batch of the trainer's present epoch belongs to."""
        return self._moment(step_progress(*position(trainer, batch_idx, self._given[1])))

    def _moment(self, t: float) -> Moment:
        # Within a step every trick asks for the same moment. Kept whole, since a loader's thread asks too.
        timeline, known = self.timeline, self._known
        if known is None or known[0] is not timeline or known[1] != t:
            self._known = known = (timeline, t, timeline.at(t))
        return known[2]

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            going_on = self.state_dict() if trainer.global_step and self.steps else None
            self._start_afresh()
            if going_on:  # with new optimisers, which know what is their own
                self.load_state_dict(going_on | {"own_momentum": [], "own_lr": []})

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        size = self._resolve(trainer)
        self._take_up()
        self._check_plateaus(trainer, size)
        self._find_groups(trainer)
        self._find_layers(pl_module)
        batches = trainer.fit_loop.epoch_loop.batch_progress.current.ready
        done = 0 if batches >= trainer.num_training_batches else batches  # of an epoch that is resumed within
        self.moment = self.moment_of(trainer, done)
        self._stop_at_the_end(trainer, done)
        limited = any(place_of(callback) == "TimeLimit" for callback in callbacks_of(trainer))
        if not (limited or self.timeline.events or any(phase.plateau for phase in self.timeline.phases)):
            self.leave_out(trainer, "on_train_batch_end")  # nothing can end this run early

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.moment = self.moment_of(trainer, 0)
        self._write_rates(trainer, self.moment)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        self.moment = moment = self.moment_of(trainer, batch_idx)
        self._write_rates(trainer, moment)
        _write(self._dropouts, "p", moment.dropout, relative=False)
        _write(self._drop_paths, "drop_prob", moment.drop_path, relative=True)
        stride = max(1, self.steps // _ROWS_KEPT)
        if step % stride == 0 and (not self.happened or self.happened[-1]["step"] < step):
            self.happened.append({"step": step, "phase": moment.phase, **scheduled_in(moment)})

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._stop_at_the_end(trainer, batch_idx + 1)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.sanity_checking or trainer.state.fn != "fit" or not self.steps:
            return
        batches = trainer.fit_loop.epoch_loop.batch_progress.current.ready
        done, phase = self._just_done(trainer, batches)
        if phase.plateau is None:
            return
        watch = self._watches.setdefault(phase.name, PlateauWatch(phase.plateau))
        verdict = watch.observe(_metric(trainer, phase.plateau.metric, phase.name))
        if verdict is not None:
            plateau = phase.plateau
            self._react(trainer, batches, Event(done, verdict, phase.name, plateau.factor, plateau.min_lr))

    def end_phase(self, trainer: pl.Trainer, batches: int) -> None:
        """End the phase of the step just taken, after ``batches`` batches of the epoch; later phases move up.

        Training ends with its last phase.
        """
        done, phase = self._just_done(trainer, batches)
        if done < self.timeline.end:
            self._react(trainer, batches, Event(done, "end", phase.name))

    def _just_done(self, trainer: pl.Trainer, batches: int) -> tuple[float, Phase]:
        """Return the progress, and the phase of the step just taken: one that begins with the next has seen nothing."""
        done, steps = position(trainer, batches, self._given[1])
        return min(1.0, done / steps), self.timeline.phase_at(step_progress(max(0, done - 1), steps))

    def _react(self, trainer: pl.Trainer, batches: int, event: Event) -> None:
        self.timeline = self.timeline.with_event(event)
        self._stop_at_the_end(trainer, batches)

    def state_dict(self) -> dict[str, Any]:
        return {
            "steps": self.steps,
            "events": [
                [event.progress, event.kind, event.phase, event.factor, event.min_lr] for event in self.timeline.events
            ],
            "watches": {name: watch.state_dict() for name, watch in self._watches.items()},
            "own_lr": [lr for lr, _ in self._own],
            "own_momentum": [momentum for _, momentum in self._own],
            "happened": self.happened,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._loaded = state_dict
        momenta = state_dict["own_momentum"]
        # Before groups kept their ratios, checkpoints held no rates.
        self._own = list(zip(state_dict.get("own_lr", [1.0] * len(momenta)), momenta, strict=True))
        self.happened = list(state_dict["happened"])
        if self.steps and self.timeline.is_resolved:  # a loader may ask before training starts
            self._take_up()

    def _resolve(self, trainer: pl.Trainer) -> RunSize:
        """Turn the timeline's lengths into shares of this run, and return how long it is."""
        size = run_size(trainer, "Clock", self.steps)
        self.steps = size.steps
        # A trial of a few batches (fast_dev_run) runs through the phases of the shortest run that they fit.
        doublings = _TRIAL_DOUBLINGS if cast(Any, trainer).fast_dev_run else 0
        for power in range(doublings + 1):
            try:
                fixed = self.timeline.fixed_steps(size.epoch_steps) if doublings else None
                steps = round(fixed) if fixed else size.steps << power
                self.timeline = self.timeline.resolved(RunSize(steps, size.epoch_steps))
                break
            except ValueError as problem:
                if power == doublings:
                    raise EtudeError(f"the timeline does not fit this run: {problem}") from None
        return size

    def _take_up(self) -> None:
        """Add the checkpoint's events to the plan, at the steps at which they happened."""
        loaded, self._loaded = self._loaded, {}
        for progress, *fields in loaded.get("events", ()):
            try:
                event = Event(min(1.0, progress * (loaded["steps"] / self.steps)), *fields)
                self.timeline = self.timeline.with_event(event)
            except ValueError as problem:
                raise EtudeError(
                    f"the run of {loaded['steps']:,} steps changed its plan at a plateau, and that does not fit the "
                    f"present plan of {self.steps:,} steps ({problem}): resume with the same timeline and length, or "
                    "start anew without the checkpoint"
                ) from None
        plateaus = {phase.name: phase.plateau for phase in self.timeline.phases}
        for name, state in loaded.get("watches", {}).items():
            if (plateau := plateaus.get(name)) is not None:
                self._watches[name] = PlateauWatch(plateau)
                self._watches[name].load_state_dict(state)

    def _stop_at_the_end(self, trainer: pl.Trainer, batches: int) -> None:
        if self.timeline.events and step_progress(*position(trainer, batches, self._given[1])) >= self.timeline.end:
            trainer.should_stop = True

    def _check_plateaus(self, trainer: pl.Trainer, size: RunSize) -> None:
        """Refuse plateaus in a run without validation; warn of those that too few validations will see."""
        validations = _validations(trainer, size)
        for phase in self.timeline.phases:
            if phase.plateau is None:
                continue
            watches = f"phase {phase.name!r} watches {phase.plateau.metric!r} for a plateau"
            if not validations:
                raise EtudeError(
                    f"{watches}, and this run validates nothing: give trainer.fit validation images and the module a "
                    "validation_step, and let the Trainer validate within the run, or leave the plateau out"
                )
            found, needed = cast(float, phase.length) * validations, phase.plateau.patience + 2
            if found + 1 <= needed and trainer.is_global_zero and not cast(Any, trainer).fast_dev_run:
                self._warn(
                    f"{watches} with a patience of {phase.plateau.patience}, which takes {needed} validations, and has "
                    f"about {found:.1f}: it cannot fire; validate more often, or lower the patience"
                )

    def _find_groups(self, trainer: pl.Trainer) -> None:
        """Take note of what each optimiser's groups have of their own; new ones may come at any step."""
        for optimizer, group in _groups(trainer)[len(self._own) :]:
            lr = float(group.setdefault("initial_lr", group["lr"]))
            if self._written and lr != optimizer.defaults.get("lr"):  # given in view of the rates at this moment
                group["initial_lr"] = lr = lr * max(own for own, _ in self._own) / self._written
            self._own.append((lr, _momentum_of(group)))
        largest = max((lr for lr, _ in self._own), default=0.0)
        self._ratios = [lr / largest if largest else 1.0 for lr, _ in self._own]

    def _write_rates(self, trainer: pl.Trainer, moment: Moment) -> None:
        groups = _groups(trainer)
        if len(groups) > len(self._own):  # by Lightning's BackboneFinetuning for one
            self._find_groups(trainer)
        self._written = moment.lr or self._written
        for (_, group), ratio, (_, own) in zip(groups, self._ratios, self._own, strict=True):
            if moment.lr is not None:
                group["lr"] = moment.lr * ratio * group.get("lr_scale", 1.0)
            momentum = own if moment.momentum is None else moment.momentum
            if momentum is not None:
                if "betas" in group:
                    group["betas"] = (momentum, *group["betas"][1:])
                elif "momentum" in group:
                    group["momentum"] = momentum

    def undo(self) -> None:
        _write(self._dropouts, "p", None, relative=False)
        _write(self._drop_paths, "drop_prob", None, relative=True)

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


def phase_names(phases: Sequence[str] | str | None) -> tuple[str, ...] | None:
    """Return the names of phases that a callback is confined to, None for all."""
    return (phases,) if isinstance(phases, str) else None if phases is None else tuple(phases)


def check_phases(callback: pl.Callback, trainer: pl.Trainer, phases: Sequence[str] | None) -> None:
    """Refuse phases that the trainer's timeline lacks."""
    if phases is None:
        return
    clock, name = clock_of(trainer), type(callback).__name__
    if clock is None:
        raise EtudeError(
            f"{name} is confined to phase {listed(phases)}, and without a Clock there are no phases; put a Clock among "
            "the trainer's callbacks, or leave phases at None (in place of SWA use EMA)"
        )
    known = [phase.name for phase in clock.timeline.phases]
    for phase in phases:
        if phase not in known:
            raise EtudeError(
                f"{name} is confined to phase {phase!r}, which the timeline lacks; it has {listed(known, 20)}."
                f"{nearest(phase, known)}"
            )


def scheduled_in(moment: Moment) -> dict[str, float]:
    """Return the quantities that are scheduled at this moment, by name."""
    return {name: value for name in QUANTITIES if (value := getattr(moment, name)) is not None}


def _groups(trainer: pl.Trainer) -> list[tuple[Optimizer, dict[str, Any]]]:
    return [(optimizer, group) for optimizer in trainer.optimizers for group in optimizer.param_groups]


def _validations(trainer: pl.Trainer, size: RunSize) -> float:
    """Return how many validations a run has; infinite where that cannot be known."""
    if not trainer.enable_validation or (trainer.val_dataloaders is not None and not sum(trainer.num_val_batches)):
        return 0
    interval, batches, every = trainer.val_check_batch, trainer.num_training_batches, trainer.check_val_every_n_epoch
    if interval is None or size.epoch_steps is None:
        return math.inf
    epochs = size.steps / size.epoch_steps + 1e-9
    if every is None:
        return epochs * batches // interval
    return epochs // every * (batches // interval)


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
