"""Everything before training: scan, plan, store, split and features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from etude.core.errors import EtudeError, listed
from etude.core.files import digest_of
from etude.data.dataset import Dataset, open_dataset, same_files_as
from etude.data.scan import Scan
from etude.data.sources import BadFile, ImageSet, by_ending, write_bad_files
from etude.data.split import Fold
from etude.data.stores.device import DeviceStore, fits_on_device
from etude.models.backbones import required_size
from etude.models.device import best_device, choose_precision, describe_device, keep_large_blocks
from etude.models.modes import Mode
from etude.recipe import ImageFacts, Recipe, flat, resolve
from etude.recipe.timeline import timeline_warnings
from etude.study.run.frozen import Frozen, FrozenFeatures, build_frozen, compute_features, trainable_backbone
from etude.study.run.plan import (
    Amounts,
    refuse_single_images,
    settle_training,
    show_plan,
    stored_size,
)
from etude.study.run.session import Session
from etude.study.run.sources import (
    Scans,
    Sources,
    bad_files,
    check_asked,
    make_folds,
    other_files,
    planned_split,
    scan_sources,
)
from etude.timeline import Pace


@dataclass(frozen=True, slots=True)
class Prepared:
    """What training starts from.

    Args:
        recipe: resolved for these images.
        data: the labelled images.
        test: images to predict, or None.
        unlabelled: further images without labels, or None.
        folds: the splits.
        features: of the frozen backbone, or None without stage 1.
        precision: of stage 1 and of predictions from its features.
        mode: that stage 2 trains in, or None without stage 2.
        pace: measured seconds of a training step, or None without stage 2.
        on_device: the images in the memory of the device that trains, or None when they are read from the disk.
    """

    recipe: Recipe
    data: Dataset
    test: Dataset | None
    unlabelled: Dataset | None
    folds: list[Fold]
    features: FrozenFeatures | None
    precision: str
    mode: Mode | None
    pace: Pace | None
    on_device: DeviceStore | None = None

    @property
    def training_mode(self) -> Mode:
        """The numeric mode of stage 2."""
        if self.mode is None:
            raise ValueError("this recipe has no stage 2, so no mode to train in")
        return self.mode


def prepare(session: Session, recipe: Recipe, sources: Sources) -> Prepared:
    """Survey the images, print the plan, decode them into the store, split them, and compute the frozen features.

    Raises:
        EtudeError: the images allow no training, or a resumed run finds others than it began with.
    """
    with session.stage("survey"):
        scans = scan_sources(sources, recipe, session.screen)
    scanned = scans.labelled
    session.keep_inputs({"images": scanned.fingerprint})
    with session.stage("plan"):
        facts = ImageFacts(
            scanned.median_short_side,
            scanned.channels,
            count=sources.train_count,
            required_size=required_size(recipe.model.backbone),
        )
        asked, recipe = recipe, resolve(recipe, facts, session.warn)
        if "finetune" in recipe.stages:
            for text in timeline_warnings(recipe, scanned.median_short_side, given=asked):
                session.warn(text)
        device = best_device()
        precision = choose_precision(recipe.train.precision, device)
        keep_large_blocks()
        amounts = _amounts(session, recipe, sources, scans)
        frozen = build_frozen(recipe, scanned.channels)
        described = describe_device(device, precision)
        training = None
        if "finetune" in recipe.stages:
            backbone = trainable_backbone(recipe, scanned.channels, precision)
            training = settle_training(session, recipe, backbone, amounts, device)
        expected, pace = show_plan(session, recipe, sources, scanned, amounts, frozen, training, precision, described)
    mode = None if training is None else training.mode
    plan = {"expected_seconds": dict(expected), "resolved": flat(recipe), "device": described}
    session.record.set("plan", {**plan, "mode": None if mode is None else mode.as_dict()})
    data, test, unlabelled = _store(session, recipe, sources, scans)
    folds = make_folds(data, sources, session.request, recipe, session.context)
    session.keep_inputs({"validation images": digest_of(*(fold.valid.tobytes() for fold in folds))})
    _record_data(session, sources, data, test, folds, scanned)
    features = None if frozen is None else _features(session, frozen, data, recipe, precision)
    near = None if mode is None else on_device(session, recipe, data)
    return Prepared(recipe, data, test, unlabelled, folds, features, precision, mode, pace, near)


def on_device(session: Session, recipe: Recipe, data: Dataset) -> DeviceStore | None:
    """Copy the images to the device that trains, when the recipe asks for it or they fit with room to spare."""
    asked, device = recipe.data.on_device, best_device()
    if asked == "never" or (asked == "auto" and (device.type != "cuda" or recipe.augment.transform)):
        return None
    if recipe.augment.transform:
        raise EtudeError(
            "data.on_device=always keeps the images where augment.transform cannot work on them: leave one of them out"
        )
    fits, told = fits_on_device(data.build.store, device)
    if not fits and asked == "always":
        raise EtudeError(f"{told}: data.on_device=always asks for more than there is, leave it at auto")
    session.screen.say(told)
    return DeviceStore(data.build.store, device, session.context) if fits else None


def _features(session: Session, frozen: Frozen, data: Dataset, recipe: Recipe, precision: str) -> FrozenFeatures:
    with session.stage("features") as stage:
        features = compute_features(frozen, data, recipe, precision, session.context)
        stage.note("reused", features.reused)
    return features


def _store(
    session: Session, recipe: Recipe, sources: Sources, scans: Scans
) -> tuple[Dataset, Dataset | None, Dataset | None]:
    def opened(images: ImageSet, scanned: Scan, fit: str) -> Dataset:
        return open_dataset(
            images, scanned, stored_size(recipe), session.context,
            fit=fit, kind=recipe.data.store, limit=recipe.data.cache_limit,
        )  # fmt: skip

    def alike(images: ImageSet | None, scanned: Scan | None, what: str) -> Dataset | None:
        """Images without labels are read like the labelled ones: geometry, channels and range of values."""
        if images is None or scanned is None:
            return None
        like = scanned.like(data.build.store.channels, data.build.value_range, f"{what} images", session.context)
        return opened(images, like, data.build.fit)

    with session.stage("store") as stage:
        data = opened(sources.labelled, scans.labelled, recipe.data.fit)
        stage.note("reused", data.build.reused)
        stage.note("kind", data.build.kind_reason)
        test = alike(sources.test, scans.test, "test")
        unlabelled = alike(sources.unlabelled, scans.unlabelled, "unlabelled")
    session.screen.say(f"geometry: {data.build.fit_reason}")
    session.screen.say(f"stored: {data.build.kind_reason}")
    sets = data, test, unlabelled
    _list_bad(session, bad_files(*sets), sum(len(one or ()) for one in sets), other_files(*sets))
    if test is not None:
        _check_submission(session, test, data.images.classes)
        warn_of_known(session, data, test)
    for what, scanned in (("test", scans.test), ("unlabelled", scans.unlabelled)):
        if scanned is not None and scanned.channels > data.build.store.channels:
            session.warn(f"{what} images have colours, training images are grey: the {what} images are taken as grey")
    return data, test, unlabelled


def warn_of_known(session: Session, data: Dataset, test: Dataset) -> None:
    """Warn of test images whose files are also among the labelled ones."""
    known = np.flatnonzero(same_files_as(data, test))
    if len(known):
        session.warn(
            f"{len(known):,} of {len(test):,} test images are also among the labelled images "
            f"({listed((test.images.ids[row] for row in known), 3)}): scores on them say little about new images"
        )


def _check_submission(session: Session, test: Dataset, classes: tuple[str, ...]) -> None:
    """Say and record what the submission will hold; its warnings have been given when the images were listed."""
    unreadable = [bad.id for bad in test.build.bad]
    told = check_asked(session.request, test.images, classes, session.context.quiet(), unreadable)
    if told is not None:
        session.screen.say(f"submission: {told}")
        session.record.set("submission", {"sample": session.request.sample_submission, "holds": told})


def _amounts(session: Session, recipe: Recipe, sources: Sources, scans: Scans) -> Amounts:
    scanned = scans.labelled
    try:
        train, valid = planned_split(sources, scanned, session.request, recipe, session.context)
        refuse_single_images(recipe, train)
    except EtudeError:  # what cannot be read may be why, and the list has not been written yet
        _list_bad(session, scanned.bad, len(scanned))
        raise
    tested, unlabelled = (0 if one is None else len(one) for one in (scans.test, scans.unlabelled))
    return Amounts(len(scanned), train, valid, tested, folds=session.request.folds or 1, unlabelled=unlabelled)


def _list_bad(session: Session, bad: Sequence[BadFile], readable: int, others: Sequence[BadFile] = ()) -> None:
    listing = session.folder / "bad_files.csv"
    if (bad or others) and session.kept:
        write_bad_files(listing, [*bad, *others])
    if bad:
        where = f"; {listing} says why" if session.kept else f": {listed(file.id for file in bad)}"
        session.warn(f"{len(bad):,} of {len(bad) + readable:,} files cannot be read{where}")
    if others:
        where = f"; {listing} lists them" if session.kept else ""
        session.screen.say(f"left out: {by_ending(file.path.name for file in others)}{where}")


def _record_data(
    session: Session, sources: Sources, data: Dataset, test: Dataset | None, folds: list[Fold], scanned: Scan
) -> None:
    classes = data.images.classes
    counts = np.bincount(data.labels, minlength=len(classes))
    described = {
        "train": session.request.train,
        "described": sources.labelled.described,
        "fingerprint": scanned.fingerprint,
        "images": len(data),
        "classes": {name: int(count) for name, count in zip(classes, counts, strict=True)},
        "sample": session.request.sample,
        "split": None if data.images.split is None else data.images.split.described,
        "test_images": 0 if test is None else len(test),
        "fit": data.build.fit,
        "fit_reason": data.build.fit_reason,
        "stored_size": data.build.store.size,
        "channels": data.build.store.channels,
        "value_range": data.build.value_range,
        "folds": [{"train": len(fold.train), "valid": len(fold.valid)} for fold in folds],
    }
    session.record.set("data", described)
