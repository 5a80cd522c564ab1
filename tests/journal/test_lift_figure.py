from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from etude.core.errors import EtudeError
from etude.journal.figures import save_figure
from etude.journal.figures.lift import Lift, lift_figure


def row(name: str, gain: float, reach: float, verdict: str) -> Lift:
    return Lift(name, gain, gain - reach, gain + reach, verdict, f"{gain:+.2f}", "+3.2")


PANELS = {
    "leave-one-out: what each trick adds to all the others": [
        row("augment", 0.61, 0.2, "helps"),
        row("ema", 0.05, 0.11, "cannot tell"),
        row("a $name$ that is much too long", -0.3, 0.1, "hurts"),
    ],
    "add-one-in: what each trick brings alone": [row("mixup", -1.2, 0.3, "hurts")],
}
WORDS = {"title": "Contribution of each trick: default, 5 seeds × 800 images", "unit": "points of accuracy"}


def test_the_chart_is_written_whole_and_the_same_again(tmp_path: Path):
    for name in ("lift.png", "lift.svg", "again.svg"):
        save_figure(lift_figure(PANELS, **WORDS), tmp_path / name)
    with Image.open(tmp_path / "lift.png") as image:
        assert image.width == 900
    assert (tmp_path / "lift.svg").read_bytes() == (tmp_path / "again.svg").read_bytes()
    assert len(list(tmp_path.iterdir())) == 3
    with pytest.raises(EtudeError, match=r"\.png or \.svg"):
        save_figure(lift_figure(PANELS, **WORDS), tmp_path / "lift.pdf")


def test_marks_stand_at_the_gains_and_intervals_reach_their_ends():
    first, second = lift_figure(PANELS, **WORDS).axes
    bars, marks = first.lines[0:6:2], first.lines[1:6:2]
    for number, (bar, mark, expected) in enumerate(zip(bars, marks, next(iter(PANELS.values())), strict=True)):
        assert list(mark.get_xdata()) == [expected.gain]
        assert list(mark.get_ydata()) == [number]
        np.testing.assert_allclose(bar.get_xdata(), [expected.low, expected.high])
    assert first.get_xlim() == second.get_xlim()  # so that panels can be compared
    low, high = first.get_xlim()
    assert low < -1.5
    assert high > 0.81


def test_verdicts_differ_by_more_than_colour():
    (first, _) = lift_figure(PANELS, **WORDS).axes
    looks = [(mark.get_marker(), mark.get_markerfacecolor() == "white") for mark in first.lines[1:6:2]]
    assert len(set(looks)) == 3


@pytest.mark.parametrize(
    "panels", [PANELS, dict([*PANELS.items()][:1]), dict([*PANELS.items()][1:])], ids=["both", "one", "single row"]
)
def test_no_text_covers_another_or_leaves_the_picture(panels):
    figure = lift_figure(panels, **WORDS)
    figure.draw_without_rendering()
    low, high = figure.axes[-1].get_xlim()
    ticks = [
        label
        for at, label in zip(figure.axes[-1].get_xticks(), figure.axes[-1].get_xticklabels(), strict=True)
        if low <= at <= high
    ]
    texts = [*figure.texts, *figure.legends[0].get_texts(), *ticks, figure.axes[-1].xaxis.label]
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts if text.get_text()]
    width, height = figure.bbox.width, figure.bbox.height
    for text, box in boxes:
        assert box.x0 >= 0, text
        assert box.x1 <= width, text
        assert box.y0 >= 0, text
        assert box.y1 <= height, text
    for (one, first), (other, second) in combinations(boxes, 2):
        assert not first.overlaps(second), (one, other)
