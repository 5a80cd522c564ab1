"""What the command line says before any work: help, version, unknown words."""

from __future__ import annotations

import subprocess
import sys


def test_help_names_the_commands(etude):
    ended = etude("--help")
    assert ended.code == 0
    for name in ("demo", "fit", "predict"):
        assert name in ended.out


def test_help_of_fit_explains_every_option(etude):
    ended = etude("fit", "--help")
    assert ended.code == 0
    for option in ("--valid", "--test", "--folds", "--recipe", "--set", "--sample", "--seed", "--out", "--cache"):
        assert option in ended.out


def test_unknown_command_and_option_are_refused(etude):
    assert etude("fitt").code != 0
    assert etude("fit", "x", "--reciep", "quick").code != 0


def test_help_loads_nothing_heavy():
    heavy = "{'torch', 'numpy', 'timm', 'lightning', 'sklearn', 'pydantic', 'cv2'}"
    code = (
        "import sys; from etude.cli.main import app\n"
        "try: app(['--help'])\n"
        "except SystemExit: pass\n"
        f"print(sorted({heavy} & set(sys.modules)), file=sys.stderr)"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stderr.strip() == "[]"
