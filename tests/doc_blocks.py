"""The commands and code blocks of a page, and what the command line makes of them."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from etude.cli.main import app
from etude.recipe import Recipe, load_recipe


def blocks(text: str, kind: str = "") -> list[str]:
    """Return the code blocks of one kind; of the kind "" are those that hold commands."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [block for name, block in found if name == kind]


def commands(text: str, program: str = "etude") -> list[str]:
    """Return the commands of a program in the order of the page."""
    return [line for block in blocks(text) for line in block.splitlines() if line.startswith(f"{program} ")]


def understood(line: str) -> tuple[Any, Recipe]:
    """Return a command's options as the command line reads them, and the recipe with the settings that they give."""
    _, bound, _ = app.parse_args(shlex.split(line, comments=True)[1:], exit_on_error=False, print_error=False)
    given = bound.arguments
    options = given.get("options") or SimpleNamespace(**given)
    return options, load_recipe(getattr(options, "recipe", "default"), getattr(options, "settings", ()))


def stop(run: Path) -> None:
    """Make a finished run look like one that was stopped."""
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**record, "state": "interrupted"}))
