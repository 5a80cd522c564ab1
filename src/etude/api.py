"""The Python calls: ``etude.fit`` and what it takes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from etude.journal.screen import Screen
from etude.run import Run
from etude.study.run.job import fit as run_job
from etude.study.run.request import Columns, Request, lr_settings


def fit(
    train: Path | str,
    *,
    valid: Path | str | None = None,
    test: Path | str | None = None,
    unlabeled: Path | str | None = None,
    teachers: Sequence[Path | str] = (),
    folds: int | None = None,
    recipe: str = "default",
    settings: Mapping[str, Any] | None = None,
    lr: float | str | None = None,
    sample: str | int | None = None,
    seed: int = 0,
    out: Path | str | None = None,
    resume: bool = False,
    tags: Sequence[str] = (),
    cache: Path | str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    weight_column: str | None = None,
    image_root: Path | str | None = None,
    sample_submission: Path | str | None = None,
    probabilities: bool = False,
    positive: str | None = None,
    mlflow: str | None = None,
    quiet: bool = False,
) -> Run:
    """Train a classifier on a folder of class folders, or on a table of images and labels.

    Args:
        train: class folders, or a CSV, TSV or Parquet table.
        valid: labelled validation images; by default a fifth of ``train`` is held out.
        test: images to predict at the end, into ``submission.csv``.
        unlabeled: images without labels to learn from, the test images beside them, with the recipes ``pseudo-label``
            and ``consistency``.
        teachers: runs, or files of probabilities, that the network learns from.
        folds: train that many models by cross-validation and average them.
        recipe: ``default``, ``quick``, ``pseudo-label``, ``consistency``, ``distill``, the name of a timeline such as
            ``one-cycle``, or a TOML file.
        settings: changes by dotted name, such as ``{"train.lr": 1e-3}``.
        lr: peak learning rate, or ``"auto"`` to search for it first.
        sample: start small, such as ``"10%"`` or ``500``.
        seed: of everything random.
        out: the run's folder; by default a new one below ``runs/``.
        resume: go on with the run in ``out`` (or the newest unfinished one on ``train``) where it was stopped.
        tags: words to find the run by with ``etude journal list --tag``.
        cache: folder of decoded images and features; by default ``~/.cache/etude``.
        image_column: the table's column of images, when it is not found automatically.
        label_column: the table's column of labels.
        weight_column: a column of weights for training.
        image_root: folder that the table's image names start from.
        sample_submission: a CSV whose ids, columns and order the submission follows.
        probabilities: write a column of probabilities a class instead of one label.
        positive: write the probability of this class in one column; by default 1, true, yes or positive, where the
            sample submission has one column of fractions.
        mlflow: address of an MLflow server that gets the run when it has finished.
        quiet: show warnings only.

    Returns:
        The finished run.

    Raises:
        EtudeError: with one sentence on what to mend.
    """
    request = Request(
        train=Path(train),
        valid=_path(valid),
        test=_path(test),
        unlabeled=_path(unlabeled),
        teachers=tuple(Path(teacher) for teacher in teachers),
        folds=folds,
        recipe=recipe,
        settings=[f"{key}={_toml(value)}" for key, value in (settings or {}).items()] + lr_settings(lr),
        sample=None if sample is None else str(sample),
        seed=seed,
        out=_path(out),
        cache=_path(cache),
        columns=Columns(image_column, label_column, weight_column, _path(image_root)),
        sample_submission=_path(sample_submission),
        probabilities=probabilities,
        positive=positive,
        resume=resume,
        command=("etude.fit", str(train)),
        tags=tuple(tags),
        mlflow=mlflow,
    )
    return Run(run_job(request, Screen(quiet=quiet)))


def _path(given: Path | str | None) -> Path | None:
    return None if given is None else Path(given)


def _toml(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    # JSON writes numbers, booleans and strings as TOML reads them.
    return json.dumps(str(value) if isinstance(value, Path) else value)
