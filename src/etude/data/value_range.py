"""One range of values for a data set whose images are deeper than 8 bits: which value is black, and which is white.

A range guessed from one image, or from the width of its numbers, is wrong for most cameras: 12 bits in a 16-bit file
would leave sixteen grey levels. So it is chosen once, from all training images, and kept with the model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from etude.core.errors import EtudeError
from etude.core.text import counted

ValueRange = tuple[float, float]
"""The values that become 0 and 255."""

_FEW = 1e-3  # share of an image's pixels that may be hot, dead or marks: they do not decide
_FEW_IMAGES = 0.01  # share of the images that do not decide
_SAMPLED = 1 << 18  # pixels of an image that its quantiles are taken over
_USUAL = (1.0, 255.0, 65535.0)  # what floating-point images usually go up to
_LEAST_FILLED = 8  # part of a usual range that the values reach at least, or else theirs is another
_DEPTHS = (8, 10, 12, 14)  # bits of cameras and scanners, less than the 16 of the files
_GAP = 8.0  # factor without any image between two groups of images, from which they were stored differently


class Values(NamedTuple):
    """What the pixels of one deep image are like."""

    low: float  # at most 1 in 1,000 pixels is below it
    high: float  # at most 1 in 1,000 of the pixels that are not 0 is above it
    largest: float
    integer: bool  # whether they are whole numbers by type


def values_of(pixels: np.ndarray) -> Values:
    """Summarise the finite pixel values of one image, (H, W) or (H, W, C) without alpha."""
    flat = pixels.reshape(-1)
    sampled = flat[:: -(-flat.size // _SAMPLED)]
    inked = sampled[sampled != 0]
    low = np.quantile(sampled, _FEW, method="higher")
    high = np.quantile(inked, 1 - _FEW, method="lower") if inked.size else 0
    return Values(float(low), float(high), float(flat.max()), pixels.dtype.kind != "f")


def to_eight_bits(pixels: np.ndarray, value_range: ValueRange) -> np.ndarray:
    """Scale values to uint8 so that the range becomes 0 to 255; what is beyond is clipped."""
    low, high = value_range
    exact = np.float32 if pixels.dtype.itemsize <= 2 or pixels.dtype == np.float32 else np.float64
    scaled = pixels.astype(exact)
    scaled -= exact(low)
    scaled *= exact(255.0 / (high - low))
    return np.rint(np.clip(scaled, 0, 255, out=scaled), out=scaled).astype(np.uint8)


@dataclass(frozen=True)
class DeepValues:
    """The values of all deep images of a set, (K,) each, as in :class:`Values`."""

    low: np.ndarray
    high: np.ndarray
    largest: np.ndarray
    integer: np.ndarray

    @classmethod
    def of(cls, found: Sequence[Values]) -> DeepValues | None:
        """Join what was found; None where no image is deep."""
        return cls(*(np.array(column) for column in zip(*found, strict=True))) if found else None

    def __len__(self) -> int:
        return len(self.low)

    def beyond(self, value_range: ValueRange) -> np.ndarray:
        """Return (K,) whether more than 1 in 1,000 pixels of an image is outside the range."""
        low, high = value_range
        return (self.low < low) | (self.high > high)

    def settled(self) -> tuple[ValueRange, str]:
        """Return the range of all these images, and why, in words.

        Whole numbers: from 0 to the smallest power of two minus 1 that holds the largest value. Floating point: 0 to 1,
        255 or 65,535, the smallest that holds the values, where they fill an eighth of it; otherwise 0 to the largest
        value. A value counts where more than 1 in 1,000 pixels of an image and 1 in 100 of the images reach it, or
        where it makes the range less than four times (floating point: twice) as wide. Refuses values below 0, whole
        numbers together with floating point, and two depths in one set.
        """
        lowest = float(np.quantile(self.low, _FEW_IMAGES, method="higher"))
        if lowest < 0:
            raise EtudeError(
                f"images of the training set hold values below 0 (from {lowest:g} to {self.high.max():g}), so that it "
                f"is not clear which value is black: give the range, such as --set data.range={_outer(lowest):g}.."
                f"{_outer(self.high.max()):g}"
            )
        kinds = [self._of_kind(chosen) for chosen in (self.integer, ~self.integer) if chosen.any()]
        if len({value_range for value_range, _ in kinds}) > 1:
            raise EtudeError(
                f"{int(self.integer.sum()):,} images hold whole numbers up to {self.largest[self.integer].max():g} and "
                f"{int((~self.integer).sum()):,} floating-point numbers up to {self.largest[~self.integer].max():g}: "
                f"no range fits both; store one kind, or give a range, such as --set data.range=0..{kinds[0][0][1]:g}"
            )
        (low, high), source = kinds[0]
        clipped = int((self.largest > high).sum())
        text = f"{low:g}..{high:g}, {source}, from {counted(len(self), 'image')} deeper than 8 bits"
        return (low, high), text + (f"; a few brighter pixels in {clipped:,} of them are clipped" if clipped else "")

    def _of_kind(self, chosen: np.ndarray) -> tuple[ValueRange, str]:
        high, largest = self.high[chosen], float(self.largest[chosen].max())
        usual = float(np.quantile(high, 1 - _FEW_IMAGES, method="higher"))
        if self.integer[chosen][0]:
            _refuse_two_depths(high)
            bits = _bits(largest) if _bits(largest) < _bits(usual) + 2 else _bits(usual)
            return (0.0, float(2**bits - 1)), f"{bits} bits by the largest value"
        top = next((top for top in _USUAL if usual <= top), math.inf)
        if usual >= top / _LEAST_FILLED:
            return (0.0, top), "usual for floating-point values like these"
        found = largest if largest <= 2 * usual else usual
        return (0.0, _outer(found) if found > 0 else 1.0), "by the largest value"


def _bits(value: float) -> int:
    """Return the bits of a whole number, 1 at least."""
    return max(1, int(value).bit_length())


def _outer(value: float) -> float:
    """Return the next number of three digits away from 0: 3.15 of 3.1411."""
    unit = 10.0 ** (math.floor(math.log10(abs(value))) - 2) if value else 1.0
    return float(f"{math.copysign(math.ceil(round(abs(value) / unit, 6)) * unit, value):.3g}")


def _refuse_two_depths(high: np.ndarray) -> None:
    """Refuse images of, say, 12 and 16 bits in one set: by one range the former would be nearly black."""
    ordered = np.sort(high[high > 0])
    few = max(2, len(ordered) // 10)
    if len(ordered) < 2 * few:
        return
    steps = ordered[1:] / ordered[:-1]
    at = few - 1 + int(np.argmax(steps[few - 1 : len(steps) - few + 1]))
    bits = _bits(ordered[at])
    if steps[at] >= _GAP and bits in _DEPTHS:
        raise EtudeError(
            f"{at + 1:,} images hold values up to {ordered[at]:g} ({bits} bits) and {len(ordered) - at - 1:,} from "
            f"{ordered[at + 1]:g} to {ordered[-1]:g}, as if two cameras stored different depths: scale them to one "
            f"depth, or give one range for all, such as --set data.range=0..{2 ** _bits(ordered[-1]) - 1}"
        )
