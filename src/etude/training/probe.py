"""The probe: a few steps of the real network in every mode worth trying, and the fastest that keeps the loss.

What is tried: both memory formats, float32 and bfloat16 where the hardware multiplies it natively, and numbers of
threads. Not float16: its gradients vanish without loss scaling, and what has it fast has bfloat16 as fast. Not
``torch.compile``: compiling takes longer than a whole probe, and again for each image size
(``benchmarks/train_modes.py`` measures what it would buy). There the first guess, :func:`likely_mode`, is the best mode
of all eight cases: the probe is for processors unlike that one, for the memory, and for a mode that breaks the loss.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from pydantic import Field, TypeAdapter
from torch import nn

from etude.core.context import Advance, Progress, Silent
from etude.core.errors import EtudeError
from etude.core.files import digest_of, read_json, write_json
from etude.core.processor import cpu_model, free_memory, physical_cores, seconds_of_others, usable_cores
from etude.core.seeds import derive_seed
from etude.functional.batchnorm import evaluating
from etude.models.device import choose_precision
from etude.models.features import autocast
from etude.models.modes import AskedMode, MemoryFormat, Mode, Precision, applied, lay_out, lay_out_images, likely_mode

_DISTURBING = 0.5  # cores that other programs use
_VERSION = 2  # of what probes measure


@dataclass(frozen=True, slots=True)
class Timed:
    """A mode with its measured speed, None where it was not timed, and why it was left out, if so."""

    mode: Mode
    images_per_second: Annotated[float, Field(ge=0)] | None
    note: str = ""


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """The mode to run in, and what was measured.

    Args:
        mode: the fastest of those that keep the loss.
        images_per_second: in that mode, at the probe's batch; None when nothing could be timed.
        table: all modes, the fastest first.
        seconds: that the measurement took.
        batch: images a step while measuring.
        complete: whether the budget sufficed for every mode.
        busy_cores: that other programs used meanwhile, or None when that is not known.
        cached: whether it was measured earlier.
    """

    mode: Mode
    images_per_second: Annotated[float, Field(ge=0)] | None
    table: tuple[Timed, ...]
    seconds: Annotated[float, Field(ge=0)]
    batch: Annotated[int, Field(ge=1)]
    complete: bool = True
    busy_cores: Annotated[float, Field(ge=0)] | None = None
    cached: bool = False

    @property
    def disturbed(self) -> bool:
        """Whether other programs took so much of the processor that on a quiet machine another mode may be faster."""
        return (self.busy_cores or 0.0) > _DISTURBING

    @property
    def lasting(self) -> bool:
        """Whether the result is worth keeping for the next run."""
        return self.complete and not self.disturbed

    def in_words(self) -> str:
        """Return the choice in a line, for the plan.

        >>> mode = Mode("bf16", "channels_last", 2)
        >>> ProbeResult(mode, 31.2, (Timed(mode, 31.2),), 4.0, 8).in_words()
        'bf16, channels_last, 2 threads: 31 images/s'
        """
        text = self.mode.in_words()
        if self.images_per_second is not None:
            text += f": {_rate(self.images_per_second)}"
        timed = [(each.mode, each.images_per_second) for each in self.table if each.images_per_second is not None]
        if len(timed) > 1:
            slowest, rate = timed[-1]
            text += f", the fastest of {len(timed)} (the slowest, {slowest.in_words()}: {_rate(rate)})"
        for each in self.table:
            if each.note.startswith(("left out", "taken as asked")):
                text += f"; {each.mode.precision} {each.mode.memory_format} {each.note}"
        if not self.complete:
            text += "; the probe's time was used up, so not every mode was tried"
        if self.disturbed:
            text += f"; other programs kept about {self.busy_cores:.1f} cores busy, so it is not kept"
        return text + ("; measured earlier" if self.cached else "")

    def as_dict(self) -> dict[str, Any]:
        """Return the result as JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Any) -> ProbeResult:
        """Return the result that :meth:`as_dict` described, or raise a ValueError."""
        return TypeAdapter(cls).validate_python(values)


def _rate(images_per_second: float) -> str:
    return f"{images_per_second:,.0f} images/s" if images_per_second >= 10 else f"{images_per_second:.2g} images/s"


Clock = Callable[[], float]

_LOSS_TOLERANCE = 0.02  # relative; bfloat16 comes to 0.001 or less
_LEAST_COSINE = 0.8  # of the gradients; bfloat16 has 0.99 and above, 0.9 on unkind random weights
_SHORT = 0.03  # seconds that a measurement lasts at least, so that short steps are repeated
_MOST_STEPS = 20


class OutOfMemory(Exception):
    """A batch did not fit into the memory."""


class Steps:
    """Runs steps of ``module`` as training does them: forward, loss, and with ``train`` backward."""

    def __init__(
        self, module: nn.Module, size: int, channels: int, device: torch.device, *, train: bool, clock: Clock
    ) -> None:
        self._module, self._shape, self._device, self._clock = module, (channels, size, size), device, clock
        self._train = train and any(parameter.requires_grad for parameter in module.parameters())
        self._reference: tuple[float, list[torch.Tensor]] | None = None
        self._images = torch.empty(0, *self._shape)

    def seconds(self, mode: Mode, count: int) -> float:
        """Return seconds of a step of ``count`` images: the best of a few, since other work only makes steps longer."""
        with self._ready(mode, count) as (images, targets):
            warm = self._timed(images, targets, mode, 1)  # the first step in a mode prepares its kernels
            steps = max(1, min(_MOST_STEPS, math.ceil(_SHORT / max(warm, 1e-9))))
            if self._device.type != "cpu":  # waiting for the device after each step would be measured too
                return self._timed(images, targets, mode, steps)
            return min(self._timed(images, targets, mode, 1) for _ in range(steps))

    def disagreement(self, mode: Mode, count: int) -> str:
        """Return why the mode does not keep the loss of contiguous float32, or an empty string."""
        with evaluating(self._module):  # without dropout and batch statistics both compute the same function
            if self._reference is None:
                plain = Mode("fp32", "contiguous", mode.threads)
                self._reference = self._loss_and_gradients(plain, count)
            loss, gradients = self._reference
            found, others = self._loss_and_gradients(mode, count)
        if not math.isfinite(found) or not all(bool(torch.isfinite(gradient).all()) for gradient in others):
            return "its loss or gradients are not finite"
        if abs(found - loss) > _LOSS_TOLERANCE * max(abs(loss), 1e-3):
            return f"its loss is {found:.4g}, in fp32 {loss:.4g}"
        cosine = _cosine(gradients, others)
        return "" if cosine >= _LEAST_COSINE else f"its gradients point elsewhere than in fp32 (cosine {cosine:.2f})"

    def fits(self, mode: Mode, count: int) -> bool:
        """Try a step of ``count`` images next to what an optimiser and averaged weights will take."""
        trained = [parameter for parameter in self._module.parameters() if parameter.requires_grad]
        try:
            ballast = [torch.empty_like(weight) for weight in trained for _ in range(3)] if self._train else []
            with self._ready(mode, count) as (images, targets):
                self._timed(images, targets, mode, 1)
            del ballast
        except OutOfMemory:
            return False
        return True

    def bytes_for_backward(self, mode: Mode, count: int) -> int:
        """Return the bytes of activations that a step of ``count`` images keeps for its backward pass."""
        blocks: dict[int, int] = {}
        weights = {parameter.untyped_storage().data_ptr() for parameter in self._module.parameters()}

        def seen(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                blocks[storage.data_ptr()] = storage.nbytes()
            return tensor

        hooks = torch.autograd.graph.saved_tensors_hooks(seen, lambda tensor: tensor)
        with self._ready(mode, count) as (images, targets), hooks:
            self._step(images.clone(), targets, mode)  # as a view it would count for all images that it is a part of
        return sum(blocks.values())

    @contextmanager
    def left_as_found(self) -> Generator[None]:
        """Put buffers (batch norm's statistics), gradients and torch's generators back at the end of the block."""
        held = [(buffer, buffer.clone()) for buffer in self._module.buffers()]
        devices = [self._device] if self._device.type == "cuda" else []
        try:
            with torch.random.fork_rng(devices=devices):
                torch.manual_seed(derive_seed(0, "probe"))
                yield
        finally:
            self._module.zero_grad(set_to_none=True)
            with torch.no_grad():
                for buffer, value in held:
                    buffer.copy_(value)
            self._images = torch.empty(0, *self._shape)
            self._reference = None

    @contextmanager
    def _ready(self, mode: Mode, count: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield images and targets on the device, the network laid out; turn every lack of memory into one error."""
        try:
            with applied(mode):
                lay_out(self._module, mode)
                if len(self._images) < count:
                    generator = torch.Generator().manual_seed(derive_seed(0, "probe images"))
                    self._images = torch.randn(count, *self._shape, generator=generator).to(self._device)
                targets = torch.arange(count, device=self._device)
                yield lay_out_images(self._images[:count], mode), targets
                return
        except MemoryError:
            reason = "the processor's memory"
        except RuntimeError as error:  # torch.OutOfMemoryError is one; the CPU's allocator raises it plainly
            if not isinstance(error, torch.OutOfMemoryError) and "allocate memory" not in str(error):
                raise
            reason = str(error)  # not the error itself: its traceback would hold the tensors
        self._module.zero_grad(set_to_none=True)
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        raise OutOfMemory(reason)

    def _timed(self, images: torch.Tensor, targets: torch.Tensor, mode: Mode, steps: int) -> float:
        self._finish()
        start = self._clock()
        for _ in range(steps):
            self._step(images, targets, mode)
        self._finish()
        return (self._clock() - start) / steps

    def _step(self, images: torch.Tensor, targets: torch.Tensor, mode: Mode) -> torch.Tensor:
        with torch.set_grad_enabled(self._train):
            with autocast(self._device, mode.precision):
                outputs = self._module(images)
            loss = F.cross_entropy(outputs.float(), targets % outputs.shape[1])
        if self._train:
            self._module.zero_grad(set_to_none=True)
            loss.backward()
        return loss

    def _loss_and_gradients(self, mode: Mode, count: int) -> tuple[float, list[torch.Tensor]]:
        with self._ready(mode, count) as (images, targets):
            loss = self._step(images, targets, mode).item()
        found = [weight.grad for weight in self._module.parameters() if weight.grad is not None]
        self._module.zero_grad(set_to_none=True)
        return loss, found

    def _finish(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        elif self._device.type == "mps":
            torch.mps.synchronize()


def _cosine(first: list[torch.Tensor], second: list[torch.Tensor]) -> float:
    """Return the cosine between two sets of gradients; 1 where both vanish."""
    pairs = list(zip(first, second, strict=True))
    product, one, other = (
        sum(float((left * right).sum()) for left, right in chosen)
        for chosen in (pairs, [(a, a) for a, _ in pairs], [(b, b) for _, b in pairs])
    )
    norms = math.sqrt(one * other)
    return product / norms if norms else float(one == other)


DEFAULT_BUDGET = 10.0
LONGEST_BUDGET = 15.0

_LONGEST_STEP = 0.5  # seconds that a probe's step may be expected to take
_CHEAPER = 0.9  # times the seconds an image: what a batch of twice the images must reach to be worth its time
_COMPARED = 4  # images on which modes are compared with float32
_FAR = 1.6  # times the best, measured once: out of the race; less may be the machine's doing
_SLOWER = 1.25  # likewise, measured twice or more
_ROUNDS = 5
_AS_GOOD = 1.05  # times the best: what is likely the best elsewhere is taken
_THREADS_SHARE = 1 / 4  # of the budget: the longest that one measurement of another number of threads may take
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
    flags stay, and so do torch's threads and generators; it ends up on ``device``, in the mode's memory format.
    ``size`` and ``batch_size`` are the largest of the run; the first measurement is made at any ``budget`` (seconds).
    """
    asked = asked or AskedMode()
    found = likely_mode(device, asked)
    module.to(device)
    # The network counts by its structure, not by its weights: its speed does not depend on them.
    graphics = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    machine = [cpu_model(), usable_cores(), physical_cores(), found.threads, device.type, graphics, torch.__version__]
    weights = [(name, tuple(weight.shape), weight.requires_grad) for name, weight in module.named_parameters()]
    work = [(batch_size, channels, size), train, asdict(asked), module.training, weights]
    key = digest_of("probe", json.dumps([_VERSION, machine, work]), repr(module))
    path = None if cache is None else cache / "probes" / f"{key}.json"
    if path is not None and path.is_file():
        with suppress(EtudeError, OSError, ValueError):  # one that is damaged is measured again
            return replace(ProbeResult.from_dict(read_json(path)), cached=True)
    steps = Steps(module, size, channels, device, train=train, clock=clock)
    race = _Race(steps, device, asked, batch_size, min(budget, LONGEST_BUDGET), clock)
    before = others()
    with steps.left_as_found(), (progress or Silent()).bar("modes", race.most_looks, unit="measurements") as advance:
        result = race.run(found, memory, advance)
    if before is not None and (after := others()) is not None:
        result = replace(result, busy_cores=max(0.0, after - before) / max(result.seconds, 1e-9))
    if path is not None and result.lasting:
        write_json(path, result.as_dict())
    return result


def candidate_formats(device: torch.device, asked: AskedMode) -> list[tuple[Precision, MemoryFormat]]:
    """Return the pairs of precision and memory format worth trying, the likeliest first."""
    native = choose_precision("auto", device) == "bf16"
    precisions: list[Precision] = [asked.precision] if asked.precision else ["bf16", "fp32"] if native else ["fp32"]
    layouts: list[MemoryFormat] = [asked.memory_format] if asked.memory_format else ["channels_last", "contiguous"]
    return [(precision, layout) for precision in precisions for layout in layouts]


def candidate_threads(device: torch.device, asked: AskedMode) -> list[int]:
    """Return the numbers of threads worth trying, all usable cores first."""
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
        """Measurements, if two modes stay near each other until the end."""
        formats, threads = candidate_formats(self._device, self._asked), candidate_threads(self._device, self._asked)
        return len(formats) + 2 * (len(threads) - 1) + 2 * (_ROUNDS - 1)

    def run(self, likely: Mode, memory: Callable[[], int | None], advance: Advance) -> ProbeResult:
        """Measure, and return the choice with all that was measured."""
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
        ranked = sorted(self._best.items(), key=lambda pair: pair[1])
        table = [Timed(mode, 1 / seconds, self._notes.get(mode, "")) for mode, seconds in ranked]
        table += [Timed(mode, None, note) for mode, note in self._notes.items() if mode not in self._best]
        return ProbeResult(chosen, rate, tuple(table), self._clock() - self._start, self._batch, complete=self._whole)

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
        """Measure every format and precision once; return those near the best that keep the loss."""
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
        if self._best and self._cost.get(mode, expected or max(self._cost.values())) > self._budget - (
            self._clock() - self._start
        ):
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
