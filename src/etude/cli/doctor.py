"""``etude doctor``."""

from __future__ import annotations

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
) -> None:
    """Show what this machine can do, how long TRAIN will take on it, and what slows it down.

    It takes about half a minute, and changes nothing: what it measured of the numeric modes is kept in the cache.

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
    """
    from etude.journal.screen import Screen
    from etude.study.doctor import choose_subject, examine
    from etude.study.doctor_show import report_json, show_measures, show_report
    from etude.study.request import Columns, Request, default_cache

    screen = Screen(quiet=as_json, file=sys.stderr if as_json else None)
    warnings: list[str] = []

    def warn(text: str) -> None:
        warnings.append(text)
        if not as_json:
            screen.warn(text)

    columns = Columns(image_column, label_column, None, image_root)
    request = None if train is None else Request(train, recipe=recipe, cache=cache, columns=columns)
    subject = choose_subject(recipe, settings or (), request, screen, warn)
    show_measures(screen, subject)
    folder = default_cache() if cache is None else cache.expanduser()
    report = examine(subject, folder, screen)
    if as_json:
        print(report_json(report, warnings))
    else:
        show_report(screen, report)
