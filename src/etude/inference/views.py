"""Views of an image for test-time augmentation: symmetries that its policy allows, shifts, zooms, and random draws."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Protocol

import numpy as np

from etude.core.errors import EtudeError
from etude.core.seeds import rng_for
from etude.functional.augment import Changes, Policy, apply_changes, draw_changes, policy_named
from etude.functional.warp import Geometry, warp, warp_matrices

MOST_VIEWS = 128
_STRENGTH = 0.5  # of the drawn views: the mean over views gains from changes that the network takes in its stride
_SIZES_APART, _SMALL = 32, 96  # larger inputs have sides that are multiples of 32, below 96 px of 4


class ViewLike(Protocol):
    """One view of an image; the same for every image, in any batch."""

    @property
    def name(self) -> str: ...
    @property
    def enlarge(self) -> float: ...  # by how much the network's input is larger than usual

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Return uint8 (B, S, S, C) images seen through this view."""
        ...


@dataclass(frozen=True, slots=True)
class View:
    """One exact symmetry of the square: quarter ``turns`` first, then ``flip`` left to right."""

    name: str
    turns: int = 0
    flip: bool = False

    enlarge = 1.0

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Return uint8 (B, S, S, C) images seen through this view.

        >>> image = np.array([[[[1], [2]], [[3], [4]]]], np.uint8)
        >>> View("flip", flip=True)(image)[0, :, :, 0].tolist()
        [[2, 1], [4, 3]]
        """
        turned = np.rot90(images, self.turns, axes=(1, 2)) if self.turns else images
        return np.ascontiguousarray(turned[:, :, ::-1] if self.flip else turned)


@dataclass(frozen=True, slots=True)
class Moved:
    """Every image shifted (shares of the side) and zoomed by the same amounts."""

    name: str
    shift_x: float = 0.0
    shift_y: float = 0.0
    log_scale: float = 0.0
    border: str = "reflect"
    _matrices: dict[int, np.ndarray] = field(default_factory=dict, repr=False, compare=False)

    enlarge = 1.0

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Return the images moved; a mere shift is by whole pixels, so that nothing is blurred.

        >>> image = np.arange(4, dtype=np.uint8).reshape(1, 2, 2, 1)
        >>> Moved("right", shift_x=0.5, border="replicate")(image)[0, :, :, 0].tolist()
        [[0, 0], [2, 2]]
        """
        if self.log_scale == 0.0:
            return _shifted(images, self.shift_x, self.shift_y, self.border)
        one = np.ones(1)
        geometry = replace(
            Geometry.identity(1), shift_x=one * self.shift_x, shift_y=one * self.shift_y, log_scale=one * self.log_scale
        )
        return _moved_by(images, geometry, self.border, self._matrices)


@dataclass(frozen=True)
class Drawn:
    """One random change of the training augmentation, drawn once and applied to every image."""

    name: str
    policy: Policy
    _matrices: dict[int, np.ndarray] = field(default_factory=dict, repr=False, compare=False)

    enlarge = 1.0

    @cached_property
    def change(self) -> Changes:
        """What is done to an image."""
        return draw_changes(self.policy, _STRENGTH, rng_for(0, f"TTA {self.name}"), 1)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Return the images changed."""
        change = self.change
        if change.geometry is not None:
            images = _moved_by(images, change.geometry, change.border, self._matrices)
        if change.color is change.tone is change.effects is None:
            return images
        return apply_changes(images, replace(change, geometry=None).rows(np.zeros(len(images), np.int64)))


@dataclass(frozen=True, slots=True)
class Larger:
    """The image as it is, at an input larger by ``enlarge``: networks trained on zoomed crops often gain by it.

    Source: Touvron et al. 2019, Fixing the train-test resolution discrepancy.
    """

    name: str
    enlarge: float

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Return the images, which come at the larger size."""
        return images


IDENTITY = View("plain")
# Flips before quarter turns: a few views then stay as close as possible to how images usually are.
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


def many_views(policy_name: str, count: int, *, larger: float | None = None) -> tuple[ViewLike, ...]:
    """Return ``count`` views, fewer only where the policy changes nothing at all; the first ones are the best bets.

    First the symmetries that the policy allows, with ``larger`` then one of an input larger by that factor, then shifts
    by half of what training had, zooms likewise, and last random draws of the training augmentation at half strength,
    without erased rectangles and noise. The first views stay the same when more are asked for.

    >>> [view.name for view in many_views("photos", 10)]  # doctest: +ELLIPSIS
    ['plain', 'flip', 'right 4%', 'left 4%', 'down 4%', 'up 4%', 'zoom 1.11', 'zoom 0.90', 'draw 1', 'draw 2']
    """
    if not 1 <= count <= MOST_VIEWS:
        raise EtudeError(f"an image is seen through 1 to {MOST_VIEWS} views, not {count}")
    if larger is not None and not 1 < larger <= 2:
        raise EtudeError(f"the larger view enlarges the input by a factor above 1 and up to 2, not {larger}")
    policy = policy_named(policy_name)
    found: list[ViewLike] = [*views_of(policy_name, count)]
    found += [] if larger is None else [Larger(f"larger {larger:.2f}", larger)]
    found += _moved(policy)
    drawn = replace(policy, erase=0.0, noise=0.0)
    if not drawn.changes_nothing:
        found += [Drawn(f"draw {number + 1}", drawn) for number in range(max(0, count - len(found)))]
    return tuple(found[:count])


def input_size(view: ViewLike, size: int) -> int:
    """Return the side of the network's input for this view, ``size`` being the usual one."""
    if view.enlarge == 1.0:
        return size
    step = _SIZES_APART if size >= _SMALL else 4
    return max(size + step, int(size * view.enlarge / step + 0.5) * step)


def _shifted(images: np.ndarray, shift_x: float, shift_y: float, border: str) -> np.ndarray:
    """Shift (B, S, S, C) images by shares of their side, rounded to pixels but never to none."""
    side = images.shape[1]
    for axis, share in ((1, shift_y), (2, shift_x)):
        if share:
            pixels = int(np.copysign(max(1, round(abs(share) * side)), share))
            images = images.take(_beyond_edge(np.arange(side) - pixels, side, border), axis)
    return images


def _beyond_edge(positions: np.ndarray, side: int, border: str) -> np.ndarray:
    """Return positions within an axis of ``side`` pixels for those beyond its edge."""
    if border == "replicate" or side == 1:
        return positions.clip(0, side - 1)
    return side - 1 - np.abs(side - 1 - positions % (2 * side - 2))  # mirrored about the outermost pixel


def _moved_by(images: np.ndarray, geometry: Geometry, border: str, matrices: dict[int, np.ndarray]) -> np.ndarray:
    """Move uint8 (B, S, S, C) images by the one movement in ``geometry``; ``matrices`` keeps its matrix by S.

    Grey images are moved four at a time, as the channels of one: at 28 px the calls take longer than the pixels.
    """
    count, side, _, channels = images.shape
    if side not in matrices:
        matrices[side] = warp_matrices(geometry, side)
    if channels > 1:
        return warp(images, np.repeat(matrices[side], count, axis=0), border)
    whole = np.resize(images, (count + -count % 4, side, side))  # the first ones once more, up to a multiple of four
    fours = np.ascontiguousarray(whole.reshape(-1, 4, side, side).transpose(0, 2, 3, 1))
    moved = warp(fours, np.repeat(matrices[side], len(fours), axis=0), border)
    return np.ascontiguousarray(moved.transpose(0, 3, 1, 2)).reshape(-1, side, side, 1)[:count]


def _moved(policy: Policy) -> list[ViewLike]:
    shift, zoom = policy.shift / 2.0, policy.log_scale / 2.0
    share = f"{100 * shift:.0f}%"
    shifts = [("right", shift, 0.0), ("left", -shift, 0.0), ("down", 0.0, shift), ("up", 0.0, -shift)]
    found: list[ViewLike] = []
    if shift:
        found += [Moved(f"{word} {share}", x, y, border=policy.border) for word, x, y in shifts]
    if zoom:
        found += [Moved(f"zoom {np.exp(z):.2f}", log_scale=z, border=policy.border) for z in (zoom, -zoom)]
    return found
