"""Lightning's trainer, set up for a run that is one stream of steps, and kept from talking."""

from __future__ import annotations

import logging
import signal
import threading
import warnings
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

import etude.compat  # noqa: F401  (before lightning)

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.exceptions import SIGTERMException

from etude.core.errors import Terminated


def build_trainer(
    *,
    steps: int,
    validate_every: int,
    clip: float,
    callbacks: Sequence[pl.Callback],
    folder: Path | None,
    start: int | None = None,
    processes: int = 1,
    parts: int = 1,
) -> pl.Trainer:
    """Return a trainer for ``steps`` steps that Lightning sees as one epoch: epochs are the loader's.

    ``start`` are its steps taken before: TensorBoard drops what the stopped run wrote after them.
    """
    logger = None if folder is None else TensorBoardLogger(folder, name="tb", version="", purge_step=start)
    return pl.Trainer(
        max_steps=steps,
        max_epochs=-1,
        accelerator="auto",
        devices=processes,
        strategy="ddp" if processes > 1 else "auto",
        use_distributed_sampler=False,  # the loader gives each process its part
        gradient_clip_val=clip or None,
        callbacks=list(callbacks),
        logger=logger or False,
        log_every_n_steps=max(1, min(50, steps // 100)),
        check_val_every_n_epoch=1,
        accumulate_grad_batches=parts,
        val_check_interval=min(validate_every, steps) * parts,
        enable_checkpointing=any(isinstance(callback, Checkpoint) for callback in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=folder,
    )


@contextmanager
def passing_interrupts() -> Generator[None]:
    """Let Ctrl-C and SIGTERM through: Lightning turns them into exits, of code 0 for SIGTERM, and leaves Ctrl-C off."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as stop:
        if isinstance(stop.__context__, KeyboardInterrupt):
            raise stop.__context__ from None
        if isinstance(stop, SIGTERMException):
            raise Terminated from None
        raise
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, handler)


@contextmanager
def silent_writers() -> Generator[None]:
    """Report a full disk once: TensorBoard's thread prints a traceback of what it then raises here as well."""
    hook = threading.excepthook

    def unless_writing(args: threading.ExceptHookArgs) -> None:
        if not isinstance(args.exc_value, OSError):
            hook(args)

    threading.excepthook = unless_writing
    try:
        yield
    finally:
        threading.excepthook = hook


@contextmanager
def quiet_lightning() -> Generator[None]:
    """Keep Lightning's hardware notes and tips off the screen: the plan has it all."""
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
