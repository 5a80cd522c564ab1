"""How fast the network runs here, measured on a few batches, for the times in the plan."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from etude.models.backbones import Backbone
from etude.models.device import best_device, channels_last
from etude.models.features import autocast
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


def measure_speed(backbone: Backbone, size: int, precision: str) -> Speed:
    """Time one forward pass and one training pass of a small batch, each after one to warm up."""
    device = best_device()
    module = channels_last(backbone.module.to(device)).eval()
    images = torch.zeros(_BATCH, backbone.in_channels, size, size, device=device)
    images = images.contiguous(memory_format=torch.channels_last)

    def forward() -> None:
        with torch.inference_mode(), autocast(device, precision):
            module(images)

    def forward_and_backward() -> None:
        with autocast(device, precision):
            loss = module(images).float().sum()
        loss.backward()
        module.zero_grad(set_to_none=True)

    return Speed(size, _seconds(forward, device) / _BATCH, _seconds(forward_and_backward, device) / _BATCH)


def training_seconds(speed: Speed, timeline: Timeline, steps: int, batch_size: int) -> float:
    """Return the expected seconds of ``steps`` steps whose image sizes the timeline sets."""
    return sum(
        speed.train_at(moment.image_size or speed.size) * (moment.batch_size or batch_size)
        for moment in timeline.moments(steps)
    )


def _seconds(work: Callable[[], None], device: torch.device) -> float:
    work()
    _finish(device)
    start = time.perf_counter()
    work()
    _finish(device)
    return time.perf_counter() - start


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
