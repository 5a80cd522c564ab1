"""Images as JPEG in one file: the smallest store, for data that would not fit otherwise.

JPEG, because its decoder can stop at a half, a quarter or an eighth of the side; WebP is smaller still, but is read
at a third of the speed and written at a tenth. Quality 95 without chroma subsampling: at the stored size the pixels
of photos differ by 1.5 of 255 in the mean, at half of it by 0.8, at a quarter by 0.5, and in between, where they are
averaged twice, by up to 4. They take 4 to 8 times less room than raw.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from etude.data.stores.disk import place
from etude.data.stores.packed import PackedStore
from etude.data.stores.protocol import checked_rows
from etude.data.stores.record import DamagedStoreError

_SETTINGS = [
    *(cv2.IMWRITE_JPEG_QUALITY, 95),
    *(cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444),
]
# Part of the side that is decoded -> OpenCV's flag for grey and for colour.
_FLAGS = {
    1: (cv2.IMREAD_GRAYSCALE, cv2.IMREAD_COLOR),
    2: (cv2.IMREAD_REDUCED_GRAYSCALE_2, cv2.IMREAD_REDUCED_COLOR_2),
    4: (cv2.IMREAD_REDUCED_GRAYSCALE_4, cv2.IMREAD_REDUCED_COLOR_4),
    8: (cv2.IMREAD_REDUCED_GRAYSCALE_8, cv2.IMREAD_REDUCED_COLOR_8),
}


class EncodedStore(PackedStore):
    """A store of JPEG images, decoded at the smallest scale that is large enough."""

    kind = "encoded"

    @staticmethod
    def encode(pixels: np.ndarray) -> bytes:
        """Return one image (S, S, C) uint8, grey or RGB, as JPEG."""
        ordered = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR) if pixels.shape[2] == 3 else pixels
        return cv2.imencode(".jpg", ordered, _SETTINGS)[1].tobytes()

    def source_size(self, size: int) -> int:
        """Return the smallest side, at least ``min(size, self.size)``, that the decoder can stop at.

        A stored size that 8 divides leaves it the most choice.
        """
        return self.size // _reduction(self.size, size)

    def gather(self, indices: np.ndarray | Sequence[int], size: int) -> np.ndarray:
        """Return rows ``indices``, resized to ``size``: (B, size, size, channels) uint8, contiguous.

        They are decoded at :meth:`source_size`, then averaged over areas.

        Raises:
            IndexError: a row is not in the store.
            DamagedStoreError: a row cannot be decoded.
        """
        rows = checked_rows(indices, len(self))
        reduction = _reduction(self.size, size)
        flag = _FLAGS[reduction][self.channels == 3]
        side = self.size // reduction
        gathered = np.empty((len(rows), size, size, self.channels), dtype=np.uint8)
        for row, target in zip(rows, gathered, strict=True):
            pixels = cv2.imdecode(self.row_bytes(row), flag)
            if pixels is None or pixels.shape[:2] != (side, side):
                raise DamagedStoreError(self.folder, f"row {row} is no JPEG image of {self.size} px")
            if self.channels == 3:
                pixels = cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)
            place(pixels.reshape(side, side, self.channels), target)
        return gathered


def _reduction(stored: int, size: int) -> int:
    """Return the largest of 1, 2, 4, 8 that divides ``stored`` and leaves at least ``size``.

    Where a side does not divide, the decoder fills it up beyond the image's border, which would shift the pixels.
    """
    return max((part for part in _FLAGS if stored % part == 0 and stored // part >= size), default=1)
