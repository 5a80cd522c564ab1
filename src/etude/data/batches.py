"""One batch of training images: gathered, augmented and put where the network wants it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch

Batch = dict[str, Any]
"""``image`` uint8 (B, S, S, channels); ``target`` float (B, C); ``weight``, ``id`` and ``is_labeled`` (B,)."""

Augment = Callable[[np.ndarray, float, np.random.Generator, int], np.ndarray]
"""``augment(images, strength, rng, size)`` returns uint8 (B, size, size, channels), sampled from any larger size."""

AugmentTensor = Callable[[torch.Tensor, float, np.random.Generator, int], torch.Tensor]
"""The same of uint8 tensors (B, S, S, channels), on whatever device they are."""


@dataclass(frozen=True, slots=True)
class TrainingRows:
    """Rows of a store with their dense targets.

    Args:
        gather: ``gather(indices, size)`` returns uint8 images; a store's method.
        rows: int (N,), positions in the store.
        targets: float32 (N, C).
        weights: float32 (N,).
        source_size: ``source_size(size)`` is the side at which rows are read when augmentation samples them down to
            ``size`` itself; a store's method. None reads them at ``size``.
        gather_tensor: ``gather_tensor(indices, size)`` returns the images as a tensor on the device where they are
            kept; a device store's method. None: they are not on a device.
    """

    gather: Callable[[np.ndarray, int], np.ndarray]
    rows: np.ndarray
    targets: np.ndarray
    weights: np.ndarray
    source_size: Callable[[int], int] | None = None
    gather_tensor: Callable[[np.ndarray, int], torch.Tensor] | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def size_to_read(self, size: int, strength: float) -> int:
        """Return the side at which to read images that are wanted at ``size``, augmented with ``strength``."""
        return size if strength <= 0.0 or self.source_size is None else self.source_size(size)


@dataclass(frozen=True, slots=True)
class StepNeeds:
    """What a step of training asks of its batch.

    Args:
        size: side of its images in pixels.
        strength: of augmentation.
        images: over all processes.
    """

    size: int
    strength: float
    images: int


@dataclass(frozen=True, slots=True)
class BatchMaker:
    """Makes batches of given rows; threads may use it at the same time.

    Args:
        data: the rows to choose from.
        augment: for images in main memory.
        augment_tensor: for images on a device; needed where ``data`` has ``gather_tensor``.
        pin: page-locked memory, from which a GPU fetches while it works.
    """

    data: TrainingRows
    augment: Augment
    augment_tensor: AugmentTensor | None = None
    pin: bool = False

    def __post_init__(self) -> None:
        if self.on_device and self.augment_tensor is None:
            raise ValueError("images on a device need augment_tensor, which changes them there")

    @property
    def on_device(self) -> bool:
        """Whether the images are kept on a device, so that no thread has to bring them there."""
        return self.data.gather_tensor is not None

    def training(self, chosen: np.ndarray, needs: StepNeeds, rng: np.random.Generator) -> Batch:
        """Return a step's batch: the rows at the positions ``chosen``, augmented."""
        rows = self.data.rows[chosen]
        read = self.data.size_to_read(needs.size, needs.strength)
        if self.data.gather_tensor is not None and self.augment_tensor is not None:
            images = self.augment_tensor(self.data.gather_tensor(rows, read), needs.strength, rng, needs.size)
        else:
            changed = self.augment(self.data.gather(rows, read), needs.strength, rng, needs.size)
            images = torch.from_numpy(np.ascontiguousarray(changed))
        told = {"id": torch.from_numpy(rows), "is_labeled": torch.ones(len(chosen), dtype=torch.bool)}
        return placed({"image": images, **labels_of(self.data, chosen), **told}, images.device, self.pin)


def plain_batch(data: TrainingRows, chosen: np.ndarray, size: int, pin: bool) -> Batch:
    """Return the rows at the positions ``chosen`` as they are stored, at ``size``."""
    rows = data.rows[chosen]
    if data.gather_tensor is not None:
        images = data.gather_tensor(rows, size)
    else:
        images = torch.from_numpy(data.gather(rows, size))
    return placed({"image": images, **labels_of(data, chosen)}, images.device, pin)


def labels_of(data: TrainingRows, chosen: np.ndarray) -> Batch:
    """Return target and weight of the rows at the positions ``chosen``."""
    return {"target": torch.from_numpy(data.targets[chosen]), "weight": torch.from_numpy(data.weights[chosen])}


def placed(batch: Batch, device: torch.device, pin: bool) -> Batch:
    """Return the batch on the device of its images, or in page-locked memory when they are in main memory."""
    if device.type != "cpu":
        return {key: tensor.to(device, non_blocking=True) for key, tensor in batch.items()}
    return {key: tensor.pin_memory() for key, tensor in batch.items()} if pin else batch


def shares(count: int, parts: int) -> list[slice]:
    """Return ``parts`` slices that follow each other and cover ``count``, as equal as possible.

    >>> shares(7, 3)
    [slice(0, 3, None), slice(3, 5, None), slice(5, 7, None)]
    """
    small, larger = divmod(count, parts)
    ends = [number * small + min(number, larger) for number in range(parts + 1)]
    return [slice(start, stop) for start, stop in pairwise(ends)]
