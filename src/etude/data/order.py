"""The order in which training images are drawn: endless streams, known at any place without those before it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import torch.distributed
from torch.utils.data import Sampler

from etude.core.context import Context
from etude.core.errors import EtudeError
from etude.data.split import by_class


class Shuffled:
    """An endless stream of all positions up to ``count``, shuffled anew for each epoch."""

    def __init__(self, count: int, context: Context, name: str = "order") -> None:
        self.count, self.context, self.name = count, context, name
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
            order = self.context.rng(self.name, epoch).permutation(self.count)
            epochs = {**kept, epoch: order.astype(np.min_scalar_type(self.count))}  # half the memory, or less
            self._epochs = epochs
        return epochs[epoch]


class Balanced:
    """Classes in turns, shuffled anew for each round, and of each class its images in an endless shuffled stream.

    Any C places in a row that begin with a round hold each of the C classes that occur once, however rare it is.
    """

    def __init__(self, labels: np.ndarray, context: Context, name: str) -> None:
        self.context, self.name = context, name
        codes = np.unique(labels, return_inverse=True)[1]
        self._members = by_class(np.arange(len(codes)), codes) if len(codes) else []
        self._streams = [Shuffled(len(own), context, f"{name}/{code}") for code, own in enumerate(self._members)]

    def take(self, first: int, count: int) -> np.ndarray:
        """As :meth:`Shuffled.take`."""
        drawn: list[int] = []
        while count > 0:
            cycle, place = divmod(first, len(self._members))
            turns = self.context.rng(f"{self.name}/turns", cycle).permutation(len(self._members))
            classes = turns[place : place + count]
            # A class has had one turn in each round before, so this round's is its image number ``cycle``.
            drawn += [int(self._members[code][self._streams[code].take(cycle, 1)[0]]) for code in classes]
            first, count = first + len(classes), count - len(classes)
        return np.array(drawn, dtype=np.int64)


class Order:
    """What each step of a run draws, as the share of one process (``part``: which, of how many); threads may share it.

    Here from one stream of shuffled epochs that follow each other without a gap.
    """

    def __init__(self, count: int, context: Context, part: tuple[int, int] = (0, 1)) -> None:
        self.part, self._stream = part, Shuffled(count, context)

    def taken(self, images: int) -> np.ndarray:
        """Return how many images of each stream a step of ``images`` takes over all processes, int64 (streams,)."""
        return np.array([images])

    def chosen(self, first: np.ndarray, images: int) -> np.ndarray:
        """Return the positions of this process' images in a step of ``images`` (over all processes).

        ``first`` int64 (streams,) are the images that the steps before took of each stream.
        """
        which, processes = self.part
        return self._stream.take(int(first[0]), images)[which::processes]


def labelled_images(images: int, share: float) -> int:
    """Return how many of a batch's ``images`` are labelled: the share, halves rounded up.

    A share above 0 and below 1 leaves at least one image of each kind.

    >>> labelled_images(64, 0.7), labelled_images(5, 0.7), labelled_images(4, 0.99)
    (45, 4, 3)
    """
    exact = _checked(share)
    if not images or exact in (0, 1):
        return images * int(exact)
    if images < 2:
        raise EtudeError(
            f"a batch of {images} image cannot hold labelled and unlabelled ones: ask for batches of at least 2 "
            "images for each process"
        )
    return min(images - 1, max(1, math.floor(images * exact + Fraction(1, 2))))


def epoch_images(labelled: int, unlabelled: int, share: float) -> int:
    """Return the images in an epoch's batches: as many as it takes to see the longer stream once.

    The other stream begins anew meanwhile. Longer is meant by the batches it lasts: 100 labelled images at a share of
    0.7 last for 142, 300 unlabelled ones for 1,000. In batches of B images, ``labelled_images(B, share) / B`` is exact.

    >>> epoch_images(100, 300, 0.7)
    1000
    """
    exact = _checked(share)
    _refuse_empty(labelled, unlabelled, share)
    lasting = [Fraction(count) / part for count, part in ((labelled, exact), (unlabelled, 1 - exact)) if part]
    return math.ceil(max(lasting))


@dataclass(frozen=True, slots=True)
class FixedMix:
    """How labelled and unlabelled images share every batch; ``share`` in [0, 1] is that of the labelled ones.

    ``balanced``: labelled images come class by class in turns, so that rare classes are seen as often as common ones;
    otherwise every labelled image comes once before any comes again.
    """

    share: float = 0.7
    balanced: bool = False

    def __post_init__(self) -> None:
        _checked(self.share)


class MixedOrder(Order):
    """Two streams, each shuffled on its own and endless, of which every batch has the exact share.

    That holds for the batch of every process too, and no two processes draw the same place of a stream. Within a
    batch the kinds alternate evenly, so that its parts (for accumulated gradients) have the share to within one image.
    What a step draws depends on the seed and on the images that the steps before it took, on nothing else.
    Only a balanced mix needs the classes ``labels`` (N,).
    """

    def __init__(
        self,
        mix: FixedMix,
        labelled: np.ndarray,
        labels: np.ndarray | None,
        context: Context,
        part: tuple[int, int] = (0, 1),
    ) -> None:
        self.mix, self.part = mix, part
        known, unknown = self._members = np.flatnonzero(labelled), np.flatnonzero(~labelled)
        _refuse_empty(len(known), len(unknown), mix.share)
        name = "order/labeled"
        if mix.balanced and labels is not None:
            first = Balanced(labels[known], context, name)
        else:
            first = Shuffled(len(known), context, name)
        self._streams = first, Shuffled(len(unknown), context, "order/unlabeled")

    def taken(self, images: int) -> np.ndarray:
        """As :meth:`Order.taken`, int64 (2,): labelled and unlabelled images."""
        return _taken_by_each(images, self.mix.share, self.part[1]).sum(axis=0)

    def chosen(self, first: np.ndarray, images: int) -> np.ndarray:
        """As :meth:`Order.chosen`, evenly mixed."""
        which, processes = self.part
        taken = _taken_by_each(images, self.mix.share, processes)
        starts, counts = first + taken[:which].sum(axis=0), taken[which]
        drawn = [
            members[stream.take(int(start), int(count))]
            for members, stream, start, count in zip(self._members, self._streams, starts, counts, strict=True)
        ]
        chosen, is_labelled = np.empty(counts.sum(), np.int64), evenly(int(counts[0]), int(counts.sum()))
        chosen[is_labelled], chosen[~is_labelled] = drawn
        return chosen


class FixedMixSampler(Sampler[list[int]]):
    """A batch sampler of fixed mixes for any ``torch.utils.data.DataLoader``, also under Lightning.

    Give it as ``DataLoader(dataset, batch_sampler=FixedMixSampler(...))``. An epoch lasts until the longer stream has
    been seen once; the next goes on where it ended, so no image is seen less often than others of its kind. With
    several processes each draws its own part of each step, without padding: tell Lightning
    ``Trainer(use_distributed_sampler=False)``.

    Args:
        is_labelled: bool (N,), which images of the dataset are labelled.
        batch_size: images of a batch, in each process.
        labelled_share: of each batch, in [0, 1]; 0.65 to 0.75 is the habit of competitions.
        seed: of all shuffles; the same in all processes.
        balanced_labels: (N,) classes: labelled images come class by class in turns. None: as often as each other.
        rank: which process this is; None asks ``torch.distributed``, once it is initialised.
        processes: that share each step; None asks ``torch.distributed``.

    Raises:
        EtudeError: the share or the batch size cannot be, or images of a kind are asked for and missing.

    >>> sampler = FixedMixSampler([True, False, True, False, True, True], batch_size=3)
    >>> [sum(position in (1, 3) for position in batch) for batch in sampler]
    [1, 1]
    """

    def __init__(
        self,
        is_labelled: np.ndarray | Sequence[bool],
        batch_size: int,
        labelled_share: float = 0.7,
        seed: int = 0,
        balanced_labels: np.ndarray | Sequence[Any] | None = None,
        rank: int | None = None,
        processes: int | None = None,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise EtudeError(f"batch_size is {batch_size}; a batch has at least one image")
        self.mix = FixedMix(labelled_share, balanced=balanced_labels is not None)
        self.batch_size, self.seed, self.rank, self.processes = batch_size, seed, rank, processes
        self._labelled = np.asarray(is_labelled, dtype=bool)
        self._labels = None if balanced_labels is None else np.asarray(balanced_labels)
        self._next = self._position = (0, 0)  # epoch and batch within it: where the next pass begins, and where this is
        self._order().taken(self._step_images())  # refuses now what would be refused in the middle of a training

    @property
    def sampler(self) -> FixedMixSampler:
        """This sampler itself, since Lightning tells the epoch to a batch sampler's ``sampler``."""
        return self

    def __len__(self) -> int:
        taken = _taken_by_each(self._step_images(), self.mix.share, self._part()[1]).sum(axis=0)
        counts = int(self._labelled.sum()), int((~self._labelled).sum())
        return max(-(-count // int(each)) for count, each in zip(counts, taken, strict=True) if each)

    def __iter__(self) -> Iterator[list[int]]:
        order, batches, images = self._order(), len(self), self._step_images()
        taken = order.taken(images)
        epoch, done = self._next
        self._next = (epoch + 1, 0)
        for batch in range(done, batches):
            self._position = (epoch, batch + 1)
            yield order.chosen((epoch * batches + batch) * taken, images).tolist()

    def set_epoch(self, epoch: int) -> None:
        """Let the next pass be the epoch of this number; one that was taken up in its middle goes on there."""
        if epoch != self._next[0]:
            self._next = self._position = (epoch, 0)

    def state_dict(self) -> dict[str, int]:
        """Return the state of the sampler: ``epoch``, and the number ``batch`` of its batches that were drawn.

        A ``DataLoader`` with workers fetches batches ahead of the training; where it does not mind that itself, as
        torchdata's ``StatefulDataLoader`` does, write the batches that were trained on into ``batch``.
        """
        epoch, batch = self._position
        return {"epoch": epoch, "batch": batch} if batch < len(self) else {"epoch": epoch + 1, "batch": 0}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Begin the next pass where ``state`` says."""
        self._next = self._position = (state["epoch"], state["batch"])

    def _part(self) -> tuple[int, int]:
        # Asked anew each time: a loader is often made before the processes have met.
        together = torch.distributed.is_available() and torch.distributed.is_initialized()
        known = (torch.distributed.get_rank(), torch.distributed.get_world_size()) if together else (0, 1)
        return (known[0] if self.rank is None else self.rank, known[1] if self.processes is None else self.processes)

    def _step_images(self) -> int:
        return self.batch_size * self._part()[1]

    def _order(self) -> MixedOrder:
        return MixedOrder(self.mix, self._labelled, self._labels, Context(seed=self.seed), self._part())


def evenly(count: int, total: int) -> np.ndarray:
    """Return ``count`` True among ``total`` places, bool (total,), as evenly as can be.

    Any k places in a row hold the share ``k * count / total``, rounded up or down.
    """
    return np.diff(np.arange(total + 1) * count // max(1, total)) > 0


def _taken_by_each(images: int, share: float, processes: int) -> np.ndarray:
    """Return the labelled and unlabelled images of each process in a step of ``images``, int64 (processes, 2)."""
    sizes = [len(range(which, images, processes)) for which in range(processes)]
    labelled = [labelled_images(size, share) for size in sizes]
    return np.stack([labelled, np.subtract(sizes, labelled)], axis=1).astype(np.int64)


def _checked(share: float) -> Fraction:
    """Return the share as it is written: 0.7 of 5 images are 3.5, not a little less."""
    if not 0.0 <= share <= 1.0:
        raise EtudeError(
            f"the share of labelled images is {share}; it is from 0 to 1, such as 0.7 for 70% of each batch"
        )
    return Fraction(str(float(share)))


def _refuse_empty(labelled: int, unlabelled: int, share: float) -> None:
    for kind, count, part in (("labelled", labelled, share), ("unlabelled", unlabelled, 1 - share)):
        if part > 0 and count == 0:
            raise EtudeError(
                f"a share of {share:g} labelled images in each batch asks for {kind} images, and there are none: "
                f"give some, or make the share {int(kind == 'unlabelled')}"
            )
