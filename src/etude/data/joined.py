"""Rows of several stores as one, such as labelled images and unlabelled ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from etude.data.batches import TrainingRows

_LARGEST_SIDE = 1 << 20  # asked for more than it has, a store names the side of its own images


def joined(*parts: TrainingRows) -> TrainingRows:
    """Return the rows of all parts, one part after the other; the images stay where they are.

    ``rows``, and so a batch's ``id``, are positions in what is returned, unique over all parts. Targets are class
    indices where all parts have those, otherwise dense. They stay on a device where all parts are on one.

    Args:
        parts: at least one; their stores have images of the same size and the same channels.

    Raises:
        ValueError: the parts' classes or stored sizes differ, or some have a teacher and others none.
    """
    if len({part.classes for part in parts}) != 1:
        raise ValueError(f"rows of {[part.classes for part in parts]} classes cannot be joined")
    sides = {part.source_size(_LARGEST_SIDE) for part in parts if part.source_size is not None}
    if len(sides) > 1:
        raise ValueError(f"rows of stores of {sorted(sides)} px cannot be joined: store them at one size")
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
    """Several stores behind one row of positions.

    Args:
        parts: rows of each.
        ends: int (parts,), the position behind the last row of each.
    """

    parts: tuple[TrainingRows, ...]
    ends: np.ndarray

    def source_size(self, size: int) -> int:
        """Return a side at which all stores can be read without enlarging what they hold."""
        return max(part.source_size(size) for part in self.parts if part.source_size is not None)

    def gather(self, positions: np.ndarray, size: int) -> np.ndarray:
        """Return the images at ``positions``, uint8 (B, size, size, channels)."""
        pieces = [(where, part.gather(rows, size)) for where, part, rows in self._by_part(positions)]
        _refuse_other_shapes({images.shape[1:] for _, images in pieces})
        together = np.empty((len(positions), *pieces[0][1].shape[1:]), np.uint8)
        for where, images in pieces:
            together[where] = images
        return together

    def gather_tensor(self, positions: np.ndarray, size: int) -> torch.Tensor:
        """Return the images at ``positions``, uint8 (B, size, size, channels), on their device."""
        pieces = [
            (where, part.gather_tensor(rows, size))
            for where, part, rows in self._by_part(positions)
            if part.gather_tensor is not None
        ]
        _refuse_other_shapes({tuple(images.shape[1:]) for _, images in pieces})
        first = pieces[0][1]
        together = torch.empty((len(positions), *first.shape[1:]), dtype=torch.uint8, device=first.device)
        for where, images in pieces:
            together[torch.from_numpy(where).to(first.device)] = images
        return together

    def _by_part(self, positions: np.ndarray) -> Iterator[tuple[np.ndarray, TrainingRows, np.ndarray]]:
        """Yield for each part that is asked for: where its images go, the part, and the rows of its store."""
        owner = np.searchsorted(self.ends, positions, side="right")
        for number in np.unique(owner):
            where, part = np.flatnonzero(owner == number), self.parts[number]
            yield where, part, part.rows[positions[where] - (self.ends[number] - len(part))]


def _refuse_other_shapes(shapes: set[tuple[int, ...]]) -> None:
    if len(shapes) > 1:
        raise ValueError(f"stores give images of shapes {sorted(shapes)}: store them with the same channels")
