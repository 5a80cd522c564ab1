"""Steps of one network on random images in any mode: timed, compared with float32, and tried for memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import nn

from etude.core.seeds import derive_seed
from etude.models.features import autocast
from etude.models.modes import Mode, applied, lay_out, lay_out_images

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
