"""docs/ablation.md says what is: every trick with its settings, and commands that exist."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from etude.cli.main import app
from etude.recipe.tricks import TRICKS

TEXT = (Path(__file__).resolve().parents[1] / "docs" / "ablation.md").read_text(encoding="utf-8")
COMMANDS = [line.partition("#")[0].strip() for line in TEXT.splitlines() if line.startswith("etude ")]


def test_every_trick_stands_in_the_table_with_its_settings():
    rows = re.findall(r"^\| `([\w-]+)` \| (`.+`) \| (`.+`) \|$", TEXT, re.MULTILINE)
    told = {name: (on, off) for name, on, off in rows}

    def written(settings) -> str:
        return ", ".join(f"`{key}={json.dumps(value)}`" for key, value in settings.items())

    assert told == {name: (written(trick.on), written(trick.off)) for name, trick in TRICKS.items()}


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_are_understood(command: str):
    assert len(COMMANDS) >= 5
    app.parse_args(shlex.split(command)[1:], exit_on_error=False, print_error=False)
