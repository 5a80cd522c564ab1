"""Charts: lines break where values are missing, everything is described and escaped; colours can be read."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from markupsafe import Markup

from etude.core.errors import EtudeError
from etude.journal.figures.lines import Series, line_chart, panel_chart
from etude.journal.figures.timeline import panels_of
from etude.journal.report.charts import (
    LEVELS,
    Bin,
    chart,
    level_of,
    matrix_chart,
    share_bars,
)
from etude.journal.report.html import asset, data_uri
from etude.timeline import Linear, Phase, RunSize, Timeline

HOSTILE = "<script>\"&'</script>"
TAGS = {"svg", "g", "path", "line", "rect", "circle", "text", "title", "use", "defs"}


def parsed(svg: Markup) -> ElementTree.Element:
    return ElementTree.fromstring(str(svg))


@cache
def charts() -> dict[str, Markup]:
    steps = np.arange(50.0)
    matrix = np.array([[5, 1], [0, 9]])
    shares = np.array([0.4, 0.6])
    line = Series(HOSTILE, steps, np.sin(steps))
    return {
        "line": line_chart([line], HOSTILE, x_label=HOSTILE),
        "log": line_chart([Series("a", steps, 10.0 ** -(steps / 9))], HOSTILE, x_label="x", log=True),
        "few": line_chart([Series(HOSTILE, [1, 2, 3], [4, np.nan, 6], stepped=True)], HOSTILE, x_label="x"),
        "one point": line_chart([Series("a", [3], [0.5])], HOSTILE, x_label="x"),
        "constant": line_chart([Series("a", [1, 2], [0, 0])], HOSTILE, x_label="x"),
        "matrix": matrix_chart(matrix, [HOSTILE, "b"], HOSTILE),
        "bars": share_bars([HOSTILE, "b"], [(HOSTILE, "first", shares), ("other", "second", shares)], HOSTILE),
        "cell": chart("bar", 0.4, HOSTILE),
        "interval": chart("interval", 1.0, 0.0, 1.0, HOSTILE),
        "reliability": chart("reliability", [Bin(0.9, 1.0, 10, 0.97, 0.9, 0.6, 0.98)], HOSTILE),
    }


@pytest.mark.each("name", list(charts()))
def test_every_chart_is_well_formed_told_and_escaped(name: str):
    root = parsed(charts()[name])
    assert root.tag == "svg"
    assert root.get("role") == "img"
    assert root.get("aria-label") == HOSTILE
    assert {part.tag for part in root.iter()} <= {
        "svg",
        "g",
        "path",
        "line",
        "rect",
        "circle",
        "text",
        "title",
        "use",
        "defs",
    }
    assert not re.search(r"nan|inf", str(charts()[name]).replace(HOSTILE, ""))
    assert "style=" not in str(charts()[name])  # the page forbids it


@pytest.mark.each("name", list(charts()))
def test_nothing_leaves_the_chart(name: str):
    root = parsed(charts()[name])
    width, height = (float(root.get(side) or 0) for side in ("width", "height"))
    for part in root.iter():
        for key, limit in (("x", width), ("cx", width), ("x1", width), ("y", height), ("cy", height), ("y2", height)):
            if part.get(key) is not None:
                assert -0.01 <= float(part.get(key) or 0) <= limit + 0.01, (part.tag, part.attrib)


def test_a_line_breaks_where_values_are_missing():
    svg = line_chart([Series("a", range(6), [1, 2, np.nan, 3, 4, 5], "plan")], "t", x_label="x")
    path = next(part for part in parsed(svg).iter() if part.get("stroke") == "var(--plan)")
    assert (path.get("d") or "").count("M") == 2


def test_each_point_tells_its_values():
    svg = line_chart([Series(HOSTILE, [1, 2, 3], [4, np.nan, 6])], "t", x_label="x")
    assert [part.text for part in parsed(svg).iter("title")] == [f"{HOSTILE}: 4 at 1", f"{HOSTILE}: 6 at 3"]


def test_steps_hold_until_the_next_value():
    svg = line_chart([Series("a", [0, 1, 2], [5, 7, 9], "plan", stepped=True)], "t", x_label="x")
    path = next(part for part in parsed(svg).iter() if part.get("stroke") == "var(--plan)")
    places = [tuple(map(float, place.split())) for place in re.findall(r"[ML] ([\d.]+ [\d.]+)", path.get("d") or "")]
    assert len(places) == 5
    assert all(x == pytest.approx(u) or y == pytest.approx(v) for (x, y), (u, v) in pairwise(places))


@pytest.mark.parametrize("name", ["line", "log", "few", "one point", "constant"])
def test_colours_of_lines_follow_the_page(name: str):
    assert not re.search(r"#[0-9a-f]{6}", str(charts()[name]))


def test_a_schedule_shows_its_phases_as_text():
    phases = (Phase(HOSTILE, 0.5, lr=Linear(0.0, 1.0)), Phase("b", 0.5, lr=1.0))
    timeline = Timeline(phases).resolved(RunSize(100, 10.0))
    root = parsed(panel_chart(panels_of(timeline, 100, None)[0], timeline))
    assert HOSTILE in (root.get("aria-label") or "")
    assert "b" in [part.text for part in root.iter("text")]


def test_levels_rise_and_end():
    found = [level_of(share) for share in np.linspace(1e-6, 1.0, 200)]
    assert found == sorted(found)
    assert (found[0], found[-1]) == (1, LEVELS)


def test_other_files_are_no_pictures():
    with pytest.raises(EtudeError, match="PNG, JPEG and WebP"):
        data_uri(b"<svg onload=alert(1)>")


# --- colours ---------------------------------------------------------------------------------------------------------


def schemes() -> dict[str, dict[str, str]]:
    """The variables of both colour schemes in charts.css."""
    blocks = re.findall(r":root \{(.*?)\}", asset("charts.css"), flags=re.S)
    light, dark = (dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", block)) for block in blocks)
    assert set(light) == set(dark)
    return {"light": light, "dark": dark}


def luminance(color: np.ndarray) -> float:
    linear = np.where(color <= 0.04045, color / 12.92, ((color + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def rgb(color: str) -> np.ndarray:
    return np.array([int(color[k : k + 2], 16) / 255 for k in (1, 3, 5)])


def contrast(one: np.ndarray, other: np.ndarray) -> float:
    """The contrast ratio of WCAG 2.2."""
    low, high = sorted([luminance(one), luminance(other)])
    return (high + 0.05) / (low + 0.05)


def opacities() -> dict[int, float]:
    """The opacity of each level of the confusion matrix."""
    found = {
        int(k): float(value) for k, value in re.findall(r'"-(\d)"\] \{ fill-opacity: ([\d.]+)', asset("charts.css"))
    }
    return {level: found.get(level, 1.0) for level in range(1, LEVELS + 1)}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_can_be_read(scheme: str):
    colors = {name: rgb(value) for name, value in schemes()[scheme].items()}
    for ground in ("page", "card", "note", "band-0", "band-1", "cell"):
        for text in ("ink", "quiet", "accent", "good", "bad", "warn"):
            assert contrast(colors[text], colors[ground]) >= 4.5, (text, ground)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_lines_and_bars_can_be_seen(scheme: str):
    colors = {name: rgb(value) for name, value in schemes()[scheme].items()}
    for ground in ("card", "band-0", "band-1"):
        for line in ("first", "second", "third", "plan"):
            assert contrast(colors[line], colors[ground]) >= 3.0, (line, ground)
    assert contrast(colors["first"], colors["track"]) >= 3.0


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("kind", ["right", "wrong"])
def test_numbers_in_cells_can_be_read_at_every_level(scheme: str, kind: str):
    colors = {name: rgb(value) for name, value in schemes()[scheme].items()}
    for level, opacity in opacities().items():
        ground = opacity * colors[kind] + (1 - opacity) * colors["card"]
        text = colors["over"] if level > LEVELS // 2 else colors["ink"]
        assert contrast(text, ground) >= 4.5, level


def test_page_says_each_level_of_a_cell():
    assert sorted(opacities().values()) == list(opacities().values())
    assert len(set(opacities().values())) == LEVELS
