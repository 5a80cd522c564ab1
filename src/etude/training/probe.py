"""The probe: a few steps of the real network in every numeric mode worth trying, and the fastest that keeps the loss.

What is tried: both memory layouts, float32 and bfloat16 where the hardware multiplies it natively, and numbers of
threads. Not float16: its gradients vanish without loss scaling, and what has it fast has bfloat16 as fast. Not
``torch.compile``: compiling takes longer than a whole probe, and again for each image size
(``benchmarks/train_modes.py`` measures what it would buy).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from etude.core.errors import EtudeError
from etude.core.processor import free_memory, physical_cores, seconds_of_others, usable_cores
from etude.core.progress import Advance, Progress, Silent
from etude.models.device import native_bf16
from etude.models.modes import AskedMode, MemoryFormat, Mode, Precision, likely_mode
from etude.training.probe_cache import ProbeCache, key_of
from etude.training.probe_result import ProbeResult, Timed
from etude.training.probe_steps import Clock, OutOfMemory, Steps

DEFAULT_BUDGET = 10.0
LONGEST_BUDGET = 15.0

_LONGEST_STEP = 0.5  # seconds that a probe's step may be expected to take
_CHEAPER = 0.9  # times the seconds an image: what a batch of twice the images must reach to be worth its time
_COMPARED = 4  # images on which modes are compared with float32
_FAR = 1.6  # times the best, seen once: a mode out of the race; less may be the machine's doing
_SLOWER = 1.25  # likewise, seen twice or more
_ROUNDS = 5
_AS_GOOD = 1.05  # times the best: what is likely the best elsewhere is taken
_THREADS_SHARE = 1 / 4  # of the budget: the longest that another number of threads may take to look at
_MEMORY_SHARE = 0.7  # of the free memory that activations may fill; weights, moments and images need some too


def probe_modes(
    module: nn.Module,
    size: int,
    batch_size: int,
    channels: int,
    device: torch.device,
    *,
    asked: AskedMode | None = None,
    train: bool = True,
    budget: float = DEFAULT_BUDGET,
    cache: Path | None = None,
    progress: Progress | None = None,
    clock: Clock = time.perf_counter,
    memory: Callable[[], int | None] = free_memory,
    others: Callable[[], float | None] = seconds_of_others,
) -> ProbeResult:
    """Return the fastest mode for steps of ``module`` on this machine, from the cache where it was measured before.

    Modes take turns, so that a slow moment of the machine meets all of them; the best time of each counts, and modes
    much slower than the best leave the race. A mode whose loss or gradients differ from float32's is left out.
    A batch that does not fit into the memory is halved until it does. The module's weights, statistics and training
    flags stay, and so do torch's threads and generators; it ends up on ``device``, laid out as the mode says.

    Args:
        module: the network as it is trained, frozen parameters frozen; maps (B, channels, size, size) to (B, C).
        size: side of the images in pixels: the largest of the run.
        batch_size: images a step, the most of the run.
        asked: what the user has fixed, which is taken as it is.
        train: measure forward and backward; otherwise forward only.
        budget: seconds that the probe may take, at most 15; the first measurement is always made.
        cache: folder whose ``probes/`` keeps results; None measures anew.
        progress: draws the bar.
        clock: returns seconds.
        memory: returns the free bytes of memory, None where that is not known.
        others: returns the processor seconds that other programs have used so far, None where that is not known.

    Raises:
        EtudeError: not even one image fits into the memory.
    """
    asked = asked or AskedMode()
    found = likely_mode(device, asked)
    module.to(device)
    kept = ProbeCache(cache, key_of(module, (batch_size, channels, size), device, found.threads, train, asked))
    if (known := kept.load()) is not None:
        return known
    steps = Steps(module, size, channels, device, train=train, clock=clock)
    race = _Race(steps, device, asked, batch_size, min(budget, LONGEST_BUDGET), clock)
    before = others()
    with steps.left_as_found(), (progress or Silent()).bar("modes", race.most_looks, unit="looks") as advance:
        result = race.run(found, memory, advance)
    if before is not None and (after := others()) is not None:
        result = replace(result, busy_cores=max(0.0, after - before) / max(result.seconds, 1e-9))
    if result.lasting:
        kept.save(result)
    return result


def candidate_formats(device: torch.device, asked: AskedMode) -> list[tuple[Precision, MemoryFormat]]:
    """Return the pairs of precision and memory format worth trying, the likeliest first.

    >>> candidate_formats(torch.device("cpu"), AskedMode(precision="fp32", memory_format="contiguous"))
    [('fp32', 'contiguous')]
    """
    natively = {"cpu": native_bf16, "cuda": lambda: torch.cuda.is_bf16_supported(including_emulation=False)}
    precisions: list[Precision] = ["bf16", "fp32"] if natively.get(device.type, lambda: False)() else ["fp32"]
    layouts: list[MemoryFormat] = ["channels_last", "contiguous"]
    if asked.precision is not None:
        precisions = [asked.precision]
    if asked.memory_format is not None:
        layouts = [asked.memory_format]
    return [(precision, layout) for precision in precisions for layout in layouts]


def candidate_threads(device: torch.device, asked: AskedMode) -> list[int]:
    """Return the numbers of threads worth trying, all usable cores first.

    >>> candidate_threads(torch.device("cpu"), AskedMode(threads=3))
    [3]
    """
    if asked.threads is not None:
        return [asked.threads]
    usable = usable_cores()
    if device.type != "cpu":
        return [usable]
    physical = min(usable, physical_cores())
    return list(dict.fromkeys((usable, physical, max(1, physical // 2), 1)))


class _Race:
    """One probe: what has been measured so far, and what time is left."""

    def __init__(
        self, steps: Steps, device: torch.device, asked: AskedMode, batch_size: int, budget: float, clock: Clock
    ) -> None:
        self._steps, self._device, self._asked, self._clock = steps, device, asked, clock
        self._batch_size = min(batch_size, asked.micro_batch or batch_size)
        self._start, self._budget = clock(), budget
        self._looks = 0
        self._best: dict[Mode, float] = {}  # seconds an image
        self._cost: dict[Mode, float] = {}  # seconds that one look at the mode takes
        self._notes: dict[Mode, str] = {}
        self._checked: set[Mode] = set()
        self._batch = min(_COMPARED, self._batch_size)
        self._most = self._batch_size  # images that fit, as far as is known
        self._whole = True

    @property
    def most_looks(self) -> int:
        """How often a mode is looked at, if two are near each other until the end."""
        formats, threads = candidate_formats(self._device, self._asked), candidate_threads(self._device, self._asked)
        return len(formats) + 2 * (len(threads) - 1) + 2 * (_ROUNDS - 1)

    def run(self, likely: Mode, memory: Callable[[], int | None], advance: Advance) -> ProbeResult:
        """Measure, and return the choice with everything seen."""
        self._advance = advance
        self._begin(likely)
        alive = self._with_other_threads(self._first_round(likely))
        for _ in range(_ROUNDS - 1):
            if len(alive) > 1:
                for mode in alive:
                    self._look(mode)
                alive = self._near(alive, _SLOWER)
        plain = replace(likely, precision=self._asked.precision or "fp32")
        chosen = min(alive, key=lambda mode: self._best[mode]) if alive else plain
        if likely in alive and self._best[likely] <= _AS_GOOD * self._best[chosen]:
            chosen = likely  # so that two probes do not choose differently by chance
        rate = 1 / self._best[chosen] if chosen in self._best else None
        chosen = replace(chosen, micro_batch=self._micro_batch(chosen, memory))
        advance(self.most_looks - self._looks)
        table = sorted((Timed(m, 1 / s, self._notes.get(m, "")) for m, s in self._best.items()), key=_slowness)
        table += [Timed(mode, None, note) for mode, note in self._notes.items() if mode not in self._best]
        return ProbeResult(chosen, rate, tuple(table), self._spent(), self._batch, complete=self._whole)

    def _begin(self, likely: Mode) -> None:
        """Choose the batch of the probe: doubled for as long as that makes an image much cheaper, in short steps."""
        self._look(likely)
        # Few images leave threads and wide instructions idle, and rank the modes otherwise than the run's batch does.
        gained = True
        while gained and self._batch < self._most and 2 * self._batch * self._best[likely] <= _LONGEST_STEP:
            before, self._batch = self._best[likely], min(self._most, 2 * self._batch)
            self._best.clear()
            self._look(likely)
            gained = self._best[likely] <= _CHEAPER * before

    def _first_round(self, likely: Mode) -> list[Mode]:
        """Look at every layout and precision once; return those near the best that keep the loss."""
        formats = candidate_formats(self._device, self._asked)
        modes = [Mode(precision, layout, likely.threads, likely.micro_batch) for precision, layout in formats]
        seen = [mode for mode in modes if mode in self._best or self._look(mode)]
        while failed := [mode for mode in self._near(seen) if not self._keeps_loss(mode)]:
            seen = [mode for mode in seen if mode not in failed]
        return self._near(seen)

    def _with_other_threads(self, near: list[Mode]) -> list[Mode]:
        """Add the modes with other numbers of threads that are near the best too."""
        found = list(near)
        for mode in near:
            for count in candidate_threads(self._device, self._asked)[1:]:
                other = replace(mode, threads=count)
                expected = self._cost[mode] * max(1.0, mode.threads / count)
                if expected > self._budget * _THREADS_SHARE:
                    self._notes[other] = "not tried: it would take too long"
                elif self._look(other, expected):
                    found.append(other)
        return self._near(found)

    def _keeps_loss(self, mode: Mode) -> bool:
        if mode in self._checked or (mode.precision, mode.memory_format) == ("fp32", "contiguous"):
            return True  # the others are compared with that one
        reason = self._steps.disagreement(mode, min(_COMPARED, self._batch_size))
        if reason and self._asked.precision != mode.precision:
            self._notes[mode] = f"left out: {reason}"
            return False
        if reason:
            self._notes[mode] = f"taken as asked, though {reason}"
        self._checked.add(mode)
        return True

    def _look(self, mode: Mode, expected: float | None = None) -> bool:
        """Time the mode once more, if the budget allows; return whether it was timed."""
        if self._best and self._cost.get(mode, expected or max(self._cost.values())) > self._left():
            if mode not in self._best:
                self._whole = False
                self._notes[mode] = "not tried: the probe's time was used up"
            return False
        began, seconds = self._clock(), None
        while seconds is None:
            try:
                seconds = self._steps.seconds(mode, self._batch) / self._batch
            except OutOfMemory:
                self._batch = self._most = self._halved(self._batch)
        self._cost[mode] = self._clock() - began
        self._best[mode] = min(seconds, self._best.get(mode, seconds))
        if self._looks < self.most_looks:
            self._looks += 1
            self._advance()
        return True

    def _near(self, modes: Sequence[Mode], slower: float = _FAR) -> list[Mode]:
        best = min((self._best[mode] for mode in modes), default=0.0)
        return [mode for mode in modes if self._best[mode] <= slower * best]

    def _micro_batch(self, mode: Mode, memory: Callable[[], int | None]) -> int | None:
        """Return how many images of a step to hold at once, None for the whole batch."""
        if self._asked.micro_batch is not None:
            return self._asked.micro_batch
        count = self._most
        if self._device.type == "cpu" and (free := memory()) is not None:
            # Not tried: a CPU's memory that is used up ends the process, or slows the whole machine down.
            seen = min(self._batch, _COMPARED)
            an_image = self._steps.bytes_for_backward(mode, seen) / seen
            while count > 1 and an_image * count > _MEMORY_SHARE * free:
                count = self._halved(count)
        else:
            while not self._steps.fits(mode, count):
                count = self._halved(count)
        return None if count == self._batch_size else count

    def _halved(self, count: int) -> int:
        if count <= 1:
            raise EtudeError(
                "not even one image a step fits into the memory: choose a smaller image size or backbone, "
                "or free memory that other programs hold"
            )
        return (count + 1) // 2

    def _spent(self) -> float:
        return self._clock() - self._start

    def _left(self) -> float:
        return self._budget - self._spent()


def _slowness(timed: Timed) -> float:
    return -(timed.images_per_second or 0.0)
