"""What a file says of its image before training: content hash, size, format, camera, values of deep images."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from etude.core.context import Context, Progress
from etude.core.errors import EtudeError
from etude.core.files import digest_of
from etude.core.prefetch import prefetch
from etude.core.processor import usable_cores
from etude.core.text import counted
from etude.data.compact import DIGEST_BYTES, Digests
from etude.data.decode import Header, UnreadableImage, read_header, read_image_file
from etude.data.sources import BadFile, ImageSet
from etude.data.value_range import DeepValues, ValueRange, Values


@dataclass(frozen=True)
class Scan:
    """What the files of an image set hold, before they are stored."""

    kept: np.ndarray  # (R,) int64 indices into the image set of the files whose header can be read
    widths: np.ndarray  # (R,) int32 upright, in pixels, as the heights
    heights: np.ndarray
    channels: int  # 1 when all are grey, otherwise 3
    content_hashes: Digests  # (R,) of each file's bytes
    bad: tuple[BadFile, ...]  # the other files
    fingerprint: str  # one hash over all contents in order; names do not count
    spare: int = 0  # images with a band that is neither colour nor transparency
    deep: DeepValues | None = None  # the values of the images deeper than 8 bits
    value_range: ValueRange | None = None  # the values that become black and white in those, once known

    def __len__(self) -> int:
        return len(self.kept)

    @property
    def median_short_side(self) -> int:
        """The median of the smaller of width and height, rounded down to a whole pixel."""
        return int(np.median(np.minimum(self.widths, self.heights)))

    def spread(self, count: int) -> np.ndarray:
        """Return up to ``count`` positions spread over the images, int64."""
        return np.unique(np.linspace(0, len(self) - 1, min(count, len(self))).astype(int))

    def in_range(self, asked: ValueRange | None, say: Callable[[str], None]) -> Scan:
        """Return the scan with the range of values that was asked for, or the one that its deep images decide."""
        if self.spare:
            say(f"bands: {counted(self.spare, 'image')} with a fourth band that is no transparency; it is left out")
        if asked is None and self.deep is not None:
            asked, reason = self.deep.settled()
            say(f"values: {reason}")
        return replace(self, value_range=asked)

    def like(self, channels: int, value_range: ValueRange | None, what: str, context: Context) -> Scan:
        """Return the scan with the channels and the range of values of the training images; ``what`` names these."""
        if self.deep is not None and value_range is not None and (count := int(self.deep.beyond(value_range).sum())):
            context.warn(
                f"{count:,} of {len(self):,} {what} have values outside the training images' range "
                f"{value_range[0]:g}..{value_range[1]:g}; they are clipped"
            )
        return replace(self, channels=channels, value_range=value_range)


def scan_images(images: ImageSet, screen: Progress) -> Scan:
    """Read every file once, in threads: hash its content and read its header."""
    sides, hashes = np.zeros((2, len(images)), np.int32), np.zeros((len(images), DIGEST_BYTES), np.uint8)
    readable, channels = np.ones(len(images), dtype=bool), 1
    bad: list[BadFile] = []
    spare, deep = 0, list[Values]()
    # Reading waits for the disk most of the time, so more threads than cores help.
    found = prefetch(_header_and_hash, images.paths, threads=2 * usable_cores())
    with screen.bar("scan", len(images)) as advance:
        for index, (header, content) in enumerate(found):
            advance()
            if isinstance(header, str):
                bad.append(BadFile(images.ids[index], images.paths[index], header))
                readable[index] = False
                continue
            sides[:, index] = header.width, header.height
            hashes[index] = np.frombuffer(bytes.fromhex(content), np.uint8)
            channels = max(channels, header.channels)
            spare += header.spare
            if header.values is not None:
                deep.append(header.values)
    if not readable.any():
        raise EtudeError(none_readable(images, bad))
    contents, kept = Digests(hashes[readable]), np.flatnonzero(readable)
    widths, heights = sides[:, readable]
    fingerprint = digest_of(*contents)
    return Scan(kept, widths, heights, channels, contents, tuple(bad), fingerprint, spare, DeepValues.of(deep))


def none_readable(images: ImageSet, bad: list[BadFile]) -> str:
    """Return the sentence for an image set of which not one file can be used."""
    reasons = Counter(file.reason for file in bad).most_common(3)
    causes = ", ".join(f"{count:,} times {reason!r}" for reason, count in reasons)
    return (
        f"none of the {counted(len(images), 'image')} in {images.root} can be used ({causes}); the first is "
        f"{bad[0].path}: check the files and the path"
    )


def _header_and_hash(path: Path) -> tuple[Header | str, str]:
    """Return header and content hash of a file, or the reason why it cannot be used and an empty hash."""
    try:
        data = read_image_file(path)
        return read_header(data), digest_of(data)
    except UnreadableImage as problem:
        return str(problem), ""


_BLOCK = 64
_CAMERA_TAGS = (0x010F, 0x0110, 0x0131)  # EXIF make, model, software


@dataclass(frozen=True, slots=True)
class FileFacts:
    """What can be known of one file without its pixels; the defaults where it cannot be opened or read."""

    size: int = 0  # bytes
    width: int = 0  # pixels as stored
    height: int = 0
    kind: str = ""  # format and pixel mode, such as "PNG L"
    camera: str = ""  # make, model and software of its EXIF data

    @property
    def readable(self) -> bool:
        """Whether the header could be read."""
        return bool(self.kind)


def read_facts(paths: Sequence[Path], screen: Progress) -> list[FileFacts]:
    """Read each file's size and header, in threads; no pixel is decoded and no file is read to its end."""
    found: list[FileFacts] = []
    # A header is read in less time than a thread needs to receive the work.
    blocks = [paths[start : start + _BLOCK] for start in range(0, len(paths), _BLOCK)]
    with screen.bar("file facts", len(paths), unit="files") as advance:
        for facts in prefetch(lambda block: [_facts_of(path) for path in block], blocks, threads=usable_cores()):
            found += facts
            advance(len(facts))
    return found


def _facts_of(path: Path) -> FileFacts:
    try:
        size = os.stat(path).st_size
        with Image.open(path) as image:
            kind, (width, height), camera = f"{image.format} {image.mode}", image.size, _camera(image)
    except Exception:  # decoders raise anything on damaged files; the scan says why one cannot be used
        return FileFacts()
    return FileFacts(size, width, height, kind, camera)


def _camera(image: Image.Image) -> str:
    if "exif" not in image.info:  # of a PNG Pillow would decode everything to find some
        return ""
    tags = image.getexif()
    return " ".join(str(tags[tag]).strip() for tag in _CAMERA_TAGS if tag in tags)


def name_of(image_id: str, label: str | None = None) -> str:
    """Return the part of an id that names the image: without its ending, and without folders named as its class."""
    *folders, file = image_id.split("/")
    return "/".join([*(folder for folder in folders if folder != label), re.sub(r"(?<=.)\.[^.]*$", "", file)])
