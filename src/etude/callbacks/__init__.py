"""Lightning callbacks: thin, one per trick, usable in any LightningModule."""

from etude.callbacks.clock import Clock
from etude.callbacks.history import History
from etude.callbacks.progress import TrainingProgress

__all__ = ["Clock", "History", "TrainingProgress"]
