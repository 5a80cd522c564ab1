"""What an ablation has found: the runs read back, every trick compared with and without, and the verdicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from etude.core.metrics import Metric
from etude.core.paired import LEVEL, Comparison, Scored, Verdict, compare, scored, verdicts
from etude.core.predictions import Predictions
from etude.core.scores import score_of
from etude.journal.record import read_run
from etude.journal.record_read import verify
from etude.study.ablation_arms import Contrast, Design

_SHARED = ("survey", "plan", "store", "features")  # stages whose work the runs share, so whoever came first paid


@dataclass(frozen=True, slots=True)
class ArmRun:
    """One finished run of an arm.

    Args:
        scored: its validation images by the metric.
        accuracy: on them.
        log_loss: on them.
        seconds: of the stages that are its own.
    """

    scored: Scored
    accuracy: float
    log_loss: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Found:
    """What one trick bought.

    Args:
        p: after Holm's correction over all contrasts.
        tests: contrasts that were judged together.
        seconds: that a run takes longer with the trick, the median over the seeds.
        scale: by which gains are shown; 100 for points.
    """

    contrast: Contrast
    comparison: Comparison
    p: float
    verdict: Verdict
    tests: int
    seconds: float
    scale: float

    @property
    def gain(self) -> str:
        """The gain as it is shown."""
        return signed(self.comparison.gain * self.scale, self.scale)

    @property
    def interval(self) -> str:
        """The 95% interval as it is shown; a dash where no image has changed."""
        ends = self.comparison.interval()
        return "–" if ends is None else " to ".join(signed(end * self.scale, self.scale) for end in ends)

    @property
    def detectable(self) -> str:
        """The gain that would be found four times of five, as it is shown; a dash where no image has changed."""
        least = self.comparison.detectable(self.tests)
        return "–" if least is None else signed(least * self.scale, self.scale).lstrip("+")

    @property
    def cost(self) -> str:
        """Seconds that a run takes longer with the trick, as they are shown."""
        return f"{round(self.seconds, 1) + 0.0:+.1f}"

    def in_words(self) -> str:
        """Return it in a line."""
        return f"{self.contrast.trick}: {self.verdict}, {self.gain} ({self.interval}), {self.contrast.mode}"

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON values, gains in the metric's own unit; what is not known is None."""
        low, high = self.comparison.interval() or (None, None)
        return {
            "trick": self.contrast.trick,
            "mode": self.contrast.mode,
            "without": self.contrast.without,
            "with": self.contrast.with_it,
            "gain": self.comparison.gain,
            "low": low,
            "high": high,
            "level": LEVEL,
            "error": self.comparison.error,
            "degrees": self.comparison.degrees,
            "p": self.comparison.p,
            "p_corrected": self.p,
            "verdict": self.verdict,
            "detectable": self.comparison.detectable(self.tests),
            "seconds": self.seconds,
        }


def read_arm(folder: Path, metric: Metric) -> ArmRun:
    """Read a finished run.

    Raises:
        EtudeError: its record or its validation predictions are missing or damaged.
    """
    record = read_run(folder)
    verify(folder, ["valid.npz"], record)
    predictions = Predictions.load(folder / "valid.npz")
    right, negative_loss = score_of(predictions)
    own = sum(stage["seconds"] for stage in record["stages"] if stage["name"] not in _SHARED)
    return ArmRun(scored(predictions, metric), right, -negative_loss, own)


def judge(design: Design, runs: Mapping[str, Sequence[ArmRun]], metric: Metric) -> list[Found]:
    """Compare the arms of each contrast, and judge all of them together.

    Args:
        runs: of each arm, one a seed in the same order; contrasts with an arm that is not here are left out.
    """
    there = [one for one in design.contrasts if one.without in runs and one.with_it in runs]
    comparisons = [
        compare([run.scored for run in runs[one.without]], [run.scored for run in runs[one.with_it]]) for one in there
    ]
    scale = scale_of(metric)
    found = [
        Found(contrast, comparison, p, verdict, len(there), _cost(runs, contrast), scale)
        for contrast, comparison, (p, verdict) in zip(there, comparisons, verdicts(comparisons), strict=True)
    ]
    return sorted(found, key=lambda one: -one.comparison.gain)


def scale_of(metric: Metric) -> float:
    """Return by what gains are shown: shares in points, losses as they are."""
    return 100.0 if metric.larger_is_better else 1.0


def unit_of(metric: Metric) -> str:
    """Return the unit in which gains are shown."""
    return f"points of {metric.name}" if metric.larger_is_better else f"{metric.name.replace('_', ' ')} saved"


def signed(value: float, scale: float) -> str:
    """Return a gain with its sign, two places for points and four for losses.

    >>> signed(0.614, 100.0), signed(-0.00153, 1.0), signed(-0.0, 100.0)
    ('+0.61', '-0.0015', '+0.00')
    """
    places = 2 if scale == 100.0 else 4
    return f"{round(value, places) + 0.0:+.{places}f}"


def _cost(runs: Mapping[str, Sequence[ArmRun]], contrast: Contrast) -> float:
    """Return the median over seeds: a run beside which the machine did something else says nothing."""
    pairs = zip(runs[contrast.with_it], runs[contrast.without], strict=True)
    return median(with_it.seconds - without.seconds for with_it, without in pairs)
