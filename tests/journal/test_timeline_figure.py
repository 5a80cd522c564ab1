from __future__ import annotations

import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from etude.core.errors import EtudeError
from etude.journal.figures import save_figure
from etude.journal.figures.timeline import linear_ticks, log_ticks, panels_of, timeline_figure
from etude.timeline import (
    PRESETS,
    Constant,
    Cosine,
    Event,
    Linear,
    Phase,
    RunSize,
    Shape,
    Timeline,
    preset,
    step_progress,
)

STEPS = 500
SHAPE = Shape(1.5e-4, 128, 224, mixup=0.2)
RUN = RunSize(STEPS, 125)
PLATEAU = preset("plateau", SHAPE).resolved(RUN)
REACTED = PLATEAU.with_event(Event(0.3, "scale", "hold", 0.1)).with_event(Event(0.5, "end", "hold"))


def rows_of(timeline: Timeline, every: int = 10) -> list[dict[str, object]]:
    """The history of a run that kept to ``timeline``."""
    steps = range(every - 1, int(STEPS * timeline.end), every)
    moments = {step: timeline.at(step_progress(step, STEPS)) for step in steps}
    return [
        {"step": step, "phase": moment.phase, "train_loss": 1.0, "lr": moment.lr, "image_size": moment.image_size}
        for step, moment in moments.items()
    ]


def crowded() -> Timeline:
    """Phases too narrow for their names, all quantities, more plateaus than there is room for."""
    shares = {"a phase of rather a long name": 0.02, "warm$up$2": 0.03, "grow": 0.75, "x" * 90: 0.15, "last": 0.05}
    phases = tuple(
        Phase(
            name, share, lr=Linear(1, 0.5), momentum=0.9, image_size=96 + 32 * number, augment=number / 5, mixup=0.2,
            cutmix=number / 2, dropout=Linear(0, 0.3), drop_path=0.1, batch_size=32 * 2**number, label_smoothing=0.1,
            unlabeled_weight=None if number == 2 else number,
        )
        for number, (name, share) in enumerate(shares.items())
    )  # fmt: skip
    timeline = Timeline(phases)
    for number in range(20):
        timeline = timeline.with_event(Event(0.06 + 0.03 * number, "scale", "grow", 0.5))
    return timeline.with_event(Event(0.99, "scale", "last", 0.5))


def texts_of(figure: Figure) -> list[Text]:
    figure.draw_without_rendering()
    found = list(figure.texts)
    for axes in figure.axes:
        found += [*axes.texts, *axes.get_xticklabels(), *axes.get_yticklabels()]
    for legend in figure.legends:
        found += legend.get_texts()
    return [text for text in found if text.get_visible() and text.get_text()]


def words_of(figure: Figure) -> list[str]:
    return [text.get_text() for text in texts_of(figure)]


CASES = {
    **{
        name: lambda name=name: timeline_figure(preset(name, SHAPE), STEPS, title=PRESETS[name].line)
        for name in PRESETS
    },
    "epochs": lambda: timeline_figure(PLATEAU, 5_000_000, epoch_steps=125, title="t"),
    "events": lambda: timeline_figure(REACTED, STEPS, title="a title " * 40),
    "happened": lambda: timeline_figure(REACTED, STEPS, happened=rows_of(REACTED), title="as it happened " * 9),
    "crowded": lambda: timeline_figure(crowded(), STEPS),
    "one phase": lambda: timeline_figure(Timeline((Phase("all", 1.0, lr=0.1),)), 1),
}


@pytest.mark.each("case", CASES)
def test_no_text_covers_another_or_leaves_the_picture(case: str):
    figure = CASES[case]()
    texts = texts_of(figure)
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts]
    assert len(boxes) > 10
    for (one, first), (other, second) in combinations(boxes, 2):
        assert not first.overlaps(second), (one, other)
    width, height = figure.get_size_inches() * figure.dpi
    for word, box in boxes:
        assert 0 <= box.x0 <= box.x1 <= width, word
        assert 0 <= box.y0 <= box.y1 <= height, word


def test_png_is_1200_wide_and_its_height_grows_with_what_moves(tmp_path: Path):
    heights = []
    for number, moving in enumerate([{}, {"augment": Linear(0, 1)}, {"augment": 1.0}]):
        timeline = Timeline((Phase("all", 1.0, lr=Linear(0, 1), **moving),))
        path = tmp_path / "deep" / f"{number}.png"
        save_figure(timeline_figure(timeline, STEPS), path)
        with Image.open(path) as image:
            assert image.width == 1200
            heights.append(image.height)
    bare, moving, constant = heights
    assert moving == bare + 120
    assert bare < constant < bare + 60


def test_svg_names_phases_and_scheduled_quantities_only(tmp_path: Path):
    path = tmp_path / "plan.SVG"
    save_figure(timeline_figure(preset("default", SHAPE), STEPS), path)
    assert ElementTree.parse(path).getroot().tag.endswith("svg")
    words = words_of(timeline_figure(preset("default", SHAPE), STEPS))
    assert {"warmup", "grow", "finish", "learning rate", "image size", "px", "MixUp α"} <= set(words)
    assert not {"momentum", "batch size", "dropout"} & set(words)


@pytest.mark.parametrize("name", ["plan.png", "plan.svg"])
def test_the_same_plan_gives_the_same_bytes(tmp_path: Path, name: str):
    path = tmp_path / name
    save_figure(timeline_figure(REACTED, STEPS, title="t"), path)
    first = path.read_bytes()
    save_figure(timeline_figure(REACTED, STEPS, title="t"), path)
    assert path.read_bytes() == first
    assert [file.name for file in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["plan.pdf", "plan", "plan.jpg"])
def test_other_endings_are_refused(tmp_path: Path, name: str):
    with pytest.raises(EtudeError, match=r"\.png or \.svg"):
        save_figure(timeline_figure(PLATEAU, STEPS), tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_plan_lines_are_the_timeline():
    timeline = preset("default", SHAPE).resolved(RUN)
    for panel in panels_of(timeline, STEPS, None):
        assert panel.actual is None
        for x, y in zip(panel.plan.x[1:-1:97], panel.plan.y[1:-1:97], strict=True):
            value = getattr(timeline.at(x / 100), panel.quantity)
            assert (np.isnan(y) and value is None) or y == pytest.approx(value, rel=1e-6)


def test_events_leave_the_plan_and_change_the_dark_line():
    lr, *_ = panels_of(REACTED, STEPS, None)
    assert np.nanmax(np.interp([40, 60], lr.plan.x, lr.plan.y)) == pytest.approx(1.5e-4)
    assert lr.actual is not None
    np.testing.assert_allclose(np.interp([20, 40], lr.actual.x, lr.actual.y), [1.5e-4, 1.5e-5])
    assert lr.actual.x.max() == pytest.approx(100 * REACTED.end)


def test_every_event_is_marked_where_it_happened():
    figure = timeline_figure(REACTED, STEPS)
    dashed = [line.get_xdata()[0] for line in figure.axes[0].lines if line.is_dashed()]
    assert dashed == pytest.approx([30, 50])
    words = words_of(figure)
    assert {"plateau: lr × 0.1", "plateau: hold ends"} <= set(words)
    assert any(word.startswith("ended early") for word in words)


def test_what_happened_lies_over_the_plan():
    history = [*rows_of(REACTED), {"step": 499, "lr": None, "image_size": ""}]
    panels = {panel.quantity: panel for panel in panels_of(REACTED, STEPS, history)}
    lr = panels["lr"].actual
    assert lr is not None
    assert lr.x.tolist() == [100 * step_progress(row["step"], STEPS) for row in history[:-1]]
    assert lr.y.tolist() == [row["lr"] for row in history[:-1]]
    assert panels["augment"].actual is None
    words = words_of(timeline_figure(REACTED, STEPS, happened=history))
    assert {"plan", "as it happened"} <= set(words)
    assert "with plateaus" not in words


@pytest.mark.parametrize(
    "row", [{"lr": 0.1}, {"step": "x", "lr": 0.1}, {"step": 1, "lr": "fast"}, {"step": 1, "lr": []}]
)
def test_a_row_that_cannot_be_read_is_refused(row: dict[str, object]):
    with pytest.raises(EtudeError, match="history's row"):
        timeline_figure(PLATEAU, STEPS, happened=[row])


def test_unresolved_lengths_are_resolved_or_refused_in_a_sentence(tmp_path: Path):
    plan = Timeline((Phase("warmup", "2ep", lr=Linear(0, 1)), Phase("rest", 1.0, lr=1)))
    assert "warmup" in words_of(timeline_figure(plan, STEPS, epoch_steps=50))
    with pytest.raises(EtudeError, match="500 steps"):
        save_figure(timeline_figure(plan, STEPS), tmp_path / "plan.png")
    assert list(tmp_path.iterdir()) == []


def test_nothing_scheduled_is_refused():
    with pytest.raises(EtudeError, match="schedules no quantity"):
        timeline_figure(Timeline((Phase("all", 1.0),)), STEPS)


def test_rates_far_below_the_peak_get_a_logarithmic_axis():
    def is_log(timeline: Timeline) -> bool:
        return panels_of(timeline, STEPS, None)[0].log

    twice = PLATEAU.with_event(Event(0.3, "scale", "hold", 0.1)).with_event(Event(0.4, "scale", "hold", 0.1))
    assert is_log(twice)
    assert not is_log(PLATEAU)
    assert not is_log(preset("one-cycle", SHAPE))
    assert not is_log(Timeline((Phase("all", 1.0, lr=Cosine(1, 0)),)))
    assert not is_log(Timeline((Phase("all", 1.0, lr=0.0),)))


def test_ticks_of_whole_numbers_are_values_of_the_run():
    sizes = panels_of(preset("default", SHAPE), STEPS, None)[1]
    assert sizes.quantity == "image_size"
    assert linear_ticks(sizes, 128, 224) == [128, 160, 192, 224]
    many = Timeline((Phase("all", 1.0, image_size=Linear(32, 320)),))
    ticks = linear_ticks(panels_of(many, STEPS, None)[0], 32, 320)
    assert ticks[0] == 32
    assert ticks[-1] == 320
    assert len(ticks) == 3
    assert ticks[1] % 32 == 0


def test_the_middle_tick_is_left_out_where_no_short_number_lies_between():
    narrow = Timeline((Phase("all", 1.0, momentum=Linear(0.9991, 0.9994)),))
    assert linear_ticks(panels_of(narrow, STEPS, None)[0], 0.9991, 0.9994) == [0.9991, 0.9994]
    wide = Timeline((Phase("all", 1.0, momentum=Linear(0.85, 0.95)),))
    assert linear_ticks(panels_of(wide, STEPS, None)[0], 0.85, 0.95) == [0.85, 0.9, 0.95]


def test_logarithmic_ticks_are_at_most_four_powers_of_ten():
    assert log_ticks(3e-9, 2e-1) == pytest.approx([1e-7, 1e-5, 1e-3, 1e-1])
    assert log_ticks(2e-4, 9e-4) == [2e-4, 9e-4]


def test_unscheduled_phases_leave_a_gap():
    timeline = Timeline((Phase("one", 0.4, mixup=0.2), Phase("two", 0.2), Phase("three", 0.4, mixup=Constant(0.4))))
    (panel,) = panels_of(timeline, STEPS, None)
    inside = (panel.plan.x >= 40) & (panel.plan.x < 59.99)
    assert np.isnan(panel.plan.y[inside]).all()
    assert np.isfinite(panel.plan.y[~inside]).sum() > 100


def test_pyplot_and_torch_are_not_imported():
    code = (
        "import sys, etude.journal.figures.timeline, etude.journal.figures.lr_range\n"
        "print(sorted({'matplotlib.pyplot', 'torch', 'tkinter'} & set(sys.modules)))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    told = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "[]"
