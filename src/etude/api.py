"""The Python calls: ``etude.fit`` and what it takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from etude.journal.screen import Screen
from etude.run import Run
from etude.study.run.request import Request, documented
from etude.study.run.start import fit as run_job


def fit(
    train: Path | str,
    *,
    valid: Path | str | None = None,
    test: Path | str | None = None,
    unlabeled: Path | str | None = None,
    teachers: Sequence[Path | str] = (),
    budget: str | None = None,
    folds: int | None = None,
    recipe: str = "default",
    settings: Mapping[str, Any] | Sequence[str] | None = (),
    epochs: float | None = None,
    size: int | None = None,
    batch_size: int | None = None,
    backbone: str | None = None,
    lr: float | str | None = None,
    sample: str | int | None = None,
    seed: int = 0,
    out: Path | str | None = None,
    resume: bool = False,
    tags: Sequence[str] = (),
    cache: Path | str | None = None,
    cache_limit: str | None = None,
    labels: str | None = None,
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

    The options are those of ``etude fit``; ``settings`` may be a mapping, such as ``{"train.lr": 1e-3}``.

    Args:
        train: class folders, or a CSV, TSV or Parquet table.
        {options}

    Returns:
        The finished run.

    Raises:
        EtudeError: with one sentence on what to mend.
    """
    options: dict[str, Any] = dict(locals())  # each parameter is a field of Request, and documented there
    request = Request(command=("etude.fit", str(train)), **options)
    return Run(run_job(request, Screen(quiet=quiet)))


fit.__doc__ = (fit.__doc__ or "").replace("{options}", documented(indent=8).strip())
