"""Two processes that train together, killed and resumed, end with the very weights of the uninterrupted two."""

from __future__ import annotations

import json
import signal
import socket
from pathlib import Path
from typing import Any

import pytest
import torch

from etude.training.resume import ResumeFolder
from training.one_of_several import ends_of, started

PROCESSES, EPOCHS, EPOCH_STEPS, KILL_AT = 2, 8, 10, 57


def run_processes(folder: Path, *, kill_at: int = 0, resume: bool = False, full_disk: bool = False) -> list[int | str]:
    """Train in a folder with two processes as torchrun starts them; return how each ended."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder.mkdir(exist_ok=True)
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    shared |= {"WORLD_SIZE": str(PROCESSES), "LOCAL_WORLD_SIZE": str(PROCESSES), "GROUP_RANK": "0"}
    shared |= {"TORCHELASTIC_RUN_ID": "test"}
    variables = [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(PROCESSES)]
    return ends_of([started(one, folder, kill_at, resume, full_disk) for one in variables])


def told(folder: Path) -> list[dict[str, Any]]:
    """Return what each process wrote at its end."""
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(PROCESSES)]


def curves(one: dict[str, Any]) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key != "seconds"} for row in one["history"]]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    assert run_processes(folder) == [0, 0]
    return folder


@pytest.mark.slow
def test_two_processes_share_every_batch_and_learn(whole: Path):
    first, second = told(whole)
    assert first["processes"] == PROCESSES
    assert len(first["seen"]) == len(second["seen"]) == first["steps"] == EPOCHS * EPOCH_STEPS
    for epoch in range(EPOCHS):
        steps = range(epoch * EPOCH_STEPS, (epoch + 1) * EPOCH_STEPS)
        images = [image for step in steps for one in (first, second) for image in one["seen"][step]]
        assert len(images) == len(set(images)) == 160
    assert first["history"][-1]["valid_accuracy"] > 0.6  # chance is 0.1


@pytest.mark.slow
def test_all_processes_judge_the_same_network(whole: Path):
    """Batch statistics are each process's own; a plateau must see those of the network that is saved."""
    first, second = told(whole)
    assert [row["valid_loss"] for row in first["history"]] == [row["valid_loss"] for row in second["history"]]
    assert first["valid_loss"] == pytest.approx(first["history"][-1]["valid_loss"], rel=1e-5)


@pytest.mark.slow
def test_killed_processes_end_as_the_uninterrupted_ones(whole: Path, tmp_path: Path):
    """The disk is full by the time they are resumed: that costs checkpoints, and leaves no process waiting."""
    assert run_processes(tmp_path, kill_at=KILL_AT) == [-signal.SIGKILL, -signal.SIGKILL]
    step = torch.load(ResumeFolder(tmp_path).checkpoint, weights_only=True)["global_step"]
    assert 0 < step < KILL_AT
    assert not (tmp_path / "0.json").exists()
    assert run_processes(tmp_path, resume=True, full_disk=True) == [0, 0]
    for resumed, uninterrupted in zip(told(tmp_path), told(whole), strict=True):
        assert resumed["seen"] == uninterrupted["seen"][step:]
    assert curves(told(tmp_path)[0]) == curves(told(whole)[0])
    for name in ("0.safetensors", "checkpoints/finished.safetensors"):
        assert (tmp_path / name).read_bytes() == (whole / name).read_bytes()
    first, second = (one["warnings"] for one in told(tmp_path))
    assert "no checkpoint at step" in first[0]
    assert "the disk is full" in first[0]
    assert second == []
