"""The timeline: pure schedules of everything that moves during training. Standard library only."""

from etude.timeline.curves import Constant, Cosine, Curve, Linear
from etude.timeline.plan import Moment, Phase, Timeline, step_progress
from etude.timeline.presets import default_timeline

__all__ = ["Constant", "Cosine", "Curve", "Linear", "Moment", "Phase", "Timeline", "default_timeline", "step_progress"]
