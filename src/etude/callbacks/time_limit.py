"""Training that ends in time, with its last phase whole."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import etude.compat  # noqa: F401  (before lightning)

import lightning.pytorch as pl

from etude.callbacks.base import EtudeCallback, ends_step
from etude.callbacks.clock import Clock, clock_of
from etude.core.errors import EtudeError
from etude.timeline import Moment, Timeline

_FEWEST_STEPS = 5  # measured before a phase is ended: the first ones are slow
_MEMORY = 0.98  # of the steps before, in the time of a step: another program may come or go
_STEP = 0.9  # of a step, which does not fit any more
_SAMPLES = 50  # moments of the phases to come whose work is added up


class TimeLimit(EtudeCallback):
    """End phases early so that training ends in time: the learning rate still falls as planned, only sooner.

    A phase ends when the last one needs all the time that is left, by the seconds of the steps so far (validation
    included); a step's work grows with its pixels. Lightning's Timer stops at the highest learning rate in
    the same case. A training that is fast enough is left alone. The time of a resumed training goes on from the
    checkpoint. What happened stands in ``clock.timeline.events``.

    Args:
        seconds: of the whole training, or a function that returns how many are left now; 0 or less ends every phase
            after one more step.
        now: seconds from any start.

    Raises:
        EtudeError: there is no Clock, whose phases could be ended.

    Example::

        trainer = Trainer(max_epochs=10, callbacks=[Clock(plan), TimeLimit(600)])
    """

    def __init__(self, seconds: float | Callable[[], float], now: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._given, self._now = seconds, now
        self._start_afresh()

    def _start_afresh(self) -> None:
        self._before = 0.0  # seconds of a training that is resumed
        self._started = self._last = self._now()
        self._seconds = self._work = 0.0  # of the last steps
        self._steps, self._validating = 0, 0.0
        self._known: tuple[Timeline, float, float] | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            self._start_afresh()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        if clock_of(trainer) is None:
            raise EtudeError(
                "TimeLimit ends the phases of a Clock, and the trainer has none: put a Clock among its callbacks, or "
                "use Lightning's Timer, which stops training at any learning rate"
            )
        self._started = self._last = self._now()
        self._validating = 0.0  # without Lightning's trial before training
        self._left(self._last)  # a function may have something to set up, such as handlers of signals

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._validating -= self._now()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        now = self._now()
        self._validating += now
        self._last = now

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        clock = clock_of(trainer)
        if not ends_step(trainer, batch_idx) or clock is None or clock.moment is None:
            return
        now = self._now()
        step = now - self._last
        self._seconds = _MEMORY * self._seconds + step
        self._work = _MEMORY * self._work + _work(clock.moment)
        self._last, self._steps = now, self._steps + 1
        left = self._left(now)
        over = left <= 0.0 or (self._steps >= _FEWEST_STEPS and left < self._last_phase(clock) + _STEP * step)
        if trainer.world_size > 1:  # all processes end a phase at the same step
            over = trainer.strategy.broadcast(over)
        if over:
            clock.end_phase(trainer, batch_idx + 1)

    def _left(self, now: float) -> float:
        if callable(self._given):
            return self._given()
        return self._given - self._before - (now - self._started)

    def _last_phase(self, clock: Clock) -> float:
        """Return the seconds that the last phase will take, at the pace of the last steps; 0 once it runs."""
        assert clock.moment is not None
        timeline = clock.timeline
        name, start, stop = timeline.spans()[-1]
        if clock.moment.phase == name:
            return 0.0
        if self._known is None or self._known[0] is not timeline:
            points = (start + (stop - start) * (sample + 0.5) / _SAMPLES for sample in range(_SAMPLES))
            steps = (stop - start) * clock.steps
            self._known = timeline, steps, steps * sum(_work(timeline.at(t)) for t in points) / _SAMPLES
        _, steps, work = self._known
        return work * self._seconds / self._work + steps * self._validating / self._steps

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self._before + self._now() - self._started}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._before = float(state_dict["seconds"])


def _work(moment: Moment) -> float:
    """Return the work of a step, which grows with its pixels, in any unit."""
    return float((moment.image_size or 1) ** 2 * (moment.batch_size or 1))
