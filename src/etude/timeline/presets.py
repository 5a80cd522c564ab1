"""Named timelines."""

from __future__ import annotations

from etude.timeline.curves import Constant, Cosine, Linear
from etude.timeline.plan import Phase, Timeline


def default_timeline(
    peak_lr: float,
    start_size: int,
    final_size: int,
    *,
    warmup: float = 0.1,
    finish: float = 0.2,
    size_multiple: int = 32,
) -> Timeline:
    """Return warmup, grow, finish: sizes and augmentation grow together, and augmentation fades out at the end.

    Warmup ramps the learning rate linearly (Goyal et al. 2017) at the small size; grow decays it by a cosine
    while image size and augmentation ramp up; finish decays the rest at full size with augmentation fading out.

    Args:
        peak_lr: learning rate at the end of warmup.
        start_size: image side in pixels during warmup.
        final_size: image side in pixels in the finish phase.
        warmup: share of the run spent warming up.
        finish: share of the run spent in the finish phase.
        size_multiple: sizes are rounded to this multiple.

    >>> plan = default_timeline(1e-3, 128, 224)
    >>> [phase.name for phase in plan.phases]
    ['warmup', 'grow', 'finish']
    >>> plan.at(1.0).image_size, plan.at(1.0).augment
    (224, 0.0)
    """
    grow = 1.0 - warmup - finish
    knee = peak_lr * 0.2  # where the cosine of grow hands over to finish
    return Timeline(
        (
            Phase("warmup", warmup, Linear(0.0, peak_lr), Constant(start_size), Constant(0.5)),
            Phase("grow", grow, Cosine(peak_lr, knee), Linear(start_size, final_size), Linear(0.5, 1.0)),
            Phase("finish", finish, Cosine(knee, 0.0), Constant(final_size), Linear(1.0, 0.0)),
        ),
        size_multiple,
    )
