"""What slows this machine down: each a real check, told in a plain sentence with what to do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from etude.study.doctor_facts import MachineFacts

_BUSY_SHARE = 0.25  # of the cores that others may use unnoticed
_LITTLE_MEMORY = 2 << 30
_LITTLE_DISK = 5 << 30
_FULL_SHARE = 0.95
_SLOW_DISK = 100.0  # MB/s; a hard disk reads about 150, a solid-state disk 500 and more


@dataclass(frozen=True, slots=True)
class Measurements:
    """What was measured beside the facts.

    Args:
        write: MB/s to the cache's disk, or None when it was not tried.
        read: MB/s from it, or None.
        decode: images/s, all cores together.
        train: images/s of training at the size that decoding was measured for, or None.
    """

    write: float | None
    read: float | None
    decode: float
    train: float | None


@dataclass(frozen=True, slots=True)
class Complaint:
    """One thing that slows the machine down.

    Args:
        about: a word for programs that read the report.
        sentence: what it is, and what to do.
    """

    about: str
    sentence: str


def complaints(facts: MachineFacts, measured: Measurements) -> list[Complaint]:
    """Return everything found, the gravest kinds first; what the machine does not tell is no complaint."""
    return [found for check in _CHECKS for found in check(facts, measured)]


def _gpu(facts: MachineFacts, measured: Measurements) -> Iterator[Complaint]:
    if facts.gpu_driver is None or facts.cuda_available:
        return
    if facts.cuda_build is None:
        yield Complaint(
            "gpu",
            "there is an NVIDIA GPU, but this torch is built for processors only: install a CUDA build of torch "
            "(https://pytorch.org/get-started tells the command)",
        )
    else:
        yield Complaint(
            "gpu",
            f"there is an NVIDIA GPU, but torch cannot use it: driver {facts.gpu_driver} is too old for CUDA "
            f"{facts.cuda_build}, or the GPU is hidden; update the driver, or check CUDA_VISIBLE_DEVICES",
        )


def _busy(facts: MachineFacts, measured: Measurements) -> Iterator[Complaint]:
    # The load average still counts what ended a minute ago, so what is seen at this moment goes before it.
    busy = facts.load if facts.busy_cores is None else facts.busy_cores
    if busy is not None and busy > _BUSY_SHARE * facts.cores_allowed:
        load = "" if facts.load is None else f" (load average {facts.load:.1f})"
        yield Complaint(
            "busy",
            f"other programs keep about {busy:.1f} of {facts.cores_allowed} cores busy{load}: everything here takes "
            "longer by that, also the times above; stop them or wait",
        )


def _threads(facts: MachineFacts, measured: Measurements) -> Iterator[Complaint]:
    for name, value in facts.thread_variables.items():
        if value.isdigit() and 0 < int(value) < facts.cores_usable:
            yield Complaint(
                "threads",
                f"{name}={value} in the environment leaves libraries fewer threads than the {facts.cores_usable} cores "
                f"there are: unset {name}",
            )
    if facts.core_quota is not None and facts.threads > facts.core_quota:
        yield Complaint(
            "quota",
            f"torch starts {facts.threads} threads by itself, but this container gets the time of "
            f"{facts.core_quota:g} cores only, and threads that wait for each other waste it: set "
            f"OMP_NUM_THREADS={facts.cores_usable}, or allow the container more",
        )
    if facts.cores_allowed < facts.cores_present:
        yield Complaint(
            "affinity",
            f"this process may use {facts.cores_allowed} of the machine's {facts.cores_present} cores: give it more "
            "(taskset, the container's cpuset, or the job's request)",
        )


def _arithmetic(facts: MachineFacts, measured: Measurements) -> Iterator[Complaint]:
    if facts.device != "cpu" or facts.architecture.lower() not in ("x86_64", "amd64"):
        return  # what follows says nothing of other processors
    if "AVX2" not in facts.capability and "AVX512" not in facts.capability:
        yield Complaint(
            "avx2",
            "the processor has no AVX2, so torch computes several times slower than on any of the last ten years: "
            "use another machine, or a virtual machine that passes the host's processor through",
        )
    elif "AVX512" not in facts.capability:
        yield Complaint(
            "avx512", "the processor has no AVX-512: newer ones compute about half as fast again; nothing to set here"
        )
    elif not facts.bf16:
        yield Complaint(
            "bf16",
            "the processor has no native bfloat16 (AVX512-BF16 or AMX), which about halves training time: a newer one "
            "has it; nothing to set here",
        )


def _memory(facts: MachineFacts, measured: Measurements) -> Iterator[Complaint]:
    if facts.memory_free is not None and facts.memory_free < _LITTLE_MEMORY:
        yield Complaint(
            "memory",
            f"only {facts.memory_free / 2**30:.1f} GiB of memory are free: close programs, or lower train.batch_size "
            "or set train.micro_batch",
        )


def _disk(facts: MachineFacts, measured: Measurements) -> Iterator[Complaint]:
    if facts.disk_free < _LITTLE_DISK or facts.disk_free < (1 - _FULL_SHARE) * facts.disk_bytes:
        yield Complaint(
            "full disk",
            f"the disk of the cache {facts.cache} has {facts.disk_free / 2**30:.1f} GiB left: free some, or put the "
            "cache elsewhere with --cache or ETUDE_CACHE",
        )
    slow = [speed for speed in (measured.write, measured.read) if speed is not None and speed < _SLOW_DISK]
    if facts.on_network:
        yield Complaint(
            "network disk",
            f"the cache {facts.cache} lies on a network file system ({facts.cache_system}): put it on a disk of this "
            "machine with --cache or ETUDE_CACHE",
        )
    elif slow:
        yield Complaint(
            "slow disk",
            f"the disk of the cache {facts.cache} moves {min(slow):.0f} MB/s: put the cache on a faster one with "
            "--cache or ETUDE_CACHE",
        )


def _decoding(facts: MachineFacts, measured: Measurements) -> Iterator[Complaint]:
    if not facts.jpeg_turbo:
        yield Complaint(
            "libjpeg-turbo",
            "Pillow was built without libjpeg-turbo, so JPEG files decode two to four times slower: reinstall it from "
            "its wheel (pip install --force-reinstall --only-binary :all: pillow)",
        )
    if measured.train is not None and measured.decode < measured.train:
        yield Complaint(
            "decoding",
            f"images decode at {measured.decode:,.0f} a second and train at {measured.train:,.0f}: the first reading "
            "takes longer than an epoch; it is done once, and kept in the cache for later runs",
        )


def _clock(facts: MachineFacts, measured: Measurements) -> Iterator[Complaint]:
    if saving := [name for name in facts.governors if name in ("powersave", "conservative", "power")]:
        yield Complaint(
            "power saving",
            f"the processor's clock is governed by {', '.join(map(repr, saving))}: plug the "
            "machine in, or set the governor to performance (sudo cpupower frequency-set -g performance)",
        )


_CHECKS: tuple[Callable[[MachineFacts, Measurements], Iterator[Complaint]], ...] = (
    _gpu, _busy, _threads, _memory, _disk, _decoding, _arithmetic, _clock,
)  # fmt: skip
