"""EfficientNet-Lite0 with the given weights, and images as it takes them, for the peers that build on timm."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import etude.compat  # noqa: F401  (mends torchvision with a CPU torch; timm imports it)

import numpy as np
import timm
import torch
from PIL import Image
from torchvision import transforms


def network(weights: str, classes: int = 0) -> torch.nn.Module:
    """Return the network with a new head of `classes` outputs; with none it returns pooled features."""
    overlay = {"file": weights}
    return timm.create_model(
        "tf_efficientnet_lite0", pretrained=True, pretrained_cfg_overlay=overlay, num_classes=classes
    )


def squashed(model: torch.nn.Module, *changes: Callable) -> Callable:
    """Return the transform of most tutorials: resized to a square, changed, normalised."""
    config = timm.data.resolve_model_data_config(model)
    normal = transforms.Normalize(config["mean"], config["std"])
    return transforms.Compose([transforms.Resize(config["input_size"][1:]), *changes, transforms.ToTensor(), normal])


class Images(torch.utils.data.Dataset):
    """Images with the number of their class; a test image has 0."""

    def __init__(self, paths: Sequence[str], targets: Sequence[int] = (), transform: Callable | None = None) -> None:
        self.paths, self.targets, self.transform = paths, targets or [0] * len(paths), transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[object, int]:
        image = Image.open(self.paths[index]).convert("RGB")
        return self.transform(image) if self.transform else image, self.targets[index]


def features(weights: str, paths: Sequence[str]) -> np.ndarray:
    """Return pooled features (N, 1280), images prepared as timm prepares them."""
    model = network(weights).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    with torch.inference_mode():
        loader = torch.utils.data.DataLoader(Images(paths, (), transform), 64)
        return np.concatenate([model(images).numpy() for images, _ in loader])
