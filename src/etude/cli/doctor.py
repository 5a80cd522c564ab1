"""``etude doctor``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from etude.cli.common import AsJson, print_json, screen_for
from etude.core.context import Context
from etude.core.errors import EtudeError
from etude.study.run.request import Flag, Options, Request, Train


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
    screen = screen_for(as_json=as_json, quiet=as_json)
    request = options if train is None else replace(options.request(train), test=test, valid=valid)
    if train is None and (options.sample or options.seed):
        given = f"--sample {options.sample}" if options.sample else f"--data --seed {options.seed}"
        raise EtudeError(f"no TRAIN was given with the images that are meant: etude doctor TRAIN {given}")
    if data:
        from etude.study.doctor.data import examine_data, show_health

        if not isinstance(request, Request):
            raise EtudeError("--data examines images, and no TRAIN was given: etude doctor TRAIN --data")
        health = examine_data(request, screen)
        if as_json:
            print_json({**health, "warnings": screen.warnings})
        else:
            show_health(screen, health)
        return
    for name, given in (("--test", test), ("--valid", valid), ("--seed", options.seed or None)):
        if given is not None:
            raise EtudeError(f"{name} is used only when images are examined: add --data, or leave out {name}")

    from etude.study.doctor.doctor import choose_subject, examine, show_measures, show_report

    subject = choose_subject(request, screen)
    show_measures(screen, subject)
    report = examine(subject, Context(screen, screen.warn, options.cache))
    if as_json:
        print_json({**report.as_dict(), "warnings": screen.warnings})
    else:
        show_report(screen, report)
