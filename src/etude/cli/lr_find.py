"""``etude lr-find``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from etude.study.run.request import Options, Train


def lr_find(
    train: Train,
    *,
    plot: Path = Path("lr_find.png"),
    options: Annotated[Options, Parameter(name="*")] = Options(),
) -> None:
    """Search the peak learning rate by a short training in which it grows until the loss diverges (Smith 2015).

    It takes the network, batch size, optimiser and image size of the recipe, and keeps nothing but the picture.
    ``etude fit TRAIN --lr auto`` does the same before it trains.

    Parameters
    ----------
    plot
        The picture to draw, .png or .svg.
    """
    from etude.journal.figures import check_figure_path
    from etude.journal.screen import Screen
    from etude.study.run.start import checked_sources, refuse_idle_search

    check_figure_path(plot)
    screen = Screen()
    sources = checked_sources(options.request(train, ("etude", *sys.argv[1:])), screen)
    refuse_idle_search(sources.recipe, always=True)
    from etude.study.run.measure import search  # and torch with it

    found = search(sources, screen, plot)
    screen.say(
        f"suggested: --lr {found.lr:.2g} (steepest descent at {found.steepest:.2g}, lowest loss at {found.lowest:.2g})"
    )
    screen.say(f"{plot} shows the search")
