"""The wheel holds the whole package, and its command runs without the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
OWN = REPO / "src" / "etude"


def test_the_wheel_holds_every_file_and_runs_alone(tmp_path: Path):
    build = ["-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path / "dist")]
    subprocess.run([sys.executable, *build], cwd=REPO, check=True, capture_output=True)
    (wheel,) = (tmp_path / "dist").glob("etude-*.whl")
    with zipfile.ZipFile(wheel) as held:
        names = {name.removeprefix("etude/") for name in held.namelist() if name.startswith("etude/")}
        about = [name for name in held.namelist() if ".dist-info/" in name]
        held.extractall(tmp_path / "site")
    files = {file.relative_to(OWN).as_posix() for file in OWN.rglob("*") if file.is_file()}
    assert names == {name for name in files if "__pycache__" not in name}
    assert any(name.endswith("LICENSE") for name in about)
    scripts = next(tmp_path.glob("site/*.dist-info/entry_points.txt")).read_text()
    assert "etude = etude.cli.main:main" in scripts

    code = f"import etude; assert etude.__file__.startswith({str(tmp_path)!r}); from etude.cli.main import main; main()"
    shown = subprocess.run(
        [sys.executable, "-c", code, "recipe", "list"], cwd=tmp_path, capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
    )  # fmt: skip
    assert "quick" in shown.stdout
