"""``etude journal``: its commands read and annotate the runs below a folder."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter

from etude.core.text import duration, file_size, moment, percent
from etude.journal.index import DAMAGED
from etude.journal.runs import IN_NO_STAGE, REPORT_NAME, seconds_in_no_stage, stopped_at

if TYPE_CHECKING:
    from etude.core.paired import Gain
    from etude.journal.compare import Comparison
    from etude.journal.index import Garbage, RunSummary
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
    for title, entries in (("Warnings", record["warnings"]), ("Notes", record["notes"])):
        if told := [*_dated(entries)]:
            screen.plan(title, told)
    if parts:
        columns = ["run", "state", "accuracy", "log loss", "time"]
        screen.table("Its parts", columns, [[run.path, run.state, *_scores(run)] for run in parts])


def _dated(entries: Sequence[Any]) -> Iterator[tuple[str, str]]:
    """Yield the time and the text of entries; those that are damaged are left out."""
    for entry in entries:
        match entry:
            case {"at": str(at), "text": str(text)}:
                yield moment(at), text
            case _:
                pass


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
    from etude.core.metrics import adjusted_error

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
        title = "Against run 1, on the same validation images; intervals: 95%"
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


def report(run: str, *, runs: Annotated[Path, Parameter(name="--runs")] = Path("runs")) -> None:
    """Write the report of a run from its folder, also of one that was killed, or is still at work.

    Parameters
    ----------
    run
        Its folder, name or id.
    runs
        The folder of runs.
    """
    from etude.journal.index import find_run
    from etude.journal.report.report import write_report
    from etude.journal.screen import Screen

    page = write_report(find_run(runs, run))
    Screen().say(f"{page} shows the run")


def send(run: str, *, mlflow: str, runs: Path = Path("runs")) -> None:
    """Send a run that has ended, with all that is part of it, to an MLflow server.

    It goes to the experiment etude, or to that of $MLFLOW_EXPERIMENT_NAME. Sent again, its tags and notes are brought
    up to date.

    Parameters
    ----------
    run
        Its folder, name or id.
    mlflow
        Address of the server, such as http://127.0.0.1:5000.
    runs
        The folder of runs.
    """
    from etude.journal.index import find_run
    from etude.journal.mlflow import log_to_mlflow
    from etude.journal.screen import Screen

    Screen().say(log_to_mlflow(find_run(runs, run), mlflow).told)


app = App(name="journal", help="List, show, compare and annotate the runs that were made.")
app.command("etude.cli.journal:send", name="send", help="Send a run that has ended to an MLflow server.")
app.command("etude.cli.journal:report", name="report", help="Write the report of a run from its folder.")

Runs = Annotated[Path, Parameter(name="--runs")]
AsJson = Annotated[bool, Parameter(name="--json", negative="")]
Flag = Annotated[bool, Parameter(negative="")]

_RUNS = Path("runs")
_SORTS = ("started", "score", "log_loss", "seconds", "name")


@app.command(name="list")
def list_(
    *,
    runs: Runs = _RUNS,
    sort: str = "started",
    tag: Annotated[list[str] | None, Parameter(negative="")] = None,
    data: str | None = None,
    min_score: float | None = None,
    limit: int = 30,
    all_: Annotated[bool, Parameter(name="--all", negative="")] = False,
    as_json: AsJson = False,
) -> None:
    """List the runs, the newest first.

    Parameters
    ----------
    runs
        The folder of runs.
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
    as_json
        Print JSON instead of a table: every run that fits, without a limit.
    """
    from etude.core.errors import EtudeError, nearest
    from etude.journal.index import list_runs
    from etude.journal.screen import Screen

    if sort not in _SORTS:
        raise EtudeError(f"--sort is {sort!r}; give one of {', '.join(_SORTS)}.{nearest(sort, _SORTS)}")
    if min_score is not None and not 0 <= min_score <= 1:
        raise EtudeError(f"--min-score is {min_score:g}; give an accuracy from 0 to 1, such as 0.9")
    if limit < 0:
        raise EtudeError(f"--limit is {limit}; give how many runs to show at most, or 0 for all of them")
    screen = Screen(file=sys.stderr if as_json else None)
    known = list_runs(runs, screen.warn)
    ids = {run.id for run in known}
    fitting = [
        run for run in known
        if (all_ or run.parent not in ids) and {*(tag or ())} <= {*run.tags} and (data is None or run.is_about(data))
        and (min_score is None or (run.accuracy or 0.0) >= min_score)
    ]  # fmt: skip
    found = _sorted(fitting, sort)
    if as_json:
        # A run a line: thousands of them indented take as long to write as all the rest.
        print("[", ",\n".join(json.dumps(run.to_json()) for run in found), "]", sep="\n")
    else:
        parts = 0 if all_ else sum(run.parent in ids for run in known)
        show_list(screen, found[:limit] if limit else found, runs, fitting=len(found), known=len(known), parts=parts)


@app.command
def show(run: str, *, runs: Runs = _RUNS, as_json: AsJson = False) -> None:
    """Show a run: what was asked, what each stage took and reached, what differs from the recipe, and its notes.

    Parameters
    ----------
    run
        Its folder, its name below the folder of runs, or the start of its id.
    runs
        The folder of runs.
    as_json
        Print the whole record as JSON.
    """
    from etude.journal.index import find_run, list_runs
    from etude.journal.runs import read_run
    from etude.journal.screen import Screen

    folder = find_run(runs, run)
    record = read_run(folder)
    if as_json:
        _print_json(record)
        return
    parts = [part for part in list_runs(runs) if part.parent == record["id"]] if runs.is_dir() else []
    show_run(Screen(), folder, record, parts)


@app.command
def compare(first: str, *others: str, runs: Runs = _RUNS, plot: Path | None = None, as_json: AsJson = False) -> None:
    """Compare runs with the first one: settings that differ, scores on the same validation images, seconds.

    The intervals are of a paired bootstrap over images: they tell what other images would change, not another seed.

    Parameters
    ----------
    first
        The run that the others are compared with: its folder, name or id.
    others
        The other runs.
    runs
        The folder of runs.
    plot
        Draw the curves of all of them over each other into this file, .png or .svg.
    as_json
        Print JSON instead of tables.
    """
    from etude.journal.compare import compare_runs
    from etude.journal.index import find_run
    from etude.journal.screen import Screen

    folders = [find_run(runs, name) for name in (first, *others)]
    found = compare_runs(folders)
    if plot is not None:
        from etude.journal.figures.curves import draw_curves
        from etude.journal.report.folder import read_history

        histories = {
            run.path: read_history(folder / "history.csv")
            for run, folder in zip(found.runs, folders, strict=True) if (folder / "history.csv").is_file()
        }  # fmt: skip
        draw_curves(plot, histories)
    if as_json:
        _print_json(found.to_json())
        return
    screen = Screen()
    show_comparison(screen, found)
    if plot is not None:
        screen.say(f"{plot} shows the curves")


@app.command
def note(run: str, *text: str, runs: Runs = _RUNS) -> None:
    """Add a note to a run; also while it is at work.

    Parameters
    ----------
    run
        Its folder, name or id.
    text
        What to remember of it.
    runs
        The folder of runs.
    """
    from etude.journal.index import find_run
    from etude.journal.runs import add_note
    from etude.journal.screen import Screen

    folder = find_run(runs, run)
    add_note(folder, " ".join(text))
    Screen().say(f"noted in {folder}")


@app.command
def tag(run: str, *tags: str, runs: Runs = _RUNS, remove: Flag = False) -> None:
    """Give tags to a run, by which the list can be filtered.

    Parameters
    ----------
    run
        Its folder, name or id.
    tags
        One word each.
    runs
        The folder of runs.
    remove
        Take these tags off it instead.
    """
    from etude.core.errors import EtudeError
    from etude.journal.index import find_run
    from etude.journal.runs import add_tags, read_run, remove_tags
    from etude.journal.screen import Screen

    folder = find_run(runs, run)
    if not tags:
        raise EtudeError(f"no tag came for {folder}: give one or more after the run, such as baseline")
    (remove_tags if remove else add_tags)(folder, tags)
    Screen().say(f"tags of {folder}: {', '.join(read_run(folder)['tags']) or 'none'}")


@app.command
def gc(*, runs: Runs = _RUNS, unfinished: Flag = False, yes: Flag = False, as_json: AsJson = False) -> None:
    """Show what can go from the runs without a loss, ask, and remove it.

    That is what killed runs leave half-written, checkpoints of finished runs, and runs that stopped before they made
    anything and that have no note and no tag.

    Parameters
    ----------
    runs
        The folder of runs.
    unfinished
        Also the checkpoints of runs that were stopped; those can then not be resumed any more.
    yes
        Remove it without asking.
    as_json
        Print what would go as JSON, and remove nothing.
    """
    from etude.core.text import file_size
    from etude.journal.index import find_garbage, remove_garbage
    from etude.journal.screen import Screen

    screen = Screen()
    found = find_garbage(runs, unfinished)
    if as_json:
        _print_json([{"path": str(item.path), "bytes": item.size, "reason": item.reason} for item in found])
        return
    show_garbage(screen, found, runs)
    if not found or not (yes or _agreed(screen)):
        return
    asked = {item.path for item in found}  # while it was asked, a run may have been resumed
    freed = remove_garbage(item for item in find_garbage(runs, unfinished) if item.path in asked)
    screen.say(f"{file_size(freed)} freed")


@app.command
def render(*, runs: Runs = _RUNS, out: Path | None = None) -> None:
    """Write one page over all runs, with search and sort, that opens in any browser without a server.

    Parameters
    ----------
    runs
        The folder of runs.
    out
        The page, or a folder for it; by default index.html in the folder of runs.
    """
    from etude.journal.screen import Screen
    from etude.journal.site import render_site

    screen = Screen()
    page = render_site(runs, runs / "index.html" if out is None else out, screen.warn)
    screen.say(f"{page} shows all runs")


def _sorted(runs: list[RunSummary], sort: str) -> list[RunSummary]:
    """Return the runs, which came the newest first, in another order; those that lack a value come last."""
    match sort:
        case "score":
            return sorted(runs, key=lambda run: -1.0 if run.accuracy is None else run.accuracy, reverse=True)
        case "log_loss":
            return sorted(runs, key=lambda run: float("inf") if run.log_loss is None else run.log_loss)
        case "seconds":
            return sorted(runs, key=lambda run: float("inf") if run.seconds is None else run.seconds)
        case "name":
            return sorted(runs, key=lambda run: run.path)
        case _:
            return runs


def _agreed(screen: Screen) -> bool:
    if not sys.stdin.isatty():
        screen.say("nothing was removed: give --yes to remove it")
        return False
    return input("remove it? [y/N] ").strip().lower() in ("y", "yes")


def _print_json(value: object) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=True))
