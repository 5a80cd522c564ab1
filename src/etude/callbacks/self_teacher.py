"""A network that teaches itself: as it stands, or as the exponential average of its weights."""

from __future__ import annotations

import inspect
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import etude.compat  # noqa: F401  (before lightning)

import lightning.pytorch as pl
import torch
from torch import nn

from etude.callbacks.tensor_average import TensorAverage
from etude.functional.distill import mean_probabilities


class SelfTeacher:
    """What a module says of images, in evaluation mode and without gradients.

    Args:
        decay: of the exponential average of its weights at each step, at most; (1 + n) / (10 + n) after n steps. At 0
            the module teaches as it stands.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self._average = TensorAverage()
        self._latest_step = 0

    def begin(self, step: int) -> None:
        """Take note of the step at which training begins, or goes on."""
        self._latest_step = step

    def follow(self, module: nn.Module, step: int) -> None:
        """Let the average follow the module, once for each step."""
        if self.decay > 0.0 and step > self._latest_step:
            self._latest_step, steps = step, self._average.steps
            self._average.update(module, 1.0 - min(self.decay, (1 + steps) / (10 + steps)))

    def probabilities(self, module: pl.LightningModule, images: torch.Tensor) -> torch.Tensor:
        """Return float32 (N, C); the module's weights, modes and statistics are afterwards as they were.

        Raises:
            EtudeError: the module's logits are not (N, C).
        """
        # Before the first step both are the same.
        kept = self._average.put_in(module) if self._average.steps else {}
        try:
            with evaluating(module), module.trainer.precision_plugin.forward_context():
                return mean_probabilities([lambda x: logits_of(module, x)], images, type(module).__name__)
        finally:
            if kept:
                self._average.put_back(kept)

    def state_dict(self) -> dict[str, Any]:
        """Return the average, of tensors and a number."""
        average = self._average
        return {"steps": average.steps, "averaged": dict(average.averaged), "copied": dict(average.copied)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the average where the checkpoint left it."""
        averaged, copied = dict(state_dict["averaged"]), dict(state_dict["copied"])
        self._average = TensorAverage(int(state_dict["steps"]), averaged, copied)


@contextmanager
def evaluating(module: nn.Module) -> Generator[None]:
    """Have all parts of a module in evaluation mode, and afterwards each in the mode that it was in."""
    # Flags are set one by one: a module's own ``train()`` may do more, such as keeping BatchNorm in evaluation mode.
    modes = [(part, part.training) for part in module.modules()]
    try:
        for part, _ in modes:
            part.training = False
        yield
    finally:
        for part, mode in modes:
            part.training = mode


def logits_of(module: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Return the module's logits: by its method ``logits(batch)`` where it has one, else of ``module(images)``."""
    method = getattr(module, "logits", None)
    # A layer of that name is no method.
    return method({"image": images}) if inspect.ismethod(method) else module(images)
