"""One static page over all runs: searched and sorted in the browser, from a disk, without a network."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from etude.core.context import Warn
from etude.core.errors import EtudeError
from etude.core.text import percent
from etude.journal.figures.lines import Series, line_chart
from etude.journal.index import RunSummary, list_runs
from etude.journal.report.charts import Figure
from etude.journal.report.html import render_page, write_page
from etude.journal.report.scores import wilson
from etude.journal.runs import REPORT_NAME

_MOST_CHARTS = 3
_FEWEST_POINTS = 3  # scored runs on the same images, below which there is no progress to draw
_MOST_POINTS = 400


def render_site(runs: Path, out: Path, warn: Warn | None = None) -> Path:
    page = out / "index.html" if out.is_dir() or not out.suffix else out
    found = list_runs(runs, warn)
    values: dict[str, Any] = {
        "runs": runs.resolve().name,
        "rows": _rows(found, runs, page.parent),
        "charts": _charts(found),
        "data": _data_sets(found),
        "scored": sum(run.accuracy is not None for run in found),
    }
    return write_page(page, render_page("site.html.j2", values, script="site.js"))


def _rows(found: Sequence[RunSummary], runs: Path, start: Path) -> list[dict[str, Any]]:
    best: dict[str, float] = {}
    for run in found:
        if run.accuracy is not None:
            best[run.fingerprint] = max(run.accuracy, best.get(run.fingerprint, 0.0))
    base = _relative(runs, start)
    rows: list[dict[str, Any]] = []
    for run in found:
        target = f"{run.path}/{REPORT_NAME}" if (runs / run.path / REPORT_NAME).is_file() else f"{run.path}/"
        low, high = None, None
        if run.accuracy is not None and run.validation_images:
            low, high = wilson(run.accuracy * run.validation_images, run.validation_images)
        is_best = run.accuracy is not None and bool(run.fingerprint) and run.accuracy == best[run.fingerprint]
        words = " ".join([run.id, run.kind, run.command, run.fingerprint, *run.notes])
        link = quote(os.fsencode(base + target))
        rows.append({"run": run, "link": link, "low": low, "high": high, "is_best": is_best, "words": words})
    return rows


def _relative(runs: Path, start: Path) -> str:
    """Return what leads from the page's folder to the runs: nothing, or a path that ends in a slash."""
    try:
        way = Path(os.path.relpath(runs.resolve(), start.resolve())).as_posix()
    except ValueError:
        raise EtudeError(
            f"a page in {start} cannot link to runs on another drive ({runs}): write it to the drive of the runs"
        ) from None
    return "" if way == "." else f"{way}/"


def _data_sets(found: Sequence[RunSummary]) -> list[tuple[str, str, int]]:
    counts = Counter(run.fingerprint for run in found if run.fingerprint)
    names = {run.fingerprint: run.described for run in reversed(found)}
    return [(key, names[key], counts[key]) for key in sorted(counts, key=lambda key: (-counts[key], names[key]))]


def _charts(found: Sequence[RunSummary]) -> list[Figure]:
    """Return how the accuracy went from run to run on each of the most used sets of images."""
    figures: list[Figure] = []
    for key, name, _ in _data_sets(found):
        scored = [run.accuracy for run in reversed(found) if run.fingerprint == key and run.accuracy is not None]
        if len(scored) < _FEWEST_POINTS:
            continue
        values = np.array(scored[-_MOST_POINTS:])
        best = np.maximum.accumulate(values)
        number = np.arange(1, len(values) + 1)
        text = f"accuracy of {len(values):,} runs in the order of their start; the best reached {percent(best[-1], 2)}"
        lines = [Series("best up to then", number, best, "plan", stepped=True), Series("run", number, values)]
        drawn = line_chart(lines, f"{name}: {text}", x_label="run", y_format=lambda value: f"{100 * value:.4g}%")
        figures.append(Figure(name, drawn, text, (("plan", "best up to then"), ("first", "run"))))
        if len(figures) == _MOST_CHARTS:
            break
    return figures
