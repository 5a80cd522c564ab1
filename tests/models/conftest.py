"""Small networks and images for the tests of the models room."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from etude.models.classifier import Preprocessing

Gather = Callable[[np.ndarray, int], np.ndarray]


@pytest.fixture
def preprocessing() -> Preprocessing:
    """Of 16 px colour images."""
    return Preprocessing(
        size=16, stored_size=16, fit="squash", channels=3, in_channels=3, mean=(0.5, 0.4, 0.3), std=(0.5, 0.4, 0.3)
    )


@pytest.fixture
def pixels() -> np.ndarray:
    """Ten noise images, uint8 (10, 16, 16, 3)."""
    return np.random.default_rng(0).integers(0, 256, (10, 16, 16, 3), dtype=np.uint8)


@pytest.fixture
def gather(pixels: np.ndarray) -> Gather:
    """A store's method over ``pixels``."""

    def take(rows: np.ndarray, size: int) -> np.ndarray:
        assert size == pixels.shape[1]
        return pixels[rows]

    return take


@pytest.fixture
def lively() -> Callable[[nn.Module], nn.Module]:
    """``lively(net)`` gives every batch norm statistics and weights unlike those of a fresh network."""

    def fill(net: nn.Module) -> nn.Module:
        generator = torch.Generator().manual_seed(0)
        for module in net.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                for tensor, low, high in (
                    (module.running_mean, -0.5, 0.5),
                    (module.running_var, 0.5, 2.0),
                    (module.weight, 0.5, 1.5),
                    (module.bias, -0.5, 0.5),
                ):
                    if tensor is not None:
                        tensor.data.uniform_(low, high, generator=generator)
        return net.eval()

    return fill
