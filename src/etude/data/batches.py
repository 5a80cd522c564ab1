"""One batch of training images: gathered, augmented and put where the network wants it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

Batch = dict[str, Any]
"""``image`` uint8 (B, S, S, channels); ``target`` float32 (B, C); ``weight`` float32, ``id`` int and ``is_labeled``
bool (B,). Where they were asked for, ``strong`` uint8 (B, S, S, channels), a second view of the unlabelled images, and
``teacher`` float32 (B, C)."""

Augment = Callable[[Any, float, np.random.Generator, int], Any]
"""``augment(images, strength, rng, size)`` returns uint8 (B, size, size, channels), sampled from any larger size: an
array of an array, a tensor of a tensor, which images on a device are."""


@dataclass(frozen=True, slots=True)
class TrainingRows:
    """Rows of a store with their targets."""

    gather: Callable[[np.ndarray, int], np.ndarray]  # a store's method, as source_size and gather_tensor
    rows: np.ndarray  # int (N,), positions in the store
    # float32 (N, C), or class indices int (N,) together with num_classes: then a batch's dense targets are made when it
    # is, and no (N, C) array is held. A row without a label has -1, and a target of zeros.
    targets: np.ndarray
    weights: np.ndarray  # float32 (N,)
    source_size: Callable[[int], int] | None = None  # None reads rows at the size that is asked for
    gather_tensor: Callable[[np.ndarray, int], torch.Tensor] | None = None  # None: the images are not on a device
    num_classes: int | None = None  # C of class indices; None with dense targets, which show it
    labelled: np.ndarray | None = None  # bool (N,), whose label is known to be right; None: all are
    teacher: np.ndarray | None = None  # float32 (N, C), a teacher's probabilities for distillation

    def __post_init__(self) -> None:
        per_row = {"targets": self.targets, "weights": self.weights, "labelled": self.labelled, "teacher": self.teacher}
        for name, values in per_row.items():
            if values is not None and len(values) != len(self.rows):
                raise ValueError(f"{len(self.rows)} rows have {len(values)} {name}")
        if (self.targets.ndim == 1) != (self.num_classes is not None):
            raise ValueError("class indices (N,) need num_classes, and dense targets (N, C) go without")
        if self.teacher is not None and self.teacher.shape[1:] != (self.classes,):
            raise ValueError(f"the teacher has {self.teacher.shape[1:]} probabilities a row for {self.classes} classes")
        if self.num_classes is not None:
            known = self.targets if self.labelled is None else self.targets[self.labelled]
            if known.min(initial=0) < 0 or self.targets.max(initial=0) >= self.num_classes:
                raise ValueError(f"class indices of labelled rows are from 0 to {self.num_classes - 1}")

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def classes(self) -> int:
        """The number of classes."""
        return int(self.targets.shape[1]) if self.num_classes is None else self.num_classes

    @property
    def class_indices(self) -> np.ndarray:
        """The likeliest class of each row, int (N,); -1 without a label."""
        return self.targets if self.targets.ndim == 1 else self.targets.argmax(axis=1)

    def dense_targets(self, chosen: np.ndarray) -> np.ndarray:
        """Return the targets of the rows at the positions ``chosen``, float32 (B, C); zeros where there is no label."""
        if self.num_classes is None:
            return self.targets[chosen]
        labels = self.targets[chosen]
        dense = np.zeros((len(labels), self.num_classes), np.float32)
        known = np.flatnonzero(labels >= 0)
        dense[known, labels[known]] = 1.0
        return dense

    def is_labelled(self, chosen: np.ndarray) -> np.ndarray:
        """Return which rows at the positions ``chosen`` are labelled, bool (B,)."""
        return np.ones(len(chosen), dtype=bool) if self.labelled is None else self.labelled[chosen]

    def subset(self, chosen: np.ndarray) -> TrainingRows:
        """Return the rows at the positions ``chosen``, in that order, with all that belongs to them."""
        return replace(
            self,
            rows=self.rows[chosen],
            targets=self.targets[chosen],
            weights=self.weights[chosen],
            labelled=None if self.labelled is None else self.labelled[chosen],
            teacher=None if self.teacher is None else self.teacher[chosen],
        )

    def size_to_read(self, size: int, strength: float) -> int:
        """Return the side at which to read images that are wanted at ``size``, augmented with ``strength``."""
        return size if strength <= 0.0 or self.source_size is None else self.source_size(size)


@dataclass(frozen=True, slots=True)
class StepNeeds:
    """What a step of training asks of its batch: side in pixels, strength of augmentation, images of all processes."""

    size: int
    strength: float
    images: int


def training_batch(
    data: TrainingRows, chosen: np.ndarray, needs: StepNeeds, rng: np.random.Generator,
    augment: Augment, strong: Augment | None, pin: bool,
) -> Batch:  # fmt: skip
    """Return a step's batch: the rows at the positions ``chosen``, augmented.

    ``strong`` makes a second view of the unlabelled images, always at strength 1.
    """
    rows, labelled = data.rows[chosen], data.is_labelled(chosen)
    read = data.size_to_read(needs.size, needs.strength if strong is None else 1.0)
    source = (data.gather_tensor or data.gather)(rows, read)
    images = _tensor(augment(source, needs.strength, rng, needs.size))
    batch: Batch = {"image": images, **labels_of(data, chosen)}
    batch |= {"id": torch.from_numpy(rows), "is_labeled": torch.from_numpy(labelled)}
    if data.teacher is not None:
        batch["teacher"] = torch.from_numpy(data.teacher[chosen])
    if strong is not None:  # after the first view, whose draws are thus the same with and without
        batch["strong"] = images.clone()
        if len(unlabelled := np.flatnonzero(~labelled)):
            where = torch.from_numpy(unlabelled).to(images.device)
            mine = source[unlabelled] if isinstance(source, np.ndarray) else source[where]
            batch["strong"][where] = _tensor(strong(mine, 1.0, rng, needs.size))
    return placed(batch, images.device, pin)


def _tensor(images: np.ndarray | torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(images)) if isinstance(images, np.ndarray) else images


def plain_batch(data: TrainingRows, chosen: np.ndarray, size: int, pin: bool) -> Batch:
    """Return the rows at the positions ``chosen`` as they are stored, at ``size``."""
    images = _tensor((data.gather_tensor or data.gather)(data.rows[chosen], size))
    return placed({"image": images, **labels_of(data, chosen)}, images.device, pin)


def labels_of(data: TrainingRows, chosen: np.ndarray) -> Batch:
    """Return target and weight of the rows at the positions ``chosen``."""
    return {"target": torch.from_numpy(data.dense_targets(chosen)), "weight": torch.from_numpy(data.weights[chosen])}


def placed(batch: Batch, device: torch.device, pin: bool) -> Batch:
    """Return the batch on the device of its images, or in page-locked memory when they are in main memory."""
    if device.type != "cpu":
        return {key: tensor.to(device, non_blocking=True) for key, tensor in batch.items()}
    return {key: tensor.pin_memory() for key, tensor in batch.items()} if pin else batch
