"""Lightning callbacks: thin, one per trick, usable in any LightningModule."""

from etude.callbacks.augment import AugmentRamp
from etude.callbacks.averaging import EMA, SWA
from etude.callbacks.base import arrange, check_order
from etude.callbacks.checkpoints import Checkpoints
from etude.callbacks.clock import Clock, clock_of
from etude.callbacks.distill import Distill
from etude.callbacks.history import History, TrainingProgress
from etude.callbacks.hooks import Hooks
from etude.callbacks.mixup import CutMix, LabelSmoothing, MixUp
from etude.callbacks.pseudo_labels import PseudoLabels
from etude.callbacks.resize import ProgressiveResize
from etude.callbacks.time_limit import TimeLimit

__all__ = [
    "EMA",
    "SWA",
    "AugmentRamp",
    "Checkpoints",
    "Clock",
    "CutMix",
    "Distill",
    "History",
    "Hooks",
    "LabelSmoothing",
    "MixUp",
    "ProgressiveResize",
    "PseudoLabels",
    "TimeLimit",
    "TrainingProgress",
    "arrange",
    "check_order",
    "clock_of",
]
