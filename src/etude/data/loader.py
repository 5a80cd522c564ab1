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
    def image_size(self) -> int | None:
        """Side of the square images, in pixels."""
        ...

    @property
    def augment(self) -> float | None:
        """Strength of augmentation in [0, 1]; None is 0."""
        ...

    @property
    def batch_size(self) -> int | None:
        """Images of the step, over all processes; None leaves it to the loader."""
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


@dataclass(frozen=True, slots=True)
class _Pending:
    """A batch in the making.

    Args:
        step: that it is for.
        first: place of its first image in the endless stream of epochs.
        made_for: image size, strength and images that the plan gave this step.
    """

    step: int
    first: int
    made_for: tuple[int, float, int]
    batch: Future[Batch]


class StepBatches:
    """The batches of a whole run, one a step, from shuffled epochs that follow each other without a gap.

    What step s yields depends on (seed, s, the plan) alone, so a resumed run goes on with the batch that the
    uninterrupted run would have had. Every image is seen once an epoch; a batch may begin in one and end in the next.

    Args:
        data: the rows to draw from.
        steps: of the whole run.
        batch_size: images a step where the plan does not say.
        plan: maps a step to its size, strength and images, so that prefetched batches fit the step they are for. Where
            its answer changes, prefetched batches of the old plan are dropped and made anew.
        augment: ``augment(images, strength, rng)``.
        seed: the run's seed.
        start: the first step to yield, of a resumed run.
        prefetch: batches held ready, which bounds the memory.
        part: (which, of how many) processes share each batch.
    """

    def __init__(
        self,
        data: TrainingRows,
        *,
        steps: int,
        batch_size: int,
        plan: Callable[[int], StepPlan],
        augment: Augment,
        seed: int,
        start: int = 0,
        prefetch: int = 3,
        part: tuple[int, int] = (0, 1),
    ) -> None:
        self.data, self.steps, self.plan, self.augment = data, steps, plan, augment
        self.seed, self.start, self.prefetch, self.part = seed, start, prefetch, part
        self.batch_size = min(batch_size, len(data.rows))
        self._orders: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Batch]:
        step, first = self.start, self._images_before(self.start)
        waiting: deque[_Pending] = deque()
        with ThreadPoolExecutor(1, thread_name_prefix="etude-batches") as pool:
            try:
                while step < self.steps or waiting:
                    while step < self.steps and len(waiting) < self.prefetch:
                        needs = self._needs(step)
                        waiting.append(_Pending(step, first, needs, pool.submit(self._batch, step, first, needs)))
                        step, first = step + 1, first + needs[2]
                    head = waiting[0]
                    if self._needs(head.step) == head.made_for:
                        yield waiting.popleft().batch.result()
                    else:  # an event has changed the plan since
                        _drop(waiting)
                        step, first = head.step, head.first
            finally:  # a consumer that stops early must not wait for batches nobody wants
                _drop(waiting)

    def _needs(self, step: int) -> tuple[int, float, int]:
        moment = self.plan(step)
        images = self.batch_size if moment.batch_size is None else min(moment.batch_size, len(self.data.rows))
        if moment.image_size is None:
            raise ValueError(f"the plan gives step {step} no image size, and the store needs one")
        return moment.image_size, moment.augment or 0.0, images

    def _images_before(self, step: int) -> int:
        return sum(self._needs(earlier)[2] for earlier in range(step))

    def _chosen(self, first: int, count: int) -> np.ndarray:
        """Return positions of ``count`` images of the stream from its place ``first`` on."""
        parts: list[np.ndarray] = []
        while count > 0:
            epoch, place = divmod(first, len(self.data.rows))
            parts.append(self._order(epoch)[place : place + count])
            first, count = first + len(parts[-1]), count - len(parts[-1])
        which, processes = self.part
        return np.concatenate(parts)[which::processes]

    def _order(self, epoch: int) -> np.ndarray:
        if epoch not in self._orders:
            kept = {known: order for known, order in self._orders.items() if known == epoch - 1}
            self._orders = {**kept, epoch: rng_for(self.seed, "order", epoch).permutation(len(self.data.rows))}
        return self._orders[epoch]

    def _batch(self, step: int, first: int, needs: tuple[int, float, int]) -> Batch:
        size, strength, count = needs
        chosen = self._chosen(first, count)
        rows = self.data.rows[chosen]
        images = self.data.gather(rows, size)
        name = f"augment/{self.part[0]}" if self.part[0] else "augment"
        images = self.augment(images, strength, rng_for(self.seed, name, step))
        return {
            "image": torch.from_numpy(np.ascontiguousarray(images)),
            "target": torch.from_numpy(self.data.targets[chosen]),
            "weight": torch.from_numpy(self.data.weights[chosen]),
            "id": torch.from_numpy(rows),
            "is_labeled": torch.ones(len(chosen), dtype=torch.bool),
        }


def _drop(waiting: deque[_Pending]) -> None:
    for pending in waiting:
        pending.batch.cancel()
    waiting.clear()


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
