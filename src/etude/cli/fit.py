"""``etude fit``."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from etude.study.run.request import FitOptions, Train

if TYPE_CHECKING:
    from etude.journal.screen import Screen

_WHAT = {
    "report.html": "the report: everything below at a glance, for a browser",
    "notebook.ipynb": "the same as a notebook, to go on from",
    "submission.csv": "predictions of the test images",
    "test.npz": "test predictions with features",
    "train.npz": "the training images' features, for etude refine",
    "valid.npz": "validation predictions",
    "model.safetensors": "the trained model",
    "history.csv": "training curves",
    "timeline.png": "the schedule, as planned and as it happened",
    "lr_find.png": "the search for the learning rate",
    "suspects.csv": "labels that may be wrong",
    "bad_files.csv": "files that were left out, with reasons",
    "run.json": "settings, environment, data, stages and scores",
}


def show_files(screen: Screen, folder: Path) -> None:
    there = [(name, what) for name, what in _WHAT.items() if (folder / name).is_file()]
    screen.plan(f"Everything is in {folder}", there)
    screen.say(f"predict other images: etude predict {folder} IMAGES --out FILE.csv")


def fit(train: Train, *, options: Annotated[FitOptions, Parameter(name="*")] = FitOptions()) -> None:
    """Train on class folders or a table, and predict a test set.

    The plan is printed before the work starts. Everything lands in the run's folder.
    """
    began = time.monotonic()  # before torch is imported, which takes seconds
    from etude.journal.screen import Screen
    from etude.study.run.start import fit as run_job

    screen = Screen(quiet=options.quiet)
    show_files(screen, run_job(options.request(train, ("etude", *sys.argv[1:])), screen, began))
