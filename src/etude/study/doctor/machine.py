"""What the machine is: read from the system, so that tests can make up any machine."""

from __future__ import annotations

import os
import platform
import re
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from etude.core.processor import (
    allowed_cores,
    core_quota,
    cpu_model,
    free_memory,
    physical_cores,
    read_text,
    seconds_of_others,
    usable_cores,
)
from etude.models.device import best_device, native_bf16

_WATCHED_SECONDS = 0.5
_NETWORK_SYSTEMS = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "fuse.sshfs", "9p", "afs", "glusterfs", "fuse.glusterfs", "ceph", "lustre",
     "beegfs", "gpfs", "fuse.s3fs", "fuse.gcsfuse", "fuse.rclone", "fuse.goofys"}
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class MachineFacts:
    """The machine at a moment; None (or empty) is what it does not tell.

    Args:
        cores_present: logical cores of the machine.
        cores_allowed: of them, those that this process may run on.
        core_quota: cores' time that the container's limit grants.
        cores_usable: what is left after both.
        load: average of processes that ran or waited, over the last minute.
        busy_cores: that other programs keep busy at this moment.
        memory_bytes: of the machine.
        threads: that torch uses by default.
        thread_variables: environment variables that set threads, such as ``OMP_NUM_THREADS``.
        capability: of the processor as torch uses it, such as ``AVX2``.
        architecture: of the processor, such as ``x86_64``.
        governors: of the processor's clock, such as ``powersave``; of the drivers that govern themselves, what they
            prefer, such as ``balance_performance``.
        cuda_build: of torch, such as ``12.8``; None for a build without CUDA.
        gpu_driver: version of NVIDIA's driver; a GPU is there when it is told.
        cache_system: kind of file system that holds the cache.
        jpeg_turbo: whether Pillow decodes JPEG by libjpeg-turbo.
    """

    device: str
    gpus: tuple[str, ...]
    cpu: str
    architecture: str
    cores_present: int
    cores_allowed: int
    core_quota: float | None
    cores_usable: int
    cores_physical: int
    load: float | None
    busy_cores: float | None
    memory_bytes: int | None
    memory_free: int | None
    torch: str
    threads: int
    interop_threads: int
    thread_variables: Mapping[str, str]
    capability: str
    blas: str
    bf16: bool
    amx: bool
    governors: tuple[str, ...]
    cuda_build: str | None
    cuda_available: bool
    gpu_driver: str | None
    cache: Path
    cache_system: str | None
    disk_free: int
    disk_bytes: int
    jpeg_turbo: bool

    @property
    def on_network(self) -> bool:
        """Whether the cache lies on a network file system."""
        return self.cache_system in _NETWORK_SYSTEMS


def read_facts(cache: Path, root: Path = Path("/"), pause: Callable[[float], None] = time.sleep) -> MachineFacts:
    """Read everything about this machine; takes half a second, in which it watches what others do.

    Args:
        cache: folder of stores and features; it need not be there yet.
        root: where ``proc`` and ``sys`` are.
        pause: waits for so many seconds.
    """
    from PIL import features

    busy = _busy_cores(root, pause)
    device = best_device()
    disk = shutil.disk_usage(_existing(cache))
    gpus = tuple(torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count()))
    amx = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    return MachineFacts(
        device=device.type, gpus=gpus, cpu=cpu_model(root),
        architecture=platform.machine(), cores_present=os.cpu_count() or 1,
        cores_allowed=len(allowed_cores()), core_quota=core_quota(root), cores_usable=usable_cores(root),
        cores_physical=physical_cores(root=root), load=_load(root), busy_cores=busy, memory_bytes=_memory(root),
        memory_free=free_memory(root), torch=torch.__version__, threads=torch.get_num_threads(),
        interop_threads=torch.get_num_interop_threads(),
        thread_variables={name: os.environ[name] for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
                          if name in os.environ},
        capability=torch.backends.cpu.get_cpu_capability(), blas=_blas(), bf16=native_bf16(), amx=bool(amx()),
        governors=_governors(root), cuda_build=torch.version.cuda, cuda_available=torch.cuda.is_available(),
        gpu_driver=_driver(root), cache=cache, cache_system=_file_system(cache, root), disk_free=disk.free,
        disk_bytes=disk.total, jpeg_turbo=bool(features.check_feature("libjpeg_turbo")),
    )  # fmt: skip


def _busy_cores(root: Path, pause: Callable[[float], None]) -> float | None:
    before, start = seconds_of_others(root), time.perf_counter()
    pause(_WATCHED_SECONDS)
    after, seconds = seconds_of_others(root), time.perf_counter() - start
    return None if before is None or after is None or not seconds else max(0.0, (after - before) / seconds)


def _load(root: Path) -> float | None:
    words = (read_text(root / "proc/loadavg") or "").split()
    try:
        return float(words[0]) if words else None
    except ValueError:
        return None


def _memory(root: Path) -> int | None:
    found = re.search(r"^MemTotal:\s+(\d+)", read_text(root / "proc/meminfo") or "", re.MULTILINE)
    limit = read_text(root / "sys/fs/cgroup/memory.max") or ""
    sizes = [*([int(found[1]) * 1024] if found else []), *([int(limit)] if limit.isdigit() else [])]
    return min(sizes, default=None)


def _blas() -> str:
    found = re.search(r"BLAS_INFO=(\w+)", torch.__config__.show())
    return found[1] if found else "unknown"


def _governors(root: Path) -> tuple[str, ...]:
    found: set[str] = set()
    for core in allowed_cores():
        folder = root / f"sys/devices/system/cpu/cpu{core}/cpufreq"
        preference = read_text(folder / "energy_performance_preference")
        # The drivers with a preference call even their fast modes powersave, so there the preference tells.
        found.add(preference or read_text(folder / "scaling_governor") or "")
    return tuple(sorted(found - {""}))


def _driver(root: Path) -> str | None:
    """Return the version of NVIDIA's driver, or ``unknown`` where only the device is seen; None without either."""
    told = read_text(root / "proc/driver/nvidia/version")
    if told:
        found = re.search(r"\s(\d+\.\d+(\.\d+)?)\s", told)
        return found[1] if found else "unknown"
    return "unknown" if (root / "dev/nvidia0").exists() else None


def _file_system(folder: Path, root: Path) -> str | None:
    """Return the kind of file system that ``folder`` lies on: of the longest mount point above it."""
    place = _existing(folder).resolve()
    best: tuple[int, str] | None = None
    for line in (read_text(root / "proc/mounts") or "").splitlines():
        words = line.split()
        if len(words) < 3:
            continue
        mount = Path(words[1].encode().decode("unicode_escape"))
        if (mount == place or mount in place.parents) and (best is None or len(mount.parts) >= best[0]):
            best = (len(mount.parts), words[2])  # of two on the same point the later covers the earlier
    return best[1] if best else None


def _existing(folder: Path) -> Path:
    return next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
