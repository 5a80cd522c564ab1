"""The timeline: pure schedules of everything that moves during training. Standard library only."""

from etude.timeline.curves import (
    Constant,
    Cosine,
    Curve,
    Exponential,
    ExpRange,
    Joined,
    Linear,
    OneCycle,
    Scaled,
    Steps,
    Triangular,
    Triangular2,
    Warmup,
    resolved,
)
from etude.timeline.lengths import Length, Pace, RunSize, length_in_steps, parse_length
from etude.timeline.phase import QUANTITIES, Moment, Phase, step_progress
from etude.timeline.plan import BatchScaling, Timeline
from etude.timeline.plateau import Event, Plateau, PlateauWatch
from etude.timeline.presets import PRESETS, Preset, Shape, preset
from etude.timeline.tree import curve_from_tree, phase_from_tree, timeline_from_tree, timeline_to_tree, tree_of_curve

__all__ = [
    "PRESETS",
    "QUANTITIES",
    "BatchScaling",
    "Constant",
    "Cosine",
    "Curve",
    "Event",
    "ExpRange",
    "Exponential",
    "Joined",
    "Length",
    "Linear",
    "Moment",
    "OneCycle",
    "Pace",
    "Phase",
    "Plateau",
    "PlateauWatch",
    "Preset",
    "RunSize",
    "Scaled",
    "Shape",
    "Steps",
    "Timeline",
    "Triangular",
    "Triangular2",
    "Warmup",
    "curve_from_tree",
    "length_in_steps",
    "parse_length",
    "phase_from_tree",
    "preset",
    "resolved",
    "step_progress",
    "timeline_from_tree",
    "timeline_to_tree",
    "tree_of_curve",
]
