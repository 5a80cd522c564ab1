"""Changing training batches in any LightningModule: what MixUp, resizing and augmentation share."""

from __future__ import annotations

import functools
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import etude.compat  # noqa: F401  (before lightning)

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature

from etude.callbacks.base import EtudeCallback, callbacks_of
from etude.callbacks.clock import check_phases, clock_of, phase_names, position, run_size
from etude.core.errors import EtudeError, listed
from etude.core.seeds import rng_for
from etude.timeline import Moment, step_progress

_HOOK = "on_after_batch_transfer"
_MORE = ("weight", "is_labeled", "strong", "teacher")  # what only a dict has a place for


@dataclass(frozen=True, slots=True)
class ImageBatch:
    """What tricks change of a batch: images (B, C, H, W) or (B, H, W, C), labels (B,) or dense targets (B, C).

    ``strong`` is a second, strongly augmented view of the unlabelled images, and ``teacher`` (B, C) its probabilities.
    """

    image: torch.Tensor
    target: torch.Tensor
    weight: torch.Tensor | None = None
    is_labeled: torch.Tensor | None = None
    strong: torch.Tensor | None = None
    teacher: torch.Tensor | None = None

    @property
    def channels_last(self) -> bool:
        """Whether the images are (B, H, W, C): their last axis could be channels (at most 4), their second not."""
        return self.image.shape[1] > 4 >= self.image.shape[-1]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        height, width = self.image.shape[1:3] if self.channels_last else self.image.shape[2:]
        return int(height), int(width)


@dataclass(frozen=True, slots=True)
class BatchContext:
    """When and where a batch is changed."""

    trainer: pl.Trainer
    module: pl.LightningModule
    step: int
    batch_idx: int
    moment: Moment | None

    @property
    def progress(self) -> float:
        """The run's progress in [0, 1]."""
        return self.moment.progress if self.moment else step_progress(*position(self.trainer, self.batch_idx))

    def scheduled(self, quantity: str, own: float) -> float:
        """Return the present value of a quantity: the timeline's where it schedules one, else the trick's own."""
        value = getattr(self.moment, quantity) if self.moment else None
        return own if value is None else value

    def rng(self, seed: int, name: str) -> np.random.Generator:
        """Return the generator of this batch's draw, the same again in a resumed run, another in each process."""
        return rng_for(seed, f"{name}/{self.batch_idx}/{self.trainer.global_rank}", self.step)


class BatchTransform(EtudeCallback):
    """Change training batches after they were moved to the device and before ``training_step`` sees them.

    Batches of validation, test and prediction stay as they are. A batch is a tuple or list that begins with images
    and targets, or a dict with ``"image"`` and ``"target"`` (and :class:`ImageBatch`'s other parts). Several transforms
    of one trainer work in the order of its callbacks. A subclass implements :meth:`changed`.

    Args:
        phases: names of the timeline's phases that it is confined to; by default it works in all.
        seed: of the draws.
    """

    follows_run: ClassVar[bool] = False  # whether it asks for the run's progress, which takes a run with an end

    def __init__(self, phases: Sequence[str] | str | None = None, seed: int = 0) -> None:
        super().__init__()
        self.phases = phase_names(phases)
        self.seed = seed
        self._restore: list[Callable[[], None]] = []

    @abstractmethod
    def changed(self, batch: ImageBatch, context: BatchContext) -> ImageBatch:
        """Return the batch as the step shall see it; ``batch`` itself stays as it is."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        check_phases(self, trainer, self.phases)
        if is_param_in_hook_signature(pl_module.training_step, "dataloader_iter", explicit=True):
            raise EtudeError(
                f"{type(self).__name__} cannot change batches that training_step draws from dataloader_iter itself; "
                "write it as training_step(self, batch, batch_idx)"
            )
        if self.follows_run and clock_of(trainer) is None:
            run_size(trainer, type(self).__name__)  # refuses a run without an end
        self._restore = _install(trainer, pl_module)

    def is_on(self, context: BatchContext) -> bool:
        """Whether the present phase is one that it is confined to."""
        return self.phases is None or (context.moment is not None and context.moment.phase in self.phases)

    def undo(self) -> None:
        while self._restore:
            self._restore.pop()()


def _install(trainer: pl.Trainer, module: pl.LightningModule) -> list[Callable[[], None]]:
    """Wrap the hook that Lightning calls on batches, and the step; return what undoes it, nothing if it was done."""
    # Lightning asks the datamodule when it has a hook of its own, else the module.
    datamodule = cast(Any, trainer).datamodule
    owner = datamodule if datamodule is not None and is_overridden(_HOOK, datamodule) else module
    inner, step_inner = getattr(owner, _HOOK), module.training_step
    if hasattr(inner, "changes_batches"):
        return []
    clock = clock_of(trainer)
    transforms = [callback for callback in callbacks_of(trainer) if isinstance(callback, BatchTransform)]
    densified: list[str] = []  # who made the present batch's labels dense

    @functools.wraps(inner)
    def hook(batch: Any, dataloader_idx: int) -> Any:
        batch = inner(batch, dataloader_idx)
        if not trainer.training:
            return batch
        # Lightning counts the batch only after this hook, as it does itself in its loop.
        batch_idx = trainer.fit_loop.epoch_loop.batch_idx + 1
        moment = clock.moment_of(trainer, batch_idx) if clock else None
        densified.clear()
        context = BatchContext(trainer, module, trainer.global_step, batch_idx, moment)
        return _transformed(batch, transforms, context, densified)

    @functools.wraps(step_inner)
    def step(*args: Any, **kwargs: Any) -> Any:
        try:
            return step_inner(*args, **kwargs)
        except (IndexError, RuntimeError, TypeError, ValueError) as problem:
            if not densified or isinstance(problem, EtudeError | torch.OutOfMemoryError):
                raise
            reason = str(problem).partition("\n")[0]
            raise EtudeError(
                f"training_step of {type(module).__name__} failed ({reason}) on a batch whose labels {densified[0]} "
                "made dense targets, floats (B, C): use a loss that takes these, as torch.nn.functional.cross_entropy "
                "does, and targets.argmax(1) where labels are needed"
            ) from problem

    cast(Any, hook).changes_batches = True
    return [_put(owner, _HOOK, hook), _put(module, "training_step", step)]


def _put(owner: Any, name: str, function: Callable[..., Any]) -> Callable[[], None]:
    """Put a function on an object in the place of its method; return what undoes it."""
    own = vars(owner).get(name)  # a user may have put a function of their own on the instance
    setattr(owner, name, function)

    def restore() -> None:
        delattr(owner, name)
        if own is not None:
            setattr(owner, name, own)

    return restore


def _transformed(batch: Any, transforms: Sequence[BatchTransform], context: BatchContext, densified: list[str]) -> Any:
    images = before = opened(batch)
    for transform in transforms:
        if transform.phases is None or transform.is_on(context):
            former, images = images, transform.changed(images, context)
            if images.target.ndim > former.target.ndim:
                densified.append(type(transform).__name__)
    return batch if images is before else closed(batch, images)


def opened(batch: Any) -> ImageBatch:
    """Return images and targets of a batch."""
    parts: tuple[Any, ...] = ()
    if isinstance(batch, tuple | list):
        parts = tuple(batch[:2])
    elif isinstance(batch, Mapping):
        parts = (batch.get("image"), batch.get("target"), *(batch.get(name) for name in _MORE))
    if len(parts) >= 2 and all(isinstance(part, torch.Tensor) for part in parts[:2]) and parts[0].ndim == 4:
        if parts[1].ndim > 2:
            raise EtudeError(
                f"a training batch has targets {tuple(parts[1].shape)}, and etude's callbacks would change its images "
                "without them: they take labels (B,) and dense targets (B, C), no masks or images"
            )
        return ImageBatch(*parts)
    raise EtudeError(
        f"a training batch is {_description(batch)}; etude's callbacks change batches that begin with images "
        "(B, C, H, W) and targets, as (images, targets, ...) or as a dict with 'image' and 'target'"
    )


def closed(batch: Any, images: ImageBatch) -> Any:
    """Return a batch like ``batch`` that holds ``images``; ``batch`` itself stays as it is."""
    _check_other_images(batch, images)
    more = {name: part for name in _MORE if (part := getattr(images, name)) is not None}
    if isinstance(batch, Mapping):
        new = cast(dict[str, Any], copy(batch))
        for name, part in {"image": images.image, "target": images.target, **more}.items():
            new[name] = part
        return new
    if more:
        raise EtudeError(
            f"a training batch is {_description(batch)}, which has no place for {listed(more)}: yield batches as dicts "
            "with 'image' and 'target'"
        )
    parts = [images.image, images.target, *batch[2:]]
    if isinstance(batch, list):
        return parts
    return type(batch)(*parts) if hasattr(batch, "_fields") else tuple(parts)


def _check_other_images(batch: Any, images: ImageBatch) -> None:
    if len(batch) == 2:  # images and targets alone
        return
    parts: dict[Any, Any] = dict(batch) if isinstance(batch, Mapping) else dict(enumerate(batch))
    before = opened(batch)
    if before.image is images.image:
        return
    for name, part in parts.items():
        if not isinstance(part, torch.Tensor) or part.ndim < 3 or part is before.image or name in _MORE:
            continue
        if len(part) == len(before.image) and before.size in (tuple(part.shape[1:3]), tuple(part.shape[-2:])):
            raise EtudeError(
                f"a training batch holds {tuple(part.shape)} at {name!r}, and etude's callbacks change its images "
                "without it: leave masks and other images out of the batch, or those callbacks out of the trainer"
            )


def _description(batch: Any) -> str:
    if isinstance(batch, Mapping):
        return f"a dict with {listed([str(key) for key in batch]) or 'nothing'}"
    if isinstance(batch, torch.Tensor):
        return f"a tensor {tuple(batch.shape)}"
    if isinstance(batch, tuple | list):
        return f"a {type(batch).__name__} of {', '.join(_description(part) for part in batch[:3]) or 'nothing'}"
    return f"a {type(batch).__name__}"
