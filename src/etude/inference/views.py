"""Views of an image for test-time augmentation: the symmetries that its augmentation policy allows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from etude.functional.augment import policy_named


@dataclass(frozen=True, slots=True)
class View:
    """One exact symmetry of the square.

    Args:
        name: such as ``"flip"`` or ``"turn 90"``.
        turns: quarter turns, applied first.
        flip: mirror left to right.
    """

    name: str
    turns: int = 0
    flip: bool = False

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Return uint8 (B, S, S, C) images seen through this view.

        >>> image = np.array([[[[1], [2]], [[3], [4]]]], np.uint8)
        >>> View("flip", flip=True)(image)[0, :, :, 0].tolist()
        [[2, 1], [4, 3]]
        """
        turned = np.rot90(images, self.turns, axes=(1, 2)) if self.turns else images
        return np.ascontiguousarray(turned[:, :, ::-1] if self.flip else turned)


IDENTITY = View("plain")
# Flips before quarter turns: a few views then stay as close as possible to how images are usually seen.
SYMMETRIES = (
    IDENTITY,
    View("flip", flip=True),
    View("turn 180", turns=2),
    View("flip and turn 180", turns=2, flip=True),
    View("turn 90", turns=1),
    View("turn 270", turns=3),
    View("flip and turn 90", turns=1, flip=True),
    View("flip and turn 270", turns=3, flip=True),
)


def views_of(policy_name: str, count: int) -> tuple[View, ...]:
    """Return up to ``count`` views that the policy's symmetries allow, the plain one first.

    >>> [view.name for view in views_of("photos", 8)]
    ['plain', 'flip']
    """
    policy = policy_named(policy_name)
    allowed = [
        view
        for view in SYMMETRIES
        if (policy.flip or not view.flip)
        and (policy.quarter_turns or not view.turns % 2)
        and (policy.upside_down or not view.turns)
    ]
    return tuple(allowed[:count])


def seen_through(
    view: View, gather: Callable[[np.ndarray, int], np.ndarray]
) -> Callable[[np.ndarray, int], np.ndarray]:
    """Return ``gather`` with ``view`` applied to what it returns."""
    return gather if view == IDENTITY else lambda rows, size: view(gather(rows, size))
