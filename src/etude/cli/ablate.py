"""``etude ablate``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter


def ablate(
    train: Path,
    *,
    tricks: str | None = None,
    mode: str | None = None,
    seeds: int | None = None,
    recipe: str = "default",
    settings: Annotated[list[str] | None, Parameter(name="--set", negative="")] = None,
    budget: str | None = None,
    metric: str | None = None,
    valid: Path | None = None,
    sample: str | None = None,
    seed: int = 0,
    out: Path | None = None,
    resume: Annotated[bool, Parameter(negative="")] = False,
    tag: Annotated[list[str] | None, Parameter(negative="")] = None,
    mlflow: str | None = None,
    cache: Path | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    weight_column: str | None = None,
    image_root: Path | None = None,
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
    quiet: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Train with and without each trick of a recipe, over several seeds, and say what each bought.

    Arms of a seed share their split, so gains are paired over seeds and images. It ends with a table, a chart
    (lift.png), ablation.json, and best.toml: a recipe with what helped.

    Parameters
    ----------
    train
        Folder with one sub-folder a class, or a CSV, TSV or Parquet table.
    tricks
        Names separated by commas, such as mixup,ema,augment; by default all that the recipe has.
    mode
        leave-one-out (the default) compares all tricks with all but one, add-one-in none of them with one; or both.
    seeds
        Trainings of each arm, at least 2; by default 5.
    recipe
        As in etude fit.
    settings
        Change a setting of every arm, such as --set train.epochs=4; may be repeated.
    budget
        Time for everything, such as 30m: fewer epochs, then fewer seeds, until it fits.
    metric
        What decides: accuracy (the default), log_loss, or map@k.
    valid
        Labelled validation images; by default each seed holds out a fifth of TRAIN.
    sample
        Start small: a stratified sample such as 10% or 500.
    seed
        The first of the seeds.
    out
        The ablation's folder; by default a new one below runs/. Each run has one below it, in arms/.
    resume
        Go on with the ablation in --out (or the newest unfinished one on TRAIN): only what is missing is trained.
    tag
        A word to find the ablation by in etude journal list; may be repeated.
    mlflow
        Address of an MLflow server that gets the ablation when it has finished, with all of its runs below it.
    cache
        Folder of decoded images and features; by default ~/.cache/etude.
    image_column
        The table's column of images, when it is not found automatically.
    label_column
        The table's column of labels, when it is not found automatically.
    weight_column
        A column of weights for training.
    image_root
        Folder that the table's image names start from.
    as_json
        Print what was found as one JSON object; the rest goes to standard error.
    quiet
        Show warnings only.
    """
    from etude.journal.screen import Screen
    from etude.study.ablation.ablate import AblationRequest
    from etude.study.ablation.ablate import ablate as run_ablation
    from etude.study.run.request import Request

    request = Request(
        train=train,
        valid=valid,
        recipe=recipe,
        settings=settings or (),
        sample=sample,
        seed=seed,
        out=out,
        cache=cache,
        image_column=image_column,
        label_column=label_column,
        weight_column=weight_column,
        image_root=image_root,
        resume=resume,
        tags=tag or (),
        mlflow=mlflow,
        command=("etude", *sys.argv[1:]),
    )
    names = None if tricks is None else tricks.split(",")
    screen = Screen(quiet=quiet, file=sys.stderr if as_json else None)
    outcome = run_ablation(AblationRequest(request, names, mode, seeds, budget, metric), screen)
    if as_json:
        print(json.dumps(outcome.as_dict(), indent=2, allow_nan=False))
