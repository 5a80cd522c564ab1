"""Folders of runs as ``etude fit`` leaves them, without any training; and processes that can be killed."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest

from etude.cli.main import main
from etude.core.predictions import Predictions
from etude.journal.record import RunRecord

CLASSES = ("cat", "dog")


def opened(folder: Path, **changed: Any) -> RunRecord:
    """Open the record of a run."""
    asked: dict[str, Any] = {
        "command": ["etude", "fit", "train"],
        "recipe": "quick",
        "settings": {"data": {"fit": "crop"}},
        "changed": {"data.fit": "crop"},
        "seed": 3,
    }
    return RunRecord.open(folder, **(asked | changed))


def write_run(
    folder: Path, *, right: Sequence[int] | None = None, settings: dict[str, Any] | None = None, **changed: Any
) -> RunRecord:
    """Write a finished run with its validation predictions.

    Args:
        right: of 100 images, which are predicted right; all when None.
        settings: as resolved, by dotted name.
    """
    record = opened(folder, **changed)
    record.set("plan", {"resolved": settings or {"train.lr": 0.1}})
    record.set(
        "data", {"fingerprint": "abc123", "described": "class folders, 500 images", "images": 500, "folds": [{}]}
    )
    with record.stage("head") as stage:
        stage.score("accuracy", 0.5)
    with record.stage("fine-tune"):
        pass
    found = predictions(range(100) if right is None else right)
    found.save(folder / "valid.npz")
    assert found.labels is not None
    accuracy = float((found.predicted() == found.labels).mean())
    record.set("result", {"accuracy": accuracy, "log_loss": 0.25, "validation_images": len(found)})
    record.close("finished")
    return record


def predictions(right: Sequence[int] | range) -> Predictions:
    """Return predictions of 100 images with 80% on the label, or 20% where they are wrong."""
    labels = np.arange(100) % 2
    hit = np.isin(np.arange(100), list(right))
    on_label = np.where(hit, 0.8, 0.2)[:, None]
    shares = np.where(np.eye(2, dtype=bool)[labels], on_label, 1 - on_label)
    return Predictions.from_probabilities([f"i{k:03}" for k in range(100)], CLASSES, shares, labels)


def write_killed_run(folder: Path, stage: str = "fine-tune") -> None:
    """Write a run whose process ended in the middle of a stage, without a word."""

    def work() -> None:
        with opened(folder).stage(stage):
            os._exit(0)

    code_of(forked(work))


def edit_record(folder: Path, **changes: object) -> None:
    """Change what ``run.json`` says."""
    file = folder / "run.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def forked(work: Callable[[], object]) -> int:
    """Run ``work`` in a child process and return its number; the child ends with 0, or with 1 after an exception."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return pid


def forked_etude(*words: object, output: Path) -> int:
    """Run ``etude WORDS`` in a child process, its libraries loaded, and return its number; ``output`` is what it says.

    It starts as a process of its own does, and may be stopped or killed as one.
    """

    def work() -> None:
        with output.open("w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
            sys.stdout = sys.stderr = file
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            sys.argv = ["etude", *map(str, words)]
            main()

    return forked(work)


def code_of(pid: int, seconds: float = 120.0) -> int:
    """Wait until a child ends and return its exit code, -N after signal N; it is killed and fails after ``seconds``."""
    until = time.monotonic() + seconds
    while (ended := os.waitpid(pid, os.WNOHANG))[0] == 0:
        if time.monotonic() > until:
            kill_late(pid, seconds)
        time.sleep(0.01)
    return os.waitstatus_to_exitcode(ended[1])


def wait_for(there: Callable[[], object], pid: int, seconds: float = 120.0) -> None:
    """Wait until ``there()`` is true; fail when the child ends before, or is killed when the time is over."""
    until = time.monotonic() + seconds
    while not there():
        assert os.waitpid(pid, os.WNOHANG)[0] == 0, f"process {pid} has ended"
        if time.monotonic() > until:
            kill_late(pid, seconds)
        time.sleep(0.01)


def kill_late(pid: int, seconds: float) -> NoReturn:
    """Kill a child that takes too long, and fail."""
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    pytest.fail(f"process {pid} takes more than {seconds:g} seconds")
