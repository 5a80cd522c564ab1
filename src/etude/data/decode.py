"""From the bytes of an image file to a square uint8 array, the same way for every format.

Pillow decodes, because it reads all the formats, scales JPEG while decoding (``draft``) and resizes with
antialiasing. :data:`DECODER_VERSION` is part of every store's key: raise it when any pixel may change.
"""

from __future__ import annotations

import os
import stat
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import cache
from io import BytesIO
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from etude.core.processor import free_memory
from etude.data.value_range import ValueRange, Values, to_eight_bits, values_of

NEAR_SQUARE = 1.1
HALF_LOST = 2.0  # a central square keeps 1/ratio of the image, so at 2 half of it is gone


def choose_fit(widths: np.ndarray, heights: np.ndarray) -> tuple[str, str]:
    """Choose squash, crop or letterbox from the sizes of the images.

    The long side over the short side of 90% of the images decides: up to 1.1, stretching is hardly visible
    (squash); up to 2, the central square keeps at least half of the image (crop); beyond, a crop would lose more than
    half, so everything is kept and padded (letterbox).

    Returns the fit's name and a sentence that gives the reason.
    """
    widths, heights = np.asarray(widths, dtype=np.float64), np.asarray(heights, dtype=np.float64)
    if not len(widths):
        raise ValueError("choose_fit needs at least one image size")
    ratios = np.maximum(widths, heights) / np.minimum(widths, heights)
    # An observed ratio, not one interpolated between two images, so that "90% of the images" is exact.
    most = float(np.quantile(ratios, 0.9, method="inverted_cdf"))
    shape = f"long side : short side is {np.median(ratios):.2f} in the median and up to {most:.2f} in 90% of the images"
    if most <= NEAR_SQUARE:
        return "squash", f"squash, since {shape}: stretching them to a square is hardly visible"
    if most <= HALF_LOST:
        return "crop", f"crop, since {shape}: the central square keeps at least {1 / most:.0%} of nine images in ten"
    return "letterbox", f"letterbox, since {shape}: a central crop would lose more than half of too many images"


TIFF_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
WIDE_GREY_MODES = frozenset({"I", "F", "I;16", "I;16L", "I;16B", "I;16N"})

_WIDTH, _HEIGHT, _BITS, _PHOTOMETRIC, _BANDS, _PLANES, _EXTRA, _FORMAT = 256, 257, 258, 262, 277, 284, 338, 339
_ORIENTATION = 274
_COLOUR_BANDS = {2: 3, 3: 1, 5: 4, 6: 3, 8: 3}  # of TIFF's kinds of colour; the others have 1
_KINDS = {1: "u", 2: "i", 3: "f"}
_NAMES = {"u": "whole numbers", "i": "signed whole numbers", "f": "floating-point numbers"}


class UnreadableImage(Exception):
    """An image file that cannot be used; the message is a short reason for ``bad_files.csv``."""


class Header(NamedTuple):
    """What an image's header says of its size, and of how its pixels are stored."""

    width: int
    height: int
    channels: int  # 1 (grey) or 3
    spare: bool = False  # the last band is neither colour nor transparency
    values: Values | None = None  # of deep images
    alpha: bool = False  # the last band is transparency; of others than TIFF and deep images Pillow knows
    bytes: int = 4  # of one pixel
    deep: bool = False  # a value has more than 8 bits
    kind: str = "u"  # of a deep value, u, i or f as numpy calls them


def _tiff_directory(data: bytes) -> ImageFileDirectory_v2:
    """Read the tags of a TIFF file's first image."""
    directory = ImageFileDirectory_v2(data[:16] if data[2] == 43 else data[:8])
    file = BytesIO(data)
    file.seek(directory.next)
    directory.load(file)
    return directory


def _tiff_header(tags: Mapping[int, Any]) -> Header:
    """Return how a TIFF file's pixels are stored, or raise UnreadableImage; only deep ones are turned upright."""
    bands, bits = int(tags.get(_BANDS, 1)), max(tags.get(_BITS, (1,)))
    photometric, extra = tags.get(_PHOTOMETRIC, 1), tuple(tags.get(_EXTRA, ()))
    kind = _KINDS.get(max(tags.get(_FORMAT, (1,))), "u")
    colours = min(bands, _COLOUR_BANDS.get(photometric, 1))
    spare = bands - colours
    deep, alpha = bits > 8 or kind == "f", spare > 0 and any(one in (1, 2) for one in extra)
    if spare > 1:
        raise UnreadableImage(f"{bands} bands; etude reads 1, 3 or 4: save the ones to use as grey or RGB")
    width, height = int(tags[_WIDTH]), int(tags[_HEIGHT])
    if deep and tags.get(_ORIENTATION, 1) >= 5:
        width, height = height, width
    channels, left_out = 1 if colours == 1 and photometric != 3 else 3, spare > 0 and not alpha
    return Header(width, height, channels, left_out, None, alpha, bands * -(-bits // 8), deep, kind)


def _stored_header(image: Image.Image | ImageFileDirectory_v2) -> Header:
    """Return the header, not turned by EXIF, of what Pillow has opened, or of a TIFF file that it does not know."""
    if isinstance(image, ImageFileDirectory_v2):
        return _tiff_header(image)
    tags: Mapping[int, Any] | None = getattr(image, "tag_v2", None) if image.format == "TIFF" else None
    width, height, channels = *image.size, 1 if _is_grey(image) else 3
    tile = image.tile[:1] if isinstance(image, ImageFile.ImageFile) else []
    deep = image.mode in WIDE_GREY_MODES or any(";16" in str(args) for *_, args in tile)
    if tags is None:
        kind = "f" if image.mode == "F" else "i" if image.mode == "I" else "u"
        # The one transparent value of a deep grey image, for which there is no band, is read as any other.
        alpha = deep and image.mode not in WIDE_GREY_MODES and image.has_transparency_data
        return Header(width, height, channels, False, None, alpha, 8 if deep else 4, deep, kind)
    return _tiff_header(tags)._replace(width=width, height=height, channels=channels, deep=deep)


def _is_grey(image: Image.Image) -> bool:
    if image.mode == "P" and image.palette is not None and image.palette.mode == "RGB":
        colours = np.frombuffer(bytes(image.palette.palette), dtype=np.uint8)
        colours = colours[: len(colours) // 3 * 3].reshape(-1, 3)
        return bool((colours == colours[:, :1]).all())
    return image.mode in WIDE_GREY_MODES or image.mode in ("1", "L", "LA", "La")


def _deep_pixels(data: bytes, image: Image.Image | ImageFileDirectory_v2, header: Header) -> np.ndarray:
    """Return the values of a deep image: (H, W), or (H, W, 3), or with transparency (H, W, 4).

    TIFF comes upright; of other formats the EXIF orientation is still to be applied.
    """
    if isinstance(image, Image.Image) and image.mode in WIDE_GREY_MODES:
        pixels = np.asarray(image)
        if image.mode == "I" and image.format == "TIFF" and header.kind == "u":
            pixels = pixels.view(np.uint32)  # Pillow has no mode for them
    else:
        pixels = _by_opencv(data, image, header)
    if header.kind == "f" and not np.isfinite(pixels).all():
        raise UnreadableImage("holds values that are no finite numbers (NaN or infinite): replace them")
    return pixels


def _by_opencv(data: bytes, image: Image.Image | ImageFileDirectory_v2, header: Header) -> np.ndarray:
    tags = image if isinstance(image, ImageFileDirectory_v2) else getattr(image, "tag_v2", {})
    bands = int(tags.get(_BANDS, 0)) or (4 if header.alpha else header.channels)
    each = header.bytes // bands if tags else 2
    pixels = None
    if tags.get(_PLANES, 1) == 1 and tags.get(_PHOTOMETRIC, 1) != 5:  # what it makes of those two is wrong
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    fits = pixels is not None and pixels.shape[:2] == (header.height, header.width) and pixels.dtype.itemsize == each
    if pixels is None or not fits or (pixels.ndim == 3) != (bands > 1 or header.alpha):
        raise UnreadableImage(_not_read(bands, 8 * each, header.kind, tags))
    if pixels.ndim == 2:
        return pixels
    colours = pixels[:, :, 2::-1]
    return np.concatenate([colours, pixels[:, :, 3:]], axis=2) if header.alpha else colours


def _not_read(bands: int, bits: int, kind: str, tags: Mapping[int, Any]) -> str:
    planes = " in separate planes" if tags.get(_PLANES, 1) == 2 else ""
    colours = "CMYK " if tags.get(_PHOTOMETRIC, 1) == 5 else ""
    plural = "" if bands == 1 else "s"
    return (
        f"damaged, or of a kind that is not read: {bands} {colours}band{plural}{planes} of {bits}-bit {_NAMES[kind]}; "
        "save it as grey or RGB of 8 or 16 bits or 32-bit floating point"
    )


DECODER_VERSION = 2
FITS = ("squash", "crop", "letterbox")

# Larger images are refused by their header. It is the number from which Pillow warns of a file made to exhaust the
# memory; Pillow itself refuses twice as many.
MAX_PIXELS = 178_956_970
MAX_FILE_BYTES = 1 << 30
_LARGE_PIXELS = 1 << 25  # images from which the free memory is checked, and of which one is decoded at a time
_BYTES_A_PIXEL = 20  # of memory, in which Pillow decodes and converts 8-bit images: the peak of WebP with transparency
_JPEG_BYTES_A_PIXEL = 6  # decoded at a smaller scale; a progressive file keeps its coefficients
# Letterbox borders are mid-grey: close to the mean of natural images, so close to 0 once normalised.
PADDING = 127
# Antialiased triangle filter: Lanczos is sharper but rings at edges and takes twice the time.
_FILTER = Image.Resampling.BILINEAR
# A whole-number reduction first, as long as 3 times the target is left: the result is nearly the same, and faster.
_REDUCING_GAP = 3.0

_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "DIB")  # tried first, without loading Pillow's others
# Pillow starts Ghostscript for EPS, draws WMF on Windows alone, and only names the others.
_NOT_READ = frozenset({"EPS", "WMF", "BUFR", "GRIB", "HDF5", "MPEG", "IPTC"})
_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"BM", *TIFF_SIGNATURES)
_one_large, _ANY_NUMBER = Lock(), nullcontext()
_DARK = 16  # of 255: images that stay up to it show a sixteenth of the greys, as 12 bits in a range of 16 do
_SAMPLED_SIDE = 32  # pixels of a side, at least, that are enough to find that out
_ONE_COLOUR = 0.75  # of 255: a smaller deviation is that of a flat colour after compression

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


@cache
def other_formats() -> tuple[str, ...]:
    """Return Pillow's names of the rarer formats that are read."""
    Image.init()
    return tuple(sorted(set(Image.OPEN) - {*_FORMATS, *_NOT_READ}))


@cache
def image_suffixes() -> frozenset[str]:
    """Return the endings, in lower case, of every format that is read."""
    names = {*_FORMATS, *other_formats()}
    return frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in names)


def is_image_content(path: Path | str) -> bool:
    """Whether a regular file begins like an image, by any name; one that cannot be opened does not."""
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
    """Return the bytes of an image file, or raise UnreadableImage."""
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


def read_header(data: bytes) -> Header:
    """Read the header of an image; pixels deeper than 8 bits are decoded, to see what values they have."""
    with _opened(data) as (image, header):
        if header.deep:
            pixels = _deep_pixels(data, image, header)
            header = header._replace(values=values_of(pixels[:, :, :3] if header.alpha else pixels))
        turned = _orientation(image) >= 5
        return header._replace(width=header.height, height=header.width) if turned else header


def decode(data: bytes, size: int, fit: str, channels: int, value_range: ValueRange | None = None) -> np.ndarray:
    """Decode an image upright, in 8 bits, on white where it is transparent, fitted into a square.

    Returns (size, size, channels) uint8, or raises UnreadableImage; a deep image needs a range.
    """
    with _opened(data) as (image, header):
        if header.deep:
            upright = _eight_bits(_deep_pixels(data, image, header), header, value_range)
        else:
            assert isinstance(image, Image.Image)  # what Pillow does not know is deep
            # The least size that a JPEG may be decoded at, so that it is never enlarged afterwards.
            image.draft(None, _letterboxed_size(image.size, size) if fit == "letterbox" else (size, size))
            image.load()
            upright = image.convert("L" if header.channels == 1 else "RGB") if header.spare else image
        turn = _TRANSPOSITIONS.get(_orientation(image))
        square = _fitted(_flattened(upright, "L" if channels == 1 else "RGB"), size, fit, turn)
        return np.array(square, dtype=np.uint8).reshape(size, size, channels)


def dullness(pixels: np.ndarray, fit: str, original: tuple[int, int]) -> str:
    """Return ``nearly black``, ``nearly white`` or ``of one colour`` for an image that shows hardly anything, or "".

    Up to 1 in 1,000 bright or dark pixels make no difference, and borders are left out. ``original`` is the image's
    upright width and height before :func:`decode`.
    """
    if fit == "letterbox":
        width, height = _letterboxed_size(original, len(pixels))
        top, left = (len(pixels) - height) // 2, (len(pixels) - width) // 2
        pixels = pixels[top : top + height, left : left + width]
    step = max(1, len(pixels) // _SAMPLED_SIDE)
    pixels = np.ascontiguousarray(pixels[::step, ::step])
    few = pixels.size // 1000
    if np.count_nonzero(pixels > _DARK) <= few:
        return "nearly black"
    if np.count_nonzero(pixels < 255 - _DARK) <= few:
        return "nearly white"
    return "of one colour" if cv2.meanStdDev(pixels)[1].max() < _ONE_COLOUR else ""


@contextmanager
def _opened(data: bytes) -> Iterator[tuple[Image.Image | ImageFileDirectory_v2, Header]]:
    """Open an image and turn what its decoder raises into a reason; a TIFF that Pillow does not know gives tags."""
    try:
        # Pillow takes the memory for a WebP image as it opens it, for others as it decodes them.
        webp = _is_webp(data) and _refuse_too_large(*_webp_size(data), _BYTES_A_PIXEL)
        with _one_large if webp else _ANY_NUMBER, _known_image(data) as image:
            header = _stored_header(image)
            large = not webp and _refuse_too_large(header.width, header.height, _memory_a_pixel(image, header))
            with _one_large if large else _ANY_NUMBER:
                yield image, header
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
        reason = str(error).strip() or type(error).__name__
        cut_off = isinstance(error, EOFError) or "truncated" in reason.lower()
        raise UnreadableImage("truncated" if cut_off else f"damaged ({reason})") from None


def _known_image(data: bytes) -> Image.Image | nullcontext[ImageFileDirectory_v2]:
    """Return what Pillow opens, by content alone, or a TIFF file's tags."""
    try:
        return Image.open(BytesIO(data), formats=_FORMATS)
    except UnidentifiedImageError:
        if data.startswith(TIFF_SIGNATURES):
            return nullcontext(_tiff_directory(data))
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


def _memory_a_pixel(image: Image.Image | ImageFileDirectory_v2, header: Header) -> int:
    if header.deep:
        return _BYTES_A_PIXEL + 4 * header.bytes  # the values, floats of them, and what is done with bytes
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
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # as varied as the damage
        return 1


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


def _eight_bits(pixels: np.ndarray, header: Header, value_range: ValueRange | None) -> Image.Image:
    if value_range is None:
        raise UnreadableImage("deeper than 8 bits, unlike the training images: save it with 8 bits, or set data.range")
    if not header.alpha:
        return Image.fromarray(to_eight_bits(pixels, value_range))
    opaque = 1.0 if header.kind == "f" else float(np.iinfo(pixels.dtype).max)
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
    inset = min(width, height) if fit == "crop" else None
    left, top = (0.0, 0.0) if inset is None else ((width - inset) / 2, (height - inset) / 2)
    box = (left, top, left + (inset or width), top + (inset or height))
    return _turned(image.resize((size, size), _FILTER, box=box, reducing_gap=_REDUCING_GAP), turn)


def _turned(image: Image.Image, turn: Image.Transpose | None) -> Image.Image:
    return image if turn is None else image.transpose(turn)
