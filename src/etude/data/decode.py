"""From the bytes of an image file to a square uint8 array, the same way for every format.

Pillow decodes, because it reads all the formats, scales JPEG while decoding (``draft``) and resizes with
antialiasing. :data:`DECODER_VERSION` is part of every store's key: raise it when any pixel may change.
"""

from __future__ import annotations

import os
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from io import BytesIO
from pathlib import Path
from threading import Lock
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from etude.core.processor import free_memory
from etude.data.deep import TIFF_SIGNATURES, Layout, UnreadableImage, deep_pixels, layout_of, tiff_directory
from etude.data.value_range import ValueRange, Values, to_eight_bits, values_of

DECODER_VERSION = 2
FITS = ("squash", "crop", "letterbox")

# Larger images are refused by their header. It is the number from which Pillow warns of a file made to exhaust the
# memory; Pillow itself refuses twice as many.
MAX_PIXELS = 178_956_970
MAX_FILE_BYTES = 1 << 30
_LARGE_PIXELS = 1 << 25  # images from which the free memory is looked at, and of which one is decoded at a time
_BYTES_A_PIXEL = 20  # of memory, in which Pillow decodes and converts 8-bit images: the peak of WebP with transparency
_JPEG_BYTES_A_PIXEL = 6  # decoded at a smaller scale; a progressive file keeps its coefficients
# Letterbox borders are mid-grey: close to the mean of natural images, so close to 0 once normalised.
PADDING = 127
# Antialiased triangle filter: Lanczos is sharper but rings beside edges and takes twice the time.
_FILTER = Image.Resampling.BILINEAR
# A whole-number reduction first, as long as 3 times the target is left: the result is nearly the same, and faster.
_REDUCING_GAP = 3.0

_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "DIB")  # looked for first, without loading Pillow's others
# Pillow starts Ghostscript for EPS, draws WMF on Windows alone, and only names the others.
_NOT_READ = frozenset({"EPS", "WMF", "BUFR", "GRIB", "HDF5", "MPEG", "IPTC"})
_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"BM", *TIFF_SIGNATURES)
_one_large = Lock()
_DARK = 16  # of 255: images that stay up to it show a sixteenth of the greys, as 12 bits in a range of 16 do
_LOOKED_AT = 32  # pixels of a side, at least, that are enough to see it
_ONE_COLOUR = 0.75  # of 255: a smaller deviation is that of a flat colour after compression

_ORIENTATION_TAG = 0x0112
_TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Pillow warns of large images and damaged tags; here each file ends as pixels or as a reason, so nothing more to say.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


class Survey(NamedTuple):
    """What an image's header says: upright size in pixels, and 1 (grey) or 3 channels.

    Args:
        spare: whether it has a further band that is neither colour nor transparency, and is left out.
        values: of an image deeper than 8 bits, what its pixels are like; None for others.
    """

    width: int
    height: int
    channels: int
    spare: bool = False
    values: Values | None = None


@cache
def other_formats() -> tuple[str, ...]:
    """Return Pillow's names of the rarer formats that are read."""
    Image.init()
    return tuple(sorted(set(Image.OPEN) - {*_FORMATS, *_NOT_READ}))


@cache
def image_suffixes() -> frozenset[str]:
    """Return the endings, in lower case, of every format that is read.

    >>> {".jpg", ".jfif", ".tga"} <= image_suffixes(), ".txt" in image_suffixes()
    (True, False)
    """
    names = {*_FORMATS, *other_formats()}
    return frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in names)


def is_image_content(path: Path | str) -> bool:
    """Whether a regular file begins like an image, whatever its name; one that cannot be opened does not."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return False
        with open(path, "rb") as file:
            head = file.read(16)
            if head.startswith(_SIGNATURES) or _is_webp(head):
                return True
            with Image.open(file, formats=other_formats()):
                return True
    except Image.DecompressionBombError:
        return True
    except Exception:  # as varied as what is in such files
        return False


def read_image_file(path: Path) -> bytes:
    """Return the bytes of an image file.

    Raises:
        UnreadableImage: it is missing, forbidden, empty, too large or not a regular file.
    """
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
            raise UnreadableImage("not a regular file")
        if status.st_size > MAX_FILE_BYTES:
            raise UnreadableImage(f"too large ({status.st_size / 2**30:.1f} GiB in one file)")
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise UnreadableImage("file not found") from None
    except PermissionError:
        raise UnreadableImage("permission denied") from None
    except OSError as error:
        raise UnreadableImage((error.strerror or str(error)).lower()) from None
    except ValueError:
        raise UnreadableImage("not a possible file name") from None
    if not data:
        raise UnreadableImage("empty file (zero bytes)")
    return data


def survey_image(data: bytes) -> Survey:
    """Read the header of an image: its upright size and whether it is grey.

    Pixels are decoded where they are deeper than 8 bits, to see what values they have.

    Raises:
        UnreadableImage: it is no image, too large, or its deep pixels cannot be read.
    """
    with _opened(data) as (image, layout):
        width, height = layout.size
        if _orientation(image) >= 5:
            width, height = height, width
        values = None
        if layout.deep:
            pixels = deep_pixels(data, image, layout)
            values = values_of(pixels[:, :, :3] if layout.alpha else pixels)
        return Survey(width, height, 1 if layout.grey else 3, layout.spare, values)


def decode(data: bytes, size: int, fit: str, channels: int, value_range: ValueRange | None = None) -> np.ndarray:
    """Decode an image upright, in 8 bits, on white where it is transparent, fitted into a square.

    Transparent pixels become white because the colour stored under them is arbitrary, often black, and drawings,
    scans and logos with transparency are made for white paper. Of several frames, the first counts.

    Args:
        data: the bytes of the file.
        size: side of the square in pixels.
        fit: ``squash`` stretches to the square; ``crop`` keeps the central square; ``letterbox`` keeps everything
            and pads with mid-grey.
        channels: 1 for grey, 3 for RGB.
        value_range: values that become black and white in images deeper than 8 bits; others do not need it.

    Returns:
        (size, size, channels) uint8.

    Raises:
        UnreadableImage: the image is damaged, cut off, too large, of a kind that cannot be read, or deep and there is
            no range.
    """
    with _opened(data) as (image, layout):
        if layout.deep:
            upright = _eight_bits(deep_pixels(data, image, layout), layout, value_range)
        else:
            assert isinstance(image, Image.Image)  # what Pillow does not know is deep
            image.draft(None, _drafted_size(image.size, size, fit))
            image.load()
            upright = image.convert("L" if layout.grey else "RGB") if layout.spare else image
        turn = _TRANSPOSITIONS.get(_orientation(image))
        square = _fitted(_flattened(upright, "L" if channels == 1 else "RGB"), size, fit, turn)
        return np.array(square, dtype=np.uint8).reshape(size, size, channels)


def dullness(pixels: np.ndarray, fit: str, original: tuple[int, int]) -> str:
    """Return ``nearly black``, ``nearly white`` or ``of one colour`` for an image that shows hardly anything, or "".

    Up to 1 in 1,000 bright or dark pixels make no difference, and borders are left out.

    Args:
        pixels: what :func:`decode` returned, (S, S, C).
        fit: how the image was fitted.
        original: its upright width and height.
    """
    if fit == "letterbox":
        width, height = _letterboxed_size(original, len(pixels))
        top, left = (len(pixels) - height) // 2, (len(pixels) - width) // 2
        pixels = pixels[top : top + height, left : left + width]
    step = max(1, len(pixels) // _LOOKED_AT)
    pixels = np.ascontiguousarray(pixels[::step, ::step])
    few = pixels.size // 1000
    if np.count_nonzero(pixels > _DARK) <= few:
        return "nearly black"
    if np.count_nonzero(pixels < 255 - _DARK) <= few:
        return "nearly white"
    return "of one colour" if cv2.meanStdDev(pixels)[1].max() < _ONE_COLOUR else ""


@contextmanager
def _opened(data: bytes) -> Iterator[tuple[Image.Image | ImageFileDirectory_v2, Layout]]:
    """Open an image and turn whatever its decoder raises into a reason; a TIFF that Pillow does not know gives tags."""
    try:
        # Pillow takes the memory for a WebP image as it opens it, for others as it decodes them.
        webp = _is_webp(data) and _refuse_too_large(*_webp_size(data), _BYTES_A_PIXEL)
        with _one_large if webp else nullcontext(), _known_image(data) as image:
            layout = layout_of(image)
            large = not webp and _refuse_too_large(*layout.size, _memory_a_pixel(image, layout))
            with _one_large if large else nullcontext():
                yield image, layout
    except UnreadableImage:
        raise
    except Image.DecompressionBombError:
        raise UnreadableImage(f"too large (more than {MAX_PIXELS:,} pixels): save it smaller") from None
    except UnidentifiedImageError:
        known = data.startswith(_SIGNATURES) or _is_webp(data)
        raise UnreadableImage("damaged or cut off" if known else "not an image of a known kind") from None
    except MemoryError:
        raise UnreadableImage("too large for this machine's memory") from None
    except Exception as error:  # decoders raise anything from struct.error to IndexError on damaged files
        told = str(error).strip() or type(error).__name__
        cut_off = isinstance(error, EOFError) or "truncated" in told.lower()
        raise UnreadableImage("truncated" if cut_off else f"damaged ({told})") from None


def _known_image(data: bytes) -> Image.Image | nullcontext[ImageFileDirectory_v2]:
    """Return what Pillow opens, by content alone, or a TIFF file's tags."""
    try:
        return Image.open(BytesIO(data), formats=_FORMATS)
    except UnidentifiedImageError:
        if data.startswith(TIFF_SIGNATURES):
            return nullcontext(tiff_directory(data))
        if data.startswith(_SIGNATURES) or _is_webp(data):
            raise
        return Image.open(BytesIO(data), formats=other_formats())


def _is_webp(data: bytes) -> bool:
    return data[:4] == b"RIFF" and data[8:12] == b"WEBP"


def _webp_size(data: bytes) -> tuple[int, int]:
    """Return width and height in a WebP file's first chunk: extended, lossless or lossy."""
    kind = data[12:16]
    if kind == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    bits = int.from_bytes(data[21:25] if kind == b"VP8L" else data[26:30], "little")
    return (1 + bits % 2**14, 1 + (bits >> 14) % 2**14) if kind == b"VP8L" else (bits % 2**14, (bits >> 16) % 2**14)


def _memory_a_pixel(image: Image.Image | ImageFileDirectory_v2, layout: Layout) -> int:
    if layout.deep:
        return _BYTES_A_PIXEL + 4 * layout.bytes  # the values, floats of them, and what is done with bytes
    return _JPEG_BYTES_A_PIXEL if isinstance(image, Image.Image) and image.format == "JPEG" else _BYTES_A_PIXEL


def _refuse_too_large(width: int, height: int, bytes_a_pixel: int) -> bool:
    """Refuse what would not fit into the memory; return whether the image is large."""
    pixels = width * height
    if pixels > MAX_PIXELS:
        raise UnreadableImage(
            f"too large ({width} x {height} pixels, at most {MAX_PIXELS:,} are read): save it smaller"
        )
    if pixels <= _LARGE_PIXELS:
        return False
    needed, free = pixels * bytes_a_pixel, free_memory()
    if free is not None and needed > free:
        raise UnreadableImage(
            f"too large for the free memory ({width} x {height} pixels take {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB "
            "are free): save it smaller, or free some memory"
        )
    return True


def _orientation(image: Image.Image | ImageFileDirectory_v2) -> int:
    """Return the orientation 1-8 that is to be applied; damaged EXIF counts as upright, as other viewers do."""
    if isinstance(image, ImageFileDirectory_v2) or image.format == "TIFF":
        return 1  # both decoders turn TIFF files by themselves
    if image.format == "PNG" and "exif" not in image.info:
        return 1  # asking Pillow would decode the whole image
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # as varied as the damage
        return 1


def _drafted_size(original: tuple[int, int], size: int, fit: str) -> tuple[int, int]:
    """Return the least size that a JPEG may be decoded at, so that it is never enlarged afterwards."""
    if fit == "letterbox":
        return _letterboxed_size(original, size)
    return size, size


def _letterboxed_size(original: tuple[int, int], size: int) -> tuple[int, int]:
    width, height = original
    scale = size / max(width, height)
    return max(1, round(width * scale)), max(1, round(height * scale))


def _flattened(image: Image.Image, mode: str) -> Image.Image:
    """Return the image as 8-bit ``L`` or ``RGB``, without transparency."""
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image).convert("RGB")
    elif image.mode == "P":
        image = image.convert("RGB")
    return image if image.mode == mode else image.convert(mode)


def _eight_bits(pixels: np.ndarray, layout: Layout, value_range: ValueRange | None) -> Image.Image:
    if value_range is None:
        raise UnreadableImage("deeper than 8 bits, unlike the training images: save it with 8 bits, or set data.range")
    if not layout.alpha:
        return Image.fromarray(to_eight_bits(pixels, value_range))
    opaque = 1.0 if layout.kind == "f" else float(np.iinfo(pixels.dtype).max)
    bands = to_eight_bits(pixels[:, :, :3], value_range), to_eight_bits(pixels[:, :, 3:], (0.0, opaque))
    return Image.fromarray(np.concatenate(bands, axis=2))


def _fitted(image: Image.Image, size: int, fit: str, turn: Image.Transpose | None) -> Image.Image:
    """Fit an image into a square, and turn it after resizing, when that is cheap."""
    if fit == "letterbox":
        inner = _turned(image.resize(_letterboxed_size(image.size, size), _FILTER, reducing_gap=_REDUCING_GAP), turn)
        square = Image.new(image.mode, (size, size), (PADDING,) * len(image.getbands()))
        # Turned before: an odd border is wider on the right and below of the upright image.
        square.paste(inner, ((size - inner.width) // 2, (size - inner.height) // 2))
        return square
    width, height = image.size
    side = min(width, height)
    left, top = ((width - side) / 2, (height - side) / 2) if fit == "crop" else (0.0, 0.0)
    box = (left, top, left + side, top + side) if fit == "crop" else (0.0, 0.0, float(width), float(height))
    return _turned(image.resize((size, size), _FILTER, box=box, reducing_gap=_REDUCING_GAP), turn)


def _turned(image: Image.Image, turn: Image.Transpose | None) -> Image.Image:
    return image if turn is None else image.transpose(turn)
