"""The runs of an ablation: seed by seed every arm, each in a folder of its own, those that are finished never again."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from etude.core.metrics import Metric
from etude.core.paired import FEWEST_SEEDS
from etude.journal.record import FILE_NAME, RunRecord, read_run
from etude.journal.record_state import is_complete
from etude.journal.screen import Screen
from etude.recipe import load_recipe
from etude.study.ablation_arms import Arm, Design, as_settings
from etude.study.ablation_outcome import ArmRun, read_arm
from etude.study.job import fit
from etude.study.plan import duration
from etude.study.request import Request
from etude.study.resume import refuse_other_settings
from etude.training.fit import DivergedError


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
    more: Sequence[str] = ()
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
            settings=[*self.request.settings, *self.more, *as_settings(arm.changes)],
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
    columns = request.columns
    options = {
        "--valid": request.valid,
        "--sample": request.sample,
        "--image-column": columns.image,
        "--label-column": columns.label,
        "--weight-column": columns.weight,
        "--image-root": columns.image_root,
    }
    given = [word for name, value in options.items() if value is not None for word in (name, str(value))]
    settings = [word for setting in request.settings for word in ("--set", setting)]
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
