"""Named timelines, all built from one :class:`Shape`; each ends with a phase ``finish`` without augmentation."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from etude.timeline.curves import (
    Constant,
    Cosine,
    Curve,
    ExpRange,
    Joined,
    Linear,
    OneCycle,
    Triangular,
    Triangular2,
    is_resolved,
)
from etude.timeline.lengths import Length, share_of
from etude.timeline.phase import Phase
from etude.timeline.plan import Timeline
from etude.timeline.plateau import Plateau

TWO_REDUCTIONS = Plateau(reductions=2)
HELD = 0.625  # of the time before finish, progressive resizing holds the small size: 50% of a run with a finish of 20%
ONE_CYCLE_DIVISOR = 25.0  # of the peak, where one-cycle starts
MOMENTUM_CYCLE = (0.95, 0.85)  # highest, lowest: Smith & Topin 2017


@dataclass(frozen=True, slots=True)
class Shape:
    """What the presets have in common."""

    peak_lr: float  # highest learning rate of the head
    start_size: int = 224  # image side in pixels at the beginning
    final_size: int = 224  # image side in pixels in the finish phase
    size_multiple: int = 32  # sizes are rounded half up to this multiple of pixels
    warmup: Length = 0.1  # length of the phase warmup, where there is one; five-minutes takes half of a share
    finish: Length = 0.2  # length of the finish phase; the phases between take what is left
    cycle: Length = 0.25  # length of a cycle, as a share of the phase of cycles or fixed; for the cyclic presets
    augment: float = 1.0  # highest strength of augmentation, in [0, 1]
    fade: bool = False  # augmentation fades out over the finish phase instead of being off in it
    mixup: float = 0.0  # alpha of MixUp before finish; 0: not scheduled there, so a callback's own alpha holds
    cutmix: float = 0.0  # alpha of CutMix, likewise
    momentum: float | None = None  # constant momentum, or None to leave it; one-cycle cycles it always
    batch_size: int | None = None  # constant batch size, or None to leave it
    base_batch_size: int = 256  # batch size that peak_lr is meant for; for large-batch
    plateau: Plateau = TWO_REDUCTIONS  # what the preset plateau does when a metric stops improving
    knee: float = 0.2  # share of the peak at which cycles begin and end and the finish phase begins
    min_lr_share: float = 0.0  # share of the peak at which the run ends

    def __post_init__(self) -> None:
        if not 0.0 < self.peak_lr < math.inf:
            raise ValueError(f"the peak learning rate is {self.peak_lr}; it must be above 0")
        if not 1 <= self.start_size <= self.final_size:
            raise ValueError(
                f"image sizes go from {self.start_size} to {self.final_size} px; they must grow, or stay as they are"
            )
        if not 0.0 <= self.augment <= 1.0:
            raise ValueError(f"augment is {self.augment}; a strength lies in [0, 1]")
        if not 0.0 <= self.min_lr_share <= self.knee <= 1.0 or self.knee == 0.0:
            raise ValueError(
                f"min_lr_share is {self.min_lr_share} and knee {self.knee}; "
                "the learning rate must fall: 0 <= min_lr_share <= knee <= 1, knee above 0"
            )
        shares = [share_of(self.warmup) or 0.0, share_of(self.finish) or 0.0]
        if sum(shares) >= 1.0:
            raise ValueError(f"warmup {self.warmup} and finish {self.finish} leave nothing of the run between them")


@dataclass(frozen=True, slots=True)
class Preset:
    """A named way to build a timeline: what it does, in one line, and the function that makes it."""

    line: str
    build: Callable[[Shape], Timeline]


def preset(name: str, shape: Shape) -> Timeline:
    """Return the timeline of a named preset.

    >>> plan = preset("default", Shape(1e-3, 128, 224))
    >>> [phase.name for phase in plan.phases]
    ['warmup', 'grow', 'finish']
    >>> plan.at(1.0).image_size, plan.at(1.0).augment
    (224, 0.0)
    """
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"there is no timeline preset {name!r}; {hint}the presets are {', '.join(PRESETS)}")
    return PRESETS[name].build(shape)


def _default(shape: Shape) -> Timeline:
    return _timeline(shape, _warmup(shape), _grow(shape))


def _progressive(shape: Shape) -> Timeline:
    if shape.start_size == shape.final_size:
        shape = replace(shape, start_size=max(1, shape.final_size // 2))
    return _timeline(shape, _warmup(shape), replace(_grow(shape), image_size=_held_then_growing(shape)))


def _five_minutes(shape: Shape) -> Timeline:
    share = share_of(shape.warmup)
    return _progressive(shape if share is None else replace(shape, warmup=share / 2.0))


def _large_batch(shape: Shape) -> Timeline:
    """Goyal et al. 2017: the warmup starts at the base batch's own rate and climbs to the scaled one."""
    scaled = shape.batch_size is not None and shape.batch_size > shape.base_batch_size
    start = shape.peak_lr * shape.base_batch_size / shape.batch_size if scaled and shape.batch_size else 0.0
    warmup = replace(_warmup(shape), lr=Linear(start, shape.peak_lr))
    return replace(
        _timeline(shape, warmup, _grow(shape)), batch_scaling="linear", base_batch_size=shape.base_batch_size
    )


def _plateau(shape: Shape) -> Timeline:
    hold = replace(_middle(shape, "hold", Constant(shape.peak_lr)), plateau=shape.plateau)
    return _timeline(shape, _warmup(shape), hold, finish_from=shape.peak_lr)


def _one_cycle(shape: Shape) -> Timeline:
    peak, (high, low) = shape.peak_lr, MOMENTUM_CYCLE
    lr = OneCycle(peak / ONE_CYCLE_DIVISOR, peak, peak * shape.knee)
    cycle = replace(_middle(shape, "cycle", lr, warmed_up=False), momentum=OneCycle(high, low, high))
    return _timeline(replace(shape, momentum=high), cycle)


def _cyclic(kind: type[Triangular], shape: Shape) -> Timeline:
    curve = kind(shape.peak_lr * shape.knee, shape.peak_lr, shape.cycle)
    cycles = _middle(shape, "cycles", curve, warmed_up=False)
    if not is_resolved(curve):  # where in a cycle the phase will end is not known yet
        return _timeline(shape, cycles, jump=True)
    return _timeline(shape, cycles, finish_from=curve.at(1.0))


def _timeline(shape: Shape, *phases: Phase, finish_from: float | None = None, jump: bool = False) -> Timeline:
    start = shape.peak_lr * shape.knee if finish_from is None else finish_from
    finish = Phase(
        "finish",
        shape.finish,
        lr=Cosine(start, shape.peak_lr * shape.min_lr_share),
        image_size=shape.final_size,
        augment=Linear(shape.augment, 0.0) if shape.fade else 0.0,
        mixup=0.0,
        cutmix=0.0,
        momentum=shape.momentum,
        batch_size=shape.batch_size,
        jump=jump,
    )
    return Timeline((*phases, finish), shape.size_multiple)


def _warmup(shape: Shape) -> Phase:
    return Phase(
        "warmup",
        shape.warmup,
        lr=Linear(0.0, shape.peak_lr),
        image_size=shape.start_size,
        augment=Linear(0.0, 0.5 * shape.augment),
        **_constants(shape),
    )


def _grow(shape: Shape) -> Phase:
    return _middle(shape, "grow", Cosine(shape.peak_lr, shape.peak_lr * shape.knee))


def _middle(shape: Shape, name: str, lr: Curve, *, warmed_up: bool = True) -> Phase:
    """Return the phase before finish, which takes what the others leave."""
    others = (shape.warmup, shape.finish) if warmed_up else (shape.finish,)
    return Phase(
        name,
        1.0 - sum(share_of(length) or 0.0 for length in others),
        lr=lr,
        image_size=Linear(shape.start_size, shape.final_size),
        augment=Linear(0.5 * shape.augment if warmed_up else 0.0, shape.augment),
        **_constants(shape),
    )


def _constants(shape: Shape) -> dict[str, Any]:
    return {
        "mixup": shape.mixup or None,
        "cutmix": shape.cutmix or None,
        "momentum": shape.momentum,
        "batch_size": shape.batch_size,
    }


def _held_then_growing(shape: Shape) -> Curve:
    """Return the sizes between warmup and finish, after Composer's progressive resizing.

    The share that is held counts the warmup in; with fixed lengths it is that of a warmup of 10% and a finish of 20%.
    """
    warmup, finish = share_of(shape.warmup), share_of(shape.finish)
    if warmup is None or finish is None:
        warmup, finish = 0.1, 0.2
    held = (HELD * (1.0 - finish) - warmup) / (1.0 - warmup - finish)
    growing = Linear(shape.start_size, shape.final_size)
    if held <= 0.0:  # the warmup has held the small size long enough
        return growing
    return Joined(((held, Constant(shape.start_size)), (1.0 - held, growing)))


PRESETS: dict[str, Preset] = {
    "default": Preset("warmup, then a cosine while sizes and augmentation grow, then a clean finish", _default),
    "cyclic": Preset(
        "triangles between a base and a peak (Smith 2015, triangular), then a clean finish",
        partial(_cyclic, Triangular),
    ),
    "cyclic-decay": Preset(
        "triangles that halve with every cycle (Smith 2015, triangular2)", partial(_cyclic, Triangular2)
    ),
    "cyclic-exp": Preset("triangles that shrink exponentially (Smith 2015, exp_range)", partial(_cyclic, ExpRange)),
    "one-cycle": Preset("one rise and one fall, momentum the other way round (Smith & Topin 2017)", _one_cycle),
    "plateau": Preset("constant until the metric stops improving, twice scaled down, then the finish", _plateau),
    "progressive": Preset(
        "half of the run at the small image size, then growing: the cheapest steps first", _progressive
    ),
    "large-batch": Preset("learning rate scaled with the batch, gradual warmup (Goyal et al. 2017)", _large_batch),
    "five-minutes": Preset("as progressive with half the warmup, for runs of minutes", _five_minutes),
}
