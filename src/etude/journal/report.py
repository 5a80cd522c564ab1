"""``report.html``: one page that tells a run, made from the run's folder alone; no network, readable on paper."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from etude.core.errors import EtudeError
from etude.core.predictions import Predictions
from etude.journal.html import data_uri, render_page, write_page
from etude.journal.quantities import spoken
from etude.journal.record_read import REPORT_NAME
from etude.journal.report_classes import (
    balance_figure,
    calibration_figure,
    confident_errors,
    matrix_figure,
    recall_bar,
)
from etude.journal.report_curves import curve_figures, schedule_of
from etude.journal.report_folder import RunFolder
from etude.journal.report_gallery import Album, Gallery
from etude.journal.report_health import health_of
from etude.journal.report_parts import lift_of, parts_of
from etude.journal.report_scores import Judged, class_rows, confused_pairs, scores_of
from etude.journal.report_steps import builds_up, last_words, steps_of
from etude.journal.report_tables import (
    architecture_of,
    data_facts,
    environment_facts,
    planned_against_taken,
    recipe_to_reproduce,
    rounds_table,
    settings_of,
)

_MOST_ERRORS = 24
_MOST_CLASSES = 500  # in the table
_MOST_PAIRS = 12
_STRENGTHS = (("0", "none"), ("0.5", "half"), ("1", "full"))
_DAMAGE = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)  # of files that no run has written so

T = TypeVar("T")


def write_report(folder: Path) -> Path:
    """Write ``report.html`` into a run's folder and return its path.

    The page holds everything it shows: it opens from a disk without a network, and is smaller than 3 MB. It is made of
    what the folder holds: ``run.json``, and where they are there ``history.csv``, ``valid.npz``, ``test.npz``,
    ``gallery.npz`` with ``gallery.json``, ``health.json``, ``ablation.json``, ``timeline.png``, the models, and the
    records of the runs below it. A section without anything to show is left out; what is damaged is named on the page.
    A run that is still at work, or was stopped or killed, has a report too.

    Raises:
        EtudeError: the folder holds no run, its record is damaged, or the page cannot be written.
    """
    return write_page(folder / REPORT_NAME, render_report(RunFolder.read(folder)))


def render_report(run: RunFolder) -> str:
    """Return the page of ``run``."""
    problems, record = list(run.problems), run.record

    def whole(what: str, make: Callable[[], T], without: T) -> T:
        try:
            return make()
        except EtudeError as error:
            problems.append(str(error))
        except _DAMAGE as error:
            problems.append(f"{what}: left out, since a file is damaged ({type(error).__name__}: {error})")
        return without

    judged = whole("scores", lambda: None if run.valid is None else Judged.of(run.valid), None)
    album = whole("pictures", lambda: None if run.gallery is None else _album(run, run.gallery), None)
    schedule = whole("timeline", lambda: schedule_of(run), None)
    shown_png = run.timeline_png if schedule is None else None
    values = {
        "name": run.path.resolve().name,
        **_told(record),
        **whole("headline", lambda: _headline(run, judged), _NO_HEADLINE),
        "steps": whole("steps", lambda: steps_of(record), []),
        "parts": whole("parts", lambda: parts_of(run), []),
        "rounds": whole("rounds", lambda: rounds_table(record), None),
        "lift": whole("tricks", lambda: lift_of(run), None),
        "schedule": schedule,
        "timeline_png": "" if shown_png is None else data_uri(shown_png),
        "curves": whole("curves", lambda: curve_figures(run.models), []),
        "balance": whole("balance of the classes", lambda: balance_figure(record, judged, run.test), None),
        **whole("classes", lambda: _classes(judged), _NO_CLASSES),
        "health": whole("health", lambda: None if run.health is None else health_of(run.health, album), None),
        **whole("pictures", lambda: _pictures(album, judged), _NO_PICTURES),
        "data": whole("data", lambda: data_facts(record), []),
        "architecture": whole("network", lambda: architecture_of(run), None),
        "settings": whole("settings", lambda: settings_of(record), {}),
        "environment": whole("environment", lambda: environment_facts(record), []),
        "reproduce": whole("command", lambda: recipe_to_reproduce(record), ""),
        "left_out": 0 if album is None else album.left_out,
        "problems": problems,
    }
    return render_page("report.html.j2", values)


def _told(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the record says in lists of texts; entries that are damaged say nothing."""

    def entries(key: str, *names: str) -> list[tuple[Any, ...]]:
        tables = [one for one in record[key] if isinstance(one, Mapping) and set(names) <= one.keys()]
        return [tuple(one[name] for name in names) for one in tables]

    return {
        "record": record,
        "state": record["state"],
        "said": last_words(record),
        "builds_up": builds_up(record),
        "warnings": [text for (text,) in entries("warnings", "text")],
        "notes": entries("notes", "text", "at"),
        "files": entries("artefacts", "name", "bytes", "blake2b"),
        "version": record["environment"].get("etude") or "",
    }


def _headline(run: RunFolder, judged: Judged | None) -> dict[str, Any]:
    result = run.record.get("result") or {}
    kept = list(dict.fromkeys(spoken(str(one)) for one in result.get("kept") or []))
    backbones = list(dict.fromkeys(str(model.card["backbone"]) for model in run.models if "backbone" in model.card))
    return {
        "kept": " and ".join(kept),
        "backbone": " and ".join(backbones),
        "planned": planned_against_taken(run.record),
        "scores": [] if judged is None else scores_of(judged),
        "images": 0 if judged is None else len(judged.labels),
    }


def _classes(judged: Judged | None) -> dict[str, Any]:
    if judged is None:
        return _NO_CLASSES
    rows = class_rows(judged)
    named = [(judged.classes[label], judged.classes[guess], often) for label, guess, often in confused_pairs(judged)]
    return {
        "matrix": matrix_figure(judged),
        "pairs": named[:_MOST_PAIRS],
        "rows": [(row, recall_bar(row)) for row in rows[:_MOST_CLASSES]],
        "more_rows": max(0, len(rows) - _MOST_CLASSES),
        "calibration": calibration_figure(judged),
    }


def _album(run: RunFolder, gallery: Gallery) -> Album:
    known: list[Predictions] = [one for one in (run.valid, run.test) if one is not None]
    classes = (run.record.get("data") or {}).get("classes") or {}
    return Album(gallery, known, list(classes))


def _pictures(album: Album | None, judged: Judged | None) -> dict[str, Any]:
    errors = [] if album is None else [picture for group in album.shown("confident_errors") for picture in group]
    if not errors and judged is not None:
        errors = confident_errors(judged, _MOST_ERRORS)
    if album is None:
        return {**_NO_PICTURES, "errors": errors}
    return {
        "errors": errors[:_MOST_ERRORS],
        "pair_pictures": album.shown("confused_pairs"),
        "samples": [picture for group in album.shown("samples") for picture in group],
        "augmented": [(name, groups) for key, name in _STRENGTHS if (groups := album.shown(f"augmentation {key}"))],
    }


_NO_HEADLINE: dict[str, Any] = {"kept": "", "backbone": "", "planned": "", "scores": [], "images": 0}
_NO_CLASSES: dict[str, Any] = {"matrix": None, "pairs": [], "rows": [], "more_rows": 0, "calibration": None}
_NO_PICTURES: dict[str, Any] = {"errors": [], "pair_pictures": [], "samples": [], "augmented": []}
