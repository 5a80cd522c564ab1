"""What commands share: options, the screen, and how JSON is printed."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from etude.core.errors import EtudeError
from etude.core.text import counted
from etude.study.run.request import Flag

if TYPE_CHECKING:
    from etude.data.sources import BadFile
    from etude.journal.screen import Screen
    from etude.run import Run

_SHOWN = 10  # files named one by one; thousands would hide what matters

AsJson = Annotated[Flag, Parameter(name="--json", help="Print JSON to standard output and nothing else.")]
Quiet = Annotated[Flag, Parameter(help="Show warnings only.")]


def expanded(path: Path) -> Path:
    """Return ``path`` with ``~`` expanded: the shell leaves ``--out=~/FILE`` as it is."""
    return Path(os.path.expanduser(path))


def checked_out(out: Path, table: Mapping[str, bool]) -> Path:
    """Return --out; refuse another ending, and an .npz with an option of ``table``, which only a table follows."""
    out = expanded(out)
    if out.suffix.lower() not in (".csv", ".npz"):
        raise EtudeError(f"--out is {out}; give a file that ends in .csv or .npz (an .npz holds the full predictions)")
    if out.suffix.lower() == ".npz" and any(table.values()):
        *most, last = table
        raise EtudeError(f"--out is {out}, and an .npz file follows no {', '.join(most)} or {last}: give a .csv")
    return out


def opened_run(folder: Path, trust: bool, screen: Screen) -> Run:
    """Return the run in ``folder``, with a warning where it did not finish."""
    from etude.run import load

    opened = load(folder, trust=trust, warn=screen.warn)
    if opened.record["state"] != "finished":
        screen.warn(f"{folder} did not finish (it is {opened.record['state']}): predicting with the models it has kept")
    return opened


def name_left_out(bad: Sequence[BadFile], out: Path | None, screen: Screen) -> None:
    """Name the first files that were left out, and write them all next to ``out``."""
    for one in bad[:_SHOWN]:
        screen.warn(f"left out: {one.id} ({one.reason})")
    if bad and out is not None:
        from etude.data.sources import write_bad_files

        listing = out.with_suffix(".bad_files.csv")
        write_bad_files(listing, bad)
        screen.warn(f"{counted(len(bad), 'file')} left out; {listing} says why")
    elif len(bad) > _SHOWN:
        screen.warn(f"{len(bad) - _SHOWN:,} more files left out")


def check_tta(tta: int | None) -> None:
    if tta is not None and tta < 1:
        raise EtudeError(f"--tta is {tta}; give the number of views, 1 or more")


def screen_for(*, as_json: bool = False, quiet: bool = False) -> Screen:
    """Return a command's screen; with ``--json`` everything but the JSON goes to standard error."""
    from etude.journal.screen import Screen

    return Screen(quiet=quiet, file=sys.stderr if as_json else None)


def print_json(value: object) -> None:
    print(json.dumps(value, indent=2, allow_nan=False))
