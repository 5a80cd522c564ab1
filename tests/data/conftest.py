"""Small images and image sets for the tests of the data room."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SaveImage = Callable[..., Path]


@pytest.fixture
def save_image() -> SaveImage:
    """``save_image(path, size=(w, h), seed=0, mode="RGB")`` writes a noise image; the suffix says the format."""

    def save(path: Path, size: tuple[int, int] = (12, 10), seed: int = 0, mode: str = "RGB") -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(noise).convert(mode).save(path)
        return path

    return save


@pytest.fixture
def class_folders(tmp_path: Path, save_image: SaveImage) -> Path:
    """Two classes with four different PNG images each."""
    for number in range(8):
        label = "cat" if number < 4 else "dog"
        save_image(tmp_path / "train" / label / f"{number}.png", seed=number)
    return tmp_path / "train"


class CountingProgress:
    """A :class:`etude.core.context.Progress` that remembers each bar's total and count."""

    def __init__(self) -> None:
        self.bars: dict[str, list[int]] = {}

    def bar(self, name: str, total: int, unit: str = "images") -> _CountingBar:
        self.bars[name] = [total, 0]
        return _CountingBar(self.bars[name])

    def say(self, text: str) -> None:
        """Show nothing."""


class _CountingBar:
    def __init__(self, counts: list[int]) -> None:
        self._counts = counts

    def __enter__(self) -> Callable[[int], None]:
        def advance(count: int = 1) -> None:
            self._counts[1] += count

        return advance

    def __exit__(self, *exc: object) -> None:
        return None


@pytest.fixture
def progress() -> CountingProgress:
    return CountingProgress()
