"""Averages of the weights over training steps: exponential (EMA) or equal (SWA)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any

import etude.compat  # noqa: F401  (before lightning)

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from etude.callbacks.base import EtudeCallback
from etude.callbacks.clock import Clock, check_phases, clock_of, phase_names
from etude.core.errors import EtudeError

Tensors = dict[str, torch.Tensor]


class TensorAverage:
    """The average of a module's tensors, by name.

    Torch's AveragedModel deep-copies the module with all it refers to (the data too) and walks through it each step;
    ``benchmarks/callback_overhead.py`` holds the callbacks to 3% of a step of 10 ms.
    """

    def __init__(self, steps: int = 0, averaged: Tensors | None = None, copied: Tensors | None = None) -> None:
        self.steps, self.averaged, self.copied = steps, averaged or {}, copied or {}
        self._places: dict[str, tuple[dict[str, Any], str]] = {}  # looked up each time: buffers may be replaced
        self._first_name: dict[str, str] = {}  # of the tensor that a name stands for: weights may be tied
        self._waiting: list[str] = []

    @torch.no_grad()
    def update(self, module: torch.nn.Module, share: float, steps: int = 1) -> None:
        """Move the average by ``share`` of the way to the module's present tensors, which stand for ``steps`` steps."""
        self._bind(module)
        self._take_in()
        if averages := list(self.averaged.values()):
            pairs = zip(self._live(self.averaged), averages, strict=True)  # .to alone would cost as much as the rest
            live = [tensor if tensor.dtype == average.dtype else tensor.to(average.dtype) for tensor, average in pairs]
            torch._foreach_lerp_(averages, live, share)
        if self.copied:
            torch._foreach_copy_(list(self.copied.values()), self._live(self.copied))
        self.steps += steps

    @torch.no_grad()
    def put_in(self, module: torch.nn.Module) -> Tensors:
        """Write the average into the module; return what stood there."""
        self._bind(module)
        average = self.averaged | self.copied
        before = {name: self._live([name])[0].clone() for name in average}
        self.put_back(average)
        return before

    @torch.no_grad()
    def put_back(self, before: Tensors) -> None:
        """Write what ``put_in`` returned into the module."""
        torch._foreach_copy_(self._live(before), list(before.values()))

    def replaced(self, module: torch.nn.Module, state: Tensors, tensors: Tensors) -> Tensors:
        """Return the module's ``state`` with ``tensors`` in the place of its own."""
        self._bind(module)
        chosen = {name: tensors[first] for name, first in self._first_name.items() if first in tensors}
        return {name: chosen[name].to(own.dtype) if name in chosen else own for name, own in state.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return the average, of tensors and a number."""
        return {"steps": self.steps, "averaged": dict(self.averaged), "copied": dict(self.copied)}

    @classmethod
    def of_state(cls, state: dict[str, Any]) -> TensorAverage:
        """Return the average that :meth:`state_dict` described."""
        return cls(int(state["steps"]), dict(state["averaged"]), dict(state["copied"]))

    def _live(self, names: Iterable[str]) -> list[torch.Tensor]:
        return [table[key] for table, key in map(self._places.__getitem__, names)]

    def _bind(self, module: torch.nn.Module) -> None:
        if self._places:
            return
        first_of: dict[int, str] = {}
        for prefix, part in module.named_modules(remove_duplicate=False):
            for table in (part._parameters, part._buffers):
                for key, tensor in table.items():
                    if tensor is not None:
                        name = f"{prefix}.{key}" if prefix else key
                        self._first_name[name] = first_of.setdefault(id(tensor), name)
                        self._places[name] = (table, key)
        self._lay_out()
        self._waiting = [name for name in first_of.values() if name not in self.averaged and name not in self.copied]

    def _lay_out(self) -> None:
        """Lay tensors of a checkpoint out as the module's are, on its device."""
        for tensors in (self.averaged, self.copied):
            for name, tensor in tensors.items():
                own = self._live([name])[0] if name in self._places else None
                if own is None or own.shape != tensor.shape:
                    raise EtudeError(
                        f"the checkpoint's average holds {name!r} with shape {tuple(tensor.shape)}, and the model "
                        f"{'lacks it' if own is None else f'has {tuple(own.shape)}'}; resume with the model of that run"
                    )
                tensors[name] = torch.empty_like(own, dtype=tensor.dtype, requires_grad=False).copy_(tensor)

    def _take_in(self) -> None:
        """Start the average of tensors that have none, with the value they have; frozen parameters wait."""
        waiting, self._waiting = self._waiting, []
        for name, tensor in zip(waiting, self._live(waiting), strict=True):
            if isinstance(tensor, torch.nn.Parameter) and not tensor.requires_grad:
                self._waiting.append(name)
            elif not tensor.is_floating_point() or not bool(tensor.isfinite().all()):  # such as -inf in a mask
                self.copied[name] = tensor.detach().clone()
            else:  # in half precision, small steps of the average would be rounded away
                wide = torch.promote_types(tensor.dtype, torch.float32)
                self.averaged[name] = tensor.detach().to(wide, copy=True)


SAMPLES = 16
"""Updates of an EMA within the steps that it reaches back, at least."""


class _Averaging(EtudeCallback, WeightAveraging):
    """What :class:`EMA` and :class:`SWA` share: Lightning's hooks and layout of checkpoints, around an average."""

    def __init__(self, phases: Sequence[str] | str | None) -> None:
        WeightAveraging.__init__(self)
        self.phases = phase_names(phases)
        self._clock: Clock | None = None
        self._average = TensorAverage()
        self._pending = 0  # steps that the average has yet to take in
        self._kept: Tensors | None = None  # training's weights, while the average stands in their place
        self._fitting = self._settled = False

    @abstractmethod
    def new_share(self, steps: int, pending: int) -> float:
        """Return the present weights' share in an average of ``steps`` steps, when they stand for ``pending`` more."""

    def interval(self, steps: int) -> int:
        """Return how many steps lie between updates, for an average that has taken in ``steps`` steps."""
        return 1

    def settle(self, pl_module: pl.LightningModule) -> None:
        """Put the average in the place of the weights, once; a resumed run without steps left ends without its hook."""
        if self._settled or not self._average.steps:
            return
        kept = self._average.put_in(pl_module)
        # A checkpoint saved at the end of training must hold what a longer run would go on with.
        self._kept = kept if self._fitting else None
        self._settled = True

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        """Return whether the step just taken is one to average: in the phases named, or any."""
        if step_idx is None or self.phases is None:
            return step_idx is not None
        moment = self._clock.moment if self._clock else None
        return moment is not None and moment.phase in self.phases

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            self._clock = clock_of(trainer)
            check_phases(self, trainer, self.phases)
            self._average, self._pending, self._kept = TensorAverage(), 0, None
            self._fitting, self._settled = True, False
            self._latest_update_step = trainer.global_step

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step  # which stays as it is while gradients accumulate
        if step > self._latest_update_step and self.should_update(step_idx=step - 1):
            self._latest_update_step = step
            self._pending += 1
            done, pending = self._average.steps, self._pending
            if pending >= self.interval(done):
                self._average.update(pl_module, self.new_share(done, pending), pending)
                self._pending = 0

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.settle(pl_module)

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Lend the average to a validation within training."""
        if self._fitting and not self._settled and self._average.steps:
            self._kept = self._average.put_in(pl_module)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._take_up()

    def undo(self) -> None:
        self._take_up()  # a validation may have broken off

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        super().teardown(trainer, pl_module, stage)
        self._kept, self._fitting = None, False

    def state_dict(self) -> dict[str, Any]:
        counts = {"latest_update_step": self._latest_update_step, "pending": self._pending}
        return {**counts, **self._average.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._latest_update_step, self._pending = int(state_dict["latest_update_step"]), int(state_dict["pending"])
        self._average = TensorAverage.of_state(state_dict)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Make the average the checkpoint's ``state_dict``; training's weights become ``current_model_state``."""
        if self._settled and self._kept is None:
            return  # after training the module itself holds the average
        weights: Tensors = checkpoint["state_dict"]
        if self._kept is not None:
            weights = self._average.replaced(pl_module, weights, self._kept)
        checkpoint["current_model_state"] = weights
        average = self._average.averaged | self._average.copied
        checkpoint["state_dict"] = self._average.replaced(pl_module, weights, average)
        checkpoint["averaging_state"] = {"n_averaged": torch.tensor(self._average.steps)}

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Load training's weights: those loaded so far are the average, right where nothing is trained."""
        if not self._fitting:
            return
        if "current_model_state" in checkpoint:
            pl_module.load_state_dict(checkpoint["current_model_state"], strict=pl_module.strict_loading)
        if self.state_key not in checkpoint["callbacks"]:
            rank_zero_warn(f"the checkpoint holds no average of {self.state_key}: it starts with the coming steps")

    def _take_up(self) -> None:
        if self._kept is not None and not self._settled:
            self._average.put_back(self._kept)
            self._kept = None


class EMA(_Averaging):
    """Keep an exponential moving average of the weights; validate with it, and end training with it.

    At each step average ← decay · average + (1 − decay) · weights, over floating-point parameters and buffers; other
    buffers are copied. Weights move little in a few steps, so once the average reaches far back only every k-th step
    is taken in, with decay^k: at least :data:`SAMPLES` times within 1 / (1 − decay) steps, and at least each
    ``every`` steps. It starts as the weights after the first step that is averaged. Frozen parameters equal their
    average and are left out; one that is unfrozen later joins with the weight it then has. A checkpoint's
    ``state_dict`` holds the average, unless it is saved with ``save_weights_only``: Lightning then asks no callback.

    Args:
        decay: of the average at each step, in [0, 1); about the last 1 / (1 − decay) steps count.
        warmup: limit the decay to (1 + n) / (10 + n) after n steps, as TensorFlow's ExponentialMovingAverage does
            with ``num_updates``, so that a short run does not end near the weights it began with.
        every: most steps between two updates; 1 takes in each step.
        phases: names of the Clock's phases; the steps of others leave the average as it is. None: all steps.

    Raises:
        EtudeError: the decay is not in [0, 1), or ``every`` is below 1; or, when training starts, ``phases`` names a
            phase that the timeline lacks, there is no Clock to tell the phase, or another callback averages the weights
            too.

    Example::

        trainer = Trainer(max_epochs=10, callbacks=[EMA(decay=0.999)])

    >>> EMA().decay_at(1), EMA().decay_at(100_000), EMA(warmup=False).decay_at(1)
    (0.18181818181818182, 0.999, 0.999)
    """

    def __init__(
        self, decay: float = 0.999, warmup: bool = True, phases: Sequence[str] | str | None = None, every: int = 32
    ) -> None:
        super().__init__(phases)
        if not 0.0 <= decay < 1.0:
            raise EtudeError(f"EMA got decay={decay}; it must be at least 0 and below 1, such as 0.999")
        if every < 1:
            raise EtudeError(f"EMA got every={every}; it must be at least 1, which takes in each step")
        self.decay, self.warmup, self.every = decay, warmup, every

    def decay_at(self, steps: int) -> float:
        """Return the decay of the step that follows ``steps`` steps."""
        return min(self.decay, (1 + steps) / (10 + steps)) if self.warmup else self.decay

    def new_share(self, steps: int, pending: int) -> float:
        return 1.0 - self.decay_at(steps) ** pending

    def interval(self, steps: int) -> int:
        window = 1.0 / (1.0 - self.decay_at(steps))
        return max(1, min(self.every, int(window / SAMPLES)))


class SWA(_Averaging):
    """Average the weights of all steps of a phase equally; validate with the average, and end training with it.

    Stochastic weight averaging (Izmailov et al. 2018). Before the phase nothing changes. Lightning's
    StochasticWeightAveraging sets the learning rate too; here that stays with the timeline. Buffers are averaged as
    parameters are; where BatchNorm trains, follow with :func:`~etude.functional.batchnorm.recompute_batchnorm`.

    Args:
        phase: name of the Clock's phase to average over.

    Raises:
        EtudeError: when training starts: the timeline lacks the phase, there is no Clock, or another callback
            averages the weights too.

    Example::

        trainer = Trainer(max_epochs=10, callbacks=[Clock(timeline), SWA()])
    """

    def __init__(self, phase: str = "finish") -> None:
        super().__init__(phase)

    def new_share(self, steps: int, pending: int) -> float:
        return pending / (steps + pending)
