"""The probe: a few steps of the real network in every numeric mode worth trying, and the fastest that keeps the loss.

What is tried: both memory layouts, float32 and bfloat16 where the hardware multiplies it natively, and numbers of
threads. Not float16: its gradients vanish without loss scaling, and what has it fast has bfloat16 as fast. Not
``torch.compile``: compiling takes longer than a whole probe, and again for each image size
(``benchmarks/train_modes.py`` measures what it would buy).
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from etude.core.context import Advance, Progress, Silent
from etude.core.errors import EtudeError
from etude.core.files import digest_of, read_json, write_json
from etude.core.processor import cpu_model, free_memory, physical_cores, seconds_of_others, usable_cores
from etude.core.seeds import derive_seed
from etude.models.device import native_bf16
from etude.models.features import autocast
from etude.models.modes import AskedMode, MemoryFormat, Mode, Precision, applied, lay_out, lay_out_images, likely_mode

_DISTURBING = 0.5  # cores of others


@dataclass(frozen=True, slots=True)
class Timed:
    """A mode that was looked at.

    Args:
        images_per_second: at the probe's batch, or None when it was not timed.
        note: why it was left out or not tried, or empty.
    """

    mode: Mode
    images_per_second: float | None
    note: str = ""


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """The mode to run in, and what was measured.

    Args:
        mode: the fastest of those that keep the loss.
        images_per_second: in that mode, at the probe's batch; None when nothing could be timed.
        table: all modes looked at, the fastest first.
        seconds: that the measurement took.
        batch: images a step while measuring.
        complete: whether the budget sufficed to look at every mode.
        busy_cores: that other programs used meanwhile, or None when that is not known.
        cached: whether it was measured earlier.
    """

    mode: Mode
    images_per_second: float | None
    table: tuple[Timed, ...]
    seconds: float
    batch: int
    complete: bool = True
    busy_cores: float | None = None
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
        rate = "" if self.images_per_second is None else f": {_rate(self.images_per_second)}"
        timed = [each for each in self.table if each.images_per_second is not None]
        slowest = timed[-1] if len(timed) > 1 else None
        beside = ""
        if slowest is not None and slowest.images_per_second is not None:
            beside = f", the fastest of {len(timed)} (the slowest, {slowest.mode.in_words()}: " + (
                f"{_rate(slowest.images_per_second)})"
            )
        left_out = [each for each in self.table if each.note.startswith(("left out", "taken as asked"))]
        told = "".join(f"; {each.mode.precision} {each.mode.memory_format} {each.note}" for each in left_out)
        unfinished = "" if self.complete else "; the probe's time was used up, so not every mode was tried"
        if self.disturbed:
            unfinished += f"; other programs kept about {self.busy_cores:.1f} cores busy, so it is not kept"
        return self.mode.in_words() + rate + beside + told + unfinished + ("; measured earlier" if self.cached else "")

    def rows(self) -> list[tuple[str, str, int, float | None, str]]:
        """Return (precision, memory format, threads, images/s, note) of every mode, for a table."""
        return [
            (each.mode.precision, each.mode.memory_format, each.mode.threads, each.images_per_second, each.note)
            for each in self.table
        ]

    def as_dict(self) -> dict[str, Any]:
        """Return the result as JSON values."""
        return {
            "mode": self.mode.as_dict(),
            "images_per_second": self.images_per_second,
            "table": [
                {"mode": each.mode.as_dict(), "images_per_second": each.images_per_second, "note": each.note}
                for each in self.table
            ],
            "seconds": self.seconds,
            "batch": self.batch,
            "complete": self.complete,
            "busy_cores": self.busy_cores,
            "cached": self.cached,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ProbeResult:
        """Return the result that :meth:`as_dict` described.

        Raises:
            ValueError, TypeError, KeyError: it describes none.
        """
        table = tuple(Timed(Mode.from_dict(each["mode"]), _number(each["images_per_second"]), str(each["note"]))
                      for each in values["table"])  # fmt: skip
        seconds, batch = _number(values["seconds"]), _number(values["batch"])
        if seconds is None or batch is None:
            raise ValueError("no seconds or no batch")
        rate = _number(values["images_per_second"])
        mode = Mode.from_dict(values["mode"])
        busy, complete = _number(values["busy_cores"]), bool(values["complete"])
        return cls(mode, rate, table, seconds, int(batch), complete, busy, bool(values["cached"]))


def _number(value: Any) -> float | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or value < 0):
        raise ValueError(f"no number: {value!r}")
    return value


def _rate(images_per_second: float) -> str:
    return f"{images_per_second:,.0f} images/s" if images_per_second >= 10 else f"{images_per_second:.2g} images/s"


PROBE_VERSION = 1
"""Raise it when probes measure anything else than before."""


def key_of(
    module: nn.Module, shape: tuple[int, int, int], device: torch.device, threads: int, train: bool, asked: AskedMode
) -> str:
    """Return a digest of all that a probe's result depends on: machine, network with what of it is frozen, batch.

    The network counts by its structure, not by its weights: how fast it runs does not depend on them.

    Args:
        shape: of the batch: images, channels, side.
    """
    graphics = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    machine = [cpu_model(), usable_cores(), physical_cores(), threads, device.type, graphics, torch.__version__]
    weights = [(name, tuple(weight.shape), weight.requires_grad) for name, weight in module.named_parameters()]
    told = json.dumps([PROBE_VERSION, machine, shape, train, asdict(asked), module.training, weights])
    return digest_of("probe", told, repr(module))


class ProbeCache:
    """One result in ``FOLDER/probes/KEY.json``.

    Args:
        folder: the cache; None keeps nothing.
        key: of :func:`key_of`.
    """

    def __init__(self, folder: Path | None, key: str) -> None:
        self._path = None if folder is None else folder / "probes" / f"{key}.json"

    def load(self) -> ProbeResult | None:
        """Return the result, or None where there is none; one that is damaged is measured again."""
        if self._path is None or not self._path.is_file():
            return None
        try:
            return replace(ProbeResult.from_dict(read_json(self._path)), cached=True)
        except (EtudeError, OSError, ValueError, TypeError, KeyError, AttributeError):
            return None

    def save(self, result: ProbeResult) -> None:
        """Keep the result.

        Raises:
            EtudeError: the cache cannot be written.
        """
        if self._path is not None:
            write_json(self._path, result.as_dict())


Clock = Callable[[], float]

_LOSS_TOLERANCE = 0.02  # relative; bfloat16 comes to 0.001 or less
_LEAST_COSINE = 0.8  # of the gradients; bfloat16 has 0.99 and above, 0.9 on unkind random weights
_SHORT = 0.03  # seconds that a visit lasts at least, so that short steps are measured many times
_MOST_STEPS = 20


class OutOfMemory(Exception):
    """A batch did not fit into the memory."""


class Steps:
    """Runs steps of ``module`` as training does them: forward, loss, backward.

    Args:
        module: on ``device``, its frozen parameters frozen.
        size: side of the images in pixels.
        channels: that the network takes.
        train: go backward too; without any trained parameter a step is a forward pass.
        clock: returns seconds.
    """

    def __init__(
        self, module: nn.Module, size: int, channels: int, device: torch.device, *, train: bool, clock: Clock
    ) -> None:
        self._module, self._shape, self._device, self._clock = module, (channels, size, size), device, clock
        self._train = train and any(parameter.requires_grad for parameter in module.parameters())
        self._reference: tuple[float, list[torch.Tensor]] | None = None
        self._images = torch.empty(0, *self._shape)

    def seconds(self, mode: Mode, count: int) -> float:
        """Return seconds of a step of ``count`` images, the best of a few after one that is not counted.

        The best, because whatever else the machine does can only make a step longer.

        Raises:
            OutOfMemory: the batch does not fit.
        """
        with self._ready(mode, count) as (images, targets):
            warm = self._timed(images, targets, mode, 1)  # the first step in a mode prepares its kernels
            steps = max(1, min(_MOST_STEPS, math.ceil(_SHORT / max(warm, 1e-9))))
            if self._device.type != "cpu":  # waiting for the device after each step would be measured too
                return self._timed(images, targets, mode, steps)
            return min(self._timed(images, targets, mode, 1) for _ in range(steps))

    def disagreement(self, mode: Mode, count: int) -> str:
        """Return why the mode does not keep the loss, or an empty string: compared with float32, laid out plainly.

        Dropout is switched off and batch norm keeps its statistics, so that both compute the same function.
        """
        with self._evaluating():
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
        """Try a step of ``count`` images beside what an optimiser and averaged weights will take."""
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
        """Yield images and targets on the device, the network laid out; turn whatever lacks memory into one error."""
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

    @contextmanager
    def _evaluating(self) -> Generator[None]:
        training = [module for module in self._module.modules() if module.training]
        self._module.eval()
        try:
            yield
        finally:
            for module in training:
                module.training = True

    def _finish(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        elif self._device.type == "mps":
            torch.mps.synchronize()


def _cosine(first: list[torch.Tensor], second: list[torch.Tensor]) -> float:
    """Return the cosine between two sets of gradients; 1 where both vanish."""
    products = [0.0, 0.0, 0.0]
    for a, b in zip(first, second, strict=True):
        for place, (left, right) in enumerate(((a, b), (a, a), (b, b))):
            products[place] += float((left * right).sum())
    norms = math.sqrt(products[1] * products[2])
    return products[0] / norms if norms else float(products[1] == products[2])


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
