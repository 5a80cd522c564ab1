"""The tutorials are followed to the letter, on a copy of the code: their edits made, their commands run."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.md"))
BLOCK = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
# One interpreter runs all commands and blocks of a tutorial, since libraries take seconds to load.
RUN = """
import json, runpy, sys
steps = json.loads(sys.argv[1])
for kind, words in steps:
    if kind == "python":
        exec(compile(words[0], "tutorial", "exec"), {})
        continue
    sys.argv = words
    try:
        runpy.run_module(words[0], run_name="__main__", alter_sys=True)
    except SystemExit as stop:
        if stop.code:
            raise
print(f"{len(steps)} ran")
"""


@dataclass(frozen=True)
class Block:
    """A code block: a whole new file (``title``), lines for an existing one (``after`` a line), or something to run."""

    kind: str
    title: str | None
    after: str | None
    text: str


def blocks(text: str) -> list[Block]:
    """Return the code blocks of a tutorial, in order."""
    found = [(kind, dict(re.findall(r"(\w+)='([^']*)'", words)), body) for kind, words, body in BLOCK.findall(text)]
    return [Block(kind, words.get("title"), words.get("after"), body) for kind, words, body in found]


def edit(block: Block, root: Path) -> None:
    """Make the edit that a block shows."""
    file = root / str(block.title)
    if block.after is None:
        assert not file.exists(), f"{block.title} is there already: say after which line the block goes"
        file.write_text(block.text, encoding="utf-8")
        return
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    places = [place for place, line in enumerate(lines) if block.after in line]
    assert len(places) == 1, f"{block.title} has {len(places)} lines with {block.after!r}, and the block needs one"
    lines.insert(places[0] + 1, block.text)
    file.write_text("".join(lines), encoding="utf-8")


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """A folder with a copy of the code, and with ``train/``: 24 small images of two classes."""
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__"))
    rng = np.random.default_rng(0)
    for name, level in (("dark", 60), ("light", 190)):
        (tmp_path / "train" / name).mkdir(parents=True)
        for k in range(12):
            pixels = np.clip(rng.normal(level, 30, (16, 16, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "train" / name / f"{k}.png")
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("tutorial", TUTORIALS, ids=lambda path: path.stem)
def test_a_tutorial_can_be_followed(tutorial: Path, copied: Path):
    steps: list[tuple[str, list[str]]] = []
    for block in blocks(tutorial.read_text(encoding="utf-8")):
        if block.title is not None:
            assert not steps, f"{block.title} is edited after something was run"
            edit(block, copied)
        elif block.kind == "python":
            steps.append(("python", [block.text]))
        elif block.kind == "sh":
            steps += [("sh", shlex.split(line, comments=True)) for line in block.text.splitlines()]
    assert steps
    environment = {**os.environ, "PYTHONPATH": str(copied / "src"), "ETUDE_CACHE": str(copied / "cache")}
    words = [sys.executable, "-c", RUN, json.dumps(steps)]
    done = subprocess.run(words, cwd=copied, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"{len(steps)} ran"


def test_there_are_tutorials():
    assert {path.stem for path in TUTORIALS} >= {"add-a-trick", "add-a-refiner"}
