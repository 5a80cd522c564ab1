"""What the callbacks have in common."""

from __future__ import annotations

from typing import Any, cast

import etude.compat  # noqa: F401  (before lightning)

import lightning.pytorch as pl

from etude.callbacks.order import check_order, check_schedulers


class EtudeCallback(pl.Callback):
    """A callback that checks its place among the others before training starts."""

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse a wrong order of callbacks.

        Raises:
            EtudeError: see :func:`~etude.callbacks.order.check_order`.
        """
        check_order(callbacks_of(trainer))

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Refuse a learning rate scheduler beside a Clock that schedules the learning rate.

        Raises:
            EtudeError: see :func:`~etude.callbacks.order.check_schedulers`.
        """
        check_schedulers(trainer)


def callbacks_of(trainer: pl.Trainer) -> list[pl.Callback]:
    """Return the trainer's callbacks, an attribute that Lightning sets without declaring it."""
    return cast(list[pl.Callback], cast(Any, trainer).callbacks)
