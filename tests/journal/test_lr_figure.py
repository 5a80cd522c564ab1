from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from etude.core.errors import EtudeError
from etude.core.lr_range import LrSuggestion, suggest_lr
from etude.journal.figures import save_figure
from etude.journal.figures.lr_range import lr_range_figure


def sweep(low: float = 1e-7, high: float = 10.0, count: int = 100) -> tuple[np.ndarray, np.ndarray, LrSuggestion]:
    rates = np.geomspace(low, high, count)
    clean = 2.3 - 1.5 / (1 + (1e-3 / rates) ** 1.5) + (rates / 0.3) ** 3
    losses = clean + np.random.default_rng(0).normal(0, 0.05, count)
    return rates, losses, suggest_lr(rates, losses)


def test_the_picture_is_written_whole(tmp_path: Path):
    rates, losses, found = sweep()
    path = tmp_path / "lr.png"
    save_figure(lr_range_figure(rates, losses, found.smoothed, found), path)
    with Image.open(path) as image:
        assert image.size == (900, 500)
    save_figure(lr_range_figure(rates, losses, found.smoothed, found), tmp_path / "lr.svg")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["lr.png", "lr.svg"]


def test_other_endings_are_refused(tmp_path: Path):
    rates, losses, found = sweep()
    with pytest.raises(EtudeError, match=r"\.png or \.svg"):
        save_figure(lr_range_figure(rates, losses, found.smoothed, found), tmp_path / "lr.pdf")
    assert list(tmp_path.iterdir()) == []


def test_lines_show_losses_and_suggestion():
    rates, losses, found = sweep()
    figure = lr_range_figure(rates, losses, found.smoothed, found)
    (axes,) = figure.axes
    raw, smooth, mark, *_ = axes.lines
    assert axes.get_xscale() == "log"
    np.testing.assert_array_equal(raw.get_ydata(), losses)
    np.testing.assert_array_equal(smooth.get_ydata(), found.smoothed)
    assert raw.get_linewidth() < smooth.get_linewidth()
    assert list(mark.get_xdata()) == [found.lr, found.lr]
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert any(label.startswith("suggested: ") and float(label[11:]) == float(f"{found.lr:.2g}") for label in labels)
    assert any(label.startswith("diverged from") for label in labels)


def test_the_descent_is_not_pressed_flat_by_the_explosion():
    rates, losses, found = sweep()
    (axes,) = lr_range_figure(rates, losses, found.smoothed, found).axes
    low, high = axes.get_ylim()
    assert losses.max() > 1000
    assert high - low < 3 * (2.3 - 0.8)
    assert low < 0.8
    assert high > 2.3


@pytest.mark.parametrize("ends", [(1e-7, 10), (1e-6, 1e-2), (1e-4, 5e-3)])
def test_no_text_covers_another(ends: tuple[float, float]):
    rates, losses, found = sweep(*ends)
    figure = lr_range_figure(rates, losses, found.smoothed, found)
    figure.draw_without_rendering()
    (axes,) = figure.axes
    left, right = axes.get_xlim()
    texts = [*figure.texts, *figure.legends[0].get_texts(), axes.xaxis.label, axes.yaxis.label]
    texts += [label for at, label in zip(axes.get_xticks(), axes.get_xticklabels(), strict=True) if left <= at <= right]
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts if text.get_text()]
    assert len(boxes) >= 10
    for (one, first), (other, second) in combinations(boxes, 2):
        assert not first.overlaps(second), (one, other)


def test_a_suggestion_below_the_sweep_is_still_in_the_picture():
    rates = np.geomspace(1e-3, 2.0, 60)
    losses = 2.3 - 1.5 / (1 + (2e-3 / rates) ** 1.5) + (rates / 0.008) ** 3
    found = suggest_lr(rates, losses)
    assert found.lr < rates[0]
    (axes,) = lr_range_figure(rates, losses, found.smoothed, found).axes
    assert axes.get_xlim()[0] < found.lr
