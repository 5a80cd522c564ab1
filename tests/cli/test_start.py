"""What the command line says before any work: help, version, unknown words."""

from __future__ import annotations

import subprocess
import sys

import pytest


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


INSTEAD = {
    "--workers": "train.threads",
    "--num-workers": "train.threads",
    "--device": "CUDA_VISIBLE_DEVICES",
    "--pretrained": "model.weights=none",
    "--model": "--backbone",
    "--imgsz": "--size",
    "--learning-rate": "--lr",
    "--output": "--out",
    "--weight-decay": "train.weight_decay",
    "--mixup": "augment.mixup",
    "--train.lr": "train.lr",
    "--epoch": "--epochs",
}


@pytest.mark.each(("option", "instead"), [*INSTEAD.items()])
def test_options_of_other_tools_are_answered_with_what_to_give(etude, option, instead):
    for words in ((option, "4"), (f"{option}=4",)):
        ended = etude("fit", "x", *words)
        assert ended.code == 2
        assert instead in ended.err.replace(option, "", 1)


def test_no_command_is_answered_with_an_option_that_it_lacks(etude):
    assert "--backbone" not in etude("predict", "x", "y", "--out", "z.csv", "--model", "4").err
    assert "--set" not in etude("predict", "x", "y", "--out", "z.csv", "--mixup", "4").err
    assert "train.lr=" in etude("lr-find", "x", "--lr", "4").err


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
