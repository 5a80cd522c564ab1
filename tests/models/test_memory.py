from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from etude.models.device import keep_large_blocks

SRC = Path(__file__).resolve().parents[2] / "src"
# Parameter numbers of glibc's malloc.h.
TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD = -1, -2, -3

FAULTS_OF_THE_SECOND_BLOCK = """
import ctypes, resource, sys
from etude.models.device import keep_large_blocks
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]

def fill_a_block(size=64 << 20):
    block = libc.malloc(size)
    ctypes.memset(block, 1, size)
    libc.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

taken = sys.argv[1] == "keep" and keep_large_blocks()
print(-(fill_a_block() - fill_a_block()), taken)
"""


def faults(mode: str) -> tuple[int, bool]:
    command = [sys.executable, "-c", FAULTS_OF_THE_SECOND_BLOCK, mode]
    environment = {**os.environ, "PYTHONPATH": str(SRC)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    count, taken = done.stdout.split()
    return int(count), taken == "True"


def test_a_freed_block_is_found_again_without_page_faults():
    """A mapped block is taken from the kernel page by page each time; a kept one is there already."""
    before, _ = faults("leave")
    after, taken = faults("keep")
    assert before > 20
    assert not taken or after < before / 10


def test_glibc_is_told_all_three_sizes(monkeypatch: pytest.MonkeyPatch):
    told: dict[int, int] = {}

    def mallopt(name: int, value: int) -> int:
        told[name] = value
        return 1

    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace(mallopt=mallopt))
    assert keep_large_blocks(100 << 20) is True
    assert told == {MMAP_THRESHOLD: 100 << 20, TRIM_THRESHOLD: 200 << 20, TOP_PAD: 64 << 20}


def test_a_refusal_is_told(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace(mallopt=lambda name, value: 0))
    assert keep_large_blocks() is False


@pytest.mark.parametrize("platform", ["darwin", "win32", "linux"])
def test_elsewhere_nothing_happens(monkeypatch: pytest.MonkeyPatch, platform: str):
    """Another system, or a C library without ``mallopt``."""
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace())
    assert keep_large_blocks() is False
