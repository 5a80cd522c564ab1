"""``etude doctor``: what this machine can do, how long this data will take on it, and what slows it down."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from etude.core.context import Progress
from etude.core.files import explained_write
from etude.core.prefetch import map_in_order
from etude.core.processor import usable_cores
from etude.core.seeds import rng_for
from etude.data.decode import UnreadableImage, decode, read_image_file
from etude.data.scan import SurveyResult, survey
from etude.data.sources import ImageSet
from etude.data.value_range import ValueRange
from etude.models.backbones import Backbone, required_size
from etude.models.device import best_device, choose_precision, keep_large_blocks
from etude.models.modes import AskedMode, Mode, likely_mode
from etude.recipe import ImageFacts, Recipe, load_recipe, resolve
from etude.recipe.resolve import DEFAULT_BACKBONE
from etude.recipe.settings import value_range
from etude.recipe.timeline import image_sizes
from etude.study.doctor.machine import MachineFacts, read_facts
from etude.study.run.frozen import Frozen, build_frozen, trainable_backbone
from etude.study.run.plan import Amounts, Speed, at_trained_sizes, expected_seconds, measure_speed, stored_size
from etude.study.run.request import Request
from etude.study.run.sources import read_sources
from etude.training.probe import ProbeResult, probe_modes

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


Clock = Callable[[], float]

_MEGABYTE = 1_000_000
_DISK_MEGABYTES = 64
_BLOCK = 4 * _MEGABYTE
_PICTURES = 96
_DECODE_SECONDS = 3.0


@dataclass(frozen=True, slots=True)
class Rate:
    """Images a second of a network.

    Args:
        size: side of the images in pixels.
        train: None for a network that is not trained.
    """

    network: str
    size: int
    train: float | None
    infer: float


@dataclass(frozen=True, slots=True)
class DiskSpeed:
    """MB/s of the cache's disk, written and read in one piece."""

    write: float
    read: float


def disk_speed(folder: Path, progress: Progress, *, clock: Clock = time.perf_counter) -> DiskSpeed:
    """Write 64 MB into ``folder``, read them again from the disk itself where the system allows, and remove them.

    Raises:
        EtudeError: the folder cannot be written or the disk is full.
    """
    path = folder / f".doctor.{os.getpid()}.tmp"
    block = rng_for(0, "doctor disk").bytes(_BLOCK)  # random, since some disks compress
    count = _DISK_MEGABYTES * _MEGABYTE // _BLOCK
    with explained_write(path), progress.bar("disk", 2 * _DISK_MEGABYTES, unit="MB") as advance:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            start = clock()
            with path.open("wb", buffering=0) as file:
                for _ in range(count):
                    file.write(block)
                    advance(_BLOCK // _MEGABYTE)
                os.fsync(file.fileno())
                written = clock() - start
                if hasattr(os, "posix_fadvise"):  # otherwise the reading would be of the memory
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            start = clock()
            with path.open("rb", buffering=0) as file:
                while taken := file.read(_BLOCK):
                    advance(len(taken) // _MEGABYTE)
            return DiskSpeed(_DISK_MEGABYTES / max(written, 1e-9), _DISK_MEGABYTES / max(clock() - start, 1e-9))
        finally:
            path.unlink(missing_ok=True)


def decode_rate(
    pictures: Sequence[Path | bytes], size: int, channels: int, progress: Progress, *,
    clock: Clock = time.perf_counter, value_range: ValueRange | None = None,
) -> float:  # fmt: skip
    """Return images a second that are read, decoded and resized to ``size``, on all cores together.

    Pictures that cannot be read count as well: they take their time. It ends after about three seconds.

    Args:
        pictures: files, or the bytes of files.
    """

    def work(picture: Path | bytes) -> None:
        with suppress(UnreadableImage):
            data = picture if isinstance(picture, bytes) else read_image_file(picture)
            decode(data, size, "squash", channels, value_range)

    start, done = clock(), 0
    with progress.bar("decode", len(pictures)) as advance:
        for _ in map_in_order(work, pictures, usable_cores()):
            done += 1
            advance()
            if clock() - start > _DECODE_SECONDS:
                break
    return done / max(clock() - start, 1e-9)


def made_up_pictures(count: int = _PICTURES) -> list[bytes]:
    """Return JPEG files of 1024 × 768 px as a camera makes them: smooth, with fine grain; few differ, all are decoded.

    >>> len(made_up_pictures(3))
    3
    """
    rng = rng_for(0, "doctor pictures")
    different: list[bytes] = []
    for _ in range(min(4, count)):
        coarse = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((1024, 768), Image.Resampling.BICUBIC), dtype=np.float32)
        grain = rng.normal(0, 6, smooth.shape).astype(np.float32)
        file = BytesIO()
        Image.fromarray(np.clip(smooth + grain, 0, 255).astype(np.uint8)).save(file, "JPEG", quality=88)
        different.append(file.getvalue())
    return [different[number % len(different)] for number in range(count)]


def network_rates(
    name: str, backbone: Backbone, sizes: Sequence[int], mode: Mode, progress: Progress,
    measure: Callable[[Backbone, int, Mode], Speed] = measure_speed,
) -> list[Rate]:  # fmt: skip
    """Return images a second of training and inference at each size."""
    found: list[Rate] = []
    with progress.bar(f"{name}", len(sizes), unit="sizes") as advance:
        for size in sizes:
            speed = measure(backbone, size, mode)
            found.append(Rate(name, size, 1 / max(speed.train, 1e-9), 1 / max(speed.infer, 1e-9)))
            advance()
    return found


SIZES = (128, 160, 224)
GPU_RATIO = (15.0, 50.0)
"""How many times faster than two processor cores a GPU trains, by published figures."""

_SURVEYED = 256  # images looked at, of however many there are
_DECODED = 256
_DISK_ROOM = 256 << 20
_CAMERA_SIDE = 768
_BY_NETWORK = frozenset({"features", "fine-tune", "predict test"})

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Subject:
    """What is examined beside the machine.

    Args:
        recipe: resolved for the images.
        channels: of the images.
        images: the labelled images, or None without TRAIN.
        surveyed: of a sample of them, or None.
    """

    recipe: Recipe
    channels: int
    images: ImageSet | None = None
    surveyed: SurveyResult | None = None


@dataclass(frozen=True, slots=True)
class DataReport:
    """How long this data takes.

    Args:
        described: the data in a line.
        stages: (stage, expected seconds) of a run here.
        gpu: least and most seconds of that run on a GPU, by published ratios; None where one is at work already.
    """

    described: str
    images: int
    stages: tuple[tuple[str, float], ...]
    gpu: tuple[float, float] | None

    @property
    def seconds(self) -> float:
        """Of the whole run."""
        return sum(seconds for _, seconds in self.stages)


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that was found.

    Args:
        network: that the modes were measured with.
        size: of its images.
        decoded_size: to which images were decoded.
        disk: None when there was no room to try.
    """

    facts: MachineFacts
    recipe: str
    network: str
    size: int
    probe: ProbeResult
    decode: float
    decoded_size: int
    disk: DiskSpeed | None
    rates: tuple[Rate, ...]
    data: DataReport | None
    complaints: tuple[Complaint, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        tree = asdict(self) | {"probe": self.probe.as_dict()}
        tree["facts"]["cache"] = str(self.facts.cache)
        if self.data is not None:
            tree["data"]["seconds"] = self.data.seconds
        return tree


def choose_subject(
    recipe: str, settings: Sequence[str], request: Request | None, progress: Progress, warn: Say
) -> Subject:
    """Read what is to be examined; a sample of the images is looked at, not all.

    Raises:
        EtudeError: as ``etude fit`` would.
    """
    asked = load_recipe(recipe, settings)
    needed = required_size(asked.model.backbone)
    if request is None:
        facts = ImageFacts(_CAMERA_SIDE, 3, count=1_000, required_size=needed)
        return Subject(at_trained_sizes(resolve(asked, facts), warn), 3)
    request.check()
    sources = read_sources(request, asked, warn)
    images = sources.labelled
    spread = np.unique(np.linspace(0, len(images) - 1, min(_SURVEYED, len(images))).astype(int))
    values: list[str] = []
    surveyed = survey(images.take(spread), progress).in_range(value_range(asked.data.range), values.append)
    images = replace(images, described="; ".join([images.described, *values]))
    if surveyed.bad:
        warn(f"{len(surveyed.bad):,} of {len(spread):,} files looked at cannot be read; etude fit lists all of them")
    facts = ImageFacts(surveyed.median_short_side, surveyed.channels, count=len(images), required_size=needed)
    return Subject(at_trained_sizes(resolve(asked, facts), warn), surveyed.channels, images, surveyed)


def examine(subject: Subject, cache: Path, progress: Progress) -> Report:
    """Measure the machine and what the subject will take on it.

    Raises:
        EtudeError: the network cannot be built, or the cache not be written.
    """
    facts = read_facts(cache)
    keep_large_blocks()
    recipe, settings = subject.recipe, subject.recipe.train
    disk = disk_speed(cache, progress) if facts.disk_free > _DISK_ROOM else None
    decoded = stored_size(recipe)
    known = None if subject.surveyed is None else subject.surveyed.value_range
    decode = decode_rate(_pictures(subject), decoded, subject.channels, progress, value_range=known)
    asked = AskedMode.of(settings.precision, settings.memory_format, settings.threads, settings.micro_batch)
    frozen, trained = _networks(subject)
    backbone, size = _probed(recipe, frozen, trained)
    probe = probe_modes(
        backbone.module, size, settings.batch_size, backbone.in_channels, best_device(),
        asked=asked, train=trained is not None, cache=cache, progress=progress,
    )  # fmt: skip
    rates = _rates(recipe, backbone, size, probe.mode, trained is not None, progress)
    data = None
    if subject.images is not None:
        features = None if frozen is None else measure_speed(frozen.backbone, recipe.model.feature_size, probe.mode)
        training = None if trained is None else measure_speed(trained, image_sizes(recipe).first, probe.mode)
        data = _data_report(subject.images, recipe, facts, decode, features, training, _head_weights(subject, frozen))
    speed = next((rate.train for rate in rates if rate.network == _name(recipe, trained) and rate.size == size), None)
    found = complaints(facts, Measurements(disk.write if disk else None, disk.read if disk else None, decode, speed))
    return Report(
        facts, recipe.name, _name(recipe, trained), size, probe, decode, decoded, disk, tuple(rates), data,
        tuple(found),
    )  # fmt: skip


def _networks(subject: Subject) -> tuple[Frozen | None, Backbone | None]:
    recipe = subject.recipe
    frozen = build_frozen(recipe, subject.channels)
    if "finetune" not in recipe.stages:
        return frozen, None
    return frozen, trainable_backbone(recipe, subject.channels, choose_precision(recipe.train.precision, best_device()))


def _probed(recipe: Recipe, frozen: Frozen | None, trained: Backbone | None) -> tuple[Backbone, int]:
    """Return the network whose modes are measured, and its image size."""
    if trained is not None:
        return trained, image_sizes(recipe).largest
    assert frozen is not None  # a recipe has one of the stages
    return frozen.backbone, recipe.model.feature_size


def _name(recipe: Recipe, trained: Backbone | None) -> str:
    return DEFAULT_BACKBONE if trained is None and recipe.model.backbone == "tiny" else recipe.model.backbone


def _rates(recipe: Recipe, backbone: Backbone, size: int, mode: Mode, trained: bool, progress: Progress) -> list[Rate]:
    """Return the rates of the recipe's network, and of the default one where that is another."""
    name = recipe.model.backbone if trained else _name(recipe, None)
    sizes = {size, recipe.model.feature_size if not trained else image_sizes(recipe).first}
    same = name == DEFAULT_BACKBONE and trained
    own = network_rates(name, backbone, sorted({*sizes, *(SIZES if same else ())}), mode, progress)
    if not trained:
        own = [Rate(rate.network, rate.size, None, rate.infer) for rate in own]
    if same:
        return own
    usual = resolve(load_recipe("default"), ImageFacts(_CAMERA_SIDE, 3, count=1_000))
    device = best_device()
    default = trainable_backbone(usual, 3, choose_precision("auto", device))
    return [*own, *network_rates(DEFAULT_BACKBONE, default, SIZES, likely_mode(device), progress)]


def _pictures(subject: Subject) -> Sequence[Path | bytes]:
    if subject.images is None or subject.surveyed is None:
        return made_up_pictures()
    step = max(1, len(subject.images) // _DECODED)
    return subject.images.paths[::step][:_DECODED]


def _head_weights(subject: Subject, frozen: Frozen | None) -> int:
    assert subject.images is not None
    return 0 if frozen is None else frozen.backbone.num_features * len(subject.images.classes)


def _data_report(
    images: ImageSet, recipe: Recipe, facts: MachineFacts, decode: float,
    features: Speed | None, training: Speed | None, head_weights: int,
) -> DataReport:  # fmt: skip
    valid = max(1, round(len(images) * recipe.data.valid))
    amounts = Amounts(len(images), max(1, len(images) - valid), valid, 0, folds=1)
    stages = tuple(expected_seconds(recipe, amounts, 1 / max(decode, 1e-9), features, training, head_weights))
    gpu = None if facts.device != "cpu" else gpu_seconds(stages, facts.cores_usable)
    return DataReport(images.described, len(images), stages, gpu)


def gpu_seconds(stages: Sequence[tuple[str, float]], cores: int) -> tuple[float, float]:
    """Return least and most seconds of these stages on a GPU; only a network's own work becomes faster there.

    >>> gpu_seconds([("store", 10.0), ("fine-tune", 300.0)], cores=2)
    (16.0, 30.0)
    """
    network = sum(seconds for name, seconds in stages if name in _BY_NETWORK)
    rest = sum(seconds for name, seconds in stages if name not in _BY_NETWORK)
    slow, fast = (max(1.0, ratio * 2 / cores) for ratio in GPU_RATIO)
    return rest + network / fast, rest + network / slow
