"""BatchNorm statistics, taken anew for weights that training has never run with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]

from etude.core.errors import EtudeError


@torch.no_grad()
def recompute_batchnorm(model: nn.Module, batches: Iterable[Any], forward: Callable[[Any], Any] | None = None) -> None:
    """Set the running mean and variance of every BatchNorm layer to those of its inputs over all ``batches``.

    Averaged weights need this (Izmailov et al. 2018, "Averaging Weights Leads to Wider Optima and Better
    Generalization"): no training step ever ran with them. The result is the mean and the (unbiased) variance of all
    batches pooled; ``torch.optim.swa_utils.update_bn`` averages the batches' own, which leaves out how they differ.

    Only BatchNorm layers run in training mode: dropout is off. A layer that no batch reaches, or that tracks no
    statistics, stays as it is. Modes and momenta are afterwards as they were; after an error the statistics are too.

    Args:
        model: changed in place.
        batches: without augmentation; each goes through ``forward``.
        forward: runs the model on a batch. By default the model gets the batch, or its first element, or its
            ``"image"``, on the device of its weights.

    Raises:
        EtudeError: there are no batches, or one has a single value a channel, which has no variance.

    >>> model = nn.BatchNorm1d(1)
    >>> recompute_batchnorm(model, [torch.tensor([[0.0], [2.0]]), torch.tensor([[1.0], [4.0], [8.0]])])
    >>> model.running_mean.item(), round(model.running_var.item(), 3)
    (3.0, 10.0)
    """
    layers = [part for part in model.modules() if isinstance(part, _BatchNorm) and part.running_mean is not None]
    if not layers:
        return
    run = forward or (lambda batch: model(_images(batch, layers[0].running_mean)))
    before = [(layer, layer.momentum, [buffer.clone() for buffer in layer.buffers(recurse=False)]) for layer in layers]
    pools, hooks = [_Pool(layer) for layer in layers], list[Any]()
    try:
        with evaluating(model):
            for layer, pool in zip(layers, pools, strict=True):
                layer.reset_running_stats()  # an infinite value would outlive even momentum 1
                layer.training, layer.momentum = True, 1.0
                hooks += [layer.register_forward_pre_hook(pool.check), layer.register_forward_hook(pool.add)]
            for batch in batches:
                run(batch)
        if not any(pool.count for pool in pools):
            raise EtudeError(
                "recompute_batchnorm got no batch that reaches a BatchNorm layer; give it at least one batch of images"
            )
    except BaseException:
        for pool in pools:
            pool.count = 0
        raise
    finally:
        for hook in hooks:
            hook.remove()
        for pool, (layer, momentum, buffers) in zip(pools, before, strict=True):
            layer.momentum = momentum
            if pool.count:
                pool.write(layer)
            else:  # of no batch, or after an error
                for buffer, value in zip(layer.buffers(recurse=False), buffers, strict=True):
                    buffer.copy_(value)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Have all parts of a module in evaluation mode, and afterwards each in the mode that it was in."""
    # One by one: a module's own ``train()`` may do more, such as keeping BatchNorm in evaluation mode.
    modes = [(part, part.training) for part in module.modules()]
    try:
        for part, _ in modes:
            part.training = False
        yield
    finally:
        for part, mode in modes:
            part.training = mode


class _Pool:
    """Mean and variance of a growing population (Chan, Golub & LeVeque 1979), in float64 where the device has it."""

    def __init__(self, layer: _BatchNorm) -> None:
        device = cast(torch.Tensor, layer.running_mean).device
        widest = torch.float32 if device.type == "mps" else torch.float64  # Apple's GPUs have no float64
        self.count = 0
        self.mean = torch.zeros_like(cast(torch.Tensor, layer.running_mean), dtype=widest)
        self.squares = torch.zeros_like(self.mean)

    def check(self, layer: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        """Refuse inputs that have no variance, before the layer sees them."""
        if _values(inputs) < 2:
            raise EtudeError(
                f"recompute_batchnorm got a batch with one value a channel (shape {tuple(inputs[0].shape)} at a "
                "BatchNorm layer), which has no variance; use larger batches, or leave the last short one out"
            )

    def add(self, layer: Any, inputs: tuple[torch.Tensor, ...], output: object) -> None:
        """Take in a batch; at momentum 1 the layer's running statistics are those of this batch alone."""
        count = _values(inputs)
        difference = layer.running_mean.to(self.mean.dtype) - self.mean
        total = self.count + count
        self.mean += difference * (count / total)
        self.squares += layer.running_var.to(self.mean.dtype) * (count - 1)
        self.squares += difference.square() * (self.count * (count / total))
        self.count = total

    def write(self, layer: Any) -> None:
        """Give the layer the statistics of the population."""
        layer.running_mean.copy_(self.mean)
        layer.running_var.copy_(self.squares / (self.count - 1))


def _values(inputs: tuple[torch.Tensor, ...]) -> int:
    """Return how many values a channel of a (N, C, ...) input has."""
    return inputs[0].numel() // inputs[0].shape[1]


def _images(batch: Any, like: torch.Tensor | None) -> Any:
    """Return the images of a batch on the device of ``like``."""
    if isinstance(batch, Mapping):
        batch = batch["image"]
    elif isinstance(batch, (tuple, list)):
        batch = batch[0]
    return batch.to(like.device) if isinstance(batch, torch.Tensor) and like is not None else batch
