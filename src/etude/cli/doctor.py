"""``etude doctor``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from etude.cli.common import AsJson, print_json, screen_for
from etude.core.context import Context
from etude.core.errors import EtudeError
from etude.study.run.request import Flag, Options, Train


def doctor(
    train: Train | None = None,
    *,
    data: Flag = False,
    test: Path | None = None,
    valid: Path | None = None,
    options: Annotated[Options, Parameter(name="*")] = Options(),
    as_json: AsJson = False,
) -> None:
    """Show what this machine can do, how long TRAIN will take on it, and what slows it down.

    It takes about half a minute, and changes nothing: the measured speeds of precisions and memory formats are kept in
    the cache. Without TRAIN only the machine is examined.

    With --data it examines the images instead: damaged and tiny files, near-duplicates, suspected label errors, uneven
    classes, labels that file names or sizes give away, and whether test images look different.

    Parameters
    ----------
    data
        Examine the images of TRAIN, not the machine.
    test
        With --data: images to predict, to see whether they differ from TRAIN or are also in it.
    valid
        With --data: labelled validation images, instead of a split of TRAIN.
    """
    from etude.study.run.start import checked_recipe, checked_sources

    screen = screen_for(as_json=as_json, quiet=as_json)
    if train is None and (options.sample or options.seed):
        given = f"--sample {options.sample}" if options.sample else f"--data --seed {options.seed}"
        raise EtudeError(f"no TRAIN was given with the images that are meant: etude doctor TRAIN {given}")
    if data:
        if train is None:
            raise EtudeError("--data examines images, and no TRAIN was given: etude doctor TRAIN --data")
        sources = checked_sources(replace(options.request(train), test=test, valid=valid), screen)
        from etude.study.doctor.data import examine_data, show_health  # and torch with them

        health = examine_data(sources, screen)
        if as_json:
            print_json({**health, "warnings": screen.warnings})
        else:
            show_health(screen, health)
        return
    for name, given in (("--test", test), ("--valid", valid), ("--seed", options.seed or None)):
        if given is not None:
            raise EtudeError(f"{name} is used only when images are examined: add --data, or leave out {name}")
    sources = None if train is None else checked_sources(options.request(train), screen)
    recipe = checked_recipe(options) if sources is None else sources.recipe
    from etude.study.doctor.doctor import choose_subject, examine, show_measures, show_report

    subject = choose_subject(recipe, None if sources is None else sources.labelled, screen)
    show_measures(screen, subject)
    report = examine(subject, Context(screen, screen.warn, options.cache))
    if as_json:
        print_json({**report.as_dict(), "warnings": screen.warnings})
    else:
        show_report(screen, report)
