"""``kill -9`` at any moment: the record can be read, and says where the run stopped."""

from __future__ import annotations

import itertools
import os
import random
import signal
import time
from pathlib import Path

import pytest

from etude.journal import record as record_module
from etude.journal.index import list_runs
from etude.journal.record import read_run
from etude.journal.runs import KILLED, stopped_at
from recorded_runs import forked, opened

MOMENTS = 50
LONGEST = 0.04  # seconds that a run lives at most


def work(folder: Path) -> None:
    """Record as fast as can be, so that a kill often comes within a write."""
    record = opened(folder)
    (folder / "model.npz").write_bytes(b"x" * 1000)
    for number in itertools.count():
        with record.stage(f"stage {number}") as stage:
            stage.note("text", "x" * 5000)
            stage.score("accuracy", number)
            record.warn(f"warning {number}")
            record.artefact(folder / "model.npz")


@pytest.mark.parametrize("resumed", [False, True])
def test_killed_at_random_moments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resumed: bool):
    monkeypatch.setattr(record_module, "describe_environment", dict)  # asking git takes longer than all the rest
    moments = random.Random(7 + resumed)
    for number in range(MOMENTS // 2):
        folder = tmp_path / f"run-{number}"
        if resumed:
            with opened(folder).stage("stage 0"):
                pass
        child = forked(lambda folder=folder: work(folder) if not resumed else go_on(folder))
        while not (folder / "run.json").exists() and os.waitpid(child, os.WNOHANG) == (0, 0):
            time.sleep(0.0005)
        time.sleep(moments.uniform(0, LONGEST))
        os.kill(child, signal.SIGKILL)
        assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
        run = read_run(folder)
        # A resumed run may be killed before it has said a word: the record is then this process's.
        assert run["state"] == (KILLED if run["pid"] == child else "running")
        told = stopped_at(run["stages"])
        running = [stage["name"] for stage in run["stages"] if stage["state"] == "running"]
        assert len(running) <= 1
        if running:
            assert told.startswith(f"in {running[0]} after ")
        else:
            assert told == (f"after {run['stages'][-1]['name']}" if run["stages"] else "before its first stage")
    assert len(list_runs(tmp_path)) == MOMENTS // 2


def go_on(folder: Path) -> None:
    """Resume, and stay at work."""
    record = opened(folder, resume=True)
    for number in itertools.count():
        with record.stage(f"stage {number}") as stage:
            stage.note("text", "y" * 5000)
