"""The runs of an ablation: seed by seed every arm, each in a folder of its own, those that are finished never again."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

from etude.core.metrics import Metric, score_of
from etude.core.paired import FEWEST_SEEDS, LEVEL, Comparison, Scored, Verdict, compare, scored, verdicts
from etude.core.predictions import Predictions
from etude.journal.record import FILE_NAME, RunRecord, read_run
from etude.journal.runs import is_complete, verify
from etude.journal.screen import Screen
from etude.recipe import load_recipe
from etude.recipe.load import changes_of
from etude.study.ablation.design import Arm, Contrast, Design, as_settings
from etude.study.run.job import fit
from etude.study.run.plan import duration
from etude.study.run.request import Request
from etude.study.run.session import refuse_other_settings
from etude.training.task import DivergedError

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


@dataclass(slots=True)
class Runs:
    """The arms over the seeds, in one process.

    Args:
        request: of the ablation; each run changes recipe settings, seed and folder.
        record: of the ablation, the parent of all runs.
        more: settings that all arms take besides the request's, such as fewer epochs.
        budget: seconds for everything, the time before a resume included; None for no limit.
        spent: seconds before this process.
    """

    request: Request
    record: RunRecord
    screen: Screen
    design: Design
    metric: Metric
    more: Mapping[str, Any] = field(default_factory=dict[str, Any])
    budget: float | None = None
    spent: float = 0.0
    failed: dict[str, str] = field(default_factory=dict)
    _began: float = field(default_factory=lambda: time.monotonic())

    def over(self, seeds: Sequence[int]) -> dict[str, list[ArmRun]]:
        """Run every arm on every seed, and return the runs of each arm that reached the end, in the order of the seeds.

        All arms have the same seeds. An arm whose training diverges is left out; the time limit ends the seeds early.

        Raises:
            EtudeError: an arm that others are compared with fails, or a run that is there has other settings.
        """
        done: list[dict[str, ArmRun]] = []
        inner = _Inner(self.screen)
        missing = sum(not self._is_finished(arm, seed) for arm in self.design.arms for seed in seeds)
        with self.screen.bar("ablation", missing, "runs") as advance:
            for seed in seeds:
                if not self._has_time_for_another(done, len(seeds)):
                    break
                done.append({})
                for arm in self.design.arms:
                    known = self._is_finished(arm, seed)
                    if arm.name not in self.failed and (run := self._run(arm, seed, inner)) is not None:
                        done[-1][arm.name] = run
                    if not known:
                        advance()
        names = [arm.name for arm in self.design.arms if arm.name not in self.failed]
        return {name: [by_arm[name] for by_arm in done] for name in names}

    def _has_time_for_another(self, done: Sequence[Mapping[str, ArmRun]], asked: int) -> bool:
        """Whether another seed fits into the time limit, if it takes as long as those before did on average."""
        if self.budget is None or len(done) < FEWEST_SEEDS:
            return True
        used = self.spent + time.monotonic() - self._began
        if used * (len(done) + 1) / len(done) <= self.budget:
            return True
        self._warn(
            f"{len(done)} of {asked} seeds fit into the {duration(self.budget)} of --budget, since runs took longer "
            "than expected"
        )
        return False

    def _run(self, arm: Arm, seed: int, inner: Screen) -> ArmRun | None:
        """Return the run of an arm on a seed, made now unless it is there; None when its training diverged."""
        folder = self._folder(arm, seed)
        request = replace(
            self.request,
            settings={**changes_of(self.request.settings), **self.more, **arm.changes},
            seed=seed,
            out=folder,
            resume=(folder / FILE_NAME).is_file(),
            parent=self.record.id,
        )
        request = replace(request, command=_as_fit(request))
        if not self._is_finished(arm, seed):
            try:
                self._train(arm, request, inner)
            except DivergedError as problem:
                if arm.name in self.design.baselines:
                    raise
                self.failed[arm.name] = str(problem)
                self._warn(f"{arm.name} is left out, since with seed {seed} {problem}")
                return None
        else:
            refuse_other_settings(folder, load_recipe(request.recipe, request.settings), request)
        return read_arm(folder, self.metric)

    def _folder(self, arm: Arm, seed: int) -> Path:
        return self.record.folder / "arms" / arm.name / f"seed-{seed}"

    def _is_finished(self, arm: Arm, seed: int) -> bool:
        folder = self._folder(arm, seed)
        return (folder / FILE_NAME).is_file() and is_complete(read_run(folder))

    def _train(self, arm: Arm, request: Request, inner: Screen) -> None:
        assert request.out is not None
        with self.record.stage(f"{arm.name}, seed {request.seed}") as stage:
            fit(request, inner)
            result = read_run(request.out)["result"]
            stage.score("accuracy", result["accuracy"])
            stage.score("log_loss", result["log_loss"])
        self.screen.say(
            f"{arm.name}, seed {request.seed}: {result['accuracy']:.2%}, log loss {result['log_loss']:.4f}, "
            f"{duration(stage.seconds)}"
        )

    def _warn(self, text: str) -> None:
        self.screen.warn(text)
        self.record.warn(text)


def _as_fit(request: Request) -> tuple[str, ...]:
    """Return the command line that trains the same again, alone."""
    options = {
        "--valid": request.valid,
        "--sample": request.sample,
        "--image-column": request.image_column,
        "--label-column": request.label_column,
        "--weight-column": request.weight_column,
        "--image-root": request.image_root,
    }
    given = [word for name, value in options.items() if value is not None for word in (name, str(value))]
    settings = [word for setting in as_settings(changes_of(request.settings)) for word in ("--set", setting)]
    recipe = ("--recipe", request.recipe, *settings, "--seed", str(request.seed))
    return ("etude", "fit", str(request.train), *recipe, *given)


class _Inner(Screen):
    """What the runs write to: nothing but warnings, and each of those once, however many runs give it."""

    def __init__(self, outer: Screen) -> None:
        super().__init__(quiet=True)
        self._outer, self._told = outer, set[str]()

    def warn(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            self._outer.warn(text)
