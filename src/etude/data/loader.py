"""Batches for training: gathered and augmented by a thread while the network works on the batch before."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from etude.core.seeds import rng_for

Batch = dict[str, Any]
"""``image`` uint8 (B, S, S, channels); ``target`` float (B, C); ``weight``, ``id`` and ``is_labeled`` (B,)."""


class StepPlan(Protocol):
    """What the loader needs to know of a step; a timeline's ``Moment`` has it."""

    @property
    def image_size(self) -> int:
        """Side of the square images, in pixels."""
        ...

    @property
    def augment(self) -> float:
        """Strength of augmentation in [0, 1]."""
        ...


Augment = Callable[[np.ndarray, float, np.random.Generator], np.ndarray]


@dataclass(frozen=True, slots=True)
class TrainingRows:
    """Rows of a store with their dense targets.

    Args:
        gather: ``gather(indices, size)`` returns uint8 images; a store's method.
        rows: int (N,), positions in the store.
        targets: float32 (N, C).
        weights: float32 (N,).
    """

    gather: Callable[[np.ndarray, int], np.ndarray]
    rows: np.ndarray
    targets: np.ndarray
    weights: np.ndarray


class EpochBatches:
    """One epoch of shuffled batches. What it yields depends on (seed, epoch) alone, so any epoch can be made again.

    Args:
        data: the rows to draw from.
        batch_size: images a step; the incomplete last batch is left out (each epoch leaves out other images).
        epoch: counted from 0.
        plan: maps a global step to its size and strength, so that prefetched batches fit the step they are for.
        augment: ``augment(images, strength, rng)``.
        seed: the run's seed.
        prefetch: batches held ready, which bounds the memory.
    """

    def __init__(
        self,
        data: TrainingRows,
        *,
        batch_size: int,
        epoch: int,
        plan: Callable[[int], StepPlan],
        augment: Augment,
        seed: int,
        prefetch: int = 3,
    ) -> None:
        self.data, self.epoch, self.plan, self.augment = data, epoch, plan, augment
        self.seed, self.prefetch = seed, prefetch
        self.batch_size = min(batch_size, len(data.rows))

    def __len__(self) -> int:
        return steps_per_epoch(len(self.data.rows), self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        order = rng_for(self.seed, "order", self.epoch).permutation(len(self.data.rows))
        waiting: deque[Future[Batch]] = deque()
        with ThreadPoolExecutor(1, thread_name_prefix="etude-batches") as pool:
            try:
                for position in range(len(self)):
                    chosen = order[position * self.batch_size : (position + 1) * self.batch_size]
                    waiting.append(pool.submit(self._batch, chosen, self.epoch * len(self) + position))
                    if len(waiting) >= self.prefetch:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:  # a consumer that stops early must not wait for batches nobody wants
                for future in waiting:
                    future.cancel()

    def _batch(self, chosen: np.ndarray, step: int) -> Batch:
        moment = self.plan(step)
        rows = self.data.rows[chosen]
        images = self.data.gather(rows, moment.image_size)
        images = self.augment(images, moment.augment, rng_for(self.seed, "augment", step))
        return {
            "image": torch.from_numpy(np.ascontiguousarray(images)),
            "target": torch.from_numpy(self.data.targets[chosen]),
            "weight": torch.from_numpy(self.data.weights[chosen]),
            "id": torch.from_numpy(rows),
            "is_labeled": torch.ones(len(chosen), dtype=torch.bool),
        }


class OrderedBatches:
    """All rows in order, unaugmented, at one size; for validation."""

    def __init__(self, data: TrainingRows, *, batch_size: int, size: int) -> None:
        self.data, self.batch_size, self.size = data, batch_size, size

    def __len__(self) -> int:
        return -(-len(self.data.rows) // self.batch_size)

    def __iter__(self) -> Iterator[Mapping[str, torch.Tensor]]:
        for start in range(0, len(self.data.rows), self.batch_size):
            part = slice(start, start + self.batch_size)
            yield {
                "image": torch.from_numpy(self.data.gather(self.data.rows[part], self.size)),
                "target": torch.from_numpy(self.data.targets[part]),
                "weight": torch.from_numpy(self.data.weights[part]),
            }


def steps_per_epoch(count: int, batch_size: int) -> int:
    """Return the whole batches in ``count`` images, at least one.

    >>> steps_per_epoch(100, 32), steps_per_epoch(5, 32)
    (3, 1)
    """
    return max(1, count // batch_size)
