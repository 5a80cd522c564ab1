"""Augmentation of batches of uint8 images: drawn per image, then one warp and one colour map each."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from etude.core.errors import EtudeError, nearest
from etude.core.images import resized
from etude.functional.color import Color, Tone, color_map, tone_map
from etude.functional.effects import Effects, apply_effects
from etude.functional.warp import Geometry, warp, warp_matrices

__all__ = ["POLICIES", "Policy", "apply_changes", "augment", "policy_named"]

_SHEAR = float(np.rad2deg(np.arctan(0.99)))
_TRANSLATE = 32.0 / 224.0
# Largest magnitudes at strength 1; those of the paper but for brightness and hue.
_LIMITS = {
    "identity": 0.0,
    **{"rotate": 135.0, "shear_x": _SHEAR, "shear_y": _SHEAR},  # degrees
    **{"translate_x": _TRANSLATE, "translate_y": _TRANSLATE},  # of the side
    **{"brightness": 0.5, "contrast": 0.99, "saturation": 0.99},  # of the full range; by which factors differ from 1
    **{"hue": 90.0, "posterize": 6, "solarize": 1.0},  # degrees; bits dropped of eight; of the full range
    **{"sharpness": 0.99, "autocontrast": 0.0},  # by which the factor differs from 1
}
OPERATIONS = tuple(_LIMITS)


def trivial_changes(
    which: np.ndarray, magnitude: np.ndarray, sign: np.ndarray, strength: float
) -> tuple[Geometry, Color, Tone, Effects]:
    """Return one operation for each image, from uniform draws (B,) in [0, 1).

    Operations that have a direction go either way. Autocontrast has no magnitude: on below ``strength``.
    """
    count = len(which)
    chosen = np.minimum((which * len(OPERATIONS)).astype(int), len(OPERATIONS) - 1)
    extent = strength * magnitude
    signed = np.where(sign < 0.5, -extent, extent)

    def at(name: str, values: np.ndarray = signed) -> np.ndarray:
        return np.where(chosen == OPERATIONS.index(name), _LIMITS[name] * values, 0.0)

    geometry = replace(
        Geometry.identity(count),
        angle=at("rotate"),
        shear=at("shear_x"),
        shear_y=at("shear_y"),
        shift_x=at("translate_x"),
        shift_y=at("translate_y"),
    )
    color = Color(1.0 + at("contrast"), at("brightness"), 1.0 + at("saturation"), at("hue"), np.zeros(count, bool))
    tone = Tone(
        stretch=(chosen == OPERATIONS.index("autocontrast")) & (magnitude < strength),
        bits=8 - np.rint(at("posterize", extent)).astype(int),
        solarize=256.0 * (1.0 - at("solarize", extent)),
    )
    effects = replace(Effects.identity(count), sharpness=at("sharpness"))
    return geometry, color, tone, effects


@dataclass(frozen=True, slots=True)
class Policy:
    """The largest changes, reached at strength 1. Symmetries apply at any strength above 0.

    A change "either way" is drawn uniformly between its negative and its positive limit; a "share of the images" is
    scaled by the strength like a limit.

    Args:
        name: by which recipes call it.
        flip: mirror half of the images.
        upside_down: turn half of the images by 180 degrees; with ``flip``, mirrors both ways.
        quarter_turns: turn by a random multiple of 90 degrees; with ``flip``, all eight symmetries of the square.
        angle: rotation in degrees, either way.
        log_scale: zoom, as the natural logarithm of the factor, either way.
        shear: horizontal shear in degrees, either way.
        shear_y: vertical shear in degrees, either way.
        shift: as a share of the side, either way.
        crop: largest share of the area that a random crop cuts away; the rest fills the image.
        log_aspect: aspect ratio of the crop, as the natural logarithm, either way.
        perspective: keystone, either way; 0.5 makes one edge appear three times as near as its opposite.
        contrast: change of the contrast factor, either way.
        brightness: as a share of the full range, either way.
        saturation: change of the saturation factor, either way; colour images only, like ``hue`` and ``grey``.
        hue: rotation about the grey axis in degrees, either way.
        grey: share of the images that lose their colour.
        erase: share of the images with a rectangle erased.
        erase_area: largest share of the area that is erased.
        erase_fill: what fills it, ``mean`` (the image's) or ``noise``.
        noise: share of the images with Gaussian noise.
        noise_level: its largest standard deviation, as a share of the full range.
        blur: share of the images that are blurred.
        blur_width: largest standard deviation of the blur, as a share of the side.
        trivial: one random operation an image, as :mod:`etude.functional.augment` describes.
        border: what lies beyond the edge, ``reflect`` or ``replicate``.
    """

    name: str
    flip: bool = False
    upside_down: bool = False
    quarter_turns: bool = False
    angle: float = 0.0
    log_scale: float = 0.0
    shear: float = 0.0
    shear_y: float = 0.0
    shift: float = 0.0
    crop: float = 0.0
    log_aspect: float = 0.0
    perspective: float = 0.0
    contrast: float = 0.0
    brightness: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    grey: float = 0.0
    erase: float = 0.0
    erase_area: float = 0.25
    erase_fill: str = "mean"
    noise: float = 0.0
    noise_level: float = 0.05
    blur: float = 0.0
    blur_width: float = 0.01
    trivial: bool = False
    border: str = "reflect"

    @property
    def changes_nothing(self) -> bool:
        """Whether images stay as they are at any strength."""
        return not (self.moves or self.colors or self.trivial or self.erase or self.noise or self.blur)

    @property
    def moves(self) -> bool:
        """Whether pixels change their places."""
        affine = (self.angle, self.log_scale, self.shear, self.shear_y, self.shift, self.crop, self.log_aspect)
        return any((self.flip, self.upside_down, self.quarter_turns, *affine, self.perspective))

    @property
    def colors(self) -> bool:
        """Whether the colour map is anything but the identity."""
        return any((self.contrast, self.brightness, self.saturation, self.hue, self.grey))


_FLIPS = Policy("flips", flip=True, upside_down=True, angle=3, shift=0.05, log_scale=0.1, contrast=0.2, brightness=0.1)
_SYMMETRIC = replace(_FLIPS, name="symmetric", quarter_turns=True)

POLICIES = {
    policy.name: policy
    for policy in (
        Policy("none"),
        Policy("photos", flip=True, angle=10, log_scale=0.2, shear=5, shift=0.08, contrast=0.3, brightness=0.1),
        _FLIPS,
        _SYMMETRIC,
        Policy("digits", angle=15, log_scale=0.15, shear=12, shift=0.1, border="replicate"),
        # A page has one way up and plain paper at its edge; scanners and phones differ in light.
        Policy(
            "documents", angle=3, log_scale=0.05, shear=2, shift=0.03, contrast=0.3, brightness=0.15, border="replicate"
        ),
        # Seen from above, any heading is as likely; season and haze change the colours.
        replace(_SYMMETRIC, name="aerial", angle=15, log_scale=0.2, contrast=0.3, saturation=0.2, hue=5),
        # The dye distinguishes the structures, so hue stays; focus and sensor noise differ between slides.
        replace(_SYMMETRIC, name="microscopy", angle=10, log_scale=0.15, contrast=0.3, blur=0.2, noise=0.2),
        # Stains differ between laboratories in tint and depth.
        replace(_SYMMETRIC, name="cells", saturation=0.3, hue=15),
        Policy("trivial", trivial=True),
    )
}


def policy_named(name: str) -> Policy:
    """Return the policy ``name``, or raise an EtudeError that names those there are."""
    if name not in POLICIES:
        raise EtudeError(
            f"there is no augmentation policy {name!r}; the policies are {', '.join(POLICIES)} and auto."
            f"{nearest(name, POLICIES)}"
        )
    return POLICIES[name]


_MORE_DRAWS = 22
_SMALLEST_ERASED = 0.02  # of the area, as in Zhong et al. 2020, Random Erasing
_ERASED_LOG_ASPECT = np.log(3.0)


@dataclass(frozen=True, slots=True)
class Changes:
    """What happens to each image of a batch. A part that is None leaves all of them as they are."""

    geometry: Geometry | None = None
    color: Color | None = None
    tone: Tone | None = None
    effects: Effects | None = None
    border: str = "reflect"

    def rows(self, chosen: np.ndarray | slice) -> Changes:
        """Return the changes of the chosen images."""
        parts = {name: _rows(getattr(self, name), chosen) for name in ("geometry", "color", "tone", "effects")}
        return Changes(**parts, border=self.border)


def draw_changes(policy: Policy, strength: float, rng: np.random.Generator, count: int) -> Changes:
    """Draw what happens to ``count`` images, within the policy's limits scaled by ``strength``.

    The numbers taken from ``rng`` depend on ``count`` alone: another policy, strength or size changes the extent only.
    """
    signed = rng.uniform(-1.0, 1.0, (5, count))
    flips, turns = rng.random(count) < 0.5, rng.integers(0, 4, count)
    tones = rng.uniform(-1.0, 1.0, (2, count))
    more = rng.random((_MORE_DRAWS, count))
    seeds = rng.integers(0, 1 << 32, count)
    if policy.trivial:
        geometry, color, tone, effects = trivial_changes(more[19], more[20], more[21], strength)
        geometry = replace(geometry, flip=flips & policy.flip, quarter_turns=_allowed_turns(turns, policy))
        return Changes(geometry, color, tone, effects, policy.border)
    signed *= strength
    geometry = _geometry(policy, strength, signed, flips, turns, more) if policy.moves else None
    color = None
    if policy.colors:
        color = Color(
            contrast=1.0 + strength * policy.contrast * tones[0],
            brightness=strength * policy.brightness * tones[1],
            saturation=1.0 + strength * policy.saturation * (2.0 * more[0] - 1.0),
            hue=strength * policy.hue * (2.0 * more[1] - 1.0),
            grey=more[5] < strength * policy.grey,
        )
    effects = _effects(policy, strength, more, seeds) if policy.erase or policy.noise or policy.blur else None
    return Changes(geometry, color, None, effects, policy.border)


def _geometry(
    policy: Policy, strength: float, signed: np.ndarray, flips: np.ndarray, turns: np.ndarray, more: np.ndarray
) -> Geometry:
    shear_y, perspective_x, perspective_y = (2.0 * more[2:5] - 1.0) * strength
    drawn = Geometry(
        flip=flips & policy.flip,
        quarter_turns=_allowed_turns(turns, policy),
        angle=signed[0] * policy.angle,
        log_scale=signed[1] * policy.log_scale,
        shear=signed[2] * policy.shear,
        shift_x=signed[3] * policy.shift,
        shift_y=signed[4] * policy.shift,
        shear_y=shear_y * policy.shear_y,
        log_aspect=np.zeros(len(flips)),
        perspective_x=perspective_x * policy.perspective,
        perspective_y=perspective_y * policy.perspective,
    )
    return _cropped(drawn, policy, strength, more[6:10]) if policy.crop or policy.log_aspect else drawn


def _cropped(drawn: Geometry, policy: Policy, strength: float, uniform: np.ndarray) -> Geometry:
    """Add a crop, RandomResizedCrop's: a window of random area, aspect and place that then fills the image."""
    area = 1.0 - strength * policy.crop * uniform[0]
    stretch = np.exp(strength * policy.log_aspect * (2.0 * uniform[1] - 1.0) / 2.0)
    width, height = np.minimum(np.sqrt(area) * stretch, 1.0), np.minimum(np.sqrt(area) / stretch, 1.0)
    # A window of share w with its centre off by (1 - w) / 2 at most, enlarged by 1 / w.
    return replace(
        drawn,
        log_scale=drawn.log_scale - np.log(width * height) / 2.0,
        log_aspect=np.log(height / width),
        shift_x=drawn.shift_x + (1.0 / width - 1.0) * (uniform[2] - 0.5),
        shift_y=drawn.shift_y + (1.0 / height - 1.0) * (uniform[3] - 0.5),
    )


def _effects(policy: Policy, strength: float, more: np.ndarray, seeds: np.ndarray) -> Effects:
    largest = max(strength * policy.erase_area, _SMALLEST_ERASED)
    area = _SMALLEST_ERASED + (largest - _SMALLEST_ERASED) * more[11]
    area *= more[10] < strength * policy.erase
    stretch = np.exp(_ERASED_LOG_ASPECT * (2.0 * more[12] - 1.0) / 2.0)
    width, height = np.minimum(np.sqrt(area) * stretch, 1.0), np.minimum(np.sqrt(area) / stretch, 1.0)
    left, top = more[13] * (1.0 - width), more[14] * (1.0 - height)
    return Effects(
        sharpness=np.zeros(len(seeds)),
        blur=np.where(more[17] < strength * policy.blur, strength * policy.blur_width * more[18], 0.0),
        noise=np.where(more[15] < strength * policy.noise, strength * policy.noise_level * more[16], 0.0),
        erase=np.stack([left, top, left + width, top + height], axis=1),
        seed=seeds,
        fill=policy.erase_fill,
    )


def _allowed_turns(turns: np.ndarray, policy: Policy) -> np.ndarray:
    if policy.quarter_turns:
        return turns
    return turns // 2 * 2 if policy.upside_down else np.zeros_like(turns)


def _rows(record: Any, chosen: np.ndarray | slice) -> Any:
    if record is None:
        return None
    values = {field.name: getattr(record, field.name) for field in fields(record)}
    return replace(record, **{name: value[chosen] for name, value in values.items() if isinstance(value, np.ndarray)})


def augment(
    images: np.ndarray, policy: Policy, strength: float, rng: np.random.Generator, size: int | None = None
) -> np.ndarray:
    """Return uint8 (B, size, size, C) images changed by ``policy``; the input stays as it is.

    The warp samples the source straight at ``size``. Any number of threads may call at the same time.

    Args:
        images: uint8 (B, S, S, C), square.
        strength: in [0, 1]; 0 only resizes, by area averages.
        rng: draws the parameters: the same number of draws for every policy and size, but none where nothing
            is to be changed.
        size: side of the results; None keeps S.

    Raises:
        EtudeError: the images are not square or not uint8.

    >>> image = np.arange(12, dtype=np.uint8).reshape(1, 2, 2, 3)
    >>> bool((augment(image, POLICIES["photos"], 0.0, np.random.default_rng(0)) == image).all())
    True
    """
    if images.dtype != np.uint8:
        raise EtudeError(f"images to augment are {images.dtype}; as arrays they are uint8, with levels from 0 to 255")
    refuse_oblong(*images.shape[1:3])
    if strength <= 0.0 or policy.changes_nothing:
        return images if size is None else resized(images, size)
    return apply_changes(images, draw_changes(policy, strength, rng, len(images)), size)


def apply_changes(images: np.ndarray, changes: Changes, size: int | None = None) -> np.ndarray:
    """Return new uint8 (B, size, size, C) images: ``changes`` applied to square (B, S, S, C) ones."""
    size = int(images.shape[1] if size is None else size)
    if changes.geometry is None:
        changed = images.copy() if images.shape[1] == size else resized(images, size)
    else:
        changed = warp(images, warp_matrices(changes.geometry, images.shape[1], size), changes.border, size)
    if changes.color is not None:
        color_map(changed, changes.color)
    if changes.tone is not None:
        tone_map(changed, changes.tone)
    if changes.effects is not None:
        apply_effects(changed, changes.effects)
    return changed


def refuse_oblong(height: int, width: int) -> None:
    """Refuse images that are not square."""
    if height != width:
        raise EtudeError(f"images to augment are {height} × {width} pixels; crop or resize them to squares first")
