"""``etude ablate``."""

from __future__ import annotations

import sys
from typing import Annotated

from cyclopts import Parameter

from etude.cli.common import AsJson, print_json, screen_for
from etude.study.run.request import Train, TrainingOptions


def ablate(
    train: Train,
    *,
    tricks: str | None = None,
    mode: str | None = None,
    seeds: int | None = None,
    budget: str | None = None,
    metric: str | None = None,
    options: Annotated[TrainingOptions, Parameter(name="*")] = TrainingOptions(),
    as_json: AsJson = False,
) -> None:
    """Train with and without each trick of a recipe, over several seeds, and show what each gained.

    Arms of a seed share their split, so gains are paired over seeds and images. It ends with a table, a figure
    (lift.png), ablation.json, and best.toml: a recipe with what helped. Each run has a folder in arms/; --set changes a
    setting of every arm, --seed is the first of the seeds, and --resume trains only what is missing.

    Parameters
    ----------
    tricks
        Names separated by commas, such as mixup,ema,augment; by default all that the recipe has.
    mode
        leave-one-out (the default) compares all tricks with all but one, add-one-in none of them with one; or both.
    seeds
        Trainings of each arm, at least 2; by default 5.
    budget
        Time for everything, such as 30m: fewer epochs, then fewer seeds, until it fits.
    metric
        What decides: accuracy (the default), log_loss, or map@k.
    """
    from etude.study.ablation.design import check_asked
    from etude.study.run.start import checked_sources

    screen = screen_for(as_json=as_json, quiet=options.quiet)
    names = None if tricks is None else tricks.split(",")
    check_asked(names, mode, seeds, budget, metric)
    sources = checked_sources(options.request(train, ("etude", *sys.argv[1:])), screen)
    from etude.study.ablation.ablate import ablate as run_ablation  # and torch with it

    outcome = run_ablation(sources, screen, tricks=names, mode=mode, seeds=seeds, budget=budget, metric=metric)
    if as_json:
        print_json(outcome.as_dict())
