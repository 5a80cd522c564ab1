"""Augmentation of batches of uint8 images: drawn per image, then one warp and one colour map each."""

from __future__ import annotations

import numpy as np

from etude.core.errors import EtudeError
from etude.functional.changes import Changes, draw_changes
from etude.functional.color import color_map
from etude.functional.effects import apply_effects
from etude.functional.policies import POLICIES, Policy, policy_named
from etude.functional.tone import tone_map
from etude.functional.warp import resized, warp, warp_matrices

__all__ = ["POLICIES", "Policy", "apply_changes", "augment", "policy_named"]


def augment(
    images: np.ndarray, policy: Policy, strength: float, rng: np.random.Generator, size: int | None = None
) -> np.ndarray:
    """Return uint8 (B, size, size, C) images changed by ``policy``; the input stays as it is.

    The warp samples the source straight at ``size``. One thread works, and any number may call at the same time.

    Args:
        images: uint8 (B, S, S, C), square.
        strength: in [0, 1]; 0 only resizes, by area averages.
        rng: draws the parameters: the same number of draws whatever the policy and the sizes, but none where nothing
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
    """Refuse images that are not square.

    Raises:
        EtudeError: they are not.
    """
    if height != width:
        raise EtudeError(f"images to augment are {height} × {width} pixels; crop or resize them to squares first")
