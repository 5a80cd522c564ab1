"""``etude doctor``: what this machine can do, how long this data will take on it, and what slows it down."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from etude.core.context import Context
from etude.core.files import explained_write
from etude.core.prefetch import prefetch
from etude.core.processor import usable_cores
from etude.core.seeds import rng_for
from etude.core.text import rough_duration
from etude.data.decode import UnreadableImage, decode, read_image_file
from etude.data.scan import scan_images
from etude.data.sources import ImageSet
from etude.data.value_range import ValueRange
from etude.journal.screen import Screen
from etude.models.backbones import Backbone, sides_of
from etude.models.device import best_device, choose_precision, keep_large_blocks
from etude.models.modes import AskedMode, Mode, candidate_modes, likely_mode
from etude.recipe import ImageFacts, Recipe, load_recipe, resolve
from etude.recipe.resolve import DEFAULT_BACKBONE
from etude.recipe.settings import value_range
from etude.recipe.timeline import image_sizes
from etude.study.doctor.machine import MachineFacts, read_machine
from etude.study.run.frozen import Frozen, build_frozen, frozen_name, trainable_backbone
from etude.study.run.plan import Plan, Speed, measure_speed, stages_in_words, stored_size
from etude.training.probe import probe_mode

Measure = Callable[[Backbone, int, Mode], Speed]

SIZES = (128, 160, 224)
GPU_RATIO = (15.0, 50.0)  # how many times faster than two processor cores a GPU trains, by published figures
_SCANNED = 256  # images, of however many there are
_DECODED = 256
_CAMERA_SIDE = 768
_BY_NETWORK = frozenset({"features", "symmetry", "fine-tune", "TTA", "predict test"})
_MEGABYTE = 1_000_000
_DISK_MEGABYTES = 64
_DISK_ROOM = 256 << 20
_BLOCK = 4 * _MEGABYTE
_PICTURES = 96
_DECODE_SECONDS = 3.0
_BUSY_SHARE = 0.25  # of the cores that others may use unnoticed
_LITTLE_MEMORY = 2 << 30
_LITTLE_DISK = 5 << 30
_FULL_SHARE = 0.95
_SLOW_DISK = 100.0  # MB/s; a hard disk reads about 150, a solid-state disk 500 and more


@dataclass(frozen=True, slots=True)
class Subject:
    """What is examined: the recipe as it is resolved for the images, and without TRAIN no images."""

    recipe: Recipe
    facts: ImageFacts
    images: ImageSet | None = None
    value_range: ValueRange | None = None


@dataclass(frozen=True, slots=True)
class Rate:
    """Images a second of a network."""

    network: str
    size: int
    train: float | None  # None where it is not trained
    infer: float


@dataclass(frozen=True, slots=True)
class DiskSpeed:
    """MB/s of the cache's disk, written and read in one piece."""

    write: float
    read: float


@dataclass(frozen=True, slots=True)
class DataReport:
    """Expected seconds of each stage of a run here, and least and most seconds of the run on a GPU, where none is."""

    described: str
    images: int
    stages: tuple[tuple[str, float], ...]
    gpu: tuple[float, float] | None


@dataclass(frozen=True, slots=True)
class Report:
    facts: MachineFacts
    recipe: str
    network: str  # whose modes were measured, at this size
    size: int
    mode: Mode  # that training takes, and what speaks against it
    note: str
    modes: tuple[tuple[Mode, float], ...]  # images a second
    decode: float  # images a second, all cores together
    decoded_size: int
    disk: DiskSpeed | None  # None without room to try
    rates: tuple[Rate, ...]
    data: DataReport | None

    @property
    def complaints(self) -> dict[str, str]:
        """What slows the machine down: a word for programs, and a sentence that says what to do, the gravest first."""
        return _processor_use(self.facts) | _memory_and_disk(self, self.facts) | _arithmetic(self.facts)

    def as_dict(self) -> dict[str, Any]:
        complaints = [{"about": about, "sentence": sentence} for about, sentence in self.complaints.items()]
        tree: dict[str, Any] = asdict(self) | {"complaints": complaints}
        tree["facts"]["cache"] = str(self.facts.cache)
        if self.data is not None:
            tree["data"]["seconds"] = sum(seconds for _, seconds in self.data.stages)
        return tree


def choose_subject(recipe: Recipe, images: ImageSet | None, screen: Screen) -> Subject:
    """Return what is to be examined: of the images a sample is scanned."""
    sides = sides_of(recipe.model.backbone)
    if images is None:
        facts = ImageFacts(_CAMERA_SIDE, 3, 1_000, *sides)
        return Subject(resolve(recipe, facts, screen.warn), facts)
    spread = np.unique(np.linspace(0, len(images) - 1, min(_SCANNED, len(images))).astype(int))
    described = [images.described]
    scanned = scan_images(images.take(spread), screen).in_range(value_range(recipe.data.range), described.append)
    if scanned.bad:
        screen.warn(
            f"{len(scanned.bad):,} of {len(spread):,} sampled files cannot be read; etude fit lists all of them"
        )
    facts = ImageFacts(scanned.median_short_side, scanned.channels, len(images), *sides)
    images = replace(images, described="; ".join(described))
    return Subject(resolve(recipe, facts, screen.warn), facts, images, scanned.value_range)


def examine(subject: Subject, context: Context) -> Report:
    facts = read_machine(context.cached())
    keep_large_blocks()
    recipe, train, images = subject.recipe, subject.recipe.train, subject.images
    disk = disk_speed(facts.cache, context) if facts.disk_free > _DISK_ROOM else None
    decoded = stored_size(recipe)
    pictures = made_up_pictures() if images is None else images.paths[:: max(1, len(images) // _DECODED)][:_DECODED]
    decode = decode_rate(pictures, decoded, subject.facts.channels, context, subject.value_range)
    frozen = build_frozen(recipe, subject.facts.channels)
    trained = None
    if "finetune" in recipe.stages:
        precision = choose_precision(train.precision, best_device())
        trained = trainable_backbone(recipe, subject.facts.channels, precision)
        name, backbone, size = recipe.model.backbone, trained, image_sizes(recipe).largest
    else:
        assert frozen is not None  # a recipe has one of the stages
        name, backbone, size = frozen_name(recipe), frozen.backbone, recipe.model.feature_size
    asked = AskedMode.of(train.precision, train.memory_format, train.threads, train.micro_batch)
    mode, note, device = likely_mode(best_device(), asked), "", best_device()
    if trained is not None:
        mode, note = probe_mode(backbone.module, size, train.batch_size, backbone.in_channels, device, asked=asked)
    measure = cache(measure_speed)  # of each network, size and mode once
    modes = mode_rates(backbone, size, asked, context, measure, train=trained is not None)
    timed = replace(mode, micro_batch=train.micro_batch)  # one of those modes
    rates = _rates(recipe, name, backbone, size, timed, context, measure)
    data = None
    if images is not None:
        features = None if frozen is None else measure(frozen.backbone, recipe.model.feature_size, timed)
        training = None if trained is None else measure(trained, image_sizes(recipe).first, timed)
        stages = stage_seconds(recipe, images, 1 / max(decode, 1e-9), frozen, features, training)
        gpu = gpu_seconds(stages, facts.cores_usable) if facts.device == "cpu" else None
        data = DataReport(images.described, len(images), tuple(stages), gpu)
    return Report(facts, recipe.name, name, size, mode, note, modes, decode, decoded, disk, tuple(rates), data)


def stage_seconds(
    recipe: Recipe, images: ImageSet, decode: float, frozen: Frozen | None, features: Speed | None,
    training: Speed | None,
) -> list[tuple[str, float]]:  # fmt: skip
    """Return (stage, expected seconds) of a run that holds out validation images; ``decode`` is seconds an image."""
    count = len(images)
    valid = max(1, round(count * recipe.data.valid))
    weights = 0 if frozen is None else frozen.backbone.num_features * len(images.classes)
    return Plan(
        recipe, count, max(1, count - valid), valid,
        decode=decode, head_weights=weights, features=features, training=training,
    ).seconds()  # fmt: skip


def gpu_seconds(stages: Sequence[tuple[str, float]], cores: int) -> tuple[float, float]:
    """Return least and most seconds of these stages on a GPU; only a network's own work becomes faster there."""
    network = sum(seconds for name, seconds in stages if name in _BY_NETWORK)
    rest = sum(seconds for name, seconds in stages if name not in _BY_NETWORK)
    slow, fast = (max(1.0, ratio * 2 / cores) for ratio in GPU_RATIO)
    return rest + network / fast, rest + network / slow


def disk_speed(folder: Path, context: Context) -> DiskSpeed:
    """Write 64 MB into ``folder``, read them again from the disk itself where the system allows, and remove them."""
    path = folder / f".doctor.{os.getpid()}.tmp"
    block = rng_for(0, "doctor disk").bytes(_BLOCK)  # random, since some disks compress
    with explained_write(path), context.bar("disk", 2 * _DISK_MEGABYTES, unit="MB") as advance:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            start = time.perf_counter()
            with path.open("wb", buffering=0) as file:
                for _ in range(_DISK_MEGABYTES * _MEGABYTE // _BLOCK):
                    file.write(block)
                    advance(_BLOCK // _MEGABYTE)
                os.fsync(file.fileno())
                written = time.perf_counter() - start
                if hasattr(os, "posix_fadvise"):  # otherwise the file is read from memory
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            start = time.perf_counter()
            with path.open("rb", buffering=0) as file:
                while part := file.read(_BLOCK):
                    advance(len(part) // _MEGABYTE)
            read = time.perf_counter() - start
            return DiskSpeed(_DISK_MEGABYTES / max(written, 1e-9), _DISK_MEGABYTES / max(read, 1e-9))
        finally:
            path.unlink(missing_ok=True)


def decode_rate(
    pictures: Sequence[Path | bytes], size: int, channels: int, context: Context, value_range: ValueRange | None = None
) -> float:
    """Return images a second that are read, decoded and resized on all cores; unreadable ones count as well."""

    def work(picture: Path | bytes) -> None:
        with suppress(UnreadableImage):
            data = picture if isinstance(picture, bytes) else read_image_file(picture)
            decode(data, size, "squash", channels, value_range)

    start, done = time.perf_counter(), 0
    with context.bar("decode", len(pictures)) as advance:
        for _ in prefetch(work, pictures, threads=usable_cores()):
            done += 1
            advance()
            if time.perf_counter() - start > _DECODE_SECONDS:
                break
    return done / max(time.perf_counter() - start, 1e-9)


def made_up_pictures(count: int = _PICTURES) -> list[bytes]:
    """Return JPEG files of 1024 × 768 px as a camera makes them, smooth with fine grain; four of them are different."""
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
    name: str, backbone: Backbone, sizes: Iterable[int], mode: Mode, context: Context, measure: Measure
) -> list[Rate]:
    jobs = [(size, mode) for size in sorted(sizes)]
    speeds = _timed(name, "sizes", backbone, jobs, context, measure)
    return [Rate(name, speed.size, 1 / max(speed.train, 1e-9), 1 / max(speed.infer, 1e-9)) for speed in speeds]


def mode_rates(
    backbone: Backbone, size: int, asked: AskedMode, context: Context, measure: Measure, *, train: bool
) -> tuple[tuple[Mode, float], ...]:
    """Return images a second in every mode that might be the fastest, the fastest first."""
    modes = candidate_modes(best_device(), asked)
    speeds = _timed("modes", "modes", backbone, [(size, mode) for mode in modes], context, measure)
    rates = [1 / max(speed.train if train else speed.infer, 1e-9) for speed in speeds]
    return tuple(sorted(zip(modes, rates, strict=True), key=lambda one: -one[1]))


def _timed(
    name: str, unit: str, backbone: Backbone, jobs: list[tuple[int, Mode]], context: Context, measure: Measure
) -> list[Speed]:
    found: list[Speed] = []
    with context.bar(name, len(jobs), unit=unit) as advance:
        for size, mode in jobs:
            found.append(measure(backbone, size, mode))
            advance()
    return found


def _rates(
    recipe: Recipe, name: str, backbone: Backbone, size: int, mode: Mode, context: Context, measure: Measure
) -> list[Rate]:
    """Return the rates of the recipe's network, and of the default one where that is another."""
    trains, is_default = "finetune" in recipe.stages, name == DEFAULT_BACKBONE
    sizes = {size, *([image_sizes(recipe).first] if trains else []), *(SIZES if trains and is_default else ())}
    own = network_rates(name, backbone, sizes, mode, context, measure)
    if trains and is_default:
        return own
    usual = resolve(load_recipe("default"), ImageFacts(_CAMERA_SIDE, 3, count=1_000))
    default = trainable_backbone(usual, 3, choose_precision("auto", best_device()))
    others = network_rates(DEFAULT_BACKBONE, default, SIZES, likely_mode(best_device()), context, measure)
    return [rate if trains else replace(rate, train=None) for rate in own] + others


def _processor_use(facts: MachineFacts) -> dict[str, str]:
    found: dict[str, str] = {}
    if facts.gpu_driver is not None and not facts.cuda_available:
        if facts.cuda_build is None:
            found["gpu"] = (
                "there is an NVIDIA GPU, but this torch is built for processors only: install a CUDA build of torch by "
                "the command that https://pytorch.org/get-started shows"
            )
        else:
            found["gpu"] = (
                f"there is an NVIDIA GPU, but torch cannot use it: driver {facts.gpu_driver} is too old for CUDA "
                f"{facts.cuda_build}, or the GPU is hidden; update the driver, or check CUDA_VISIBLE_DEVICES"
            )
    # The load average still counts what ended a minute ago, so what is measured at this moment goes before it.
    busy = facts.load if facts.busy_cores is None else facts.busy_cores
    if busy > _BUSY_SHARE * facts.cores_allowed:
        found["busy"] = (
            f"other programs use about {busy:.1f} of {facts.cores_allowed} cores (load average {facts.load:.1f}): "
            "everything here takes longer by that, also the times above; stop them or wait"
        )
    set_low = {
        name: value for name, value in facts.thread_variables.items()
        if value.isdigit() and 0 < int(value) < facts.cores_usable
    }  # fmt: skip
    if set_low:
        found["threads"] = (
            f"{' and '.join(f'{name}={value}' for name, value in set_low.items())} in the environment leave libraries "
            f"fewer threads than the {facts.cores_usable} usable cores: unset {' and '.join(set_low)}"
        )
    if facts.core_quota is not None and facts.threads > facts.core_quota:
        found["quota"] = (
            f"torch starts {facts.threads} threads by default, but this container gets the time of "
            f"{facts.core_quota:g} cores only, and threads that wait for each other waste it: set "
            f"OMP_NUM_THREADS={facts.cores_usable}, or allow the container more"
        )
    if facts.cores_allowed < facts.cores_present:
        found["affinity"] = (
            f"this process may use {facts.cores_allowed} of the machine's {facts.cores_present} cores: give it more "
            "(taskset, the container's cpuset, or the job's request)"
        )
    return found


def _memory_and_disk(report: Report, facts: MachineFacts) -> dict[str, str]:
    found: dict[str, str] = {}
    if facts.memory_free is not None and facts.memory_free < _LITTLE_MEMORY:
        found["memory"] = (
            f"only {facts.memory_free / 2**30:.1f} GiB of memory are free: close programs, or lower train.batch_size "
            "or set train.micro_batch"
        )
    elsewhere = "with --cache or ETUDE_CACHE"
    if facts.disk_free < max(_LITTLE_DISK, (1 - _FULL_SHARE) * facts.disk_bytes):
        found["full disk"] = (
            f"the disk of the cache {facts.cache} has {facts.disk_free / 2**30:.1f} GiB left: free some, or put the "
            f"cache elsewhere {elsewhere}"
        )
    slowest = _SLOW_DISK if report.disk is None else min(report.disk.write, report.disk.read)
    if facts.on_network:
        found["network disk"] = (
            f"the cache {facts.cache} lies on a network file system ({facts.cache_system}): put it on a disk of this "
            f"machine {elsewhere}"
        )
    elif slowest < _SLOW_DISK:
        found["slow disk"] = (
            f"the disk of the cache {facts.cache} moves {slowest:.0f} MB/s: put the cache on a faster one {elsewhere}"
        )
    if not facts.jpeg_turbo:
        found["libjpeg-turbo"] = (
            "Pillow was built without libjpeg-turbo, so JPEG files decode two to four times slower: reinstall it from "
            "its wheel (pip install --force-reinstall --only-binary :all: pillow)"
        )
    own = (rate.train for rate in report.rates if (rate.network, rate.size) == (report.network, report.size))
    train = next(own, None)
    if train is not None and report.decode < train:
        found["decoding"] = (
            f"images decode at {report.decode:,.0f} images/s and train at {train:,.0f}: the first reading takes longer "
            "than an epoch; it is done once, and kept in the cache for later runs"
        )
    return found


def _arithmetic(facts: MachineFacts) -> dict[str, str]:
    found: dict[str, str] = {}
    if facts.device == "cpu" and facts.architecture.lower() in ("x86_64", "amd64"):
        if "AVX2" not in facts.capability and "AVX512" not in facts.capability:
            found["avx2"] = (
                "the processor has no AVX2, so torch computes several times slower than on any of the last ten years: "
                "use another machine, or a virtual machine that passes the host's processor through"
            )
        elif "AVX512" not in facts.capability:
            found["avx512"] = (
                "the processor has no AVX-512: newer ones compute about half as fast again; nothing to set here"
            )
        elif not facts.bf16:
            found["bf16"] = (
                "the processor has no native bfloat16 (AVX512-BF16 or AMX), which about halves training time: a newer "
                "one has it; nothing to set here"
            )
    if saving := [name for name in facts.governors if name in ("powersave", "conservative", "power")]:
        found["power saving"] = (
            f"the processor's clock is governed by {', '.join(map(repr, saving))}: plug the machine in, or set the "
            "governor to performance (sudo cpupower frequency-set -g performance)"
        )
    return found


def show_measures(screen: Screen, subject: Subject) -> None:
    screen.plan(
        "etude doctor measures, in about half a minute",
        [
            ("disk", "64 MB written to the cache's disk, read again and removed"),
            ("decoding", "generated photos of 1024 × 768 px" if subject.images is None else "a sample of your images"),
            ("modes", f"{subject.recipe.model.backbone}: each precision, memory format and number of threads"),
            ("networks", "training and inference at several image sizes"),
        ],
    )


def show_report(screen: Screen, report: Report) -> None:
    screen.say("")
    screen.plan("This machine", _machine(report))
    screen.say("")
    rows = [[mode.precision, mode.memory_format, mode.threads, _rate(rate)] for mode, rate in report.modes]
    columns = ["precision", "memory format", "threads", "images/s"]
    doing = "Training" if any(rate.train for rate in report.rates if rate.network == report.network) else "Running"
    screen.table(f"{doing} {report.network} at {report.size} px in each mode", columns, rows)
    screen.plan("", [("chosen", "; ".join(filter(None, (report.mode.in_words(), report.note))))])
    screen.say("")
    screen.table("Images a second", ["network", "size", "training", "inference"], [
        [rate.network, f"{rate.size} px", None if rate.train is None else _rate(rate.train), _rate(rate.infer)]
        for rate in report.rates
    ])  # fmt: skip
    screen.say("")
    if report.data is None:
        screen.say("how long your images take: etude doctor TRAIN")
    else:
        screen.plan(f"Your images, by recipe {report.recipe}", _data(report.data))
    screen.say("")
    if report.complaints:
        numbered = [(f"{number}.", sentence) for number, sentence in enumerate(report.complaints.values(), start=1)]
        screen.plan("What slows this machine down", numbered)
    else:
        screen.say("Nothing found that slows this machine down.")


def _machine(report: Report) -> list[tuple[str, str]]:
    facts, disk = report.facts, report.disk
    speed = "" if disk is None else f"writes {disk.write:,.0f} MB/s, reads {disk.read:,.0f} MB/s"
    system = f" ({facts.cache_system})" if facts.cache_system else ""
    free = "" if facts.memory_free is None else f", {facts.memory_free / 2**30:.1f} GiB free"
    arithmetic = [facts.capability, *(["bfloat16"] if facts.bf16 else []), *(["AMX"] if facts.amx else [])]
    return [
        ("device", ", ".join(facts.gpus) or f"{facts.device.upper()}, {facts.cpu}"),
        ("cores", _cores(facts)),
        ("memory", f"{facts.memory_bytes / 2**30:.1f} GiB{free}"),
        ("torch", f"{facts.torch}, {facts.threads} threads, {facts.blas.upper()}, {', '.join(arithmetic)}"),
        ("cache", f"{facts.cache}{system}: {facts.disk_free / 2**30:,.0f} GiB free"),
        ("disk", speed or "too little room to measure its speed"),
        ("decoding", f"{_rate(report.decode)} images/s to {report.decoded_size} px, on all cores"),
    ]


def _data(data: DataReport) -> list[tuple[str, str]]:
    rows = [("images", data.described), ("time here", stages_in_words(data.stages))]
    if data.gpu is not None:
        times = dict.fromkeys(rough_duration(seconds) for seconds in data.gpu)
        rows.append(("on a GPU", f"{' to '.join(times)}, by published ratios (15 to 50 times two cores)"))
    return rows


def _cores(facts: MachineFacts) -> str:
    usable = f"{facts.cores_usable} usable of {facts.cores_present}"
    physical = f", {facts.cores_physical} physical" if facts.cores_physical != facts.cores_allowed else ""
    quota = "" if facts.core_quota is None else f", the container's limit is {facts.core_quota:g}"
    busy = "" if facts.busy_cores is None else f"; other programs use {facts.busy_cores:.1f}"
    return usable + physical + quota + busy


def _rate(images_per_second: float) -> str:
    return f"{images_per_second:,.0f}" if images_per_second >= 10 else f"{images_per_second:.2g}"
