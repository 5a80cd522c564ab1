"""``etude fit``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

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
    "bad_files.csv": "files that were left out, with reasons",
    "run.json": "settings, environment, data, stages and scores",
}


def tell_run(screen: Screen, folder: Path) -> None:
    """Name the files of a finished run and how to go on."""
    there = [(name, what) for name, what in _WHAT.items() if (folder / name).is_file()]
    screen.plan(f"Everything is in {folder}", there)
    screen.say(f"predict other images: etude predict {folder} IMAGES --out FILE.csv")


def fit(
    train: Path,
    *,
    valid: Path | None = None,
    test: Path | None = None,
    unlabeled: Path | None = None,
    teacher: Annotated[list[Path] | None, Parameter(negative="")] = None,
    folds: int | None = None,
    recipe: str = "default",
    settings: Annotated[list[str] | None, Parameter(name="--set", negative="")] = None,
    lr: str | None = None,
    sample: str | None = None,
    seed: int = 0,
    out: Path | None = None,
    resume: Annotated[bool, Parameter(negative="")] = False,
    tag: Annotated[list[str] | None, Parameter(negative="")] = None,
    cache: Path | None = None,
    cache_limit: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    weight_column: str | None = None,
    labels: str | None = None,
    image_root: Path | None = None,
    sample_submission: Path | None = None,
    probabilities: Annotated[bool, Parameter(negative="")] = False,
    positive: str | None = None,
    mlflow: str | None = None,
    quiet: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Train on class folders or a table, and predict a test set.

    The plan is printed before the work starts. Everything lands in the run's folder.

    Parameters
    ----------
    train
        Folder with one sub-folder a class, or a CSV, TSV or Parquet table.
    valid
        Labelled validation images; by default a fifth of TRAIN is held out.
    test
        Images to predict at the end, into submission.csv.
    unlabeled
        Images without labels to learn from, the test images beside them; with --recipe pseudo-label or consistency.
    teacher
        A run, or a file of probabilities, that the network learns from; may be repeated.
    folds
        Train that many models by cross-validation and average them.
    recipe
        quick (seconds), default, pseudo-label, consistency, distill, a timeline (``etude timeline --list``), or a
        TOML file.
    settings
        Change a setting, such as --set train.lr=0.001; may be repeated.
    lr
        Peak learning rate: a number, or auto to search for it first.
    sample
        Start small: a stratified sample such as 10% or 500.
    seed
        Of everything random.
    out
        The run's folder; by default a new one below runs/.
    resume
        Go on with the run in --out (or the newest unfinished one on TRAIN) where it was stopped.
    tag
        A word to find the run by with ``etude journal list --tag``; may be repeated.
    cache
        Folder of decoded images and features; by default ~/.cache/etude.
    cache_limit
        Most disk space for the decoded images, such as 20GB; by default half of what is free.
    image_column
        The table's column of images, when it is not found automatically.
    label_column
        The table's column of labels, when it is not found automatically.
    weight_column
        A column of weights for training.
    labels
        tidy (labels that differ only by outer spaces or Unicode form are one class) or strict; by default tidy.
    image_root
        Folder that the table's image names start from.
    sample_submission
        A CSV whose ids, columns and order the submission must follow.
    probabilities
        Write one column of probabilities a class instead of a label.
    positive
        Write the probability of this class in one column; by default 1, true, yes or positive, where the sample
        submission has one column of fractions.
    mlflow
        Address of an MLflow server, such as http://127.0.0.1:5000, that gets the run when it has finished.
    quiet
        Show warnings only.
    """
    from etude.journal.screen import Screen
    from etude.study.run.job import fit as run_job
    from etude.study.run.request import Columns, Request, lr_settings

    request = Request(
        train=train,
        valid=valid,
        test=test,
        unlabeled=unlabeled,
        teachers=teacher or (),
        folds=folds,
        recipe=recipe,
        settings=[
            *(settings or ()),
            *lr_settings(lr),
            *([f"data.cache_limit={cache_limit}"] if cache_limit else []),
            *([f"data.labels={labels}"] if labels else []),
        ],
        sample=sample,
        seed=seed,
        out=out,
        cache=cache,
        columns=Columns(image_column, label_column, weight_column, image_root),
        sample_submission=sample_submission,
        probabilities=probabilities,
        positive=positive,
        resume=resume,
        command=("etude", *sys.argv[1:]),
        tags=tag or (),
        mlflow=mlflow,
    )
    screen = Screen(quiet=quiet)
    tell_run(screen, run_job(request, screen))
