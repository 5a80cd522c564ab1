"""Fine-tuning: the timeline, the loader and Lightning's loop put together."""

from __future__ import annotations

import logging
import signal
import threading
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import etude.compat  # noqa: F401  (before lightning)

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging
from lightning.pytorch.loggers import TensorBoardLogger

from etude.callbacks import Clock, History, TrainingProgress
from etude.core.errors import EtudeError
from etude.core.files import explained_write
from etude.core.progress import Progress
from etude.core.seeds import derive_seed
from etude.data.loader import EpochBatches, OrderedBatches, TrainingRows, steps_per_epoch
from etude.functional.augment import Policy, augment
from etude.models.classifier import Classifier, Preprocessing
from etude.models.device import channels_last
from etude.recipe.settings import Recipe
from etude.timeline import Timeline, default_timeline, step_progress
from etude.training.module import FineTune


@dataclass(frozen=True, slots=True)
class FineTuneResult:
    """What happened in stage 2.

    Args:
        steps: optimiser steps taken.
        history: one row per validation.
    """

    steps: int
    history: list[dict[str, Any]] = field(default_factory=list)


def timeline_of(recipe: Recipe) -> Timeline:
    """Return the timeline that the recipe describes."""
    shape = recipe.timeline
    return default_timeline(
        recipe.train.lr,
        shape.start_size,
        shape.final_size,
        warmup=shape.warmup,
        finish=shape.finish,
        size_multiple=shape.size_multiple,
    )


def total_steps(recipe: Recipe, images: int) -> int:
    """Return the optimiser steps of the recipe's epochs over ``images`` training images."""
    return max(1, round(recipe.train.epochs * steps_per_epoch(images, recipe.train.batch_size)))


def fine_tune(
    model: Classifier,
    preprocessing: Preprocessing,
    train: TrainingRows,
    valid: TrainingRows | None,
    recipe: Recipe,
    policy: Policy,
    *,
    precision: str,
    seed: int,
    folder: Path,
    progress: Progress,
    name: str = "fine-tune",
) -> FineTuneResult:
    """Train ``model`` in place by the recipe; curves go to ``folder`` (``history.csv``, ``tb/``).

    Raises:
        DivergedError: the weights stopped being numbers.
        EtudeError: the disk is full.
    """
    settings = recipe.train
    steps = total_steps(recipe, len(train.rows))
    timeline = timeline_of(recipe)

    def epoch_batches(epoch: int) -> EpochBatches:
        return EpochBatches(
            train,
            batch_size=settings.batch_size,
            epoch=epoch,
            plan=lambda step: timeline.at(step_progress(step, steps)),
            augment=lambda images, strength, rng: augment(images, policy, strength, rng),
            seed=seed,
        )

    valid_batches = OrderedBatches(valid, batch_size=settings.batch_size, size=preprocessing.size) if valid else None
    torch.manual_seed(derive_seed(seed, "torch"))  # for dropout and stochastic depth inside the backbone
    module = FineTune(channels_last(model), preprocessing, settings, epoch_batches, valid_batches, precision)
    history = History(folder / "history.csv")
    bar = TrainingProgress(progress, steps, min(settings.batch_size, len(train.rows)), name)
    callbacks: list[pl.Callback] = [Clock(timeline, steps), history, bar]
    if settings.ema:
        callbacks.append(EMAWeightAveraging(decay=settings.ema))
    with _quiet_lightning():
        epoch_steps = steps_per_epoch(len(train.rows), settings.batch_size)
        trainer = _trainer(steps, epoch_steps, settings.clip, callbacks, folder)
        with explained_write(folder), _passing_interrupts(), _silent_writers():
            trainer.fit(module.train())
    _refuse_divergence(model, settings.lr, steps)
    model.eval()
    return FineTuneResult(trainer.global_step, history.rows)


class DivergedError(EtudeError):
    """The weights stopped being numbers."""


def _refuse_divergence(model: Classifier, lr: float, steps: int) -> None:
    if not all(bool(torch.isfinite(parameter).all()) for parameter in model.parameters()):
        raise DivergedError(
            f"training diverged: after {steps} steps at train.lr={lr:g} weights are infinite or not a number; "
            f"lower it, for example --set train.lr={lr / 3:.1g}"
        )


def _trainer(steps: int, epoch_steps: int, clip: float, callbacks: list[pl.Callback], folder: Path) -> pl.Trainer:
    return pl.Trainer(
        max_steps=steps,
        max_epochs=-1,
        accelerator="auto",
        devices=1,
        gradient_clip_val=clip or None,
        callbacks=callbacks,
        logger=TensorBoardLogger(folder, name="tb", version=""),
        log_every_n_steps=max(1, epoch_steps // 10),
        # Ten looks at the validation images draw the curve; more would cost time, fewer would hide it.
        check_val_every_n_epoch=max(1, round(steps / epoch_steps / 10)),
        reload_dataloaders_every_n_epochs=1,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=folder,
    )


@contextmanager
def _passing_interrupts() -> Generator[None]:
    """Let Ctrl-C through as it is: Lightning turns it into an exit and leaves further ones ignored."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as stop:
        if isinstance(stop.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, handler)


@contextmanager
def _silent_writers() -> Generator[None]:
    """Let a full disk be told once: TensorBoard's thread prints a traceback of what it then raises here as well."""
    hook = threading.excepthook

    def unless_writing(told: threading.ExceptHookArgs) -> None:
        if not isinstance(told.exc_value, OSError):
            hook(told)

    threading.excepthook = unless_writing
    try:
        yield
    finally:
        threading.excepthook = hook


@contextmanager
def _quiet_lightning() -> Generator[None]:
    """Keep Lightning's hardware notes and tips off the screen: the plan has said all that."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric", "lightning")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning")
            warnings.filterwarnings("ignore", message=".*does not have many workers.*")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
