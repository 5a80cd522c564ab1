"""One split of the labelled images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Fold:
    """Rows of the store to train on and rows to validate on, and the seed of what is trained on them."""

    train: np.ndarray
    valid: np.ndarray
    seed: int
