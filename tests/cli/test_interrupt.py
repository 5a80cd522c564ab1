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

WORDS = ("--set", "train.epochs=10000", "--set", "model.feature_size=32", "--set", "train.threads=1")


def started(tmp_path: Path) -> subprocess.Popen[str]:
    """Start a run that would train for hours, and wait until it does."""
    train = write_classes(tmp_path / "train")
    command = [sys.executable, "-m", "etude", "fit", str(train), "--out", str(tmp_path / "run"), *WORDS]
    environment = {**os.environ, "ETUDE_CACHE": str(tmp_path / "cache")}
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        # A shell starts what it runs in the background deaf to interrupts, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    events = tmp_path / "run" / "tb"
    for _ in range(1200):
        if process.poll() is not None or list(events.glob("events*")):
            break
        time.sleep(0.1)
    assert process.poll() is None, process.stdout and process.stdout.read()
    time.sleep(1)
    return process


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stop_by_hand_is_recorded_and_stage_one_can_predict(etude, tmp_path, number, code):
    process = started(tmp_path)
    process.send_signal(number)
    told, _ = process.communicate(timeout=60)
    assert process.returncode == code
    assert "Traceback" not in told
    assert "--resume --out" in told.splitlines()[-1]
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["state"] == "interrupted"
    assert record["stages"][-1]["name"] == "fine-tune"
    assert etude("predict", "run", tmp_path / "train", "--out", "p.csv").code == 0


@pytest.mark.slow
def test_killed_run_is_readable_and_caches_are_reused(etude, tmp_path):
    process = started(tmp_path)
    process.kill()
    process.communicate(timeout=60)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert [stage["state"] for stage in record["stages"]][-1] == "running"
    assert etude("predict", "run", tmp_path / "train", "--out", "p.csv").code == 0
    again = etude("fit", tmp_path / "train", "--recipe", "quick", *WORDS[2:4], "--out", "again")
    assert again.code == 0
    notes = {stage["name"]: stage["notes"] for stage in json.loads(Path("again/run.json").read_text())["stages"]}
    assert notes["features"]["reused"]
