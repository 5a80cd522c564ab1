"""``etude doctor``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter


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

    class Collected(Screen):
        """With --json all goes into one object, warnings too."""

        def warn(self, text: str) -> None:
            warnings.append(text)
            if not as_json:
                super().warn(text)

    warnings: list[str] = []
    screen = Collected(quiet=as_json, file=sys.stderr if as_json else None)
    columns = {"image_column": image_column, "label_column": label_column, "image_root": image_root}
    if data:
        if train is None:
            raise EtudeError("--data examines images, and no TRAIN was given: etude doctor TRAIN --data")
        from etude.study.doctor.data import examine_data, show_health

        request = Request(
            train, valid=valid, test=test, recipe=recipe, settings=settings or (), seed=seed or 0, cache=cache,
            **columns,
        )  # fmt: skip
        health = examine_data(request, screen)
        if as_json:
            print(json.dumps({**health, "warnings": warnings}, indent=2, allow_nan=False))
        else:
            show_health(screen, health)
        return
    for name, given in (("--test", test), ("--valid", valid), ("--seed", seed)):
        if given is not None:
            raise EtudeError(f"{name} is used only when images are examined: add --data, or leave out {name}")

    from etude.study.doctor.doctor import choose_subject, examine
    from etude.study.doctor.show import show_measures, show_report

    request = None if train is None else Request(train, recipe=recipe, cache=cache, **columns)
    subject = choose_subject(recipe, settings or (), request, screen)
    show_measures(screen, subject)
    report = examine(subject, default_cache() if cache is None else cache.expanduser(), screen)
    if as_json:
        print(json.dumps({**report.as_dict(), "warnings": warnings}, indent=2, allow_nan=False))
    else:
        show_report(screen, report)
