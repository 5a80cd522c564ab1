"""From the bytes of an image file to a square uint8 array, the same way for every format.

Pillow decodes, because it reads all the formats, scales JPEG while decoding (``draft``) and resizes with
antialiasing. :data:`DECODER_VERSION` is part of every store's key: raise it when any pixel may change.
"""

from __future__ import annotations

import os
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

DECODER_VERSION = 1
FITS = ("squash", "crop", "letterbox")

MAX_PIXELS = 178_956_970  # Pillow's own limit, past which a small file is likely made to exhaust the memory
MAX_FILE_BYTES = 1 << 30
# Letterbox borders are mid-grey: close to the mean of natural images, so close to 0 once normalised.
PADDING = 127
# Antialiased triangle filter: Lanczos is sharper but rings beside edges and takes twice the time.
_FILTER = Image.Resampling.BILINEAR
# A whole-number reduction first, as long as 3 times the target is left: the result is nearly the same, and faster.
_REDUCING_GAP = 3.0

_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "DIB")
_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"RIFF", b"BM", b"II*\0", b"MM\0*")
_GREY_MODES = frozenset({"1", "L", "LA", "La", "I", "F", "I;16", "I;16L", "I;16B", "I;16N"})
_WIDE_GREY_MODES = frozenset({"I", "F", "I;16", "I;16L", "I;16B", "I;16N"})

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


class UnreadableImage(Exception):
    """An image file that cannot be used; the message is a short reason for ``bad_files.csv``."""


class Survey(NamedTuple):
    """What an image's header says: upright size in pixels, and 1 (grey) or 3 channels."""

    width: int
    height: int
    channels: int


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
    """Read the header of an image: its upright size and whether it is grey. Pixels are not decoded.

    Raises:
        UnreadableImage: it is no image, or too large.
    """
    with _opened(data) as image:
        width, height = image.size
        if image.format != "TIFF" and _orientation(image) >= 5:  # Pillow turns TIFF files by itself
            width, height = height, width
        return Survey(width, height, 1 if _is_grey(image) else 3)


def decode(data: bytes, size: int, fit: str, channels: int) -> np.ndarray:
    """Decode an image upright, in 8 bits, on white where it is transparent, fitted into a square.

    Transparent pixels become white because the colour stored under them is arbitrary, often black, and drawings,
    scans and logos with transparency are made for white paper. 16-bit grey is divided by 257. Of several frames,
    the first counts.

    Args:
        data: the bytes of the file.
        size: side of the square in pixels.
        fit: ``squash`` stretches to the square; ``crop`` keeps the central square; ``letterbox`` keeps everything
            and pads with mid-grey.
        channels: 1 for grey, 3 for RGB.

    Returns:
        (size, size, channels) uint8.

    Raises:
        UnreadableImage: the image is damaged, cut off, too large, or of a kind that cannot be read.
    """
    with _opened(data) as image:
        image.draft(None, _drafted_size(image.size, size, fit))
        image.load()
        orientation = _orientation(image)
        square = _fitted(_flattened(image, "L" if channels == 1 else "RGB"), size, fit)
        if orientation in _TRANSPOSITIONS:  # after resizing, since turning a square is cheap and all fits are central
            square = square.transpose(_TRANSPOSITIONS[orientation])
        return np.array(square, dtype=np.uint8).reshape(size, size, channels)


@contextmanager
def _opened(data: bytes) -> Iterator[Image.Image]:
    """Open an image and turn whatever its decoder raises into a reason."""
    try:
        with Image.open(BytesIO(data), formats=_FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise UnreadableImage(f"too large ({image.width} x {image.height} pixels)")
            yield image
    except UnreadableImage:
        raise
    except Image.DecompressionBombError:
        raise UnreadableImage(f"too large (more than {MAX_PIXELS:,} pixels)") from None
    except UnidentifiedImageError:
        known = data.startswith(_SIGNATURES)
        raise UnreadableImage("damaged or cut off" if known else "not an image of a known kind") from None
    except MemoryError:
        raise UnreadableImage("too large for this machine's memory") from None
    except Exception as error:  # decoders raise anything from struct.error to IndexError on damaged files
        told = str(error).strip() or type(error).__name__
        cut_off = isinstance(error, EOFError) or "truncated" in told.lower()
        raise UnreadableImage("truncated" if cut_off else f"damaged ({told})") from None


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation 1-8; damaged EXIF counts as upright, as other viewers do."""
    if image.format == "PNG" and "exif" not in image.info:
        return 1  # asking Pillow would decode the whole image
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # as varied as the damage
        return 1


def _is_grey(image: Image.Image) -> bool:
    if image.mode == "P" and image.palette is not None and image.palette.mode == "RGB":
        colours = np.frombuffer(bytes(image.palette.palette), dtype=np.uint8)
        colours = colours[: len(colours) // 3 * 3].reshape(-1, 3)
        return bool((colours == colours[:, :1]).all())
    return image.mode in _GREY_MODES


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
    if image.mode in _WIDE_GREY_MODES:
        return Image.fromarray(_eight_bits(np.asarray(image))).convert(mode)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image).convert("RGB")
    elif image.mode == "P":
        image = image.convert("RGB")
    return image if image.mode == mode else image.convert(mode)


def _eight_bits(values: np.ndarray) -> np.ndarray:
    """Scale wide grey values to uint8 by the range they were stored in, never by the one image's own contrast."""
    if values.dtype.kind != "f":
        if values.min() < 0 or values.max() > 65535:
            raise UnreadableImage("unsupported 32-bit integer pixels (values beyond 0-65535)")
        return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if not np.isfinite(values).all() or values.min() < 0 or values.max() > 65535:
        raise UnreadableImage("unsupported floating-point pixels (values beyond 0-65535)")
    highest = values.max()
    scale = 255.0 if highest <= 1 else 1.0 if highest <= 255 else 1 / 257
    return np.rint(values * scale).astype(np.uint8)


def _fitted(image: Image.Image, size: int, fit: str) -> Image.Image:
    width, height = image.size
    if fit == "letterbox":
        inner = image.resize(_letterboxed_size(image.size, size), _FILTER, reducing_gap=_REDUCING_GAP)
        square = Image.new(image.mode, (size, size), (PADDING,) * len(image.getbands()))
        square.paste(inner, ((size - inner.width) // 2, (size - inner.height) // 2))
        return square
    side = min(width, height)
    left, top = ((width - side) / 2, (height - side) / 2) if fit == "crop" else (0.0, 0.0)
    box = (left, top, left + side, top + side) if fit == "crop" else (0.0, 0.0, float(width), float(height))
    return image.resize((size, size), _FILTER, box=box, reducing_gap=_REDUCING_GAP)
