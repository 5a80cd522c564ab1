"""The main job: from a request to a run folder, stage by stage, all of it in the journal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from etude.core.errors import EtudeError
from etude.data.bad_files import BadFile, write_bad_files
from etude.data.dataset import Dataset, open_dataset
from etude.data.survey import SurveyResult
from etude.functional.augment import policy_named
from etude.journal.record import RunRecord
from etude.journal.screen import Screen
from etude.models.backbones import required_size
from etude.models.classifier import ModelCard, save_model
from etude.models.device import best_device, choose_precision, describe_device
from etude.models.head import LinearHead
from etude.models.memory import keep_large_blocks
from etude.recipe import ImageFacts, Recipe, changed_settings, flat, load_recipe, resolve
from etude.study.announce import show_plan, show_scores, stored_size
from etude.study.candidates import Candidate, Fold, better, finetune_candidate, fit_head_on, head_candidate
from etude.study.finish import finish
from etude.study.frozen import FrozenFeatures, build_frozen, compute_features
from etude.study.plan import Amounts, at_trained_sizes, refuse_single_images
from etude.study.request import Request, claim_run_folder
from etude.study.session import Session
from etude.study.sources import (
    Sources,
    bad_files,
    check_asked,
    make_folds,
    planned_split,
    read_sources,
    survey_sources,
)
from etude.study.symmetry import PolicyChoice, choose_policy
from etude.training.fit import DivergedError


def fit(request: Request, screen: Screen) -> Path:
    """Run the whole job and return the run's folder.

    Raises:
        EtudeError: whatever the user can mend, in one sentence; what was finished before is kept.
    """
    request.check()
    recipe = load_recipe(request.recipe, request.settings)
    policy_named("none" if recipe.augment.policy == "auto" else recipe.augment.policy)
    early_warnings: list[str] = []
    sources = read_sources(request, early_warnings.append)
    record = RunRecord.open(
        request.out or claim_run_folder(request.train),
        command=request.command,
        recipe=recipe.name,
        settings=flat(recipe),
        changed=changed_settings(recipe),
        seed=request.seed,
    )
    session = Session(request, record, screen)
    try:
        for text in early_warnings:
            session.warn(text)
        Job(session, recipe, sources).run()
    except BaseException as error:
        record.close("interrupted" if isinstance(error, KeyboardInterrupt) else "failed", error)
        raise
    record.close("finished")
    return record.folder


class Job:
    """The stages of one run."""

    def __init__(self, session: Session, recipe: Recipe, sources: Sources) -> None:
        self.session, self.recipe, self.sources = session, recipe, sources
        self.policy: PolicyChoice | None = None
        self.precision = "fp32"

    def run(self) -> None:
        """Survey, plan, store, features, train on every fold, predict."""
        session = self.session
        with session.stage("survey"):
            surveyed, surveyed_test = survey_sources(self.sources, session.screen)
        facts = ImageFacts(
            surveyed.median_short_side,
            surveyed.channels,
            count=self.sources.train_count,
            required_size=required_size(self.recipe.model.backbone),
        )
        self.recipe = at_trained_sizes(resolve(self.recipe, facts), session.warn)
        device = best_device()
        self.precision = choose_precision(self.recipe.train.precision, device)
        described = describe_device(device, self.precision)
        keep_large_blocks()
        amounts = self._amounts(surveyed, surveyed_test)
        with session.stage("plan"):
            frozen = build_frozen(self.recipe, surveyed.channels)
            expected = show_plan(
                session, self.recipe, self.sources, surveyed, amounts, frozen, self.precision, described
            )
        session.record.set(
            "plan", {"expected_seconds": dict(expected), "resolved": flat(self.recipe), "device": described}
        )
        data, test = self._store(surveyed, surveyed_test)
        folds = make_folds(data, self.sources, session.request, self.recipe, session.warn)
        self._record_data(data, test, folds, surveyed)
        features = None
        if frozen is not None:
            with session.stage("features") as stage:
                features = compute_features(
                    frozen, data, self.recipe,
                    precision=self.precision, cache=session.cache, progress=session.screen,
                )  # fmt: skip
                stage.note("reused", features.reused)
        kept = [self._train(data, fold, number, len(folds), features) for number, fold in enumerate(folds, 1)]
        finish(session, kept, data, test)
        show_scores(session.screen, session.rows)

    def _store(self, surveyed: SurveyResult, surveyed_test: SurveyResult | None) -> tuple[Dataset, Dataset | None]:
        session, size, test = self.session, stored_size(self.recipe), None
        with session.stage("store") as stage:
            data = open_dataset(
                self.sources.labelled, surveyed, size,
                fit=self.recipe.data.fit, cache=session.cache, progress=session.screen, warn=session.warn,
            )  # fmt: skip
            stage.note("reused", data.build.reused)
            if self.sources.test is not None and surveyed_test is not None:
                # Test images take the training images' geometry and channels, whatever they would choose alone.
                test = open_dataset(
                    self.sources.test, replace(surveyed_test, channels=data.build.store.channels), size,
                    fit=data.build.fit, cache=session.cache, progress=session.screen, warn=session.warn,
                )  # fmt: skip
        session.screen.say(f"geometry: {data.build.fit_reason}")
        self._list_bad(bad_files(data, test), len(data) + len(test or ()))
        if test is not None and surveyed_test is not None:
            check_asked(session.request, test.images, data.images.classes)
            if surveyed_test.channels > data.build.store.channels:
                session.warn("test images have colours, training images are grey: the test images are taken as grey")
        return data, test

    def _amounts(self, surveyed: SurveyResult, surveyed_test: SurveyResult | None) -> Amounts:
        try:
            train, valid = planned_split(self.sources, surveyed, self.session.request, self.recipe)
            refuse_single_images(self.recipe, train)
        except EtudeError:  # what cannot be read may be why, and the list has not been written yet
            self._list_bad(surveyed.bad, len(surveyed))
            raise
        tested = 0 if surveyed_test is None else len(surveyed_test)
        return Amounts(len(surveyed), train, valid, tested, folds=self.session.request.folds or 1)

    def _list_bad(self, bad: Sequence[BadFile], readable: int) -> None:
        if bad:
            listing = self.session.folder / "bad_files.csv"
            write_bad_files(listing, bad)
            self.session.warn(f"{len(bad):,} of {len(bad) + readable:,} files cannot be read; {listing} says why")

    def _record_data(self, data: Dataset, test: Dataset | None, folds: list[Fold], surveyed: SurveyResult) -> None:
        classes = data.images.classes
        counts = np.bincount(data.labels, minlength=len(classes))
        described = {
            "described": self.sources.labelled.described,
            "fingerprint": surveyed.fingerprint,
            "images": len(data),
            "classes": {name: int(count) for name, count in zip(classes, counts, strict=True)},
            "sample": self.session.request.sample,
            "test_images": 0 if test is None else len(test),
            "fit": data.build.fit,
            "fit_reason": data.build.fit_reason,
            "stored_size": data.build.store.size,
            "channels": data.build.store.channels,
            "folds": [{"train": len(fold.train), "valid": len(fold.valid)} for fold in folds],
        }
        self.session.record.set("data", described)

    def _train(
        self, data: Dataset, fold: Fold, number: int, count: int, features: FrozenFeatures | None
    ) -> tuple[str, Candidate]:
        """Train the recipe's stages on one fold; return its folder's name and the better candidate, which is saved."""
        session = self.session
        suffix = f" (fold {number}/{count})" if count > 1 else ""
        name = f"fold-{number}" if count > 1 else "."
        folder = session.folder / name
        candidates: list[Candidate] = []
        head = None
        if features is not None:
            with session.stage(f"head{suffix}") as stage:
                head = fit_head_on(data, fold, features.values, self.recipe)
                candidates.append(head_candidate(data, fold, features, head, self.precision, session.screen))
            session.scored(stage, candidates[-1].valid)
            # So that a run killed in stage 2 can already predict.
            save_model(folder, candidates[-1].model, candidates[-1].card)
        policy = self._settled_policy(data, fold, features, head)
        if "finetune" in self.recipe.stages:
            candidates += self._finetuned(data, fold, features, policy, folder, suffix)
        kept = better(candidates)
        card: ModelCard = replace(kept.card, policy=policy, tta=self.recipe.predict.tta)
        save_model(folder, kept.model, card)
        if len(candidates) > 1:
            session.screen.say(f"kept{suffix}: {kept.stage}, the better of both stages on the validation images")
        return name, replace(kept, card=card)

    def _finetuned(
        self, data: Dataset, fold: Fold, features: FrozenFeatures | None, policy: str, folder: Path, suffix: str
    ) -> list[Candidate]:
        """Return stage 2's candidate; none when training diverged and stage 1 is there to be kept."""
        session = self.session
        try:
            with session.stage(f"fine-tune{suffix}") as stage:
                trained = finetune_candidate(
                    data, fold, features, self.recipe,
                    policy=policy, precision=self.precision, folder=folder, progress=session.screen,
                )  # fmt: skip
        except DivergedError as problem:
            if features is None:
                raise
            session.warn(f"stage 1 is kept, since {problem}")
            return []
        session.scored(stage, trained.valid)
        return [trained]

    def _settled_policy(
        self, data: Dataset, fold: Fold, features: FrozenFeatures | None, head: LinearHead | None
    ) -> str:
        """Decide the augmentation policy once, on the first fold; it is needed for training and for TTA only."""
        if self.policy is None:
            self.policy = self._choose_policy(data, fold, features, head)
            choice = {"policy": self.policy.policy, "reason": self.policy.reason}
            self.session.record.set("augmentation", choice)
            if self.policy.policy != "none":
                self.session.screen.say(f"augmentation: {self.policy.policy} ({self.policy.reason})")
        return self.policy.policy

    def _choose_policy(
        self, data: Dataset, fold: Fold, features: FrozenFeatures | None, head: LinearHead | None
    ) -> PolicyChoice:
        asked = self.recipe.augment.policy
        if asked != "auto":
            return PolicyChoice(asked, "as the recipe says")
        if self.recipe.stages == ("head",) and self.recipe.predict.tta == 1:
            return PolicyChoice("none", "this recipe neither trains on images nor averages over views")
        if features is None or head is None:
            return PolicyChoice("photos", "there is no stage 1 head to measure symmetries with")
        with self.session.stage("symmetry"):
            return choose_policy(
                data, fold, features, head,
                precision=self.precision, seed=self.session.request.seed, progress=self.session.screen,
            )  # fmt: skip
