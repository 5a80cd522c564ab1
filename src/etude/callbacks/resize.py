"""Progressive resizing in any LightningModule."""

from __future__ import annotations

from dataclasses import replace

import etude.compat  # noqa: F401  (before lightning)

from etude.callbacks.batches import BatchContext, BatchTransform, ImageBatch
from etude.callbacks.clock import clock_of
from etude.core.errors import EtudeError
from etude.functional.augment_tensor import shrink
from etude.timeline.plan import SLACK, rounded


class ProgressiveResize(BatchTransform):
    """Train on small images first and on those of the loader's size at the end.

    Where the Clock schedules ``image_size``, batches are resized to the moment's size. Otherwise sizes are held at
    ``start`` of the loader's size for ``hold`` of the run, grow, and are the loader's for the last ``finish`` of it
    (the defaults are Composer's). Nothing is ever enlarged. A size means the longer side; the other keeps its
    proportion, and both are rounded half up to the multiple. Resizing is antialiased.

    The loader still decodes its full size: a loader that asks the timeline itself, as that of ``etude fit`` does, saves
    that time too.

    Args:
        start: share of the loader's size at the start, in (0, 1].
        hold: share of the run at the smallest size.
        finish: share of the run at the full size.
        multiple: sizes are rounded to this multiple of pixels.

    Raises:
        EtudeError: the shares do not fit a run.

    Example::

        trainer = Trainer(max_epochs=10, callbacks=[ProgressiveResize()])
    """

    follows_run = True

    def __init__(self, start: float = 0.5, hold: float = 0.5, finish: float = 0.2, multiple: int = 32) -> None:
        super().__init__()
        if not (0.0 < start <= 1.0 and hold >= 0.0 and finish >= 0.0 and hold + finish <= 1.0 and multiple >= 1):
            raise EtudeError(
                f"ProgressiveResize got start={start}, hold={hold}, finish={finish}, multiple={multiple}; start lies "
                "above 0 and at most at 1, hold and finish are shares of the run that sum to at most 1, and multiple "
                "is at least 1"
            )
        self.start, self.hold, self.finish, self.multiple = start, hold, finish, multiple

    def changed(self, batch: ImageBatch, context: BatchContext) -> ImageBatch:
        height, width = batch.size
        longer = max(height, width)
        scheduled = context.moment.image_size if context.moment else None
        if scheduled is not None and scheduled >= longer:
            return batch
        size, multiple = self.size_at(context, longer)
        if size >= longer:
            return batch
        sides = [rounded(side * size / longer, multiple) for side in (height, width)]
        return replace(batch, image=shrink(batch.image, sides[0], sides[1], channels_last=batch.channels_last))

    def size_at(self, context: BatchContext, full: int) -> tuple[int, int]:
        """Return the present size of the longer side, ``full`` pixels in the loader, and what sides are rounded to."""
        clock = clock_of(context.trainer)
        if clock and context.moment and context.moment.image_size is not None:
            return context.moment.image_size, clock.timeline.size_multiple
        progress, grown, smallest = context.progress, 1.0 - self.finish, self.start * full
        if progress >= grown - SLACK:
            return full, self.multiple  # it need not be a multiple, and at the end it is what counts
        share = max(0.0, progress - self.hold) / (grown - self.hold) if grown > self.hold else 0.0
        return rounded(smallest + (full - smallest) * share, self.multiple), self.multiple
