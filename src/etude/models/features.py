"""Features of a frozen backbone, computed once and kept in the cache."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import nn

from etude.core.files import replacing
from etude.core.progress import Progress
from etude.models.classifier import Preprocessing
from etude.models.device import channels_last

_LARGEST = float(np.finfo(np.float16).max)

Gather = Callable[[np.ndarray, int], np.ndarray]
"""``gather(indices, size)`` returns uint8 (B, size, size, channels); a store's method."""


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Return the context of a numeric mode, ``fp32`` or ``bf16``."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def weights_digest(module: nn.Module) -> str:
    """Return a hash over the names, shapes and values of all tensors of ``module``."""
    hasher = hashlib.blake2b(digest_size=12)
    for name, tensor in module.state_dict().items():
        hasher.update(f"{name}{tuple(tensor.shape)}".encode())
        hasher.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return hasher.hexdigest()


def extract_features(
    backbone: nn.Module,
    gather: Gather,
    rows: np.ndarray,
    preprocessing: Preprocessing,
    *,
    progress: Progress,
    precision: str = "fp32",
    batch_size: int = 32,
    name: str = "features",
) -> np.ndarray:
    """Return float16 (N, D) features of the images in ``rows`` of a store.

    The next batch is gathered while the network works on the present one.
    """
    device = next(backbone.parameters()).device
    channels_last(backbone).eval()
    found: np.ndarray | None = None
    done = 0
    with progress.bar(name, len(rows)) as advance, torch.inference_mode(), autocast(device, precision):
        for images in _ahead(gather, rows, preprocessing.size, batch_size):
            batch = backbone(preprocessing.to_input(torch.from_numpy(images).to(device)))
            values = batch.float().clamp(-_LARGEST, _LARGEST).cpu().numpy()
            if found is None:
                found = np.empty((len(rows), values.shape[1]), np.float16)
            found[done : done + len(values)] = values
            done += len(values)
            advance(len(values))
    return np.empty((0, 0), np.float16) if found is None else found


def cached(path: Path, compute: Callable[[], np.ndarray], rows: int) -> tuple[np.ndarray, bool]:
    """Return features from ``path`` when it holds ``rows`` rows; otherwise compute and keep them.

    Returns:
        The features, and whether they came from the cache.
    """
    if path.is_file():
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as held:
                features = held["features"]
            if len(features) == rows:
                return features, True
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            path.unlink(missing_ok=True)  # a damaged cache entry costs a recomputation, never an error
    features = compute()
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, features=features)
    return features, False


def _ahead(gather: Gather, rows: np.ndarray, size: int, batch_size: int) -> Iterator[np.ndarray]:
    batches = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(gather, batches[0], size) if batches else None
        for following in [*batches[1:], None]:
            if waiting is None:
                return
            ready = waiting.result()
            waiting = pool.submit(gather, following, size) if following is not None else None
            yield ready
