"""How fast the network runs here, measured on a few batches, for the times in the plan."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from etude.models.backbones import Backbone
from etude.models.device import best_device
from etude.models.features import autocast
from etude.models.modes import AskedMode, Mode, applied, lay_out, lay_out_images, likely_mode
from etude.timeline import Timeline

_BATCH = 8


@dataclass(frozen=True, slots=True)
class Speed:
    """Seconds an image, at one image size.

    Args:
        size: side in pixels at which it was measured.
        infer: forward pass.
        train: forward and backward pass.
    """

    size: int
    infer: float
    train: float

    def infer_at(self, size: int) -> float:
        """Return seconds an image at another size: the work grows with the area."""
        return self.infer * (size / self.size) ** 2

    def train_at(self, size: int) -> float:
        """Return seconds an image of training at another size."""
        return self.train * (size / self.size) ** 2


def measure_speed(
    backbone: Backbone, size: int, mode: Mode | str, *, clock: Callable[[], float] = time.perf_counter
) -> Speed:
    """Time one forward pass and one training pass of a small batch, each after one to warm up.

    A backbone without a trained parameter trains as fast as it infers.

    Args:
        mode: to run in; a precision alone (``fp32`` or ``bf16``) takes the likely rest and torch's present threads.
        clock: returns seconds.
    """
    device = best_device()
    if isinstance(mode, str):
        mode = likely_mode(device, AskedMode.of(mode, threads=torch.get_num_threads()))
    module = lay_out(backbone.module.to(device), mode).eval()
    images = lay_out_images(torch.zeros(_BATCH, backbone.in_channels, size, size, device=device), mode)
    precision = mode.precision

    def forward() -> None:
        with torch.inference_mode(), autocast(device, precision):
            module(images)

    def forward_and_backward() -> None:
        with autocast(device, precision):
            loss = module(images).float().sum()
        loss.backward()
        module.zero_grad(set_to_none=True)

    with applied(mode):
        infer = _seconds(forward, device, clock) / _BATCH
        trained = any(weight.requires_grad for weight in module.parameters())
        return Speed(size, infer, _seconds(forward_and_backward, device, clock) / _BATCH if trained else infer)


def training_seconds(speed: Speed, timeline: Timeline, steps: int, batch_size: int) -> float:
    """Return the expected seconds of ``steps`` steps whose image sizes the timeline sets."""
    return sum(
        speed.train_at(moment.image_size or speed.size) * (moment.batch_size or batch_size)
        for moment in timeline.moments(steps)
    )


def _seconds(work: Callable[[], None], device: torch.device, clock: Callable[[], float]) -> float:
    work()
    _finish(device)
    start = clock()
    work()
    _finish(device)
    return clock() - start


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
