"""TrivialAugment: one operation an image, drawn uniformly, at a uniformly drawn magnitude.

Müller & Hutter 2021, TrivialAugment (https://arxiv.org/abs/2103.10158), in its "wide" form. It has nothing to tune and
reaches what searched policies reach. Here every operation is a warp, a colour map, a tone curve or a 3 × 3 kernel, and
brightness adds a share of the range; hue stands in for the paper's equalize.
"""

from __future__ import annotations

import numpy as np

from etude.functional.color import Color
from etude.functional.effects import Effects
from etude.functional.tone import Tone
from etude.functional.warp import Geometry

OPERATIONS = (
    "identity",
    "rotate",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
    "brightness",
    "contrast",
    "saturation",
    "hue",
    "posterize",
    "solarize",
    "sharpness",
    "autocontrast",
)

# Largest magnitudes at strength 1; those of the paper but for brightness and hue.
_ROTATE = 135.0  # degrees
_SHEAR = float(np.rad2deg(np.arctan(0.99)))  # degrees
_TRANSLATE = 32.0 / 224.0  # of the side
_BRIGHTNESS = 0.5  # of the full range
_FACTOR = 0.99  # by which contrast, saturation and sharpness may differ from 1
_HUE = 90.0  # degrees
_BITS = 6  # that posterize may drop, of eight


def trivial_changes(
    which: np.ndarray, magnitude: np.ndarray, sign: np.ndarray, strength: float
) -> tuple[Geometry, Color, Tone, Effects]:
    """Return one operation for each image.

    Args:
        which: (B,) uniform in [0, 1); the operation.
        magnitude: (B,) uniform in [0, 1), scaled by ``strength``. Autocontrast has none: below ``strength`` it is on.
        sign: (B,) uniform in [0, 1); half of the operations that have a direction go either way.
        strength: in [0, 1].
    """
    count = len(which)
    chosen = np.minimum((which * len(OPERATIONS)).astype(int), len(OPERATIONS) - 1)
    extent = strength * magnitude
    signed = np.where(sign < 0.5, -extent, extent)

    def at(name: str, limit: float, values: np.ndarray = signed) -> np.ndarray:
        return np.where(chosen == OPERATIONS.index(name), limit * values, 0.0)

    none = np.zeros(count)
    geometry = Geometry(
        flip=np.zeros(count, bool),
        quarter_turns=np.zeros(count, int),
        angle=at("rotate", _ROTATE),
        log_scale=none,
        shear=at("shear_x", _SHEAR),
        shift_x=at("translate_x", _TRANSLATE),
        shift_y=at("translate_y", _TRANSLATE),
        shear_y=at("shear_y", _SHEAR),
        log_aspect=none,
        perspective_x=none,
        perspective_y=none,
    )
    color = Color(
        contrast=1.0 + at("contrast", _FACTOR),
        brightness=at("brightness", _BRIGHTNESS),
        saturation=1.0 + at("saturation", _FACTOR),
        hue=at("hue", _HUE),
        grey=np.zeros(count, bool),
    )
    tone = Tone(
        stretch=(chosen == OPERATIONS.index("autocontrast")) & (magnitude < strength),
        bits=8 - np.rint(at("posterize", _BITS, extent)).astype(int),
        solarize=256.0 * (1.0 - at("solarize", 1.0, extent)),
    )
    effects = Effects(at("sharpness", _FACTOR), none, none, np.zeros((count, 4)), np.zeros(count, np.int64))
    return geometry, color, tone, effects
