"""A contact sheet: images with what was predicted below each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from etude.core.text import shortened, visible
from etude.journal.figures import INK, QUIET, axes_at, new_figure, save_figure, write

_COLUMNS = 6
_SIDE, _GAP, _LINE = 1.6, 0.25, 0.17  # inches
_LETTERS = 24  # of a line below an image


def draw_sheet(path: Path, pictures: np.ndarray, captions: Sequence[Sequence[str]]) -> None:
    """Draw images (N, S, S, 3 or 1) uint8 with lines of text below each, the first one strong, as a .png or .svg."""
    columns, lines = min(len(pictures), _COLUMNS), max(map(len, captions))
    rows, height = math.ceil(len(pictures) / columns), _SIDE + lines * _LINE + _GAP
    figure = new_figure(_GAP + columns * (_SIDE + _GAP), _GAP + rows * height)
    top = float(figure.get_size_inches()[1])
    for number, (picture, texts) in enumerate(zip(pictures, captions, strict=True)):
        left = _GAP + number % columns * (_SIDE + _GAP)
        lower = top - _GAP - number // columns * height - _SIDE
        axes = axes_at(figure, left, lower, _SIDE, _SIDE, xticks=[], yticks=[])
        axes.imshow(picture.repeat(3, axis=2) if picture.shape[2] == 1 else picture, interpolation="lanczos")
        for line, text in enumerate(texts):
            color, weight = (QUIET, "normal") if line else (INK, "bold")
            place = lower - (line + 0.6) * _LINE
            write(figure, left, place, shortened(visible(text), _LETTERS), color=color, weight=weight, size=8)
    save_figure(figure, path)
