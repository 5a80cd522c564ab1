"""What the machine is, read from the system."""

from __future__ import annotations

import os
import platform
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import torch
from PIL import features
from torch import cuda

from etude.core.processor import (
    allowed_cores,
    core_quota,
    cpu_model,
    free_memory,
    physical_cores,
    read_text,
    seconds_of_others,
    total_memory,
    usable_cores,
)
from etude.models.device import best_device, native_bf16

_WATCHED_SECONDS = 0.5
_NETWORK_SYSTEMS = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "fuse.sshfs", "9p", "afs", "glusterfs", "fuse.glusterfs", "ceph", "lustre",
     "beegfs", "gpfs", "fuse.s3fs", "fuse.gcsfuse", "fuse.rclone", "fuse.goofys"}
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineFacts:
    """The machine at the moment when this is made; None (or empty) is what the system does not report."""

    device: str = field(default_factory=lambda: best_device().type)
    gpus: tuple[str, ...] = field(default_factory=lambda: tuple(map(cuda.get_device_name, range(cuda.device_count()))))
    cpu: str
    architecture: str = field(default_factory=platform.machine)  # such as x86_64
    cores_present: int = field(default_factory=lambda: os.cpu_count() or 1)  # logical cores of the machine
    cores_allowed: int = field(default_factory=lambda: len(allowed_cores()))  # of them, that this process may run on
    core_quota: float | None  # cores' time that the container's limit grants
    cores_usable: int  # what is left after both
    cores_physical: int
    load: float = field(default_factory=lambda: psutil.getloadavg()[0])  # processes, mean over the last minute
    busy_cores: float | None = field(default_factory=lambda: _busy_cores())  # that other programs use at this moment
    memory_bytes: int
    memory_free: int | None
    torch: str = field(default_factory=lambda: torch.__version__)
    threads: int = field(default_factory=lambda: torch.get_num_threads())  # that torch uses by default
    interop_threads: int = field(default_factory=lambda: torch.get_num_interop_threads())
    thread_variables: Mapping[str, str] = field(default_factory=lambda: _thread_variables())  # of the environment
    capability: str = field(default_factory=lambda: torch.backends.cpu.get_cpu_capability())  # such as AVX2
    blas: str = field(default_factory=lambda: _blas())
    bf16: bool = field(default_factory=native_bf16)
    amx: bool = field(default_factory=lambda: bool(getattr(torch.cpu, "_is_amx_tile_supported", bool)()))
    governors: tuple[str, ...]  # of the processor's clock: powersave, balance_performance, ...
    cuda_build: str | None = field(default_factory=lambda: torch.version.cuda)  # such as 12.8
    cuda_available: bool = field(default_factory=cuda.is_available)
    gpu_driver: str | None  # version of NVIDIA's driver; None without a GPU
    cache: Path
    cache_system: str | None  # kind of file system that holds the cache
    disk_free: int
    disk_bytes: int
    jpeg_turbo: bool = field(default_factory=lambda: bool(features.check_feature("libjpeg_turbo")))  # Pillow uses it

    @property
    def on_network(self) -> bool:
        return self.cache_system in _NETWORK_SYSTEMS


def read_machine(cache: Path, root: Path = Path("/")) -> MachineFacts:
    """Read everything about this machine; takes half a second, in which it watches what other programs use."""
    existing = next(folder for folder in (cache.absolute(), *cache.absolute().parents) if folder.exists())
    disk = psutil.disk_usage(str(existing))
    return MachineFacts(
        cpu=cpu_model(root),
        core_quota=core_quota(root),
        cores_usable=usable_cores(root),
        cores_physical=physical_cores(root=root),
        memory_bytes=total_memory(root),
        memory_free=free_memory(root),
        governors=_governors(root),
        gpu_driver=_driver(root),
        cache=cache,
        cache_system=_file_system(existing.resolve()),
        disk_free=disk.free,
        disk_bytes=disk.total,
    )


def _thread_variables() -> dict[str, str]:
    return {name: os.environ[name] for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS") if name in os.environ}


def _blas() -> str:
    found = re.search(r"BLAS_INFO=(\w+)", torch.__config__.show())
    return found[1] if found else "unknown"


def _busy_cores() -> float:
    before, start = seconds_of_others(), time.perf_counter()
    time.sleep(_WATCHED_SECONDS)
    after, seconds = seconds_of_others(), time.perf_counter() - start
    return max(0.0, (after - before) / seconds)


def _governors(root: Path) -> tuple[str, ...]:
    found: set[str] = set()
    for core in allowed_cores():
        folder = root / f"sys/devices/system/cpu/cpu{core}/cpufreq"
        preference = read_text(folder / "energy_performance_preference")
        # The drivers with a preference call even their fast modes powersave, so there the preference decides.
        found.add(preference or read_text(folder / "scaling_governor") or "")
    return tuple(sorted(found - {""}))


def _driver(root: Path) -> str | None:
    """Return the version of NVIDIA's driver, ``unknown`` where only the device is there, or None without either."""
    if text := read_text(root / "proc/driver/nvidia/version"):
        found = re.search(r"\s(\d+\.\d+(\.\d+)?)\s", text)
        return found[1] if found else "unknown"
    return "unknown" if (root / "dev/nvidia0").exists() else None


def _file_system(folder: Path) -> str | None:
    """Return the kind of file system that ``folder`` lies on: of the longest mount point above it."""
    mounts = [
        (len(Path(one.mountpoint).parts), one.fstype)
        for one in psutil.disk_partitions(all=True)
        if folder.is_relative_to(one.mountpoint)
    ]
    # Of two on the same point the later covers the earlier.
    return max(reversed(mounts), key=lambda mount: mount[0], default=(0, None))[1]
