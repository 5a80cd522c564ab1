"""What a file tells of its image without its pixels: name, size, format, camera."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from etude.core.processor import usable_cores
from etude.core.progress import Progress
from etude.data.in_order import map_in_order

_A_BLOCK = 64
_CAMERA_TAGS = (0x010F, 0x0110, 0x0131)  # EXIF make, model, software


@dataclass(frozen=True, slots=True)
class FileFacts:
    """What one file tells.

    Args:
        size: bytes, 0 when it cannot be opened.
        width, height: pixels as stored, 0 when the header cannot be read.
        kind: format and pixel mode, such as ``"PNG L"``; empty when the header cannot be read.
        camera: make, model and software of its EXIF data; empty without any.
    """

    size: int = 0
    width: int = 0
    height: int = 0
    kind: str = ""
    camera: str = ""

    @property
    def readable(self) -> bool:
        """Whether the header could be read."""
        return bool(self.kind)


def read_facts(paths: Sequence[Path], progress: Progress, *, threads: int | None = None) -> list[FileFacts]:
    """Look at each file's size and header, in threads; no pixel is decoded and no file is read to its end."""
    found: list[FileFacts] = []
    # A header is read faster than it is handed over to a thread.
    blocks = [paths[start : start + _A_BLOCK] for start in range(0, len(paths), _A_BLOCK)]
    with progress.bar("file facts", len(paths), unit="files") as advance:
        for facts in map_in_order(lambda block: [facts_of(path) for path in block], blocks, threads or usable_cores()):
            found += facts
            advance(len(facts))
    return found


def facts_of(path: Path) -> FileFacts:
    """Return what the file tells; nothing where it cannot be opened."""
    try:
        size = os.stat(path).st_size
        with Image.open(path) as image:
            kind, (width, height), camera = f"{image.format} {image.mode}", image.size, _camera(image)
    except Exception:  # decoders raise anything on damaged files; the survey tells why one cannot be used
        return FileFacts()
    return FileFacts(size, width, height, kind, camera)


def _camera(image: Image.Image) -> str:
    if "exif" not in image.info:  # of a PNG Pillow would decode everything to find some
        return ""
    tags = image.getexif()
    return " ".join(str(tags[tag]).strip() for tag in _CAMERA_TAGS if tag in tags)


def name_of(image_id: str, label: str | None = None) -> str:
    """Return the part of an id that names the image: without its ending, and without folders named as its class.

    >>> name_of("cat/garden/IMG_7.jpg", "cat"), name_of("scans/7.png", "cat")
    ('garden/IMG_7', 'scans/7')
    """
    *folders, file = image_id.split("/")
    return "/".join([*(folder for folder in folders if folder != label), re.sub(r"(?<=.)\.[^.]*$", "", file)])
