"""What commands share: options, the screen, and how JSON is printed."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

if TYPE_CHECKING:
    from etude.journal.screen import Screen

AsJson = Annotated[
    bool,
    Parameter(name="--json", negative="", show_default=False, help="Print JSON to standard output and nothing else."),
]
Quiet = Annotated[bool, Parameter(negative="", show_default=False, help="Show warnings only.")]


def screen_for(*, as_json: bool = False, quiet: bool = False) -> Screen:
    """Return the screen of a command; with ``--json`` everything but the JSON goes to standard error."""
    from etude.journal.screen import Screen

    return Screen(quiet=quiet, file=sys.stderr if as_json else None)


def print_json(value: object) -> None:
    """Print JSON values to standard output."""
    print(json.dumps(value, indent=2, allow_nan=False))
