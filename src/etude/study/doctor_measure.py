"""What ``etude doctor`` measures: the cache's disk, decoding, and networks."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from etude.core.files import explained_write
from etude.core.processor import usable_cores
from etude.core.progress import Progress
from etude.core.seeds import rng_for
from etude.data.decode import UnreadableImage, decode, read_image_file
from etude.data.in_order import map_in_order
from etude.data.value_range import ValueRange
from etude.models.backbones import Backbone
from etude.models.modes import Mode
from etude.study.speed import Speed, measure_speed

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
