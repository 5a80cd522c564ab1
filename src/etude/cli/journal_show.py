"""What ``etude journal`` shows: runs, one or many, and what can go."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from etude.journal.index import DAMAGED
from etude.journal.quantities import duration, file_size, moment, percent
from etude.journal.record_read import IN_NO_STAGE, REPORT_NAME, seconds_in_no_stage
from etude.journal.record_state import stopped_at

if TYPE_CHECKING:
    from etude.core.metrics import Gain
    from etude.journal.collect import Garbage
    from etude.journal.compare import Comparison
    from etude.journal.index import RunSummary
    from etude.journal.screen import Screen

_LONGEST_VALUE = 40


def show_list(
    screen: Screen, runs: Sequence[RunSummary], folder: Path, *, fitting: int, known: int, parts: int
) -> None:
    """Show a line a run.

    Args:
        folder: of the runs.
        fitting: how many there were to show.
        known: how many there are.
        parts: how many of these are left out, since they are part of another.
    """
    told = f"{known:,} runs in {folder}" if known != 1 else f"1 run in {folder}"
    if fitting < known - parts:
        told += f", {fitting:,} of them fit"
    if len(runs) < fitting:
        told += f"; {len(runs):,} shown, --limit 0 shows all"
    if not runs:
        screen.say(told)
        return
    tagged = any(run.tags for run in runs)
    columns = ["run", "started (UTC)", "state", "accuracy", "time", "recipe", *(["tags"] if tagged else [])]
    screen.table(told, columns, [_line(run)[: len(columns)] for run in runs])
    if parts:
        screen.say(f"{parts:,} more, part of these, left out: --all shows them")
    for run in runs:
        if run.state == DAMAGED:
            screen.warn(str(run.error))


def show_run(screen: Screen, folder: Path, record: dict[str, Any], parts: Sequence[RunSummary]) -> None:
    """Show what the record of the run in ``folder`` says; ``parts`` are the runs that belong to it."""
    report = folder / REPORT_NAME
    screen.plan(str(folder), [*_facts(record), *([("report", str(report))] if report.is_file() else [])])
    _show_stages(screen, record)
    if record["changed"]:
        screen.plan("Differs from the recipe", [(name, _value(value)) for name, value in record["changed"].items()])
    if record["warnings"]:
        screen.plan("Warnings", [(moment(warning["at"]), warning["text"]) for warning in record["warnings"]])
    if record["notes"]:
        screen.plan("Notes", [(moment(note["at"]), note["text"]) for note in record["notes"]])
    if parts:
        columns = ["run", "state", "accuracy", "log loss", "time"]
        screen.table("Its parts", columns, [[run.path, run.state, *_scores(run)] for run in parts])


def show_comparison(screen: Screen, found: Comparison) -> None:
    """Show runs beside each other; the first is number 1, and the others stand against it."""
    columns = ["", "run", "state", "accuracy", "log loss", "time"]
    rows = [[str(number), run.path, run.state, *_scores(run)] for number, run in enumerate(found.runs, 1)]
    screen.table("Runs, each scored on all of its own validation images", columns, rows)
    _show_contrasts(screen, found)
    numbers = [str(number) for number in range(1, len(found.runs) + 1)]
    if found.settings:
        rows = [[name, *map(_value, values)] for name, values in found.settings.items()]
        screen.table("Settings that differ", ["", *numbers], rows)
    else:
        screen.say("no setting differs")
    rows = [[name, *(None if value is None else f"{value:.1f}" for value in row)] for name, row in found.stages.items()]
    screen.table("Seconds of each stage", ["", *numbers], rows)


def show_garbage(screen: Screen, found: Sequence[Garbage], runs: Path) -> None:
    """Show what can go from the folder ``runs``, the largest first."""
    if not found:
        screen.say(f"nothing can go from {runs}")
        return
    ordered = sorted(found, key=lambda item: -item.size)
    rows = [[str(item.path.relative_to(runs)), file_size(item.size), item.reason] for item in ordered]
    total = file_size(sum(item.size for item in found))
    screen.table(f"{total} can go from {runs}", ["what", "size", "why"], rows)


def _facts(record: dict[str, Any]) -> list[tuple[str, str]]:
    data, result, environment = record.get("data") or {}, record.get("result") or {}, record["environment"]
    facts = [
        ("id", record["id"] + (f", part of {record['parent']}" if record["parent"] else "")),
        ("kind", record["kind"]),
        ("state", _state_in_words(record)),
        ("started", f"{moment(record['started'])}, took {duration(record['seconds'])}"),
        ("command", shlex.join(map(str, record["command"]))),
        ("recipe", f"{record['recipe']}, seed {record['seed']}"),
        ("data", str(data.get("described") or "")),
        ("fingerprint", str(data.get("fingerprint") or "")),
        ("result", _result_in_words(result)),
        ("machine", _machine_in_words(environment)),
        ("code", _code_in_words(environment)),
        ("tags", ", ".join(record["tags"])),
    ]
    return [(name, told) for name, told in facts if told]


def _state_in_words(record: dict[str, Any]) -> str:
    told = record["state"]
    if told != "finished":
        told += f" {stopped_at(record['stages'])}"
    if times := len(record["resumed"]):
        told += f", resumed {'once' if times == 1 else f'{times} times'}"
    return f"{told}: {record['error']}" if record["error"] else told


def _result_in_words(result: dict[str, Any]) -> str:
    images = result.get("validation_images")
    if not images or result.get("accuracy") is None:
        return ""
    from etude.core.scores import adjusted_error

    right = float(result["accuracy"])
    loss = f", log loss {result['log_loss']:.4g}" if result.get("log_loss") is not None else ""
    spread = f"± {100 * adjusted_error(right, images):.2g} (standard error)"
    return f"accuracy {percent(right, 2)} {spread}{loss} on {images:,} validation images"


def _machine_in_words(environment: dict[str, Any]) -> str:
    parts = [environment.get("cpu"), f"{environment.get('cores')} cores", file_size(environment.get("memory_bytes"))]
    return ", ".join([*filter(None, parts), f"Python {environment.get('python')}"])


def _code_in_words(environment: dict[str, Any]) -> str:
    packages, git = environment.get("packages") or {}, environment.get("git") or {}
    told = [
        f"etude {environment.get('etude')}",
        *(f"{name} {packages[name]}" for name in ("torch", "timm") if name in packages),
    ]
    if git.get("commit"):
        changes = f" with changes {(git.get('diff') or '')[:10]}".rstrip() if git.get("dirty") else ""
        told.append(f"commit {git['commit'][:10]}{changes}")
    return ", ".join(told)


def _show_stages(screen: Screen, record: Mapping[str, Any]) -> None:
    stages: Sequence[dict[str, Any]] = record["stages"]
    if not stages:
        return
    scores = list(dict.fromkeys(name for stage in stages for name in stage["scores"]))
    again = any(stage["attempts"] > 1 for stage in stages)
    columns = ["stage", "state", "time", *(["attempts"] if again else []), *(name.replace("_", " ") for name in scores)]
    rows = [
        [
            stage["name"], stage["state"] + (", not kept" if stage.get("kept") is False else ""),
            duration(stage["seconds"]), *([stage["attempts"]] if again else []),
            *(stage["scores"].get(name) for name in scores),
        ]
        for stage in stages
    ]  # fmt: skip
    rows.append([IN_NO_STAGE, "", duration(seconds_in_no_stage(record)), *[None] * (len(columns) - 3)])
    screen.table("Stages", columns, rows)


def _show_contrasts(screen: Screen, found: Comparison) -> None:
    numbered = [*enumerate(found.contrasts, 2)]
    rows = [
        [str(number), contrast.images, *_gain_cells(contrast.gains)] for number, contrast in numbered if contrast.gains
    ]
    if rows:
        title = f"Against run 1, on the same validation images; intervals: {found.level:.0%}"
        screen.table(title, ["", "images", "accuracy, in points", "log loss", "better than 1?"], rows)
    for number, contrast in numbered:
        if contrast.reason is not None:
            screen.warn(f"{number} cannot be scored against 1: {contrast.reason}")
        for caution in contrast.cautions:
            screen.warn(f"{number} and 1: {caution}")


def _gain_cells(gains: Mapping[str, Gain]) -> list[str]:
    """Return by how much accuracy and log loss have changed, and what that says of accuracy."""
    right, loss = gains["accuracy"], gains["log_loss"]
    told = "yes" if right.beyond_noise else "no, worse" if right.lost else "cannot be told"
    return [
        f"{100 * right.gain:+.2f} [{100 * right.low:+.2f}, {100 * right.high:+.2f}]",
        # A gain in log loss is how much lower it is.
        f"{-loss.gain:+.3g} [{-loss.high:+.3g}, {-loss.low:+.3g}]",
        told,
    ]


def _line(run: RunSummary) -> list[str | float | None]:
    accuracy = None if run.accuracy is None else percent(run.accuracy, 2)
    time = None if run.seconds is None else duration(run.seconds)
    return [run.path, _short_moment(run.started), run.state, accuracy, time, run.recipe, " ".join(run.tags)]


def _scores(run: RunSummary) -> list[str | float | None]:
    accuracy = None if run.accuracy is None else percent(run.accuracy, 2)
    return [accuracy, run.log_loss, None if run.seconds is None else duration(run.seconds)]


def _short_moment(text: str) -> str:
    """Return an ISO time as month, day and time, or as a date when it is of another year."""
    try:
        read = datetime.fromisoformat(text).astimezone(UTC)
    except ValueError:
        return text
    return f"{read:%m-%d %H:%M}" if read.year == datetime.now(UTC).year else f"{read:%Y-%m-%d}"


def _value(value: Any) -> str:
    if value is None:
        return "–"
    told = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return told if len(told) <= _LONGEST_VALUE else f"{told[: _LONGEST_VALUE - 1]}…"
