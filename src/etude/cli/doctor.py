"""``etude doctor``."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

if TYPE_CHECKING:
    from etude.journal.screen import Screen
    from etude.study.run.request import Request


def doctor(
    train: Path | None = None,
    *,
    recipe: str = "default",
    settings: Annotated[list[str] | None, Parameter(name="--set", negative="")] = None,
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
    cache: Path | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    image_root: Path | None = None,
    data: Annotated[bool, Parameter(negative="")] = False,
    test: Path | None = None,
    valid: Path | None = None,
    seed: int | None = None,
) -> None:
    """Show what this machine can do, how long TRAIN will take on it, and what slows it down.

    It takes about half a minute, and changes nothing: what it measured of the numeric modes is kept in the cache.

    With --data it looks at the images instead: damaged and tiny files, copies, suspected label errors, uneven classes,
    labels that file names or sizes give away, and whether test images look different.

    Parameters
    ----------
    train
        Folder with one sub-folder a class, or a CSV, TSV or Parquet table; without it the machine alone is looked at.
    recipe
        As in etude fit.
    settings
        Change a setting, such as --set train.batch_size=64; may be repeated.
    as_json
        Print one JSON object instead of tables.
    cache
        Folder of decoded images and features; by default ~/.cache/etude.
    image_column
        The table's column of images, when it is not found automatically.
    label_column
        The table's column of labels, when it is not found automatically.
    image_root
        Folder that the table's image names start from.
    data
        Look at the images of TRAIN, not at the machine.
    test
        With --data: images to predict, to see whether they differ from TRAIN or stand in it.
    valid
        With --data: labelled validation images, instead of a split of TRAIN.
    seed
        With --data: of the split, 0 by default.
    """
    from etude.core.context import default_cache
    from etude.core.errors import EtudeError
    from etude.journal.screen import Screen
    from etude.study.run.request import Request

    screen = Screen(quiet=as_json, file=sys.stderr if as_json else None)
    warnings: list[str] = []

    def warn(text: str) -> None:
        warnings.append(text)
        if not as_json:
            screen.warn(text)

    columns = {"image_column": image_column, "label_column": label_column, "image_root": image_root}
    if data:
        if train is None:
            raise EtudeError("--data looks at images: name their folder or table, as in etude doctor TRAIN --data")
        asked = Request(
            train, valid=valid, test=test, recipe=recipe, settings=settings or (), seed=seed or 0, cache=cache,
            **columns,
        )  # fmt: skip
        _look_at_images(asked, screen, warnings, warn, as_json)
        return
    for name, given in (("--test", test), ("--valid", valid), ("--seed", seed)):
        if given is not None:
            raise EtudeError(f"{name} says nothing about the machine: add --data to look at images, or leave it out")

    from etude.study.doctor.doctor import choose_subject, examine
    from etude.study.doctor.show import report_json, show_measures, show_report

    request = None if train is None else Request(train, recipe=recipe, cache=cache, **columns)
    subject = choose_subject(recipe, settings or (), request, screen, warn)
    show_measures(screen, subject)
    report = examine(subject, default_cache() if cache is None else cache.expanduser(), screen)
    if as_json:
        print(report_json(report, warnings))
    else:
        show_report(screen, report)


def _look_at_images(
    request: Request, screen: Screen, warnings: list[str], warn: Callable[[str], None], as_json: bool
) -> None:
    from etude.study.doctor.data import examine_data, health_json, show_health

    health = examine_data(request, screen, warn)
    if as_json:
        print(health_json(health, warnings))
    else:
        show_health(screen, health)
