"""TIFF files that Pillow cannot write: any number of bands, of any type."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np


def tiff(pixels: np.ndarray, extra: Sequence[int] = (), orientation: int = 1, **tags: int) -> bytes:
    """Return an uncompressed little-endian TIFF of (H, W) or (H, W, C).

    Args:
        extra: ExtraSamples: 0 unspecified, 1 and 2 transparency.
        orientation: of the stored pixels.
        tags: ``photometric`` (by default grey or RGB), ``planar`` (2: bands one after the other).
    """
    pixels = np.atleast_3d(pixels)
    height, width, bands = pixels.shape
    planar = tags.get("planar", 1)
    ordered = pixels if planar == 1 else pixels.transpose(2, 0, 1)
    body = ordered.astype(pixels.dtype.newbyteorder("<")).tobytes()
    strips = 1 if planar == 1 else bands
    entries: list[tuple[int, str, Sequence[int]]] = [
        (256, "I", [width]),
        (257, "I", [height]),
        (258, "H", [pixels.dtype.itemsize * 8] * bands),
        (259, "H", [1]),
        (262, "H", [tags.get("photometric", 2 if bands >= 3 else 1)]),
        (273, "I", [0] * strips),
        (274, "H", [orientation]),
        (277, "H", [bands]),
        (278, "I", [height]),
        (279, "I", [len(body) // strips] * strips),
        (284, "H", [planar]),
        *([(338, "H", extra)] if extra else []),
        (339, "H", [{"u": 1, "i": 2, "f": 3}[pixels.dtype.kind]] * bands),
    ]
    beyond = 8 + 2 + 12 * len(entries) + 4  # where values stand that do not fit into their entry
    at = beyond + sum(len(v) * struct.calcsize(t) for _, t, v in entries if len(v) * struct.calcsize(t) > 4)
    table, tail = struct.pack("<2sHIH", b"II", 42, 8, len(entries)), b""
    for tag, kind, values in entries:
        if tag == 273:
            values = [at + strip * (len(body) // strips) for strip in range(strips)]
        packed = struct.pack(f"<{len(values)}{kind}", *values)
        short = len(packed) <= 4
        where = packed.ljust(4, b"\0") if short else struct.pack("<I", beyond + len(tail))
        table += struct.pack("<HHI", tag, {"H": 3, "I": 4}[kind], len(values)) + where
        tail += b"" if short else packed
    return table + struct.pack("<I", 0) + tail + body
