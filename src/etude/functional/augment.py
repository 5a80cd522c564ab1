"""Augmentation policies: what may happen to an image, drawn per image at a given strength."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from etude.core.errors import EtudeError, nearest
from etude.functional.color import color_map
from etude.functional.warp import Geometry, affine_matrices, warp


@dataclass(frozen=True, slots=True)
class Policy:
    """The largest changes, reached at strength 1. Symmetries apply at any strength above 0.

    Args:
        name: by which recipes call it.
        flip: mirror half of the images.
        upside_down: turn half of the images by 180 degrees; with ``flip``, mirrors both ways.
        quarter_turns: turn by a random multiple of 90 degrees; with ``flip``, all eight symmetries of the square.
        angle: rotation in degrees, either way.
        log_scale: zoom, as the natural logarithm of the factor, either way.
        shear: horizontal shear in degrees, either way.
        shift: as a share of the side, either way.
        contrast: change of the contrast factor, either way.
        brightness: as a share of the full range, either way.
        border: what lies beyond the edge, ``reflect`` or ``replicate``.
    """

    name: str
    flip: bool = False
    upside_down: bool = False
    quarter_turns: bool = False
    angle: float = 0.0
    log_scale: float = 0.0
    shear: float = 0.0
    shift: float = 0.0
    contrast: float = 0.0
    brightness: float = 0.0
    border: str = "reflect"


POLICIES = {
    policy.name: policy
    for policy in (
        Policy("none"),
        Policy("photos", flip=True, angle=10, log_scale=0.2, shear=5, shift=0.08, contrast=0.3, brightness=0.1),
        Policy("flips", flip=True, upside_down=True, angle=3, shift=0.05, log_scale=0.1, contrast=0.2, brightness=0.1),
        Policy(
            "symmetric",
            flip=True,
            upside_down=True,
            quarter_turns=True,
            angle=3,
            shift=0.05,
            log_scale=0.1,
            contrast=0.2,
            brightness=0.1,
        ),
        Policy("digits", angle=15, log_scale=0.15, shear=12, shift=0.1, border="replicate"),
    )
}


def policy_named(name: str) -> Policy:
    """Return the policy ``name``.

    Raises:
        EtudeError: there is none of that name.
    """
    if name not in POLICIES:
        raise EtudeError(
            f"there is no augmentation policy {name!r}; the policies are {', '.join(POLICIES)} and auto."
            f"{nearest(name, POLICIES)}"
        )
    return POLICIES[name]


def augment(images: np.ndarray, policy: Policy, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Return uint8 (B, S, S, C) images changed by ``policy``; the input stays as it is.

    Args:
        images: uint8 (B, S, S, C), square.
        strength: in [0, 1]; 0 is the identity.
        rng: draws the parameters, the same number of draws whatever the policy.

    >>> image = np.arange(12, dtype=np.uint8).reshape(1, 2, 2, 3)
    >>> bool((augment(image, POLICIES["photos"], 0.0, np.random.default_rng(0)) == image).all())
    True
    """
    if strength <= 0.0 or policy == Policy(policy.name):
        return images
    count = len(images)
    geometry = draw_geometry(policy, strength, rng, count)
    warped = warp(images, affine_matrices(geometry, images.shape[1]), policy.border)
    gain = 1.0 + strength * policy.contrast * rng.uniform(-1, 1, count)
    offset = strength * policy.brightness * rng.uniform(-1, 1, count)
    return color_map(warped, gain, offset) if policy.contrast or policy.brightness else warped


def draw_geometry(policy: Policy, strength: float, rng: np.random.Generator, count: int) -> Geometry:
    """Draw the geometry of ``count`` images, uniform within the policy's limits scaled by ``strength``."""
    uniform = rng.uniform(-1.0, 1.0, (5, count)) * strength
    flips, turns = rng.random(count) < 0.5, rng.integers(0, 4, count)
    return Geometry(
        flip=flips & policy.flip,
        quarter_turns=_allowed_turns(turns, policy),
        angle=uniform[0] * policy.angle,
        log_scale=uniform[1] * policy.log_scale,
        shear=uniform[2] * policy.shear,
        shift_x=uniform[3] * policy.shift,
        shift_y=uniform[4] * policy.shift,
    )


def _allowed_turns(turns: np.ndarray, policy: Policy) -> np.ndarray:
    if policy.quarter_turns:
        return turns
    return turns // 2 * 2 if policy.upside_down else np.zeros_like(turns)
