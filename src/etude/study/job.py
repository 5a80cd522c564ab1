"""The main job: from a request to a run folder, stage by stage, all of it in the journal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from etude.core.predictions import Predictions
from etude.data.bad_files import write_bad_files
from etude.data.dataset import Dataset, open_dataset
from etude.data.survey import SurveyResult
from etude.functional.augment import policy_named
from etude.journal.record import RunRecord, Stage
from etude.journal.screen import Screen
from etude.models.backbones import build_backbone
from etude.models.classifier import ModelCard, Preprocessing, save_model
from etude.models.device import best_device, choose_precision, describe_device
from etude.models.head import LinearHead
from etude.models.memory import keep_large_blocks
from etude.recipe import ImageFacts, Recipe, changed_settings, flat, load_recipe, resolve
from etude.study.announce import Row, show_plan, show_scores, stored_size
from etude.study.candidates import Candidate, Fold, better, finetune_candidate, fit_head_on, head_candidate, score_of
from etude.study.finish import finish
from etude.study.frozen import FrozenFeatures, build_frozen, compute_features
from etude.study.request import Request, default_cache, free_run_folder
from etude.study.sources import Sources, bad_files, make_folds, read_sources, survey_sources
from etude.study.symmetry import PolicyChoice, choose_policy


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
        request.out or free_run_folder(request.train),
        command=request.command,
        recipe=recipe.name,
        settings=flat(recipe),
        changed=changed_settings(recipe),
        seed=request.seed,
    )
    job = Job(request, recipe, sources, record, screen)
    try:
        for text in early_warnings:
            job.warn(text)
        job.run()
    except BaseException as error:
        record.close("interrupted" if isinstance(error, KeyboardInterrupt) else "failed", error)
        raise
    record.close("finished")
    return record.folder


class Job:
    """One run in progress."""

    def __init__(self, request: Request, recipe: Recipe, sources: Sources, record: RunRecord, screen: Screen) -> None:
        self.request, self.recipe, self.sources, self.record, self.screen = request, recipe, sources, record, screen
        self.folder = record.folder
        self.cache = request.cache or default_cache()
        self.rows: list[Row] = []
        self.policy: PolicyChoice | None = None
        self.precision = "fp32"

    def run(self) -> None:
        """Survey, plan, store, features, train on every fold, predict."""
        with self.stage("survey"):
            surveyed, surveyed_test = survey_sources(self.sources, self.screen)
        self.recipe = resolve(self.recipe, ImageFacts(surveyed.median_short_side, surveyed.channels))
        device = best_device()
        self.precision = choose_precision(self.recipe.train.precision, device)
        keep_large_blocks()
        with self.stage("plan"):
            frozen = build_frozen(self.recipe, surveyed.channels)
            described = describe_device(device, self.precision)
            expected = show_plan(
                self.screen,
                self.request,
                self.recipe,
                self.sources,
                surveyed,
                surveyed_test,
                frozen,
                self.precision,
                described,
            )
        self.record.set(
            "plan", {"expected_seconds": dict(expected), "resolved": flat(self.recipe), "device": described}
        )
        data, test = self._store(surveyed, surveyed_test)
        folds = make_folds(data, self.sources, self.request, self.recipe, self.warn)
        self._record_data(data, test, folds, surveyed)
        features = None
        if frozen is not None:
            with self.stage("features") as stage:
                features = compute_features(
                    frozen, data, self.recipe, precision=self.precision, cache=self.cache, progress=self.screen
                )
                stage.note("reused", features.reused)
        kept = [self._train(data, fold, number, len(folds), features) for number, fold in enumerate(folds, 1)]
        finish(self, kept, data, test)
        show_scores(self.screen, self.rows)

    def warn(self, text: str) -> None:
        """Show a warning and keep it in the record."""
        self.screen.warn(text)
        self.record.warn(text)

    @contextmanager
    def stage(self, name: str) -> Iterator[Stage]:
        """Time a stage in the record and give it a row in the final table."""
        with self.record.stage(name) as stage:
            yield stage
        self.rows.append(Row(name, stage.seconds))

    def score(self, stage: Stage, predictions: Predictions) -> None:
        """Write validation scores into the stage's record."""
        right, negative_loss = score_of(predictions)
        stage.score("accuracy", right)
        stage.score("log_loss", -negative_loss)

    def _store(self, surveyed: SurveyResult, surveyed_test: SurveyResult | None) -> tuple[Dataset, Dataset | None]:
        size = stored_size(self.recipe)
        test = None
        with self.stage("store") as stage:
            data = open_dataset(
                self.sources.labelled, surveyed, size,
                fit=self.recipe.data.fit, cache=self.cache, progress=self.screen, warn=self.warn,
            )  # fmt: skip
            stage.note("reused", data.build.reused)
            if self.sources.test is not None and surveyed_test is not None:
                # Test images take the training images' geometry and channels, whatever they would choose alone.
                test = open_dataset(
                    self.sources.test, replace(surveyed_test, channels=data.build.store.channels), size,
                    fit=data.build.fit, cache=self.cache, progress=self.screen, warn=self.warn,
                )  # fmt: skip
        self.screen.say(f"geometry: {data.build.fit_reason}")
        bad = bad_files(data, test)
        if bad:
            listing = self.folder / "bad_files.csv"
            write_bad_files(listing, bad)
            self.warn(
                f"{len(bad):,} of {len(bad) + len(data) + len(test or ()):,} files cannot be read; {listing} says why"
            )
        return data, test

    def _record_data(self, data: Dataset, test: Dataset | None, folds: list[Fold], surveyed: SurveyResult) -> None:
        classes = data.images.classes
        counts = np.bincount(data.labels, minlength=len(classes))
        described = {
            "described": self.sources.labelled.described,
            "fingerprint": surveyed.fingerprint,
            "images": len(data),
            "classes": {name: int(count) for name, count in zip(classes, counts, strict=True)},
            "sample": self.request.sample,
            "test_images": 0 if test is None else len(test),
            "fit": data.build.fit,
            "fit_reason": data.build.fit_reason,
            "stored_size": data.build.store.size,
            "channels": data.build.store.channels,
            "folds": [{"train": len(fold.train), "valid": len(fold.valid)} for fold in folds],
        }
        self.record.set("data", described)

    def _train(
        self, data: Dataset, fold: Fold, number: int, count: int, features: FrozenFeatures | None
    ) -> tuple[str, Candidate]:
        """Train the recipe's stages on one fold; return its folder's name and the better candidate, which is saved."""
        suffix = f" (fold {number}/{count})" if count > 1 else ""
        name = f"fold-{number}" if count > 1 else "."
        folder = self.folder / name
        candidates: list[Candidate] = []
        head = None
        if features is not None:
            with self.stage(f"head{suffix}") as stage:
                head = fit_head_on(data, fold, features.values, self.recipe)
                frozen = features.frozen
                card = self._card(frozen.name, data, features.preprocessing, levels=frozen.levels, folded=True)
                candidates.append(head_candidate(data, fold, features.values, head, frozen.backbone, card, self.screen))
                self.score(stage, candidates[-1].valid)
            self.rows[-1] = replace(self.rows[-1], predictions=candidates[-1].valid)
            save_model(folder, candidates[-1].model, card)  # so that a run killed in stage 2 can already predict
        self._settle_policy(data, fold, features, head)
        if "finetune" in self.recipe.stages:
            with self.stage(f"fine-tune{suffix}") as stage:
                candidates.append(self._finetuned(data, fold, features, folder))
                self.score(stage, candidates[-1].valid)
            self.rows[-1] = replace(self.rows[-1], predictions=candidates[-1].valid)
        kept = better(candidates)
        kept = replace(kept, card=replace(kept.card, policy=self._policy(), tta=self.recipe.predict.tta))
        save_model(folder, kept.model, kept.card)
        if len(candidates) > 1:
            self.screen.say(f"kept{suffix}: {kept.stage}, the better of both stages on the validation images")
        return name, kept

    def _finetuned(self, data: Dataset, fold: Fold, features: FrozenFeatures | None, folder: Path) -> Candidate:
        recipe = self.recipe
        shape = build_backbone(recipe.model.backbone, "none", data.build.store.channels)
        preprocessing = Preprocessing.of(shape, data.build, recipe.timeline.final_size)
        folded = recipe.train.batchnorm == "keep"
        card = self._card(recipe.model.backbone, data, preprocessing, folded=folded)
        start = None
        if features is not None and features.frozen.name == recipe.model.backbone:
            # The trained network pools its last map only, so its head starts from a fit on those columns.
            start = fit_head_on(data, fold, features.values[:, : features.frozen.own_features], recipe)
        return finetune_candidate(data, fold, start, card, recipe, folder=folder, progress=self.screen)

    def _settle_policy(
        self, data: Dataset, fold: Fold, features: FrozenFeatures | None, head: LinearHead | None
    ) -> None:
        """Decide the augmentation policy once, on the first fold; it is needed for training and for TTA only."""
        if self.policy is not None:
            return
        asked = self.recipe.augment.policy
        if asked != "auto":
            self.policy = PolicyChoice(asked, "as the recipe says")
        elif self.recipe.stages == ("head",) and self.recipe.predict.tta == 1:
            self.policy = PolicyChoice("none", "this recipe neither trains on images nor averages over views")
        elif features is None or head is None:
            self.policy = PolicyChoice("photos", "there is no stage 1 head to measure symmetries with")
        else:
            with self.stage("symmetry"):
                self.policy = choose_policy(
                    head, features.frozen.backbone.module, data.build.store.gather, fold.valid, data.labels[fold.valid],
                    features.values[fold.valid], features.preprocessing,
                    precision=self.precision, seed=self.request.seed, progress=self.screen,
                )  # fmt: skip
        self.record.set("augmentation", {"policy": self.policy.policy, "reason": self.policy.reason})
        if self.policy.policy != "none":
            self.screen.say(f"augmentation: {self.policy.policy} ({self.policy.reason})")

    def _policy(self) -> str:
        return "none" if self.policy is None else self.policy.policy

    def _card(
        self, backbone: str, data: Dataset, preprocessing: Preprocessing, *, levels: int = 0, folded: bool
    ) -> ModelCard:
        return ModelCard(
            backbone, data.images.classes, preprocessing, self.precision,
            tta=1, policy=self._policy(), levels=levels, folded=folded,
        )  # fmt: skip
