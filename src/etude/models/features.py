"""Features of a frozen backbone, of images as they are and of augmented views, computed once and kept in the cache."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from torch import nn

from etude.core.arrays import load_arrays, save_arrays
from etude.core.context import Context
from etude.core.errors import EtudeError
from etude.core.files import digest_of
from etude.core.prefetch import prefetch
from etude.models.classifier import Preprocessing

_LARGEST = float(np.finfo(np.float16).max)
_BLOCK = 32  # rows whose augmentation is drawn together; another number would draw other views

Gather = Callable[[np.ndarray, int], np.ndarray]
"""``gather(indices, size)`` returns uint8 (B, size, size, channels); a store's method."""

Augment = Callable[[np.ndarray, float, np.random.Generator, int], np.ndarray]
"""``augment(images, strength, rng, size)`` returns uint8 (B, size, size, channels)."""


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
    context: Context = Context(),
    precision: str = "fp32",
    batch_size: int = 32,
    name: str = "features",
) -> np.ndarray:
    """Return float16 (N, D) features of the images in ``rows`` of a store."""
    fetch: Fetch = lambda part: gather(rows[part], preprocessing.size)  # noqa: E731
    outputs = outputs_of(backbone, fetch, len(rows), preprocessing, precision=precision, batch_size=batch_size)
    return _joined(outputs, len(rows), context, name)


Fetch = Callable[[slice], np.ndarray]
"""Returns the images at these places among the rows that were asked for."""


def outputs_of(
    backbone: nn.Module,
    fetch: Fetch,
    count: int,
    preprocessing: Preprocessing,
    *,
    precision: str,
    batch_size: int,
) -> Generator[np.ndarray]:
    """Yield the network's float16 outputs batch by batch; what is beyond float16 becomes its largest value."""
    device = next(backbone.parameters()).device
    backbone.to(memory_format=torch.channels_last).eval()  # pyright: ignore[reportCallIssue]  (missing in stubs)
    parts = [slice(start, min(start + batch_size, count)) for start in range(0, count, batch_size)]
    for images in prefetch(fetch, parts, ahead=1, name="etude-features"):
        with torch.inference_mode(), autocast(device, precision):  # not while the reader has the batch
            batch = backbone(preprocessing.to_input(torch.from_numpy(images).to(device)))
            # Halved by torch: numpy's own conversion takes ten times as long.
            values = batch.float().clamp(-_LARGEST, _LARGEST).half().cpu().numpy()
        yield values


def extract_views(
    backbone: nn.Module,
    gather: Gather,
    rows: np.ndarray,
    preprocessing: Preprocessing,
    *,
    augment: Augment,
    policy: str,
    views: int,
    data: str,
    context: Context,
    keep: bool = True,
    plain: np.ndarray | None = None,
    source_size: Callable[[int], int] | None = None,
    precision: str = "fp32",
    batch_size: int = 32,
    name: str = "features",
) -> np.ndarray:
    """Return float16 (V, N, D) features of the rows over views: the first as they are, the others augmented in full.

    Draws depend on (seed, view, place among the rows) alone. ``policy`` and ``data`` name the change and the store in
    the cache, ``plain`` are known features of the first view, ``source_size`` gives the side that images are read at.
    """
    size = preprocessing.size
    read = size if source_size is None else source_size(size)
    key = digest_of(
        f"views-1 {policy} {context.seed} {precision} {read}", data, weights_digest(backbone), str(backbone),
        repr(preprocessing), np.asarray(rows, np.int64).tobytes(),
    )  # fmt: skip
    settings = {"precision": precision, "batch_size": max(1, batch_size // _BLOCK) * _BLOCK}
    plain_fetch: Fetch = lambda part: gather(rows[part], size)  # noqa: E731

    def one(view: int) -> np.ndarray:
        def fetch(part: slice) -> np.ndarray:
            drawn: list[np.ndarray] = []
            for start in range(part.start, part.stop, _BLOCK):
                images = gather(rows[start : min(start + _BLOCK, part.stop)], read)
                drawn.append(augment(images, 1.0, context.rng(f"view {view}", start // _BLOCK), size))
            return np.concatenate(drawn)

        outputs = outputs_of(backbone, fetch if view else plain_fetch, len(rows), preprocessing, **settings)
        return _joined(outputs, len(rows), context, f"{name} (view {view + 1}/{views})")

    found = [] if plain is None else [plain]
    for view in range(len(found), views):
        compute: Callable[[], np.ndarray] = lambda view=view: one(view)  # noqa: E731
        kept = context.cached("features", f"{key}-{view}.npz")
        found.append(cached(kept, compute, len(rows))[0] if keep else compute())
    return np.stack(found)


def _joined(outputs: Generator[np.ndarray], count: int, context: Context, name: str) -> np.ndarray:
    """Return the outputs of ``count`` rows as one array."""
    found: np.ndarray | None = None
    done = 0
    with context.bar(name, count) as advance:
        for values in outputs:
            if found is None:
                found = np.empty((count, *values.shape[1:]), np.float16)
            found[done : done + len(values)] = values
            done += len(values)
            advance(len(values))
    return np.empty((0, 0), np.float16) if found is None else found


def kept_features(path: Path, rows: int) -> np.ndarray | None:
    """Return features (``rows``, D) from ``path``; None if it does not hold as many."""
    if path.is_file():
        with suppress(EtudeError):  # a damaged cache entry costs a recomputation, never an error
            features = load_arrays(path, "features", ["features"])["features"]
            if features.ndim == 2 and len(features) == rows:
                return features
    return None


def cached(path: Path, compute: Callable[[], np.ndarray], rows: int) -> tuple[np.ndarray, bool]:
    """Return features from ``path`` if it holds ``rows`` rows, and whether it did; otherwise compute and keep them."""
    if (kept := kept_features(path, rows)) is not None:
        return kept, True
    features = compute()
    save_arrays(path, {"features": features})
    return features, False
