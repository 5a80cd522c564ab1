"""``etude lr-find``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter


def lr_find(
    train: Path,
    *,
    plot: Path = Path("lr_find.png"),
    recipe: str = "default",
    settings: Annotated[list[str] | None, Parameter(name="--set", negative="")] = None,
    sample: str | None = None,
    seed: int = 0,
    cache: Path | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    image_root: Path | None = None,
) -> None:
    """Search the peak learning rate by a short training in which it grows until the loss diverges (Smith 2015).

    It takes the network, batch size, optimiser and image size of the recipe, and keeps nothing but the picture.
    ``etude fit TRAIN --lr auto`` does the same before it trains.

    Parameters
    ----------
    train
        Folder with one sub-folder a class, or a CSV, TSV or Parquet table.
    plot
        The picture to draw, .png or .svg.
    recipe
        As in etude fit.
    settings
        Change a setting, such as --set train.batch_size=64; may be repeated.
    sample
        Start small: a stratified sample such as 10% or 500.
    seed
        Of everything random.
    cache
        Folder of decoded images and features; by default ~/.cache/etude.
    image_column
        The table's column of images, when it is not found automatically.
    label_column
        The table's column of labels, when it is not found automatically.
    image_root
        Folder that the table's image names start from.
    """
    from etude.journal.figures import check_figure_path
    from etude.journal.screen import Screen
    from etude.study.run.lr_find import search
    from etude.study.run.request import Columns, Request

    check_figure_path(plot)
    request = Request(
        train=train,
        recipe=recipe,
        settings=settings or (),
        sample=sample,
        seed=seed,
        cache=cache,
        columns=Columns(image_column, label_column, None, image_root),
        command=("etude", *sys.argv[1:]),
    )
    screen = Screen()
    found = search(request, screen, plot)
    screen.say(
        f"suggested: --lr {found.lr:.2g} (steepest descent at {found.steepest:.2g}, lowest loss at {found.lowest:.2g})"
    )
    screen.say(f"{plot} shows the search")
