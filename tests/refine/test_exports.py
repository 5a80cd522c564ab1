from __future__ import annotations

import os
import pkgutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import etude.refine

SRC = Path(__file__).resolve().parents[2] / "src"


@pytest.mark.each("name", etude.refine.__all__)
def test_every_name_is_there_and_hides_no_module(name: str):
    assert not isinstance(getattr(etude.refine, name), ModuleType)
    assert name not in {module.name for module in pkgutil.iter_modules(etude.refine.__path__)}
    assert name in dir(etude.refine)


def test_other_names_are_not():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = etude.refine.nothing


@pytest.mark.parametrize("heavy", ["torch", "lightning", "sklearn", "scipy", "numpy"])
def test_importing_the_room_loads_nothing_heavy(heavy: str):
    code = f"import sys, etude.refine; sys.exit({heavy!r} in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(SRC)}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0


def test_using_the_whole_room_loads_no_torch():
    code = "import sys, etude.refine as r; [getattr(r, n) for n in r.__all__]; sys.exit('torch' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(SRC)}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0
