"""``report.html``: one page about a run, made from the run's folder alone; no network, readable on paper."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from etude.core.errors import EtudeError
from etude.core.metrics import metric_named
from etude.core.text import duration, plain_name, points, signed
from etude.journal.index import DAMAGED, RunSummary
from etude.journal.report import scores, tables
from etude.journal.report.advice import advice_of, failures_of
from etude.journal.report.curves import curve_figures, path_figure, schedule_of
from etude.journal.report.folder import RunFolder
from etude.journal.report.gallery import Album, health_of
from etude.journal.report.html import data_uri, render_page, write_page
from etude.journal.runs import REPORT_NAME

_ROUND = re.compile(r"(round \d+|online)( \(fold \d+/\d+\))?")
_STRENGTHS = {"0": "none", "0.5": "half", "1": "full"}
_DAMAGE = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)  # of files that no run has written so

_EMPTY: dict[str, Any] = {  # what the page shows of sections that could not be made
    **dict.fromkeys(("kept", "backbone", "planned"), ""),
    **dict.fromkeys(("images", "more_rows"), 0),
    **dict.fromkeys(("matrix", "calibration", "tested"), None),
    **dict.fromkeys(("scores", "pairs", "rows", "errors", "pair_pictures", "samples", "augmented"), ()),
}

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Part:
    name: str
    kind: str  # of run, or fold, or round
    state: str
    seconds: float | None
    accuracy: float | None
    log_loss: float | None
    note: str  # where a run stopped, what a fold or a round ended with
    link: str = ""  # relative address of its own report


def parts_of(run: RunFolder) -> list[Part]:
    """Return the runs below this one in the order of their start, then its folds, then its rounds."""
    return [*(_of_run(run, child) for child in run.children), *_folds(run.record), *_rounds(run.record)]


def lift_of(run: RunFolder) -> dict[str, Any] | None:
    """Return the tricks of ``ablation.json`` as a table; None for a run that is not a finished ablation."""
    if run.ablation is None:
        return None
    found, shares = run.ablation, metric_named(str(run.ablation["metric"])).larger_is_better
    written = points if shares else signed
    rows = [
        (
            *(str(one["trick"]), str(one["mode"]), written(float(one["gain"]))),
            "–" if one["low"] is None else f"{written(float(one['low']))} to {written(float(one['high']))}",
            f"{one['p_corrected']:.3f}" if one["p_corrected"] >= 0.001 else "< 0.001",
            *(str(one["verdict"]), f"{'−' if one['seconds'] < 0 else '+'}{duration(abs(float(one['seconds'])))}"),
        )
        for one in found["tricks"]
    ]
    unit = f"points of {plain_name(found['metric'])}" if shares else f"{plain_name(found['metric'])} saved"
    chart = "" if run.lift_png is None else data_uri(run.lift_png)
    return {"unit": unit, "level": f"{found['level']:.0%}", "rows": rows, "chart": chart}


def _of_run(run: RunFolder, child: RunSummary) -> Part:
    there = (run.path / child.path / REPORT_NAME).is_file()
    link = quote(os.fsencode(f"{child.path}/{REPORT_NAME}")) if there else ""
    note = ": ".join(filter(None, (child.where, child.error)))
    kind = "" if child.state == DAMAGED else child.kind
    return Part(child.path, kind, child.state, child.seconds, child.accuracy, child.log_loss, note, link)


def _folds(record: Mapping[str, Any]) -> Iterator[Part]:
    stages: dict[int, list[Mapping[str, Any]]] = {}
    for stage in record["stages"]:
        if found := tables.FOLD.search(stage["name"]):
            stages.setdefault(int(found[1]), []).append(stage)
    kept = [plain_name(str(name)) for name in (record.get("result") or {}).get("kept") or []]
    for number, group in sorted(stages.items()):
        own = kept[number - 1] if number <= len(kept) else ""
        scored = [stage for stage in group if stage["scores"]]
        named = [stage for stage in scored if own and tables.FOLD.sub("", stage["name"]) == own]
        best = (named or (scored or group)[-1:])[0]
        yield _of_stages(record, group, f"fold {number}", "fold", best["scores"], f"kept: {own}" if own else "")


def _rounds(record: Mapping[str, Any]) -> Iterator[Part]:
    verdicts = {one["name"]: "kept" if one["kept"] else "discarded" for one in record.get("rounds") or []}
    for stage in record["stages"]:
        if _ROUND.fullmatch(name := stage["name"]):
            yield _of_stages(record, [stage], name, "round", stage["scores"], verdicts.get(name, ""))


def _of_stages(
    record: Mapping[str, Any], stages: tables.Stages, name: str, kind: str, scores: Mapping[str, Any], note: str
) -> Part:
    seconds, state = sum(float(stage["seconds"]) for stage in stages), tables.state_of_all(stages, record["state"])
    return Part(name, kind, state, seconds, scores.get("accuracy"), scores.get("log_loss"), note)


def write_report(folder: Path, refresh: float = 0.0) -> Path:
    """Write ``report.html`` into a run's folder from the folder alone, in any state of the run.

    A browser loads it again after ``refresh`` seconds, if any.
    """
    return write_page(folder / REPORT_NAME, render_report(RunFolder.read(folder), refresh))


def render_report(run: RunFolder, refresh: float = 0.0) -> str:
    problems, record = list(run.problems), run.record

    def whole(what: str, make: Callable[[], T], without: T) -> T:
        try:
            return make()
        except EtudeError as error:
            problems.append(str(error))
        except _DAMAGE as error:
            problems.append(f"{what}: left out, since a file is damaged ({type(error).__name__}: {error})")
        return without

    known = [one for one in (run.valid, run.test) if one is not None]
    classes = list((record.get("data") or {}).get("classes") or {})
    valid = whole("scores", lambda: None if run.valid is None else scores.Evaluated.of(run.valid), None)
    album = whole("pictures", lambda: None if run.gallery is None else Album(run.gallery, known, classes), None)
    schedule = whole("timeline", lambda: schedule_of(run), None)
    shown_png = run.timeline_png if schedule is None else None
    values = _EMPTY | {
        **{"kind": "validation", "refresh": refresh},
        "name": run.path.resolve().name,
        **_entries(record),
        **whole("headline", lambda: _headline(run, valid), {}),
        "failures": whole("failures", lambda: [] if valid is None else failures_of(valid), []),
        "advice": whole("advice", lambda: advice_of(run), []),
        "steps": whole("steps", lambda: tables.steps_of(record), []),
        "path": whole("accuracy over time", lambda: path_figure(record), None),
        "budget": whole("budget", lambda: tables.budget_of(record), ""),
        "parts": whole("parts", lambda: parts_of(run), []),
        "rounds": whole("rounds", lambda: tables.rounds_table(record), None),
        "lift": whole("tricks", lambda: lift_of(run), None),
        "schedule": schedule,
        "timeline_png": "" if shown_png is None else data_uri(shown_png),
        "curves": whole("curves", lambda: curve_figures(run.models), []),
        "balance": whole("balance of the classes", lambda: scores.balance_figure(record, valid, run.test), None),
        **whole("classes", lambda: {} if valid is None else scores.of_classes(valid), {}),
        "health": whole("health", lambda: None if run.health is None else health_of(run.health, album), None),
        **whole("pictures", lambda: _pictures(album, valid), {}),
        "data": whole("data", lambda: tables.data_facts(record), []),
        "architecture": whole("network", lambda: tables.architecture_of(run), None),
        "settings": whole("settings", lambda: tables.settings_of(record), {}),
        "environment": whole("environment", lambda: tables.environment_facts(record), []),
        "reproduce": whole("command", lambda: tables.recipe_to_reproduce(record), ""),
        "left_out": 0 if album is None else album.left_out,
        "problems": problems,
    }
    return render_page("report.html.j2", values)


def _entries(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the record's lists of texts, without damaged entries."""

    def entries(key: str, *names: str) -> list[tuple[Any, ...]]:
        held = [one for one in record[key] if isinstance(one, Mapping) and set(names) <= one.keys()]
        return [tuple(one[name] for name in names) for one in held]

    lists = {"notes": entries("notes", "text", "at"), "files": entries("artefacts", "name", "bytes", "blake2b")}
    stated = {"record": record, "state": record["state"], "stopped": tables.last_words(record)}
    warnings, version = [text for (text,) in entries("warnings", "text")], record["environment"].get("etude") or ""
    return {**lists, **stated, "builds_up": tables.builds_up(record), "warnings": warnings, "version": version}


def _headline(run: RunFolder, valid: scores.Evaluated | None) -> dict[str, Any]:
    kept = dict.fromkeys(plain_name(str(one)) for one in (run.record.get("result") or {}).get("kept") or [])
    backbones = dict.fromkeys(str(model.card["backbone"]) for model in run.models if "backbone" in model.card)
    scored = {} if valid is None else {"scores": scores.scores_of(valid), "images": len(valid.labels)}
    if tested := (run.record.get("result") or {}).get("test"):
        value, low, high = (float(tested[name]) for name in ("accuracy", "low", "high"))
        scored["tested"] = scores.Score("accuracy", value, low, high, "Wilson"), int(tested["images"])
    planned = sum(((run.record.get("plan") or {}).get("expected_seconds") or {}).values())
    unbroken = duration(planned).replace(" ", "\N{NO-BREAK SPACE}")
    words = {"kept": " and ".join(kept), "backbone": " and ".join(backbones)}
    return {**words, "planned": f"planned {unbroken}" if planned else "", **scored}


def _pictures(album: Album | None, valid: scores.Evaluated | None) -> dict[str, Any]:
    errors = [] if album is None else [picture for group in album.shown("confident_errors") for picture in group]
    if not errors and valid is not None:
        errors = scores.confident_errors(valid, scores.MOST_ERRORS)
    shown: dict[str, Any] = {"errors": errors[: scores.MOST_ERRORS]}
    if album is not None:
        shown["pair_pictures"] = album.shown("confused_pairs")
        shown["samples"] = [picture for group in album.shown("samples") for picture in group]
        strengths = ((name, album.shown(f"augmentation {key}")) for key, name in _STRENGTHS.items())
        shown["augmented"] = [(name, groups) for name, groups in strengths if groups]
    return shown
