"""The runs of an ablation, with epochs and seeds that fit into a time limit, and what was found."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from etude.core.errors import EtudeError
from etude.core.metrics import Metric, score_of
from etude.core.paired import FEWEST_SEEDS, LEVEL, Comparison, Scored, Verdict, compare, scored, verdicts
from etude.core.predictions import Predictions
from etude.core.text import rough_duration, toml
from etude.journal.record import FILE_NAME, read_run
from etude.journal.runs import is_complete, verify
from etude.journal.screen import Screen
from etude.models.device import best_device, choose_precision
from etude.recipe import Recipe, load_recipe
from etude.recipe.timeline import image_sizes
from etude.recipe.tricks import Trick
from etude.study.ablation.design import ArmContrast, Design
from etude.study.doctor.doctor import Subject, stage_seconds
from etude.study.run.frozen import build_frozen, trainable_backbone
from etude.study.run.plan import Speed, measure_speed
from etude.study.run.request import Request
from etude.study.run.session import Session, refuse_other_settings
from etude.study.run.start import fit
from etude.training.task import DivergedError

BUDGET_SEEDS = 3  # that a time limit leaves; given by hand, two are enough
SHORTEST = 0.25  # of the recipe's epochs: a shorter training is another one, in which other tricks help
_STARTING = 3.0  # seconds of a run besides its stages: reading, planning, writing

_TRAINED = ("freeze", "freeze_depthwise", "batchnorm", "precision")  # settings of a step's time


class Cost(NamedTuple):
    """Expected seconds of one run: of what does not depend on its length, and of fine-tuning over all its epochs."""

    fixed: float
    training: float


ALONE = {"train.networks": 1}  # further ones learn from the validation images, so these do not show what they are worth


class Division(NamedTuple):
    """What is run: the seeds of every arm, epochs (None for the recipe's own length), and expected seconds in all."""

    seeds: int
    epochs: float | None = None
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class AblationPlan:
    """What is settled before the first run."""

    recipe: Recipe  # resolved for the images
    tricks: Sequence[Trick]
    mode: str
    metric: Metric
    design: Design
    division: Division
    inputs: Mapping[str, str]  # fingerprints
    limit: float | None = None  # seconds for everything, the time before a resume included


def divide(costs: Mapping[str, Cost], once: float, budget: float | None, seeds: int, epochs: float | None) -> Division:
    """Return how many epochs (None: fixed) and seeds fit into ``budget`` seconds, ``once`` of which all runs share."""
    fixed = sum(cost.fixed for cost in costs.values())
    training = sum(cost.training for cost in costs.values())

    def seconds(count: int, share: float = 1.0) -> float:
        return once + count * (fixed + share * training)

    least = 1.0 if epochs is None else min(1.0, max(SHORTEST, 1.0 / epochs))
    for count in range(seeds, min(seeds, BUDGET_SEEDS) - 1, -1):
        if budget is None or seconds(count) <= budget:
            return Division(count, None, seconds(count))
        if epochs is not None and seconds(count, least) <= budget:
            share = (budget - seconds(count, 0.0)) / (count * training)
            fitting = max(least * epochs, math.floor(10.0 * share * epochs) / 10.0)
            return Division(count, fitting, seconds(count, fitting / epochs))
    count = min(seeds, BUDGET_SEEDS)
    length = "" if epochs is None else f" of {least * epochs:.3g} epochs"
    raise EtudeError(
        f"--budget {rough_duration(budget or 0.0)} is too short: {len(costs)} arms by {count} seeds{length} take about "
        f"{rough_duration(seconds(count, least))} here; give more time, fewer --tricks, a smaller network or --sample"
    )


def costs_of(recipes: Mapping[str, Recipe], subject: Subject) -> tuple[dict[str, Cost], float]:
    """Return the expected cost of a run of each arm, and the seconds of what all share, measured on this machine."""
    speeds: dict[tuple[object, ...], Speed] = {}
    costs: dict[str, Cost] = {}
    once = 0.0
    for name, recipe in recipes.items():
        stages = dict(_stages(recipe, subject, speeds))
        once = max(once, stages.get("store", 0.0) + stages.get("features", 0.0))
        costs[name] = Cost(_STARTING + stages.get("head", 0.0) + stages["predict"], stages.get("fine-tune", 0.0))
    return costs, once


def _stages(recipe: Recipe, subject: Subject, speeds: dict[tuple[object, ...], Speed]) -> list[tuple[str, float]]:
    """Return (stage, seconds) of one arm's run; ``speeds`` keeps what was measured for the next arm."""
    assert subject.images is not None
    channels, precision = subject.facts.channels, choose_precision(recipe.train.precision, best_device())
    frozen, features, training = build_frozen(recipe, channels), None, None
    size = recipe.model.feature_size
    if frozen is not None:
        key = ("frozen", frozen.name, frozen.levels, size)
        features = speeds.get(key) or measure_speed(frozen.backbone, size, precision)
        speeds[key] = features
    if "finetune" in recipe.stages:
        first, size = image_sizes(recipe).first, image_sizes(recipe).final
        key = ("trained", recipe.model.backbone, first, *(getattr(recipe.train, name) for name in _TRAINED))
        training = speeds.get(key) or measure_speed(trainable_backbone(recipe, channels, precision), first, precision)
        speeds[key] = training
    stages = stage_seconds(recipe, subject.images, 0.0, frozen, features, training)
    predictor, predicted = training or features, max(1, round(len(subject.images) * recipe.data.valid))
    seconds = 0.0 if predictor is None else predictor.infer_at(size) * predicted * (recipe.predict.tta + 1)
    return [*stages, ("predict", seconds)]


_SHARED = ("scan", "survey", "plan", "store", "features")  # stages that runs share; survey is scan of older runs


@dataclass(frozen=True, slots=True)
class ArmRun:
    """One finished run of an arm: scores of its validation images, and the seconds of the stages that are its own."""

    scored: Scored
    accuracy: float
    log_loss: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Found:
    """What one trick gained; ``p`` is corrected by Holm's rule over all ``tests`` contrasts."""

    contrast: ArmContrast
    comparison: Comparison
    p: float
    verdict: Verdict
    tests: int
    seconds: float  # that a run takes longer with the trick, the median over the seeds
    scale: float  # by which gains are shown: 100 for points

    # As text; a dash where no image has changed.
    @property
    def gain(self) -> str:
        return self._shown(self.comparison.gain)

    @property
    def interval(self) -> str:
        ends = self.comparison.interval()
        return "–" if ends is None else " to ".join(map(self._shown, ends))

    @property
    def detectable(self) -> str:
        least = self.comparison.detectable(self.tests)
        return "–" if least is None else self._shown(least).lstrip("+")

    @property
    def cost(self) -> str:
        return f"{round(self.seconds, 1) + 0.0:+.1f}"

    def _shown(self, value: float) -> str:
        places = 2 if self.scale == 100.0 else 4
        return f"{round(value * self.scale, places) + 0.0:+.{places}f}"

    def in_words(self) -> str:
        return f"{self.contrast.trick}: {self.verdict}, {self.gain} ({self.interval}), {self.contrast.mode}"

    def as_dict(self) -> dict[str, Any]:
        """Return JSON values, gains in the metric's own unit; what is not known is None."""
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
    record = read_run(folder)
    verify(folder, ["valid.npz"], record)
    predictions = Predictions.load(folder / "valid.npz")
    right, negative_loss = score_of(predictions)
    own = sum(stage["seconds"] for stage in record["stages"] if stage["name"] not in _SHARED)
    return ArmRun(scored(predictions, metric), right, -negative_loss, own)


def compare_arms(design: Design, runs: Mapping[str, Sequence[ArmRun]], metric: Metric) -> list[Found]:
    """Compare the arms of each contrast in ``runs`` over their seeds, corrected for all; the largest gain first."""
    there = [one for one in design.contrasts if one.without in runs and one.with_it in runs]
    pairs = [(runs[one.without], runs[one.with_it]) for one in there]
    comparisons = [compare([run.scored for run in without], [run.scored for run in own]) for without, own in pairs]
    scale = 100.0 if metric.larger_is_better else 1.0  # shares in points, losses as they are
    found: list[Found] = []
    for contrast, pair, comparison, verdict in zip(there, pairs, comparisons, verdicts(comparisons), strict=True):
        # The median, since the machine may have done something else during one run.
        longer = median(one.seconds - other.seconds for other, one in zip(*pair, strict=True))
        found.append(Found(contrast, comparison, *verdict, len(there), longer, scale))
    return sorted(found, key=lambda one: -one.comparison.gain)


def unit_of(metric: Metric) -> str:
    return f"points of {metric.name}" if metric.larger_is_better else f"{metric.name.replace('_', ' ')} saved"


@dataclass(slots=True)
class Runs:
    """The arms over the seeds, in one process; ``session`` is of the ablation, the parent of all runs."""

    session: Session
    plan: AblationPlan
    spent: float = 0.0  # seconds before this process
    failed: dict[str, str] = field(default_factory=dict)
    _began: float = field(default_factory=lambda: time.monotonic())

    def over(self, seeds: Sequence[int]) -> dict[str, list[ArmRun]]:
        """Run every arm on every seed while time is left, and return the runs of each arm that did not diverge."""
        arms, asked = self.plan.design.arms, self.session.request
        done: list[dict[str, ArmRun]] = []
        inner = _Inner(self.session.screen)
        planned = [{arm: self._request(arm, replace(asked, seed=seed)) for arm in arms} for seed in seeds]
        missing = sum(not _is_finished(folder) for by_arm in planned for folder, _ in by_arm.values())
        with self.session.screen.bar("ablation", missing, "runs") as advance:
            for by_arm in planned:
                if not self._has_time_for_another(done, len(seeds)):
                    break
                done.append({})
                for arm, (folder, request) in by_arm.items():
                    known = _is_finished(folder)
                    if arm not in self.failed and (run := self._run(arm, folder, request, inner)) is not None:
                        done[-1][arm] = run
                    if not known:
                        advance()
        return {arm: [by_arm[arm] for by_arm in done] for arm in arms if arm not in self.failed}

    def _has_time_for_another(self, done: Sequence[Mapping[str, ArmRun]], count: int) -> bool:
        """Whether another seed fits into the time limit, if it takes as long as those before did on average."""
        if self.plan.limit is None or len(done) < FEWEST_SEEDS:
            return True
        used = self.spent + time.monotonic() - self._began
        if used * (len(done) + 1) / len(done) <= self.plan.limit:
            return True
        self.session.warn(
            f"{len(done)} of {count} seeds fit into the {rough_duration(self.plan.limit)} of --budget, since runs took "
            "longer than expected"
        )
        return False

    def _request(self, arm: str, asked: Request) -> tuple[Path, Request]:
        """Return the folder of an arm's run on a seed, and the request to train it."""
        folder = self.session.folder / "arms" / arm / f"seed-{asked.seed}"
        epochs = self.plan.division.epochs
        length = ALONE if epochs is None else {**ALONE, "train.epochs": epochs}
        request = replace(
            asked,
            settings={**asked.changes, **length, **self.plan.design.arms[arm]},
            out=folder,
            resume=(folder / FILE_NAME).is_file(),
            parent=self.session.record.id,
            tags=(),  # the ablation is tagged and sent as a whole, when all of its runs have ended
            mlflow=None,
        )
        return folder, replace(request, command=_as_fit(request))

    def _run(self, arm: str, folder: Path, request: Request, inner: Screen) -> ArmRun | None:
        """Return an arm's run, trained now unless it is there; None when its training diverged."""
        name = f"{arm}, seed {request.seed}"
        if _is_finished(folder):
            refuse_other_settings(folder, load_recipe(request.recipe, request.settings), request)
            return read_arm(folder, self.plan.metric)
        try:
            with self.session.stage(name) as stage:
                fit(request, inner)
                result = read_run(folder)["result"]
                stage.score("accuracy", result["accuracy"])
                stage.score("log_loss", result["log_loss"])
        except DivergedError as problem:
            if arm in self.plan.design.baselines:
                raise
            self.failed[arm] = str(problem)
            self.session.warn(f"{arm} is left out, since with seed {request.seed} {problem}")
            return None
        scores = f"{result['accuracy']:.2%}, log loss {result['log_loss']:.4f}"
        self.session.screen.say(f"{name}: {scores}, {rough_duration(stage.seconds)}")
        return read_arm(folder, self.plan.metric)


def _is_finished(folder: Path) -> bool:
    return (folder / FILE_NAME).is_file() and is_complete(read_run(folder))


def _as_fit(request: Request) -> tuple[str, ...]:
    """Return the command line that trains the same again, alone."""
    names = ("valid", "sample", "image_column", "label_column", "weight_column", "image_root")
    given = [(f"--{name.replace('_', '-')}", getattr(request, name)) for name in names]
    settings = (f"{key}={toml(value)}" for key, value in request.changes.items())
    options = [("--recipe", request.recipe), *(("--set", setting) for setting in settings)]
    options += [("--seed", request.seed), *((name, value) for name, value in given if value is not None)]
    return ("etude", "fit", str(request.train), *(str(word) for option in options for word in option))


class _Inner(Screen):
    """What the runs write to: only warnings, and each of those once, however many runs give it."""

    def __init__(self, outer: Screen) -> None:
        super().__init__(quiet=True)
        self._outer = outer

    def warn(self, text: str) -> None:
        if text not in self.warnings:
            self.warnings.append(text)
            self._outer.warn(text)
