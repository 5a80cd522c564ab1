"""Going on with a run that was stopped: which one, whether it may, and what is left over at its end."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from etude.core.errors import EtudeError
from etude.journal.record_lock import at_work
from etude.journal.record_read import read_record, read_run
from etude.journal.record_state import is_complete
from etude.recipe import Recipe, flat
from etude.study.request import Request, run_folders


def resumable_folder(request: Request) -> Path:
    """Return the folder of the run to go on with: ``--out``, or the newest unfinished run on these images.

    Raises:
        EtudeError: there is none, or another process is still at work on it.
    """
    if request.out is not None:
        folder = request.out
        if not (folder / "run.json").is_file():
            raise EtudeError(f"{folder} holds no run to resume: give the --out of the run that was stopped")
    else:
        runs = [(folder, _content(folder)) for folder in _runs_on(request.train)]
        unfinished = [folder for folder, content in runs if content and not is_complete(content)]
        if not unfinished:
            raise EtudeError(
                f"no unfinished run on {request.train} stands below runs/: give its folder with --out, or leave out "
                "--resume to start a new run"
            )
        folder = unfinished[-1]
    record = read_run(folder)
    if record["state"] == "running":
        raise at_work(folder, record["pid"], record["host"])
    return folder


def record_to_resume(folder: Path) -> dict[str, Any]:
    """Return the record of the run in ``folder``, whose lock is held.

    Raises:
        EtudeError: nothing is left to do.
    """
    record = read_record(folder)
    if is_complete(record):
        raise EtudeError(f"{folder} is finished, so nothing is left to resume: leave out --resume for a new run")
    return record


def refuse_other_settings(folder: Path, recipe: Recipe, request: Request) -> None:
    """Refuse to go on with a run by other settings than those it began with.

    Raises:
        EtudeError: with the settings that differ.
    """
    record = read_run(folder)
    began, asks = dict(record["settings"]), json.loads(json.dumps(flat(recipe), default=str))
    began["seed"], asks["seed"] = record["seed"], request.seed
    if data := record.get("data"):  # written once the images were split
        began |= {"folds": len(data["folds"]), "sample": data["sample"]}
        asks |= {"folds": request.folds or 1, "sample": request.sample}
    if new := sorted(asks.keys() - began.keys()):
        raise EtudeError(
            f"{folder} was begun by an earlier version of etude, which did not know {listed_plainly(new)}, and a "
            "resumed run would mix both: leave out --resume to start a new run"
        )
    differ = [f"{key} {began.get(key)!r} (now {value!r})" for key, value in asks.items() if began.get(key) != value]
    if differ:
        raise EtudeError(
            f"{folder} was begun with {listed_plainly(differ)}: give the same settings again to resume it, or leave "
            "out --resume to start a new run"
        )


def refuse_other_inputs(folder: Path, begun: Callable[[str], Any], now: Mapping[str, str]) -> None:
    """Refuse to go on with a run on other images, labels and so on than those it began with.

    Args:
        folder: of the run.
        begun: returns a section of its record, or None; what an older etude did not write is not compared.
        now: fingerprints by the name of what they are of, and perhaps ``described``: the training data in words.

    Raises:
        EtudeError: with what has changed.
    """
    data, unlabelled = begun("data") or begun("ablation") or {}, begun("unlabelled") or {}
    known = {"images": data.get("fingerprint"), "unlabelled images": unlabelled.get("fingerprint")}
    known |= begun("inputs") or {}
    other = [name for name, value in now.items() if name != "described" and known.get(name) not in (None, value)]
    if other:
        was, described = known.get("described"), now.get("described")
        words = f" (with {was}, and now there is {described})" if was and described and was != described else ""
        raise EtudeError(
            f"the {' and the '.join(other)} have changed since {folder} was begun{words}, and a resumed run would mix "
            "both: bring the old ones back, or leave out --resume and start a new run"
        )


def clear_leftovers(folder: Path) -> None:
    """Remove what a finished run leaves: checkpoints, large and of no more use, and halves of files from a kill -9."""
    for checkpoints in [*folder.rglob("checkpoints")]:  # of folds, and of rounds with unlabelled images
        shutil.rmtree(checkpoints, ignore_errors=True)
    for half in folder.rglob(".*.tmp"):
        half.unlink(missing_ok=True)


def listed_plainly(parts: list[str], most: int = 3) -> str:
    """Join parts for a sentence, cut after ``most``.

    >>> listed_plainly(["a", "b", "c", "d"])
    'a, b, c and 1 more'
    """
    rest = len(parts) - most
    return ", ".join(parts[:most]) + (f" and {rest} more" if rest > 0 else "")


def _runs_on(train: Path) -> list[Path]:
    """Return the folders below ``runs/`` that are named after the training data, the one begun last at the end."""
    first = next(run_folders(train))
    name = re.compile(re.escape(first.name) + r"(-\d+)?")
    return sorted(
        (folder for folder in first.parent.glob("*") if name.fullmatch(folder.name)),
        key=lambda folder: (_content(folder).get("started", ""), folder.name),
    )


def _content(folder: Path) -> dict[str, Any]:
    """Return the run's record; nothing where it holds no readable one."""
    with suppress(EtudeError):
        return read_run(folder)
    return {}
