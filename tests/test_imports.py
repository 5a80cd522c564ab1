"""The house plan, enforced: who may import whom, what stays light, and how long a file or function may be."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import etude
from house import (
    FILES,
    HOUSE,
    SRC,
    budgets,
    circles,
    graph,
    imports_of,
    lines_of,
    only_for_a_sibling,
    room_lines,
    room_of,
    travellers,
)  # fmt: skip

# Room -> the rooms it may import. A module directly under etude/ is a room of one file.
ROOMS: dict[str, set[str]] = {
    "compat": set(),
    "core": set(),
    "timeline": set(),
    "recipe": {"core", "timeline"},
    "journal": {"core", "timeline"},
    "refine": {"core"},
    "functional": {"core", "compat"},
    "data": {"core", "recipe", "functional"},
    "health": {"core", "data", "refine"},
    "models": {"core", "recipe", "compat"},
    "callbacks": {"core", "functional", "timeline", "compat"},
    "training": {"core", "callbacks", "data", "functional", "models", "recipe", "timeline", "compat"},
    "inference": {"core", "data", "functional", "models", "compat"},
}
EVERYTHING_BELOW = set(ROOMS)
ROOMS |= {
    "study": EVERYTHING_BELOW,
    "run": EVERYTHING_BELOW | {"study"},
    "api": EVERYTHING_BELOW | {"run", "study"},
    "__init__": {"core", "run", "api"},
    "__main__": {"cli"},
    "cli": EVERYTHING_BELOW | {"run", "study", "__init__"},
}

TORCH = {"torch", "torchvision", "torchmetrics", "timm", "lightning", "pytorch_lightning"}
LIGHTNING = {"lightning", "pytorch_lightning"}
# Room -> packages that it may not import, here or inside a function.
FORBIDDEN: dict[str, set[str]] = {
    "compat": LIGHTNING | {"timm", "torchmetrics"},
    "core": TORCH,
    "journal": TORCH,
    "refine": TORCH,
    "functional": LIGHTNING,
    "data": LIGHTNING,
    "health": LIGHTNING,
    "models": LIGHTNING,
}
STANDARD_LIBRARY_ONLY = {"timeline"}
NEEDS_COMPAT = {"timm", "torchmetrics", "lightning", "pytorch_lightning"}

LONGEST_FILE = 700
LONGEST_FUNCTION = 60


def faults(source: str, path: Path) -> list[str]:
    """What ``source``, standing at ``path``, imports against the tables above."""
    room = room_of(path)
    found: list[str] = []
    for name in imports_of(source, path):
        top, *rest = name.split(".")
        if top == "etude":
            target = rest[0] if rest and rest[0] in ROOMS else "__init__"
            if target != room and target not in ROOMS[room]:
                found.append(f"{room} imports {target} ({name})")
        elif top in FORBIDDEN.get(room, ()):
            found.append(f"{room} imports {top} ({name})")
        elif room in STANDARD_LIBRARY_ONLY and top not in sys.stdlib_module_names:
            found.append(f"{room} imports {top}, and may use the standard library only")
    return found


@pytest.mark.each("path", FILES, ids=lambda path: str(path.relative_to(SRC)))
def test_a_file_keeps_to_the_table_of_rooms(path: Path):
    assert room_of(path) in ROOMS, f"{path} is in no room of the table above"
    assert faults(path.read_text(encoding="utf-8"), path) == []


@pytest.mark.each(
    ("where", "source"),
    [
        ("core/x.py", "from etude.data import split"),
        ("core/x.py", "import etude.study"),
        ("core/x.py", "def f():\n    import torch.nn"),
        ("core/x.py", "from ..journal import record"),
        ("core/x.py", "import importlib\nimportlib.import_module('timm')"),
        ("journal/x.py", "from etude import fit"),
        ("timeline/x.py", "from etude.core.errors import EtudeError"),
        ("timeline/x.py", "import numpy as np"),
        ("data/x.py", "from lightning import Trainer"),
        ("study.py", "from etude.cli import main"),
        ("refine/sub/x.py", "from ...models import head"),
    ],
)
def test_the_table_refuses(where: str, source: str):
    assert len(faults(source, HOUSE / where)) == 1


@pytest.mark.parametrize(
    ("where", "source"),
    [
        ("core/x.py", "import numpy\nfrom etude.core.errors import EtudeError\nfrom . import files"),
        ("timeline/x.py", "import math\nfrom etude.timeline import curves"),
        ("models/x.py", "import etude.compat\nimport timm"),
        ("cli/x.py", "def f():\n    from etude import fit\n    from etude.study import run"),
    ],
)
def test_the_table_allows(where: str, source: str):
    assert faults(source, HOUSE / where) == []


def test_the_version_is_the_same_everywhere():
    project = tomllib.loads((SRC.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert etude.__version__ == project["version"]


def test_nothing_but_cli_may_import_cli():
    assert [room for room, allowed in ROOMS.items() if "cli" in allowed] == ["__main__"]  # python -m etude


def test_imports_of_rooms_point_one_way():
    rooms = dict(ROOMS)
    settled: set[str] = set()
    while ready := {room for room, allowed in rooms.items() if allowed <= settled} - settled:
        settled |= ready
    assert set(ROOMS) - settled == set()


@pytest.mark.each("path", FILES, ids=lambda path: str(path.relative_to(SRC)))
def test_compat_comes_before_what_needs_torchvision(path: Path):
    assert lacks_compat(path.read_text(encoding="utf-8"), path) is False


def test_a_file_without_compat_is_found():
    assert lacks_compat("import timm", HOUSE / "core" / "x.py")
    assert not lacks_compat("import etude.compat\nimport timm", HOUSE / "core" / "x.py")


def lacks_compat(source: str, path: Path) -> bool:
    """Whether ``source`` imports what needs torchvision though neither it nor its room imports ``etude.compat``."""
    names = [*imports_of(source, path)]
    if NEEDS_COMPAT.isdisjoint(name.split(".")[0] for name in names):
        return False
    room = HOUSE / room_of(path) / "__init__.py"
    names += imports_of(room.read_text(encoding="utf-8"), room) if room.is_file() else ()
    return not any(name.startswith("etude.compat") for name in names)


@pytest.mark.parametrize("heavy", ["torch", "numpy", "timm", "lightning", "cv2", "sklearn", "polars"])
def test_importing_etude_stays_light(heavy: str):
    code = f"import sys, etude; sys.exit({heavy!r} in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(SRC)}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0


@pytest.mark.each("path", FILES, ids=lambda path: str(path.relative_to(SRC)))
def test_files_and_functions_stay_short(path: Path):
    source = path.read_text(encoding="utf-8")
    assert lines_of(path) <= LONGEST_FILE
    functions = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)]
    assert {node.name: lines for node in functions if (lines := body_lines(node)) > LONGEST_FUNCTION} == {}


@pytest.mark.each("path", FILES, ids=lambda path: str(path.relative_to(SRC)))
def test_no_statement_stands_where_nothing_comes(path: Path):
    """Such as the rest of an old body that a merge left behind a ``return``."""
    blocks = [
        block
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        for name in ("body", "orelse", "finalbody")
        if isinstance(block := getattr(node, name, None), list)
    ]
    ends = (ast.Return, ast.Raise, ast.Continue, ast.Break)
    assert [one.lineno for block in blocks for one in block[:-1] if isinstance(one, ends)] == []


def test_rooms_keep_their_line_budgets():
    allowed = budgets("lines")
    assert {room: count for room, count in room_lines().items() if count > allowed.get(room, 0)} == {}, (
        "a room has outgrown its budget in tests/house.toml: cut, or raise the budget and say why in the commit"
    )


def test_values_that_pass_through_many_calls_are_parameters_of_few():
    allowed = budgets("parameters")
    assert {name: count for name, count in travellers().items() if count > allowed[name]} == {}


def test_there_are_no_import_circles_and_no_files_for_one_sibling():
    edges = graph()
    assert circles(edges) == []
    assert only_for_a_sibling(edges) == []


def test_circles_and_siblings_are_found():
    circle = {"etude.a": {"etude.b"}, "etude.b": {"etude.a", "etude.c"}, "etude.c": set(), "etude.d": {"etude.a"}}
    assert circles(circle) == ["etude.a", "etude.b"]
    assert only_for_a_sibling({"etude.a.x": {"etude.a.x_y"}, "etude.a.x_y": set()}) == ["etude.a.x_y"]
    assert only_for_a_sibling({"etude.a.x": {"etude.a.x_y"}, "etude.b": {"etude.a.x_y"}, "etude.a.x_y": set()}) == []


def body_lines(function: ast.FunctionDef) -> int:
    """Lines of the body, without signature and docstring."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


def test_body_lines_leave_out_signature_and_docstring():
    source = 'def f(\n    a,\n):\n    """One.\n\n    Two.\n    """\n    b = a\n\n    return b\n'
    function = ast.parse(source).body[0]
    assert isinstance(function, ast.FunctionDef)
    assert body_lines(function) == 3
