"""The draw of an augmentation: every image's parameters, apart from the arithmetic that uses them."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from etude.functional.color import Color
from etude.functional.effects import Effects
from etude.functional.policies import Policy
from etude.functional.tone import Tone
from etude.functional.trivial import trivial_changes
from etude.functional.warp import Geometry

_MORE_DRAWS = 22
_SMALLEST_ERASED = 0.02  # of the area, as in Zhong et al. 2020, Random Erasing
_ERASED_LOG_ASPECT = np.log(3.0)


@dataclass(frozen=True, slots=True)
class Changes:
    """What happens to each image of a batch. A part that is None leaves all of them alone.

    Args:
        geometry: how pixels move.
        color: the affine map of colours.
        tone: tone curves.
        effects: sharpening, blur, noise and erasing.
        border: what lies beyond the edge, ``reflect`` or ``replicate``.
    """

    geometry: Geometry | None = None
    color: Color | None = None
    tone: Tone | None = None
    effects: Effects | None = None
    border: str = "reflect"

    def rows(self, chosen: np.ndarray | slice) -> Changes:
        """Return the changes of the chosen images."""
        return Changes(
            _rows(self.geometry, chosen),
            _rows(self.color, chosen),
            _rows(self.tone, chosen),
            _rows(self.effects, chosen),
            self.border,
        )


def draw_changes(policy: Policy, strength: float, rng: np.random.Generator, count: int) -> Changes:
    """Draw what happens to ``count`` images, within the policy's limits scaled by ``strength``.

    The numbers taken from ``rng`` depend on ``count`` alone: under another policy, strength or size an image's change
    differs in extent, but it is turned the same way.

    >>> mirror = Policy("mirror", flip=True)
    >>> draw_changes(mirror, 1.0, np.random.default_rng(0), 4).color is None
    True
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
    color = _color(policy, strength, tones, more) if policy.colors else None
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
    # A window of share w with its centre off by (1 - w) / 2 at most, seen enlarged by 1 / w.
    return replace(
        drawn,
        log_scale=drawn.log_scale - np.log(width * height) / 2.0,
        log_aspect=np.log(height / width),
        shift_x=drawn.shift_x + (1.0 / width - 1.0) * (uniform[2] - 0.5),
        shift_y=drawn.shift_y + (1.0 / height - 1.0) * (uniform[3] - 0.5),
    )


def _color(policy: Policy, strength: float, tones: np.ndarray, more: np.ndarray) -> Color:
    return Color(
        contrast=1.0 + strength * policy.contrast * tones[0],
        brightness=strength * policy.brightness * tones[1],
        saturation=1.0 + strength * policy.saturation * (2.0 * more[0] - 1.0),
        hue=strength * policy.hue * (2.0 * more[1] - 1.0),
        grey=more[5] < strength * policy.grey,
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
