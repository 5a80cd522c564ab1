"""``etude journal``: its commands show and annotate the runs below a folder."""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter

from etude.cli.common import AsJson, print_json, screen_for
from etude.core.errors import EtudeError, nearest
from etude.core.text import counted, duration, file_size, moment, percent, shortened
from etude.journal.index import DAMAGED, RunSummary, find_garbage, find_run, list_runs, remove_garbage
from etude.journal.runs import (
    IN_NO_STAGE,
    REPORT_NAME,
    add_note,
    read_run,
    seconds_in_no_stage,
    set_tags,
    stopped_at,
)
from etude.study.run.request import Flag

if TYPE_CHECKING:
    from etude.core.paired import Gain
    from etude.journal.compare import Comparison
    from etude.journal.screen import Screen

app = App(name="journal", help_format="markdown", help="List, show, compare and annotate the runs that were made.")

Name = Annotated[str, Parameter(help="Its folder, its name below the folder of runs, or the start of its id.")]
Runs = Annotated[Path, Parameter(name="--runs", help="The folder of runs.")]

_RUNS = Path("runs")
_LONGEST_VALUE = 40

_SORTS: Mapping[str, Callable[[RunSummary], Any]] = {  # runs without a value come last
    "started": lambda run: 0,  # as they are listed, the newest first
    "score": lambda run: inf if run.accuracy is None else -run.accuracy,
    "log_loss": lambda run: inf if run.log_loss is None else run.log_loss,
    "seconds": lambda run: inf if run.seconds is None else run.seconds,
    "name": lambda run: run.path,
}


@app.command(name="list")
def list_(
    *,
    runs: Runs = _RUNS,
    sort: str = "started",
    tag: Annotated[list[str] | None, Parameter(negative="")] = None,
    data: str | None = None,
    min_score: float | None = None,
    limit: int = 30,
    all_: Annotated[Flag, Parameter(name="--all")] = False,
    as_json: AsJson = False,
) -> None:
    """List the runs, the newest first.

    Parameters
    ----------
    sort
        started (newest first), score (best accuracy first), log_loss, seconds (fastest first), or name.
    tag
        Only runs with this tag; may be repeated, for runs with all of them.
    data
        Only runs on these data: part of the command line or of the data's description, or the start of its fingerprint.
    min_score
        Only runs of at least this validation accuracy, such as 0.9.
    limit
        Show at most that many; 0 shows all.
    all_
        Also runs that are part of another run, such as the arms of an ablation.
    """
    if sort not in _SORTS:
        raise EtudeError(f"--sort is {sort!r}; give one of {', '.join(_SORTS)}.{nearest(sort, _SORTS)}")
    if min_score is not None and not 0 <= min_score <= 1:
        raise EtudeError(f"--min-score is {min_score:g}; give an accuracy from 0 to 1, such as 0.9")
    if limit < 0:
        raise EtudeError(f"--limit is {limit}; give how many runs to show at most, or 0 for all of them")
    screen = screen_for(as_json=as_json)
    known = list_runs(runs, screen.warn)
    ids = {run.id for run in known}
    fitting = [
        run for run in known
        if (all_ or run.parent not in ids) and {*(tag or ())} <= {*run.tags} and (data is None or run.is_about(data))
        and (min_score is None or (run.accuracy or 0.0) >= min_score)
    ]  # fmt: skip
    found = sorted(fitting, key=_SORTS[sort])
    if as_json:
        # A run a line: thousands of them indented take as long to write as all the rest.
        print("[", ",\n".join(json.dumps(asdict(run)) for run in found), "]", sep="\n")
        return
    parts, shown = 0 if all_ else sum(run.parent in ids for run in known), found[:limit] if limit else found
    title = f"{counted(len(known), 'run')} in {runs}"
    if len(found) < len(known) - parts:
        title += f", {len(found):,} of them fit"
    if len(shown) < len(found):
        title += f"; {len(shown):,} shown, --limit 0 shows all"
    if not shown:
        screen.say(title)
        return
    columns = ["run", "started (UTC)", "state", "accuracy", "time", "recipe"]
    columns += ["tags"] if any(run.tags for run in shown) else []
    screen.table(title, columns, [_line(run)[: len(columns)] for run in shown])
    if parts:
        screen.say(f"{parts:,} more, part of these, left out: --all shows them")
    for run in shown:
        if run.state == DAMAGED:
            screen.warn(str(run.error))


@app.command
def show(run: Name, *, runs: Runs = _RUNS, as_json: AsJson = False) -> None:
    """Show a run: the command, what each stage took and reached, what differs from the recipe, and its notes."""
    folder = find_run(runs, run)
    record = read_run(folder)
    if as_json:
        print_json(record)
        return
    parts = [part for part in list_runs(runs) if part.parent == record["id"]] if runs.is_dir() else []
    _show_run(screen_for(), folder, record, parts)


@app.command
def compare(first: Name, *others: str, runs: Runs = _RUNS, plot: Path | None = None, as_json: AsJson = False) -> None:
    """Compare runs with the first one: settings that differ, scores on the same validation images, seconds.

    The intervals are of a paired bootstrap over images: they cover the choice of images, not another seed.

    Parameters
    ----------
    others
        The other runs.
    plot
        Draw the curves of all runs into this file, .png or .svg.
    """
    from etude.journal.compare import compare_runs

    folders = [find_run(runs, name) for name in (first, *others)]
    found = compare_runs(folders)
    if plot is not None:
        from etude.journal.figures import save_figure
        from etude.journal.figures.curves import curves_figure
        from etude.journal.report.folder import read_history

        histories = {
            run.path: read_history(folder / "history.csv")
            for run, folder in zip(found.runs, folders, strict=True) if (folder / "history.csv").is_file()
        }  # fmt: skip
        save_figure(curves_figure(histories), plot)
    if as_json:
        print_json(found.to_json())
        return
    screen = screen_for()
    _show_comparison(screen, found)
    if plot is not None:
        screen.say(f"{plot} shows the curves")


@app.command
def note(run: Name, *text: str, runs: Runs = _RUNS) -> None:
    """Add a note to a run; also while it is at work.

    Parameters
    ----------
    text
        What to remember of it.
    """
    folder = find_run(runs, run)
    add_note(folder, " ".join(text))
    screen_for().say(f"noted in {folder}")


@app.command
def tag(run: Name, *tags: str, runs: Runs = _RUNS, remove: Flag = False) -> None:
    """Give tags to a run, by which the list can be filtered.

    Parameters
    ----------
    tags
        One word each.
    remove
        Take these tags off it instead.
    """
    folder = find_run(runs, run)
    set_tags(folder, tags, remove=remove)
    screen_for().say(f"tags of {folder}: {', '.join(read_run(folder)['tags']) or 'none'}")


@app.command
def gc(*, runs: Runs = _RUNS, unfinished: Flag = False, yes: Flag = False, as_json: AsJson = False) -> None:
    """Show what can go from the runs without a loss, ask, and remove it.

    That is what killed runs leave half-written, checkpoints of finished runs, and runs that stopped before they made
    anything and that have no note and no tag.

    Parameters
    ----------
    unfinished
        Also the checkpoints of runs that were stopped; those can then not be resumed any more.
    yes
        Remove it without asking.
    """
    screen = screen_for()
    found = find_garbage(runs, unfinished)
    if as_json:
        print_json([{"path": str(item.path), "bytes": item.size, "reason": item.reason} for item in found])
        return
    if not found:
        screen.say(f"nothing can go from {runs}")
        return
    ordered = sorted(found, key=lambda item: -item.size)
    rows = [[str(item.path.relative_to(runs)), file_size(item.size), item.reason] for item in ordered]
    total = file_size(sum(item.size for item in found))
    screen.table(f"{total} can go from {runs}", ["what", "size", "why"], rows)
    if not yes and not sys.stdin.isatty():
        screen.say("nothing was removed: give --yes to remove it")
        return
    if not yes and input("remove it? [y/N] ").strip().lower() not in ("y", "yes"):
        return
    shown = {item.path for item in found}  # while the answer was awaited, a run may have been resumed
    freed = remove_garbage(item for item in find_garbage(runs, unfinished) if item.path in shown)
    screen.say(f"{file_size(freed)} freed")


@app.command
def render(*, runs: Runs = _RUNS, out: Path | None = None) -> None:
    """Write one page over all runs, with search and sort, that opens in any browser without a server.

    Parameters
    ----------
    out
        The page, or a folder for it; by default index.html in the folder of runs.
    """
    from etude.journal.site import render_site

    page = render_site(runs, runs / "index.html" if out is None else out, (screen := screen_for()).warn)
    screen.say(f"{page} shows all runs")


@app.command
def report(run: Name, *, runs: Runs = _RUNS) -> None:
    """Write the report of a run from its folder, also of one that was killed, or is still at work."""
    from etude.journal.report.report import write_report

    page = write_report(find_run(runs, run))
    screen_for().say(f"{page} shows the run")


@app.command
def watch(run: Name, *, runs: Runs = _RUNS, every: float = 5.0) -> None:
    """Write a run's report anew while it is at work; a browser that shows it loads it again by itself.

    Parameters
    ----------
    every
        Seconds between two reports, 1 or more.
    """
    from etude.journal.report.report import write_report

    if not every >= 1:
        raise EtudeError(f"--every is {every:g}; give seconds, 1 or more")
    folder, screen = find_run(runs, run), screen_for()
    page = (folder / REPORT_NAME).resolve()
    screen.say(f"open {page.as_uri()}: it is written anew every {every:g} s until the run ends")
    while read_run(folder)["state"] == "running":
        write_report(folder, refresh=every)
        time.sleep(every)
    write_report(folder)
    screen.say(f"{_state_in_words(read_run(folder))}: {page} shows all of it")


@app.command
def send(run: Name, *, mlflow: str, runs: Runs = _RUNS) -> None:
    """Send a run that has ended, with all that is part of it, to an MLflow server.

    It goes to the experiment etude, or to that of $MLFLOW_EXPERIMENT_NAME. Sent again, its tags and notes are updated.

    Parameters
    ----------
    mlflow
        Address of the server, such as http://127.0.0.1:5000.
    """
    from etude.journal.mlflow import log_to_mlflow

    screen_for().say(log_to_mlflow(find_run(runs, run), mlflow).text)


def _show_run(screen: Screen, folder: Path, record: dict[str, Any], parts: Sequence[RunSummary]) -> None:
    report = folder / REPORT_NAME
    screen.plan(str(folder), [*_facts(record), *([("report", str(report))] if report.is_file() else [])])
    _show_stages(screen, record)
    if record["changed"]:
        screen.plan("Differs from the recipe", [(name, _value(value)) for name, value in record["changed"].items()])
    for title, entries in (("Warnings", record["warnings"]), ("Notes", record["notes"])):
        known = ((one.get("at"), one.get("text")) for one in entries if isinstance(one, dict))  # not the damaged ones
        if rows := [(moment(at), text) for at, text in known if isinstance(at, str) and isinstance(text, str)]:
            screen.plan(title, rows)
    if parts:
        columns = ["run", "state", "accuracy", "log loss", "time"]
        screen.table("Its parts", columns, [[run.path, run.state, *_scores(run)] for run in parts])


def _show_comparison(screen: Screen, found: Comparison) -> None:
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


def _facts(record: dict[str, Any]) -> list[tuple[str, str]]:
    data, result, environment = record.get("data") or {}, record.get("result") or {}, record["environment"]
    machine = [environment.get("cpu"), f"{environment.get('cores')} cores", file_size(environment.get("memory_bytes"))]
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
        ("machine", ", ".join([*filter(None, machine), f"Python {environment.get('python')}"])),
        ("code", _code_in_words(environment)),
        ("tags", ", ".join(record["tags"])),
    ]
    return [(name, text) for name, text in facts if text]


def _state_in_words(record: dict[str, Any]) -> str:
    stopped = "" if record["state"] == "finished" else f" {stopped_at(record['stages'])}"
    times = len(record["resumed"])
    resumed = f", resumed {'once' if times == 1 else f'{times} times'}" if times else ""
    error = f": {record['error']}" if record["error"] else ""
    return f"{record['state']}{stopped}{resumed}{error}"


def _result_in_words(result: dict[str, Any]) -> str:
    images = result.get("validation_images")
    if not images or result.get("accuracy") is None:
        return ""
    from etude.core.metrics import wilson

    right = float(result["accuracy"])
    loss = f", log loss {result['log_loss']:.4g}" if result.get("log_loss") is not None else ""
    ends = " to ".join(map(percent, wilson(right * images, images)))
    return f"accuracy {percent(right, 2)} (95% interval {ends}){loss} on {images:,} validation images"


def _code_in_words(environment: dict[str, Any]) -> str:
    packages, git = environment.get("packages") or {}, environment.get("git") or {}
    versions = {"etude": environment.get("etude"), **{name: packages.get(name) for name in ("torch", "timm")}}
    text = ", ".join(f"{name} {version}" for name, version in versions.items() if version or name == "etude")
    if not git.get("commit"):
        return text
    changes = f" with changes {(git.get('diff') or '')[:10]}".rstrip() if git.get("dirty") else ""
    return f"{text}, commit {git['commit'][:10]}{changes}"


def _show_stages(screen: Screen, record: Mapping[str, Any]) -> None:
    stages: Sequence[dict[str, Any]] = record["stages"]
    if not stages:
        return
    scores = list(dict.fromkeys(name for stage in stages for name in stage["scores"]))
    again = any(stage["attempts"] > 1 for stage in stages)
    columns = ["stage", "state", "time", *(["attempts"] if again else []), *(name.replace("_", " ") for name in scores)]
    rows = [
        [
            *(stage["name"], stage["state"] + (", not kept" if stage.get("kept") is False else "")),
            *(duration(stage["seconds"]), *([stage["attempts"]] if again else [])),
            *(stage["scores"].get(name) for name in scores),
        ]
        for stage in stages
    ]
    rows.append([IN_NO_STAGE, "", duration(seconds_in_no_stage(record)), *[None] * (len(columns) - 3)])
    screen.table("Stages", columns, rows)


def _show_contrasts(screen: Screen, found: Comparison) -> None:
    numbered = [*enumerate(found.contrasts, 2)]
    rows = [
        [str(number), contrast.images, *_gain_cells(contrast.gains)] for number, contrast in numbered if contrast.gains
    ]
    if rows:
        title = "Against run 1, on the same validation images; intervals: 95%"
        screen.table(title, ["", "images", "accuracy, in points", "log loss", "better than 1?"], rows)
    for number, contrast in numbered:
        if contrast.reason is not None:
            screen.warn(f"{number} cannot be scored against 1: {contrast.reason}")
        for caution in contrast.cautions:
            screen.warn(f"{number} and 1: {caution}")


def _gain_cells(gains: Mapping[str, Gain]) -> list[str]:
    """Return by how much accuracy and log loss (lower is a gain) have changed, and whether accuracy is better."""
    right, loss = gains["accuracy"], gains["log_loss"]
    points = f"{100 * right.gain:+.2f} [{100 * right.low:+.2f}, {100 * right.high:+.2f}]"
    better = "yes" if right.beyond_noise else "no, worse" if right.lost else "cannot tell"
    return [points, f"{-loss.gain:+.3g} [{-loss.high:+.3g}, {-loss.low:+.3g}]", better]


def _line(run: RunSummary) -> list[str | float | None]:
    accuracy, _, time = _scores(run)
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
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return shortened(text, _LONGEST_VALUE)
