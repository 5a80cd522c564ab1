"""Going on with a run that was stopped: which one, whether it may, and what is left over at its end."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from etude.core.errors import EtudeError
from etude.core.files import digest_of, hash_of_file
from etude.functional.transforms import code_digest
from etude.journal.record import read_run
from etude.journal.record_state import is_alive
from etude.recipe import Recipe, flat
from etude.study.request import Request, run_folders


def resumable_folder(request: Request) -> Path:
    """Return the folder of the run to go on with: ``--out``, or the newest unfinished run on these images.

    Raises:
        EtudeError: there is none, it has finished, or another process is still at work on it.
    """
    if request.out is not None:
        folder = request.out
        if not (folder / "run.json").is_file():
            raise EtudeError(f"{folder} holds no run to resume: give the --out of the run that was stopped")
    else:
        unfinished = [
            folder for folder in _runs_on(request.train) if _content(folder).get("state", "finished") != "finished"
        ]
        if not unfinished:
            raise EtudeError(
                f"no unfinished run on {request.train} stands below runs/: give its folder with --out, or leave out "
                "--resume to start a new run"
            )
        folder = unfinished[-1]
    record = read_run(folder)
    if record["state"] == "finished":
        raise EtudeError(f"{folder} is finished, so nothing is left to resume: leave out --resume for a new run")
    # A record of this very process is that of a run which ended here without a word: nobody is at work on it.
    if record["state"] == "running" and record["pid"] != os.getpid() and is_alive(record["pid"]):
        raise EtudeError(f"process {record['pid']} is still at work on {folder}: wait for it, or stop it first")
    return folder


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
    differ = [f"{key} {began.get(key)!r} (now {value!r})" for key, value in asks.items() if began.get(key) != value]
    if differ:
        raise EtudeError(
            f"{folder} was begun with {listed_plainly(differ)}: give the same settings again to resume it, or leave "
            "out --resume to start a new run"
        )


def inputs_of(recipe: Recipe, request: Request) -> dict[str, str | None]:
    """Return a hash of the content of each input besides the images: the user's transform, weights, and teachers.

    None stands for one whose content cannot be had.
    """
    transform, weights = recipe.augment.transform, Path(recipe.model.weights)
    inputs: dict[str, str | None] = {"augment.transform": code_digest(transform)} if transform else {}
    if weights.is_file():
        inputs["model.weights"] = hash_of_file(weights)
    for path in request.teachers:
        models = [file for name in ("model.json", "model.safetensors") for file in sorted(path.rglob(name))]
        files = [path] if path.is_file() else models
        name = os.fsencode(path).decode("utf-8", "backslashreplace")
        inputs[f"--teacher {name}"] = digest_of(*map(hash_of_file, files))
    return inputs


def refuse_other_inputs(folder: Path, inputs: Mapping[str, str | None]) -> None:
    """Refuse to go on with a run whose inputs besides the images have another content now.

    Raises:
        EtudeError: with the first that differs.
    """
    began = read_run(folder).get("inputs")
    if began is None:  # begun by an earlier version
        return
    for name in {**began, **inputs}:
        if began.get(name) != inputs.get(name):
            raise EtudeError(
                f"{name} has changed since {folder} was begun, and a resumed run would mix both: bring the old one "
                "back, or leave out --resume to start a new run"
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
