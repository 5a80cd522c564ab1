"""A run that is killed or stopped by hand leaves what was finished, and says where it stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from picture_folders import write_classes
from recorded_runs import code_of, forked_etude, wait_for

WORDS = ("--set", "train.epochs=10000", "--set", "model.feature_size=32", "--set", "train.threads=1")


def sent(number: int, tmp_path: Path, own_process: bool) -> tuple[int, str]:
    """Start a run that would train for hours, send the signal once it does; return how it ended and what it said."""
    words = ("fit", str(write_classes(tmp_path / "train")), "--out", str(tmp_path / "run"), *WORDS)
    said = tmp_path / "said.txt"
    if own_process:
        with said.open("w") as file:
            pid = subprocess.Popen(
                [sys.executable, "-m", "etude", *words], stdout=file, stderr=file,
                # A shell starts what it runs in the background deaf to interrupts, and children inherit that.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            ).pid  # fmt: skip
    else:
        pid = forked_etude(*words, output=said)
    wait_for(lambda: [*(tmp_path / "run" / "tb").glob("events*")], pid)
    time.sleep(0.3)
    os.kill(pid, number)
    return code_of(pid), said.read_text()


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code", "own_process"), [(signal.SIGINT, 130, True), (signal.SIGTERM, 143, False)])
def test_stop_by_hand_is_recorded_and_stage_one_can_predict(etude, tmp_path, number, code, own_process):
    ended, told = sent(number, tmp_path, own_process)
    assert ended == code
    assert "Traceback" not in told
    assert "etude resume" in told.splitlines()[-1]
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["state"] == "interrupted"
    assert record["stages"][-1]["name"] == "fine-tune"
    assert etude("predict", "run", tmp_path / "train", "--out", "p.csv").code == 0


@pytest.mark.slow
def test_killed_run_is_readable_and_caches_are_reused(etude, tmp_path):
    assert sent(signal.SIGKILL, tmp_path, own_process=False)[0] == -signal.SIGKILL
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert [stage["state"] for stage in record["stages"]][-1] == "running"
    assert etude("predict", "run", tmp_path / "train", "--out", "p.csv").code == 0
    again = etude("fit", tmp_path / "train", "--recipe", "quick", *WORDS[2:4], "--out", "again")
    assert again.code == 0
    notes = {stage["name"]: stage["notes"] for stage in json.loads(Path("again/run.json").read_text())["stages"]}
    assert notes["features"]["reused"]
