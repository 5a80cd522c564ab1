"""Batches for training and validation, made by threads while the network works on the batches before."""

from __future__ import annotations

import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from etude.core.context import Context
from etude.core.errors import EtudeError
from etude.core.prefetch import prefetch
from etude.core.processor import usable_cores
from etude.core.text import counted
from etude.data.batches import Augment, Batch, StepNeeds, TrainingRows, plain_batch, training_batch
from etude.data.order import FixedMix, MixedOrder, Order

_LARGEST_SIDE = 1 << 20  # asked for more than it has, a store names the side of its own images


def concatenated_rows(*parts: TrainingRows) -> TrainingRows:
    """Return the rows of all parts, one part after the other; the images stay where they are.

    ``rows``, and so a batch's ``id``, are positions in what is returned, unique over all parts. Targets are class
    indices where all parts have those, otherwise dense. They stay on a device where all parts are on one.
    """
    if len({part.classes for part in parts}) != 1:
        raise ValueError(f"rows of {[part.classes for part in parts]} classes cannot be concatenated")
    sides = {part.source_size(_LARGEST_SIDE) for part in parts if part.source_size is not None}
    if len(sides) > 1:
        raise ValueError(f"rows of stores of {sorted(sides)} px cannot be concatenated: store them at one size")
    teachers = [part.teacher for part in parts if part.teacher is not None]
    if len(teachers) not in (0, len(parts)):
        raise ValueError(f"{len(teachers)} of {len(parts)} parts have a teacher; all have to, or none")
    stores = _Stores(parts, np.cumsum([len(part) for part in parts]))
    indices = all(part.num_classes is not None for part in parts)
    everything = [np.arange(len(part)) for part in parts]
    return TrainingRows(
        gather=stores.gather,
        rows=np.arange(stores.ends[-1]),
        targets=np.concatenate(
            [part.targets if indices else part.dense_targets(own) for part, own in zip(parts, everything, strict=True)]
        ),
        weights=np.concatenate([part.weights for part in parts]),
        source_size=stores.source_size if all(part.source_size for part in parts) else None,
        gather_tensor=stores.gather_tensor if all(part.gather_tensor for part in parts) else None,
        num_classes=parts[0].classes if indices else None,
        labelled=None
        if all(part.labelled is None for part in parts)
        else np.concatenate([part.is_labelled(own) for part, own in zip(parts, everything, strict=True)]),
        teacher=np.concatenate(teachers) if teachers else None,
    )


@dataclass(frozen=True, slots=True)
class _Stores:
    """Several stores behind one row of positions; ``ends`` (parts,) are the positions behind the last row of each."""

    parts: tuple[TrainingRows, ...]
    ends: np.ndarray

    def source_size(self, size: int) -> int:
        """Return a side at which all stores can be read without enlarging what they hold."""
        return max(part.source_size(size) for part in self.parts if part.source_size is not None)

    def gather(self, positions: np.ndarray, size: int) -> np.ndarray:
        """Return the images at ``positions``, uint8 (B, size, size, channels)."""
        return self._together(positions, lambda part, rows: part.gather(rows, size))

    def gather_tensor(self, positions: np.ndarray, size: int) -> torch.Tensor:
        """Return the images at ``positions``, uint8 (B, size, size, channels), on their device."""
        return self._together(positions, lambda part, rows: part.gather_tensor and part.gather_tensor(rows, size))

    def _together(self, positions: np.ndarray, read: Callable[[TrainingRows, np.ndarray], Any]) -> Any:
        owner = np.searchsorted(self.ends, positions, side="right")
        together: Any = None
        for number in np.unique(owner):
            where, part = np.flatnonzero(owner == number), self.parts[number]
            images = read(part, part.rows[positions[where] - (self.ends[number] - len(part))])
            if together is None:
                shape = (len(positions), *images.shape[1:])
                together = np.empty(shape, np.uint8) if isinstance(images, np.ndarray) else images.new_empty(shape)
            elif images.shape[1:] != together.shape[1:]:
                shapes = sorted({tuple(images.shape[1:]), tuple(together.shape[1:])})
                raise ValueError(f"stores give images of shapes {shapes}: store them with the same channels")
            together[where] = images
        return together


_MAX_THREADS = 4  # more of them only take turns at Python's lock
_NICER = 5  # than the network's threads, in steps of which each is about a quarter less of the processor's time
_NICEST = 19


class StepPlan(Protocol):
    """What the loader needs to know of a step; a timeline's ``Moment`` has it. None leaves it to the loader."""

    @property
    def image_size(self) -> int | None: ...  # side of the square images, in pixels
    @property
    def augment(self) -> float | None: ...  # strength of augmentation in [0, 1]
    @property
    def batch_size(self) -> int | None: ...  # images of the step, over all processes


@dataclass(frozen=True, slots=True)
class _Pending:
    """A step's batch in the making; ``first`` are the images that the steps before took of each stream."""

    step: int
    first: np.ndarray
    made_for: StepNeeds
    batch: Future[Batch]


class StepBatches:
    """The batches of a whole run, one a step, from shuffled epochs that follow each other without a gap.

    What step s yields depends on (seed, s, the plan) alone, so a resumed run goes on with the batch that the
    uninterrupted run would have had, for any number of threads. Every image is seen once an epoch; a batch may
    begin in one and end in the next. With ``mix`` that holds for labelled and unlabelled images on their own, and every
    batch has its exact share of both. Images that are kept on a device are gathered and changed there, without threads.
    Where the plan's answer for a step changes, prefetched batches of the old plan are dropped and made anew.
    """

    def __init__(
        self,
        data: TrainingRows,
        *,
        steps: int,
        batch_size: int,  # images a step where the plan does not say
        plan: Callable[[int], StepPlan],  # a step's size, strength and images
        augment: Augment,  # samples images to the step's size
        context: Context,  # its seed
        start: int = 0,  # the first step to yield, of a resumed run
        threads: int | None = None,  # that make batches; one for each two cores, from one to four
        prefetch: int | None = None,  # steps that are ready or in the making, which bounds the memory; threads and two
        part: tuple[int, int] = (0, 1),  # (which, of how many) processes share each batch
        parts: int = 1,  # batches that a step's images come in, one after the other: for accumulated gradients
        fixed_batch: bool = False,  # every step has ``batch_size`` images; then no plan is asked for steps before start
        pin: bool = False,  # page-locked memory, from which a GPU fetches while it works
        mix: FixedMix | None = None,  # the share of labelled images in every batch; None draws from all rows equally
        strong: Augment | None = None,  # makes the batch's ``strong``, a second view of its unlabelled images
    ) -> None:
        self.data, self.steps, self.plan, self.context = data, steps, plan, context
        self.start, self.part, self.parts, self.fixed_batch = start, part, parts, fixed_batch
        self.threads = default_threads() if threads is None else threads
        self.prefetch = self.threads + 2 if prefetch is None else prefetch
        self.batch_size = min(batch_size, len(data.rows))
        self.augment, self.strong, self.pin = augment, strong, pin
        self._order = Order(len(data), context, part)
        if mix is not None:
            labelled = data.is_labelled(np.arange(len(data)))
            self._order = MixedOrder(mix, labelled, data.class_indices, context, part)

    def __len__(self) -> int:
        return self.steps * self.parts

    def __iter__(self) -> Iterator[Batch]:
        whole = self._unthreaded() if self.data.gather_tensor is not None else self._prefetched()
        try:
            for batch in whole:
                if self.parts == 1:
                    yield batch
                else:
                    yield from self._split(batch)
        finally:
            whole.close()  # at once, not when the garbage collector comes by

    def _unthreaded(self) -> Generator[Batch]:
        first = self._taken_before(self.start)
        for step in range(self.start, self.steps):
            needs = self._needs(step)
            yield self._made(step, first, needs)
            first = first + self._order.taken(needs.images)

    def _prefetched(self) -> Generator[Batch]:
        step, first = self.start, self._taken_before(self.start)
        waiting: deque[_Pending] = deque()
        with ThreadPoolExecutor(self.threads, "etude-batches", initializer=lower_priority) as pool:
            try:
                while step < self.steps or waiting:
                    while step < self.steps and len(waiting) < self.prefetch:
                        needs = self._needs(step)
                        waiting.append(_Pending(step, first, needs, pool.submit(self._made, step, first, needs)))
                        step, first = step + 1, first + self._order.taken(needs.images)
                    if self._needs(waiting[0].step) == waiting[0].made_for:
                        yield waiting.popleft().batch.result()
                    else:  # an event has changed the plan since
                        step, first = waiting[0].step, waiting[0].first
                        _drop(waiting)
            finally:  # a consumer that stops early must not wait for batches nobody wants
                _drop(waiting)

    def _made(self, step: int, first: np.ndarray, needs: StepNeeds) -> Batch:
        # Drawing the rows and the generator belongs to the thread too: it takes half a millisecond from a cold cache.
        chosen = self._order.chosen(first, needs.images)
        rng = self.context.rng(f"augment/{self.part[0]}" if self.part[0] else "augment", step)
        return training_batch(self.data, chosen, needs, rng, self.augment, self.strong, self.pin)

    def _needs(self, step: int) -> StepNeeds:
        moment = self.plan(step)
        images = self.batch_size if moment.batch_size is None else min(moment.batch_size, len(self.data.rows))
        if moment.image_size is None:
            raise ValueError(f"the plan gives step {step} no image size, and the store needs one")
        return StepNeeds(moment.image_size, moment.augment or 0.0, images)

    def _taken_before(self, step: int) -> np.ndarray:
        """Return how many images of each stream the steps before took."""
        if self.fixed_batch:
            return step * self._order.taken(self.batch_size)
        return sum((self._order.taken(self._needs(earlier).images) for earlier in range(step)), self._order.taken(0))

    def _split(self, batch: Batch) -> Iterator[Batch]:
        """Yield a step's batch in parts; they are views of it, so its pixels do not depend on their number."""
        images = len(batch["image"])
        if images < self.parts:
            raise EtudeError(
                f"a step's {counted(images, 'image')} cannot come in {self.parts} parts: raise train.micro_batch, or "
                "the batch size"
            )
        for part in zip(*(value.tensor_split(self.parts) for value in batch.values()), strict=True):
            yield dict(zip(batch, part, strict=True))


def default_threads() -> int:
    """Return the threads that make batches, while the network has the other cores."""
    return max(1, min(_MAX_THREADS, usable_cores() // 2))


def lower_priority() -> None:
    """Let this thread wait for the others of the process when there are not cores enough for all.

    The network's threads wait for each other at every layer, so a loader's thread that takes the core of one of them
    stops them all; a batch that comes a little later stops nobody, since others are ready. Only Linux has priorities of
    single threads; elsewhere nothing is done.
    """
    if sys.platform == "linux":
        nicer = min(_NICEST, os.getpriority(os.PRIO_PROCESS, 0) + _NICER)
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), nicer)


def _drop(waiting: deque[_Pending]) -> None:
    for pending in waiting:
        pending.batch.cancel()
    waiting.clear()


class OrderedBatches:
    """All rows in order, unaugmented, at one size, for validation; the next batch is prefetched.

    Batches of at most ``batch_size`` images are as equal as possible. Processes (``part``: which, of how many) share
    the rows, every row exactly once: none is repeated to fill up, which would count it twice in the scores. All have as
    many batches, unless that would need empty ones.
    """

    def __init__(
        self, data: TrainingRows, *, batch_size: int, size: int, part: tuple[int, int] = (0, 1), pin: bool = False
    ) -> None:
        self.data, self.batch_size, self.size, self.pin = data, batch_size, size, pin
        which, processes = part
        self._positions = np.arange(which, len(data.rows), processes)
        self._largest_share = -(-len(data.rows) // processes)

    def __len__(self) -> int:
        return min(-(-self._largest_share // self.batch_size), len(self._positions))

    def __iter__(self) -> Iterator[Mapping[str, torch.Tensor]]:
        chosen = np.array_split(self._positions, len(self)) if len(self) else []
        make: Callable[[np.ndarray], Batch] = lambda rows: plain_batch(self.data, rows, self.size, self.pin)  # noqa: E731
        if self.data.gather_tensor is not None:
            return map(make, chosen)
        return prefetch(make, chosen, ahead=1, name="etude-ordered")
