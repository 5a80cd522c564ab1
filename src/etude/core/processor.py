"""The processor as this process may use it: its name, cores, memory and threads, and who else uses it."""

from __future__ import annotations

import math
import os
import platform
import time
from collections.abc import Collection, Generator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from pathlib import Path
from threading import Lock
from typing import Any

import psutil
import threadpoolctl  # pyright: ignore[reportMissingTypeStubs]

_ROOT = Path("/")
_threadpoolctl: Any = threadpoolctl
_psutil: Any = psutil  # its stubs are partial


def cpu_model(root: Path = _ROOT) -> str:
    """Return the processor's name, or its architecture where that is unknown."""
    lines = (read_text(root / "proc/cpuinfo") or "").splitlines()
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next((model for model in models if model), None) or platform.processor() or platform.machine() or "unknown"


def allowed_cores() -> set[int]:
    """Return the numbers of the logical cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def core_quota(root: Path = _ROOT) -> float | None:
    """Return how many cores' time the control group (a container's limit) grants, or None without a limit.

    Every group above counts too; the smallest limit is what is had.
    """
    limits = [*_quotas_v2(root), *_quotas_v1(root)]
    return min(limits, default=None)


def usable_cores(root: Path = _ROOT) -> int:
    """Return the number of cores whose time this process gets: those allowed, or the container's limit if lower."""
    allowed, quota = len(allowed_cores()), core_quota(root)
    return allowed if quota is None else max(1, min(allowed, math.ceil(quota)))


def physical_cores(cores: Collection[int] | None = None, root: Path = _ROOT) -> int:
    """Return how many physical cores are behind the logical ``cores`` (by default those allowed).

    Where that is unknown, every logical core counts as one.
    """
    cores = allowed_cores() if cores is None else cores
    siblings = "sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    return len({read_text(root / siblings.format(core)) or str(core) for core in cores})


def read_text(path: Path) -> str | None:
    """Return a small file's text without the space around it, or None where it is missing or may not be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


def _quotas_v2(root: Path) -> list[float]:
    groups = (read_text(root / "proc/self/cgroup") or "").splitlines()
    own = next((line[3:] for line in groups if line.startswith("0::")), "/")
    top = root / "sys/fs/cgroup"
    folder = top / own.lstrip("/")
    found: list[float] = []
    for level in (folder, *folder.parents):
        if level != top and top not in level.parents:
            break
        quota, _, period = (read_text(level / "cpu.max") or "max").partition(" ")
        if quota.isdigit() and period.isdigit() and int(period):
            found.append(int(quota) / int(period))
    return found


def _quotas_v1(root: Path) -> list[float]:
    folder = root / "sys/fs/cgroup/cpu"
    quota, period = (read_text(folder / f"cpu.cfs_{name}_us") or "" for name in ("quota", "period"))
    return [int(quota) / int(period)] if quota.isdigit() and period.isdigit() and int(period) else []


def total_memory(root: Path = _ROOT) -> int:
    """Return the bytes of the machine's memory, or a container's limit where that is lower."""
    limit = read_text(root / "sys/fs/cgroup/memory.max") or ""
    memory = int(_psutil.virtual_memory().total)
    return min(memory, int(limit)) if limit.isdigit() else memory


def free_memory(root: Path = _ROOT) -> int:
    """Return the bytes of memory that can still be had, within a container's limit."""
    group = root / "sys/fs/cgroup"
    limit, used = (read_text(group / f"memory.{name}") or "" for name in ("max", "current"))
    left = [max(0, int(limit) - int(used))] if limit.isdigit() and used.isdigit() else []
    return min([int(_psutil.virtual_memory().available), *left])


def _numbers(text: str) -> list[int]:
    """Return the numbers of a list such as the kernel writes, ``0-3,6``."""
    ends = [part.split("-") for part in text.strip().split(",") if part]
    return [number for first, *last in ends for number in range(int(first), int(last[0] if last else first) + 1)]


def seconds_of_others() -> float:
    """Return the processor seconds that other processes have used so far on the allowed cores.

    The difference between two calls, divided by the seconds between them, is the cores that others keep busy.
    """
    names, allowed = ("user", "nice", "system", "irq", "softirq", "steal"), allowed_cores()
    online = _numbers(read_text(_ROOT / "sys/devices/system/cpu/online") or "")
    counted = list[Any](_psutil.cpu_times(percpu=True))
    # psutil leaves out cores that are switched off, so the place in its list need not be the core's number.
    numbers = online if len(online) == len(counted) else range(len(counted))
    cores = [times for core, times in zip(numbers, counted, strict=True) if core in allowed]
    return sum(getattr(times, name, 0.0) for times in cores for name in names) - time.process_time()


_WORTH_SHARING = 10**9
"""Multiplications of one matrix product below which threads wait for each other for longer than they save."""


@contextmanager
def blas_threads_for(multiplications: int) -> Generator[None]:
    """Let BLAS, which computes the matrix products of numpy and scipy, work on one thread if the products are small.

    Threads wait for each other at every product: where other programs use the cores too, a small fit on two of them
    takes many times as long as on one. The limit holds for the process, so one block sets and lifts it; blocks inside
    it, or in other threads meanwhile, leave it as it is.
    ``multiplications`` are those of the largest product inside, such as N D C for (N, D) features and C classes.
    """
    if multiplications >= _WORTH_SHARING or not _limited.acquire(blocking=False):
        yield
        return
    try:
        with _blas().limit(limits=1, user_api="blas"):
            yield
    finally:
        _limited.release()


_limited = Lock()


@cache
def _blas() -> Any:
    """Return what sets the threads of every BLAS library of the process; to find these takes some 20 ms."""
    import_module("scipy.linalg")  # loads the library that scipy brings besides numpy's

    return _threadpoolctl.ThreadpoolController()
