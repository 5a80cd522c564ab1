"""The mode to train in: the likely one, unless it changes the loss, and as many images at a time as fit into memory.

Modes do not race for speed: in all eight rows of ``benchmarks/train_modes.py`` the likely mode is the fastest, and a
race of ten seconds chose a slower one now and then. Not float16: its gradients vanish without loss scaling, and what
has it fast has bfloat16 as fast. Not ``torch.compile``: it takes longer than it saves (same benchmark).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import nn

from etude.core.errors import EtudeError
from etude.core.processor import free_memory
from etude.core.seeds import derive_seed
from etude.functional.batchnorm import evaluating
from etude.models.features import autocast
from etude.models.modes import AskedMode, Mode, applied, lay_out, lay_out_images, likely_mode

_LOSS_TOLERANCE = 0.02  # relative; bfloat16 comes to 0.001 or less
_LEAST_COSINE = 0.8  # of the gradients; bfloat16 has 0.99 and above, 0.9 on unkind random weights
_COMPARED = 4  # images on which a mode is compared with float32
_MEMORY_SHARE = 0.7  # of the free memory that activations may fill; weights, moments and images need some too


def probe_mode(
    module: nn.Module,
    size: int,
    batch_size: int,
    channels: int,
    device: torch.device,
    *,
    asked: AskedMode | None = None,
    memory: Callable[[], int | None] = free_memory,
) -> tuple[Mode, str]:
    """Return the mode to train ``module`` in, and what was found against the likely or asked one, else "".

    A precision whose loss or gradients differ from float32's is replaced by it, unless the user asked for it. A batch
    of the run's largest ``size`` and ``batch_size`` that does not fit into the memory is halved until it does.
    """
    asked = asked or AskedMode()
    mode, note = likely_mode(device, asked), ""
    steps = Steps(module.to(device), size, channels, device)
    with steps.left_as_found():
        count = asked.micro_batch or _fitting(steps, mode, batch_size, device, memory)
        if mode.precision != "fp32" and (reason := steps.disagreement(mode, min(_COMPARED, batch_size, count))):
            note = f"{mode.precision} taken as asked, though {reason}"
            if asked.precision is None:
                mode, note = replace(mode, precision="fp32"), f"{mode.precision} left out: {reason}"
                count = asked.micro_batch or _fitting(steps, mode, count, device, memory)
        if asked.micro_batch is None:
            mode = replace(mode, micro_batch=None if count == batch_size else count)
        lay_out(module, mode)
    return mode, note


def _fitting(steps: Steps, mode: Mode, count: int, device: torch.device, memory: Callable[[], int | None]) -> int:
    """Return how many images of a step fit into the memory, from ``count`` down by halves."""
    if device.type == "cpu" and (free := memory()) is not None:
        # Not tried: a CPU's memory that is used up ends the process, or slows the whole machine down.
        tried = min(count, _COMPARED)
        an_image = steps.bytes_for_backward(mode, tried) / tried
        while count > 1 and an_image * count > _MEMORY_SHARE * free:
            count = (count + 1) // 2
        return count
    while not steps.fits(mode, count):
        count = (count + 1) // 2
    return count


class OutOfMemory(EtudeError):
    """A batch did not fit into the memory."""


class Steps:
    """Runs steps of ``module`` as training does them: forward, loss and backward."""

    def __init__(self, module: nn.Module, size: int, channels: int, device: torch.device) -> None:
        self._module, self._shape, self._device = module, (channels, size, size), device
        self._trained = [parameter for parameter in module.parameters() if parameter.requires_grad]

    def disagreement(self, mode: Mode, count: int) -> str:
        """Return why the mode does not keep the loss of contiguous float32, or an empty string."""
        with evaluating(self._module):  # without dropout and batch statistics both compute the same function
            loss, gradients = self._loss_and_gradients(Mode("fp32", "contiguous", mode.threads), count)
            found, others = self._loss_and_gradients(mode, count)
        if not math.isfinite(found) or not others.isfinite().all():
            return "its loss or gradients are not finite"
        if abs(found - loss) > _LOSS_TOLERANCE * max(abs(loss), 1e-3):
            return f"its loss is {found:.4g}, in fp32 {loss:.4g}"
        # Both vanish where nothing is learned.
        cosine = float(F.cosine_similarity(gradients, others, dim=0)) if gradients.any() or others.any() else 1.0
        return "" if cosine >= _LEAST_COSINE else f"its gradients point elsewhere than in fp32 (cosine {cosine:.2f})"

    def fits(self, mode: Mode, count: int) -> bool:
        """Try a step of ``count`` images next to what an optimiser and averaged weights take; one image must fit."""
        try:
            ballast = [torch.empty_like(weight) for weight in self._trained for _ in range(3)]
            with self._ready(mode, count) as (images, targets):
                self._step(images, targets, mode).item()  # waits for the device
            del ballast
        except OutOfMemory:
            if count == 1:
                raise
            return False
        return True

    def bytes_for_backward(self, mode: Mode, count: int) -> int:
        """Return the bytes of activations that a step of ``count`` images keeps for its backward pass."""
        blocks: dict[int, int] = {}
        weights = {parameter.untyped_storage().data_ptr() for parameter in self._module.parameters()}

        def kept(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                blocks[storage.data_ptr()] = storage.nbytes()
            return tensor

        hooks = torch.autograd.graph.saved_tensors_hooks(kept, lambda tensor: tensor)
        with self._ready(mode, count) as (images, targets), hooks:
            self._step(images, targets, mode)
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

    @contextmanager
    def _ready(self, mode: Mode, count: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield images and targets on the device, the network laid out; turn every lack of memory into one error."""
        try:
            with applied(mode):
                lay_out(self._module, mode)
                generator = torch.Generator().manual_seed(derive_seed(0, "probe images"))
                images = torch.randn(count, *self._shape, generator=generator).to(self._device)
                yield lay_out_images(images, mode), torch.arange(count, device=self._device)
                return
        except MemoryError:
            pass
        except RuntimeError as error:  # torch.OutOfMemoryError is one; the CPU's allocator raises it plainly
            if not isinstance(error, torch.OutOfMemoryError) and "allocate memory" not in str(error):
                raise
        # Outside of the handlers: the error's traceback holds the tensors.
        self._module.zero_grad(set_to_none=True)
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        raise OutOfMemory(
            f"not even {'one image' if count == 1 else f'{count} images'} a step fit into the memory: choose a smaller "
            "image size or backbone, or free memory that other programs hold"
        )

    def _step(self, images: torch.Tensor, targets: torch.Tensor, mode: Mode) -> torch.Tensor:
        with torch.set_grad_enabled(bool(self._trained)):
            with autocast(self._device, mode.precision):
                outputs = self._module(images)
            loss = F.cross_entropy(outputs.float(), targets % outputs.shape[1])
        if self._trained:
            self._module.zero_grad(set_to_none=True)
            loss.backward()
        return loss

    def _loss_and_gradients(self, mode: Mode, count: int) -> tuple[float, torch.Tensor]:
        with self._ready(mode, count) as (images, targets):
            loss = self._step(images, targets, mode).item()
        found = [weight.grad.flatten() for weight in self._module.parameters() if weight.grad is not None]
        self._module.zero_grad(set_to_none=True)
        return loss, torch.cat(found) if found else torch.zeros(0)
