"""What one fine-tuning is given, besides the model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from etude.core.errors import EtudeError
from etude.data.loader import TrainingRows
from etude.data.order import FixedMix, epoch_images
from etude.functional.augment import Policy
from etude.models.classifier import Preprocessing
from etude.models.modes import Mode
from etude.recipe.settings import Recipe
from etude.timeline import Pace


class DivergedError(EtudeError):
    """The weights stopped being numbers."""


@dataclass(frozen=True, slots=True)
class FineTuneTask:
    """One fine-tuning, besides the model."""

    preprocessing: Preprocessing
    train: TrainingRows
    valid: TrainingRows | None
    recipe: Recipe  # resolved
    policy: Policy  # of augmentation
    mode: Mode
    seed: int
    folder: Path  # of history.csv, tb/ and checkpoints/
    pace: Pace | None = None  # needed when the timeline counts in minutes
    resume: bool = False  # go on from what the folder holds
    processes: int = 1  # that train together, each running this same task (DDP)
    mix: FixedMix | None = None  # of labelled and unlabelled rows in every batch; None draws from all at random
    prior: np.ndarray | None = None  # (C,) class shares that online pseudo-labels are aligned to
    left: Callable[[], float] | None = None  # seconds left for training, where they are limited
    teachers: tuple[torch.nn.Module, ...] = ()  # map the batches' uint8 images to logits (B, C), for distillation

    @property
    def batch_size(self) -> int:
        """Images a step, where the timeline does not say."""
        return min(self.recipe.train.batch_size, len(self.train.rows))

    @property
    def images_per_epoch(self) -> int:
        """Images that an epoch takes: of a fixed mix, until the longer stream has been seen once."""
        if self.mix is None or self.train.labelled is None:
            return len(self.train)
        labelled = int(self.train.labelled.sum())
        return epoch_images(labelled, len(self.train) - labelled, self.mix.share)

    @property
    def learns_online(self) -> bool:
        """Whether pseudo-labels are made during this training."""
        return self.mix is not None and self.recipe.unlabeled.method == "online"

    @property
    def part(self) -> tuple[int, int]:
        """Which of how many processes this is; known once Lightning has let the processes meet."""
        return (torch.distributed.get_rank() if self.processes > 1 else 0, self.processes)
