"""What a run is made of: the runs of a study, the folds, the rounds; and what an ablation found by them."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from etude.core.metrics import metric_named
from etude.journal.html import data_uri
from etude.journal.index import DAMAGED, RunSummary
from etude.journal.quantities import duration, points, signed, spoken
from etude.journal.record_read import REPORT_NAME
from etude.journal.report_folder import RunFolder
from etude.journal.report_steps import FOLD, state_of_all

_ROUND = re.compile(r"(round \d+|online)( \(fold \d+/\d+\))?")


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a run.

    Args:
        name: the path of a run below this one, or the fold or round as its stages are called.
        kind: the kind of run, ``fold`` or ``round``.
        state: finished, running, failed, interrupted, killed or damaged.
        seconds: that it took so far, or None.
        accuracy: on its validation images, or None.
        log_loss: likewise.
        told: what else there is to say: where a run stopped, what a fold or a round ended with.
        link: relative address of its own report, or empty.
    """

    name: str
    kind: str
    state: str
    seconds: float | None
    accuracy: float | None
    log_loss: float | None
    told: str = ""
    link: str = ""


@dataclass(frozen=True, slots=True)
class Lift:
    """What an ablation found.

    Args:
        unit: of gains.
        level: of the intervals, such as ``95%``.
        rows: trick, mode, gain, interval, corrected p, verdict and seconds of each, in words.
        chart: an address that holds the chart, or empty.
    """

    unit: str
    level: str
    rows: list[tuple[str, ...]]
    chart: str


def parts_of(run: RunFolder) -> list[Part]:
    """Return the runs below this one in the order of their start, then its folds, then its rounds."""
    return [*(_of_run(run, child) for child in run.children), *_folds(run.record), *_rounds(run.record)]


def lift_of(run: RunFolder) -> Lift | None:
    """Return what ``ablation.json`` says of the tricks; None where the run is no ablation that has ended."""
    if run.ablation is None:
        return None
    told, shares = run.ablation, metric_named(str(run.ablation["metric"])).larger_is_better
    written = points if shares else signed
    rows = [
        (
            *(str(one["trick"]), str(one["mode"]), written(float(one["gain"]))),
            "–" if one["low"] is None else f"{written(float(one['low']))} to {written(float(one['high']))}",
            f"{one['p_corrected']:.3f}" if one["p_corrected"] >= 0.001 else "< 0.001",
            *(str(one["verdict"]), _more_or_less(float(one["seconds"]))),
        )
        for one in told["tricks"]
    ]
    unit = f"points of {spoken(told['metric'])}" if shares else f"{spoken(told['metric'])} saved"
    chart = "" if run.lift_png is None else data_uri(run.lift_png)
    return Lift(unit, f"{told['level']:.0%}", rows, chart)


def _of_run(run: RunFolder, child: RunSummary) -> Part:
    there = (run.path / child.path / REPORT_NAME).is_file()
    link = quote(os.fsencode(f"{child.path}/{REPORT_NAME}")) if there else ""
    told = ": ".join(filter(None, (child.where, child.error)))
    kind = "" if child.state == DAMAGED else child.kind
    return Part(child.path, kind, child.state, child.seconds, child.accuracy, child.log_loss, told, link)


def _folds(record: Mapping[str, Any]) -> list[Part]:
    """Return a part for each fold, with the scores of the stage that was kept of it."""
    stages: dict[int, list[Mapping[str, Any]]] = {}
    for stage in record["stages"]:
        if found := FOLD.search(stage["name"]):
            stages.setdefault(int(found[1]), []).append(stage)
    kept = [spoken(str(name)) for name in (record.get("result") or {}).get("kept") or []]
    parts: list[Part] = []
    for number, group in sorted(stages.items()):
        own = kept[number - 1] if number <= len(kept) else ""
        scored = [stage for stage in group if stage["scores"]]
        best = next((stage for stage in scored if own and FOLD.sub("", stage["name"]) == own), (scored or group)[-1])
        told = f"kept: {own}" if own else ""
        parts.append(_of_stages(f"fold {number}", "fold", group, best["scores"], told, record["state"]))
    return parts


def _rounds(record: Mapping[str, Any]) -> list[Part]:
    """Return a part for each round with unlabelled images."""
    judged = {one["name"]: "kept" if one["kept"] else "thrown away" for one in record.get("rounds") or []}
    return [
        _of_stages(stage["name"], "round", [stage], stage["scores"], judged.get(stage["name"], ""), record["state"])
        for stage in record["stages"]
        if _ROUND.fullmatch(stage["name"])
    ]


def _of_stages(
    name: str, kind: str, stages: Sequence[Mapping[str, Any]], scores: Mapping[str, Any], told: str, run: str
) -> Part:
    seconds = sum(float(stage["seconds"]) for stage in stages)
    return Part(name, kind, state_of_all(stages, run), seconds, scores.get("accuracy"), scores.get("log_loss"), told)


def _more_or_less(seconds: float) -> str:
    return f"{'−' if seconds < 0 else '+'}{duration(abs(seconds))}"
