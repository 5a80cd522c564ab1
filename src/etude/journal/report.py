"""``report.html``: one page that tells a run, made from the run's folder alone; no network, readable on paper."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from etude.core.errors import EtudeError
from etude.core.predictions import Predictions
from etude.journal.html import data_uri, render_page, write_page
from etude.journal.record_state import state_of
from etude.journal.report_classes import (
    balance_figure,
    calibration_figure,
    confident_errors,
    matrix_figure,
    recall_bar,
)
from etude.journal.report_curves import Schedule, curve_figures, schedule_of
from etude.journal.report_folder import RunFolder
from etude.journal.report_gallery import Album
from etude.journal.report_health import Health, health_of
from etude.journal.report_scores import Judged, class_rows, confused_pairs, scores_of
from etude.journal.report_steps import last_words, steps_of
from etude.journal.report_tables import (
    architecture_of,
    data_facts,
    environment_facts,
    planned_against_taken,
    recipe_to_reproduce,
    rounds_table,
    settings_of,
)

NAME = "report.html"
_MOST_ERRORS = 24
_MOST_CLASSES = 500  # in the table
_MOST_PAIRS = 12
_STRENGTHS = (("0", "none"), ("0.5", "half"), ("1", "full"))


def write_report(folder: Path) -> Path:
    """Write ``report.html`` into a run's folder and return its path.

    The page holds everything it shows: it opens from a disk without a network, and is smaller than 3 MB. It is made of
    what the folder holds: ``run.json``, and where they are there ``history.csv``, ``valid.npz``, ``test.npz``,
    ``gallery.npz`` with ``gallery.json``, ``health.json``, ``timeline.png`` and the models. A file that cannot be read
    is named on the page. A run that is still at work, or was stopped, has a report too.

    Raises:
        EtudeError: the folder holds no run, its record is damaged, or the page cannot be written.
    """
    return write_page(folder / NAME, render_report(RunFolder.read(folder)))


def render_report(run: RunFolder) -> str:
    """Return the page of ``run``."""
    problems = list(run.problems)
    judged = None if run.valid is None else Judged.of(run.valid)
    schedule = _schedule(run, problems)
    png = data_uri(run.timeline_png) if schedule is None and run.timeline_png is not None else ""
    values = {
        **_head(run, judged),
        "steps": steps_of(run.record),
        "rounds": rounds_table(run.record),
        "schedule": schedule,
        "timeline_png": png,
        "curves": curve_figures(run.models),
        **_classes(run, judged),
        **_pictures(run, judged, problems),
        "data": data_facts(run.record),
        "architecture": architecture_of(run),
        "settings": settings_of(run.record),
        "environment": environment_facts(run.record),
        "reproduce": recipe_to_reproduce(run.record),
        "problems": problems,
    }
    return render_page("report.html.j2", values)


def _head(run: RunFolder, judged: Judged | None) -> dict[str, Any]:
    record = run.record
    result = record.get("result") or {}
    kept = list(dict.fromkeys(map(str, result.get("kept") or [])))
    backbones = list(dict.fromkeys(str(model.card["backbone"]) for model in run.models if "backbone" in model.card))
    return {
        "name": run.path.resolve().name,
        "record": record,
        "state": state_of(record),
        "said": last_words(record),
        "kept": " and ".join(kept),
        "backbone": " and ".join(backbones),
        "planned": planned_against_taken(record),
        "scores": [] if judged is None else scores_of(judged),
        "images": 0 if judged is None else len(judged.labels),
    }


def _schedule(run: RunFolder, problems: list[str]) -> Schedule | None:
    try:
        return schedule_of(run)
    except EtudeError as error:
        problems.append(str(error))
        return None


def _health(run: RunFolder, album: Album | None, problems: list[str]) -> Health | None:
    try:
        return None if run.health is None else health_of(run.health, album)
    except EtudeError as error:
        problems.append(str(error))
        return None


def _classes(run: RunFolder, judged: Judged | None) -> dict[str, Any]:
    balance = balance_figure(run.record, judged, run.test)
    if judged is None:
        return {"matrix": None, "pairs": [], "rows": [], "more_rows": 0, "calibration": None, "balance": balance}
    rows = class_rows(judged)
    named = [(judged.classes[label], judged.classes[guess], often) for label, guess, often in confused_pairs(judged)]
    return {
        "matrix": matrix_figure(judged),
        "pairs": named[:_MOST_PAIRS],
        "rows": [(row, recall_bar(row)) for row in rows[:_MOST_CLASSES]],
        "more_rows": max(0, len(rows) - _MOST_CLASSES),
        "calibration": calibration_figure(judged),
        "balance": balance,
    }


def _pictures(run: RunFolder, judged: Judged | None, problems: list[str]) -> dict[str, Any]:
    known: list[Predictions] = [one for one in (run.valid, run.test) if one is not None]
    classes: Mapping[str, int] = (run.record.get("data") or {}).get("classes") or {}
    album = None if run.gallery is None else Album(run.gallery, known, list(classes))
    errors = [] if album is None else [picture for group in album.shown("confident_errors") for picture in group]
    if not errors and judged is not None:
        errors = confident_errors(judged, _MOST_ERRORS)
    shown = {
        "errors": errors[:_MOST_ERRORS],
        "pair_pictures": [] if album is None else album.shown("confused_pairs"),
        "health": _health(run, album, problems),
        "samples": [] if album is None else [picture for group in album.shown("samples") for picture in group],
        "augmented": []
        if album is None
        else [(name, groups) for key, name in _STRENGTHS if (groups := album.shown(f"augmentation {key}"))],
    }
    return {**shown, "left_out": 0 if album is None else album.left_out}
