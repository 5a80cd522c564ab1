"""The order in which training images are drawn: endless streams, known at any place without those before it."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from etude.core.seeds import rng_for
from etude.data.groups import by_class


class Stream(Protocol):
    """An endless stream of positions."""

    def take(self, first: int, count: int) -> np.ndarray:
        """Return ``count`` positions of the stream from its place ``first`` on, int (count,)."""
        ...


class Order(Protocol):
    """What each step of a run draws, of one or several streams, as this process' share of it.

    Threads may use it at the same time.
    """

    def taken(self, images: int) -> np.ndarray:
        """Return how many images of each stream a step of ``images`` takes over all processes, int64 (streams,)."""
        ...

    def chosen(self, first: np.ndarray, images: int) -> np.ndarray:
        """Return the positions of this process' images in a step of ``images``.

        Args:
            first: int64 (streams,), the images that the steps before took of each stream.
            images: of the step, over all processes.
        """
        ...


class Shuffled:
    """All positions up to ``count``, shuffled anew for each epoch; every position comes once an epoch.

    Args:
        count: of positions, at least 1.
        seed: the run's seed.
        name: of the stream, which makes its shuffles its own.

    >>> sorted(Shuffled(3, seed=0).take(3, 3).tolist())
    [0, 1, 2]
    """

    def __init__(self, count: int, seed: int, name: str = "order") -> None:
        self.count, self.seed, self.name = count, seed, name
        self._epochs: dict[int, np.ndarray] = {}

    def take(self, first: int, count: int) -> np.ndarray:
        """Return ``count`` positions of the stream from its place ``first`` on, int (count,)."""
        pieces = [np.empty(0, np.int64)]
        while count > 0:
            epoch, place = divmod(first, self.count)
            pieces.append(self._epoch(epoch)[place : place + count])
            first, count = first + len(pieces[-1]), count - len(pieces[-1])
        return np.concatenate(pieces)

    def _epoch(self, epoch: int) -> np.ndarray:
        epochs = self._epochs  # replaced as a whole, since several threads ask
        if epoch not in epochs:
            kept = {known: order for known, order in epochs.items() if abs(known - epoch) <= 1}
            order = rng_for(self.seed, self.name, epoch).permutation(self.count)
            epochs = {**kept, epoch: order.astype(np.min_scalar_type(self.count))}  # half the memory, or less
            self._epochs = epochs
        return epochs[epoch]


class Balanced:
    """Classes in turns, shuffled anew for each round, and of each class its images in an endless shuffled stream.

    Any C places in a row that begin with a round hold each of the C classes once, however rare it is.

    Args:
        labels: (N,) classes; those that do not occur have no turn.
        seed: the run's seed.
        name: of the stream, which makes its shuffles its own.

    >>> stream = Balanced(np.array([7, 7, 7, 4]), seed=0)
    >>> 3 in stream.take(0, 2), 3 in stream.take(2, 2)  # the only image of class 4 is in every round
    (True, True)
    """

    def __init__(self, labels: np.ndarray, seed: int, name: str = "order") -> None:
        self.seed, self.name = seed, name
        codes = np.unique(labels, return_inverse=True)[1]
        self._members = by_class(np.arange(len(codes)), codes) if len(codes) else []
        self._streams = [Shuffled(len(own), seed, f"{name}/{code}") for code, own in enumerate(self._members)]

    def take(self, first: int, count: int) -> np.ndarray:
        """Return ``count`` positions of the stream from its place ``first`` on, int (count,)."""
        drawn: list[int] = []
        while count > 0:
            cycle, place = divmod(first, len(self._members))
            turns = rng_for(self.seed, f"{self.name}/turns", cycle).permutation(len(self._members))
            classes = turns[place : place + count]
            # A class has had one turn in each round before, so this round's is its image number ``cycle``.
            drawn += [int(self._members[code][self._streams[code].take(cycle, 1)[0]]) for code in classes]
            first, count = first + len(classes), count - len(classes)
        return np.array(drawn, dtype=np.int64)


class Epochs:
    """One stream of shuffled epochs that follow each other without a gap; the processes share each batch.

    Args:
        count: of images.
        seed: the run's seed.
        part: (which, of how many) processes.
    """

    def __init__(self, count: int, seed: int, part: tuple[int, int] = (0, 1)) -> None:
        self.part, self._stream = part, Shuffled(count, seed)

    def taken(self, images: int) -> np.ndarray:
        """Return how many images of the stream a step of ``images`` takes over all processes, int64 (1,)."""
        return np.array([images])

    def chosen(self, first: np.ndarray, images: int) -> np.ndarray:
        """Return the positions of this process' images in a step of ``images`` that follows ``first`` (1,)."""
        which, processes = self.part
        return self._stream.take(int(first[0]), images)[which::processes]
