"""Images that Python code gives: a folder or table, several files, or pictures in memory."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from etude.core.errors import EtudeError, error_text
from etude.data.sources import ImageSet, read_files, read_unlabelled
from etude.data.walk import portable_text

Picture = Image.Image | np.ndarray
Given = Path | str | Picture | Sequence[Path | str] | Sequence[Picture]

_PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA")


@contextmanager
def given_images(given: Given) -> Generator[tuple[ImageSet, list[str] | None, Path | None]]:
    """Yield images without labels, their ids as listed one by one, and the folder that those in memory are written to.

    ``given`` is a folder, a table or an image file; or several files; or PIL images or arrays, (H, W) or (H, W, 1, 3 or
    4) uint8, or (H, W) uint16, one or several, which are read as the PNG files that they are saved as would be.
    """
    if isinstance(given, str | os.PathLike):
        yield read_unlabelled(Path(given)), None, None
        return
    if isinstance(given, Image.Image) or (isinstance(given, np.ndarray) and given.ndim < 4):
        given = [given]
    if not isinstance(given, Iterable):
        raise _no_picture(given)
    several = list[Path | str | Picture](given)
    named = [portable_text(str(one)) for one in several if isinstance(one, str | os.PathLike)]
    if len(named) == len(several):
        yield read_files(dict.fromkeys(map(str, several))), named, None
        return
    with tempfile.TemporaryDirectory(prefix="etude-") as name:
        folder, width = Path(name, "images"), len(str(len(several) - 1))
        folder.mkdir()
        names = [f"{number:0{width}}.png" for number in range(len(several))]
        for number, one in enumerate(several):
            try:
                _as_picture(one).save(folder / names[number], compress_level=1)
            except EtudeError:
                raise
            except Exception as problem:  # any that PIL has: a file that is read only now, or has been closed
                raise EtudeError(
                    f"picture {number} of {len(several):,} cannot be read ({error_text(problem)}): give another"
                ) from None
        yield read_unlabelled(folder), names, Path(name)


def _as_picture(given: object) -> Image.Image:
    if isinstance(given, Image.Image):
        upright = ImageOps.exif_transpose(given)
        if upright.mode in _PNG_MODES:
            return upright
        if not upright.mode.startswith(("I", "F")):
            return upright.convert("RGB")
        given = np.asarray(upright)
        if given.dtype.kind in "iu" and given.size and given.min() >= 0 and given.max() < 1 << 16:
            given = given.astype(np.uint16)
    if isinstance(given, np.ndarray) and given.size:
        pixels = given[..., 0] if given.ndim == 3 and given.shape[2] == 1 else given
        channels = {2: 1}.get(pixels.ndim) or (pixels.shape[2] if pixels.ndim == 3 else 0)
        if (pixels.dtype == np.uint8 and channels in (1, 3, 4)) or (pixels.dtype == np.uint16 and channels == 1):
            return Image.fromarray(np.ascontiguousarray(pixels))
    raise _no_picture(given)


def _no_picture(given: object) -> EtudeError:
    about = f" of shape {given.shape} and {given.dtype}" if isinstance(given, np.ndarray) else ""
    return EtudeError(
        f"{type(given).__name__}{about} is no picture: give paths, PIL images, or arrays (H, W) or "
        "(H, W, 1, 3 or 4) of uint8, or (H, W) of uint16"
    )
