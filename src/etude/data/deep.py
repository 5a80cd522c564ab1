"""Images deeper than 8 bits, and TIFF files of many kinds: how their pixels are stored, and their values unchanged.

Pillow reads deep grey images; of deep colours it keeps the upper 8 bits, and several kinds of TIFF it does not know.
Those OpenCV reads. What neither reads is named for what it is, not called damaged.
"""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO
from typing import Any, NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageFile
from PIL.TiffImagePlugin import ImageFileDirectory_v2

TIFF_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
WIDE_GREY_MODES = frozenset({"I", "F", "I;16", "I;16L", "I;16B", "I;16N"})

_WIDTH, _HEIGHT, _BITS, _PHOTOMETRIC, _BANDS, _PLANES, _EXTRA, _FORMAT = 256, 257, 258, 262, 277, 284, 338, 339
_ORIENTATION = 274
_COLOUR_BANDS = {2: 3, 3: 1, 5: 4, 6: 3, 8: 3}  # of TIFF's kinds of colour; the others have 1
_KINDS = {1: "u", 2: "i", 3: "f"}
_NAMES = {"u": "whole numbers", "i": "signed whole numbers", "f": "floating-point numbers"}


class UnreadableImage(Exception):
    """An image file that cannot be used; the message is a short reason for ``bad_files.csv``."""


class Layout(NamedTuple):
    """How the pixels of an image are stored.

    Args:
        size: upright width and height, before EXIF.
        grey: whether it has no colours.
        bytes: of one pixel as stored.
        alpha: whether its last band is transparency; of TIFF files and deep images only, Pillow knows for the others.
        spare: whether its last band is neither colour nor transparency.
        deep: whether a value has more than 8 bits.
        kind: of a deep value, ``u``, ``i`` or ``f`` as numpy calls them.
    """

    size: tuple[int, int]
    grey: bool
    bytes: int
    alpha: bool
    spare: bool
    deep: bool
    kind: str = "u"


def tiff_directory(data: bytes) -> ImageFileDirectory_v2:
    """Read the tags of a TIFF file's first image."""
    directory = ImageFileDirectory_v2(data[:16] if data[2] == 43 else data[:8])
    file = BytesIO(data)
    file.seek(directory.next)
    directory.load(file)
    return directory


def tiff_layout(tags: Mapping[int, Any]) -> Layout:
    """Return how a TIFF file's pixels are stored.

    Raises:
        UnreadableImage: in a way that is not read here.
    """
    bands, bits = int(tags.get(_BANDS, 1)), max(tags.get(_BITS, (1,)))
    photometric, extra = tags.get(_PHOTOMETRIC, 1), tuple(tags.get(_EXTRA, ()))
    kind = _KINDS.get(max(tags.get(_FORMAT, (1,))), "u")
    colours = min(bands, _COLOUR_BANDS.get(photometric, 1))
    spare = bands - colours
    deep, alpha = bits > 8 or kind == "f", spare > 0 and any(one in (1, 2) for one in extra)
    if spare > 1:
        raise UnreadableImage(f"{bands} bands; etude reads 1, 3 or 4: save the ones to use as grey or RGB")
    size = int(tags[_WIDTH]), int(tags[_HEIGHT])
    if deep and tags.get(_ORIENTATION, 1) >= 5:
        size = size[1], size[0]
    return Layout(
        size, colours == 1 and photometric != 3, bands * -(-bits // 8), alpha, spare > 0 and not alpha, deep, kind
    )


def layout_of(image: Image.Image | ImageFileDirectory_v2) -> Layout:
    """Return how the pixels are stored of an image that Pillow has opened, or of a TIFF file that it does not know.

    Raises:
        UnreadableImage: in a way that is not read here.
    """
    if isinstance(image, ImageFileDirectory_v2):
        return tiff_layout(image)
    tags: Mapping[int, Any] | None = getattr(image, "tag_v2", None) if image.format == "TIFF" else None
    grey = is_grey(image)
    tile = image.tile[:1] if isinstance(image, ImageFile.ImageFile) else []
    deep = image.mode in WIDE_GREY_MODES or any(";16" in str(args) for *_, args in tile)
    if tags is None:
        kind = "f" if image.mode == "F" else "i" if image.mode == "I" else "u"
        # The one transparent value of a deep grey image, for which there is no band, is read as any other.
        alpha = deep and image.mode not in WIDE_GREY_MODES and image.has_transparency_data
        return Layout(image.size, grey, 8 if deep else 4, alpha, False, deep, kind)
    return tiff_layout(tags)._replace(size=image.size, grey=grey, deep=deep)


def is_grey(image: Image.Image) -> bool:
    """Whether an image that Pillow has opened has no colours."""
    if image.mode == "P" and image.palette is not None and image.palette.mode == "RGB":
        colours = np.frombuffer(bytes(image.palette.palette), dtype=np.uint8)
        colours = colours[: len(colours) // 3 * 3].reshape(-1, 3)
        return bool((colours == colours[:, :1]).all())
    return image.mode in WIDE_GREY_MODES or image.mode in ("1", "L", "LA", "La")


def deep_pixels(data: bytes, image: Image.Image | ImageFileDirectory_v2, layout: Layout) -> np.ndarray:
    """Return the values of a deep image: (H, W), or (H, W, 3), or with transparency (H, W, 4).

    TIFF comes upright; of other formats the EXIF orientation is still to be applied.

    Raises:
        UnreadableImage: it is of a kind that neither library reads, damaged, or holds values that are no numbers.
    """
    if isinstance(image, Image.Image) and image.mode in WIDE_GREY_MODES:
        pixels = np.asarray(image)
        if image.mode == "I" and image.format == "TIFF" and layout.kind == "u":
            pixels = pixels.view(np.uint32)  # Pillow has no mode for them
    else:
        pixels = _by_opencv(data, image, layout)
    if layout.kind == "f" and not np.isfinite(pixels).all():
        raise UnreadableImage("holds values that are no finite numbers (NaN or infinite): replace them")
    return pixels


def _by_opencv(data: bytes, image: Image.Image | ImageFileDirectory_v2, layout: Layout) -> np.ndarray:
    tags = image if isinstance(image, ImageFileDirectory_v2) else getattr(image, "tag_v2", {})
    bands = int(tags.get(_BANDS, 0)) or (4 if layout.alpha else 1 if layout.grey else 3)
    each = layout.bytes // bands if tags else 2
    pixels = None
    if tags.get(_PLANES, 1) == 1 and tags.get(_PHOTOMETRIC, 1) != 5:  # what it makes of those two is wrong
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    width, height = layout.size
    fits = pixels is not None and pixels.shape[:2] == (height, width) and pixels.dtype.itemsize == each
    if pixels is None or not fits or (pixels.ndim == 3) != (bands > 1 or layout.alpha):
        raise UnreadableImage(_not_read(bands, 8 * each, layout.kind, tags))
    if pixels.ndim == 2:
        return pixels
    colours = pixels[:, :, 2::-1]
    return np.concatenate([colours, pixels[:, :, 3:]], axis=2) if layout.alpha else colours


def _not_read(bands: int, bits: int, kind: str, tags: Mapping[int, Any]) -> str:
    planes = " in separate planes" if tags.get(_PLANES, 1) == 2 else ""
    colours = "CMYK " if tags.get(_PHOTOMETRIC, 1) == 5 else ""
    plural = "" if bands == 1 else "s"
    return (
        f"damaged, or of a kind that is not read: {bands} {colours}band{plural}{planes} of {bits}-bit {_NAMES[kind]}; "
        "save it as grey or RGB of 8 or 16 bits or 32-bit floating point"
    )
