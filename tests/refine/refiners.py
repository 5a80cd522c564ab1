"""Every refiner of the house, for the contract that ``test_every_refiner.py`` holds them to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from etude.core.seeds import rng_for
from etude.refine.base import Refiner
from etude.refine.calibration import Temperature, VectorScaling
from etude.refine.chain import Chain
from etude.refine.last_layer import LastLayer
from etude.refine.neighbours.knn import KNN
from etude.refine.prior.assignment import BalancedAssignment
from etude.refine.prior.correction import PriorCorrection
from etude.refine.thresholds import Thresholds
from etude.refine.views import ViewWeights


def chain_of_all() -> list[tuple[str, Refiner]]:
    """The steps that need neither features nor training images, in no special order."""
    return [
        ("thresholds", Thresholds(draws=200)),
        ("prior", PriorCorrection()),
        ("views", ViewWeights(draws=200)),
        ("temperature", Temperature()),
        ("vector_scaling", VectorScaling()),
    ]


def training_images() -> dict[str, Any]:
    """Features whose first four columns tell the class up to noise, as in ``test_every_refiner.model_output``."""
    rng = rng_for(0, "training images")
    labels = rng.integers(4, size=400)
    features = np.concatenate([np.eye(4)[labels], rng.normal(size=(400, 3))], axis=1) + rng.normal(size=(400, 7)) / 2
    return {
        "train_features": features.astype(np.float32),
        "train_labels": labels,
        "train_ids": tuple(f"train-{number}" for number in range(400)),
        "train_classes": ("dog", "cat", "eel", "ant"),
    }


class Case(NamedTuple):
    """A refiner under test. ``needs_features``: it refuses predictions without features."""

    name: str
    make: Callable[[], Refiner]
    needs_features: bool = False


# One line a refiner; a refiner with options that change what it does has a line for each.
ALL: list[Case] = [
    Case("temperature", Temperature),
    Case("vector scaling", VectorScaling),
    Case("prior by EM, if it helps", PriorCorrection),
    Case("prior by EM, always", lambda: PriorCorrection(alpha=None)),
    Case("prior by BBSE, always", lambda: PriorCorrection(method="bbse", alpha=None)),
    Case("uniform prior", lambda: PriorCorrection(prior="uniform")),
    Case("assignment to a uniform prior", BalancedAssignment),
    Case("assignment within bounds", lambda: BalancedAssignment(prior=None, at_most=20)),
    Case("kNN, if it helps", lambda: KNN(**training_images()), needs_features=True),
    Case("kNN", lambda: KNN(**training_images(), ks=(4, 32), weights=(0.3, 0.6), noise=None), needs_features=True),
    Case("last layer, if it helps", lambda: LastLayer(**training_images()), needs_features=True),
    Case(
        "last layer for a uniform prior",
        lambda: LastLayer(**training_images(), prior="uniform", weights=(0.5, 1.0), noise=None),
        needs_features=True,
    ),
    # Add yours below this line.
    Case("thresholds for macro F1", Thresholds),
    Case("thresholds for accuracy", lambda: Thresholds("accuracy")),
    Case("views, if they help", ViewWeights),
    Case("weighted views", lambda: ViewWeights(ways=("weighted probabilities",), level=None)),
    Case("mean of logits", lambda: ViewWeights(ways=("mean of logits",), level=None)),
    Case("chain", lambda: Chain(chain_of_all(), metric="log_loss", draws=200)),
    Case("chain that keeps nothing", lambda: Chain([], draws=50)),
]
