"""A process that fine-tunes with others, with torchrun's variables, for ``test_resume_processes.py``.

It leaves ``RANK.json`` and ``RANK.safetensors`` in its folder: what it saw and what it ended with.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import time
from dataclasses import replace
from pathlib import Path

import etude.compat  # noqa: F401  (before lightning)

import numpy as np
import torch
import torch.distributed
from lightning.pytorch.utilities import rank_zero_only
from safetensors.torch import save_file

from etude.core.context import Advance, BarContext, Context, Silent
from etude.data.loader import OrderedBatches, TrainingRows
from etude.functional.mix import cross_entropy
from etude.models.classifier import Classifier
from etude.training.fit import fine_tune
from etude.training.task import FineTuneTask
from recorded_runs import forked
from training.digits import WHOLE_SIZES, network, rows, task

SETTINGS = ("train.epochs=8", "train.validate_every=20st", "train.checkpoint_every=0.3s", *WHOLE_SIZES)
LONGEST = 120  # seconds that the processes may take
TOO_SMALL = 2_000_000  # bytes: less than a checkpoint takes, more than the finished network


class KillItself(Silent):
    """Ends the process as ``kill -9`` does when the training bar comes to ``images``."""

    def __init__(self, images: int) -> None:
        self.left = images

    def bar(self, name: str, total: int, unit: str = "images") -> BarContext:
        """Return itself."""
        return self  # type: ignore[return-value]

    def __enter__(self) -> Advance:
        return self.advance

    def __exit__(self, *exc: object) -> None:
        pass

    def advance(self, count: int = 1) -> None:
        """Count images."""
        self.left -= count
        if self.left <= 0:
            os.kill(os.getpid(), signal.SIGKILL)


def watched(data: TrainingRows, seen: list[list[int]]) -> TrainingRows:
    """Return rows that write into ``seen`` which of them each batch held."""

    def gather(indices: np.ndarray, size: int) -> np.ndarray:
        seen.append(indices.tolist())
        return data.gather(indices, size)

    return replace(data, gather=gather)


def valid_loss(model: Classifier, one: FineTuneTask) -> float:
    """Return the trained network's loss on the validation images."""
    assert one.valid is not None
    (batch,) = OrderedBatches(one.valid, batch_size=len(one.valid.rows), size=one.preprocessing.size)
    with torch.inference_mode():
        logits = model.eval()(one.preprocessing.to_input(batch["image"]))
    return float(cross_entropy(logits, batch["target"], batch["weight"]))


def main(folder: Path, kill_at: int, resume: bool, full_disk: bool) -> None:
    """Train; write what was seen."""
    rank, seen, warnings = int(os.environ["RANK"]), list[list[int]](), list[str]()
    if full_disk and rank == 0:
        resource.setrlimit(resource.RLIMIT_FSIZE, (TOO_SMALL, resource.RLIM_INFINITY))
    one = task(folder, settings=SETTINGS, train=watched(rows(0, 160), seen), processes=2, resume=resume)
    model, progress = network(), KillItself(kill_at * one.batch_size) if kill_at else Silent()
    done = fine_tune(model, one, context=Context(progress, warnings.append))
    save_file(
        {name: tensor.contiguous() for name, tensor in model.state_dict().items()}, folder / f"{rank}.safetensors"
    )
    told = {"processes": torch.distributed.get_world_size(), "steps": done.steps, "history": done.history}
    told |= {"seen": seen, "warnings": warnings, "valid_loss": valid_loss(model, one)}
    (folder / f"{rank}.json").write_text(json.dumps(told))


def started(variables: dict[str, str], folder: Path, kill_at: int, resume: bool, full_disk: bool) -> int:
    """Start one of the processes; return its number. It is forked: libraries load once."""

    def work() -> None:
        os.environ.update(variables)
        torch.set_num_threads(1)
        rank_zero_only.rank = int(variables["RANK"])  # as if Lightning were imported with these variables
        main(folder, kill_at, resume, full_disk)

    return forked(work)


def ends_of(pids: list[int]) -> list[int | str]:
    """Return how each process ended, or that it did not and was killed."""
    ends: dict[int, int | str] = {}
    deadline = time.monotonic() + LONGEST
    while len(ends) < len(pids):
        for pid in pids:
            if pid not in ends and (found := os.waitpid(pid, os.WNOHANG))[0]:
                ends[pid] = os.waitstatus_to_exitcode(found[1])
            elif pid not in ends and time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                ends[pid] = f"still at work after {LONGEST} seconds"
        time.sleep(0.02)
    return [ends[pid] for pid in pids]
