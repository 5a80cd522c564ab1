"""``etude journal``: its commands read and annotate the runs below a folder."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

if TYPE_CHECKING:
    from etude.journal.index import RunSummary
    from etude.journal.screen import Screen

app = App(name="journal", help="List, show, compare and annotate the runs that were made.")
app.command("etude.cli.journal_send:send", name="send", help="Send a run that has ended to an MLflow server.")
app.command("etude.cli.journal_report:report", name="report", help="Write the report of a run from its folder.")

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
    from etude.cli.journal_show import show_list
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
    from etude.cli.journal_show import show_run
    from etude.journal.index import find_run, list_runs
    from etude.journal.record_read import read_run
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
    from etude.cli.journal_show import show_comparison
    from etude.journal.compare import compare_runs
    from etude.journal.index import find_run
    from etude.journal.screen import Screen

    folders = [find_run(runs, name) for name in (first, *others)]
    found = compare_runs(folders)
    if plot is not None:
        from etude.journal.compare_figure import draw_curves
        from etude.journal.report_folder import read_history

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
    from etude.journal.record_notes import add_note
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
    from etude.journal.record_notes import add_tags, remove_tags
    from etude.journal.record_read import read_run
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
    from etude.cli.journal_show import show_garbage
    from etude.journal.collect import find_garbage, remove_garbage
    from etude.journal.quantities import file_size
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
