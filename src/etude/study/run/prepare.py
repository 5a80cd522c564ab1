"""Everything before training: scan, plan, store, split and features."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from etude.core.errors import EtudeError, listed
from etude.core.files import digest_of
from etude.core.processor import usable_cores
from etude.core.text import rough_duration
from etude.data.dataset import Dataset, same_files_as, seconds_to_decode
from etude.data.scan import Scan
from etude.data.sources import BadFile, by_ending, write_bad_files
from etude.data.split import Fold
from etude.data.stores.device import DeviceStore, fits_on_device
from etude.models.backbones import sides_of
from etude.models.device import best_device, choose_precision, describe_device, keep_large_blocks
from etude.models.modes import Mode
from etude.recipe import ImageFacts, Recipe, flat, resolve
from etude.recipe.resolve import backbone_reason
from etude.recipe.timeline import timeline_warnings
from etude.study.run.frozen import (
    Frozen,
    FrozenFeatures,
    build_frozen,
    build_others,
    compute_features,
    trainable_backbone,
)
from etude.study.run.ladder import described, fitted, with_changes
from etude.study.run.plan import Plan, measure_speed, refuse_single_images, settle_mode, show_plan, stored_size
from etude.study.run.session import Session
from etude.study.run.sources import Sources, check_submission, make_folds, planned_split, scan_sources, store_sources
from etude.timeline import Pace


@dataclass(frozen=True, slots=True)
class Prepared:
    """What training starts from."""

    recipe: Recipe  # resolved for these images
    data: Dataset  # the labelled images
    test: Dataset | None  # images to predict
    unlabelled: Dataset | None  # further images without labels
    folds: list[Fold]
    features: FrozenFeatures | None  # of the frozen backbone, or None without stage 1
    precision: str  # of stage 1 and of predictions from its features
    mode: Mode | None  # that stage 2 trains in, or None without stage 2
    pace: Pace | None  # measured seconds of a training step, or None without stage 2
    on_device: DeviceStore | None = None  # the labelled images in the memory of the device that trains
    others: tuple[FrozenFeatures, ...] = ()  # of further frozen backbones
    plan: Plan | None = None
    left: Callable[[], float] | None = None  # seconds left for training, where the run has a budget


def prepare(session: Session, sources: Sources) -> Prepared:
    """Scan the images, print the plan, decode them into the store, split them, and compute the frozen features."""
    with session.stage("scan"):
        scans = scan_sources(sources, session.screen)
    scanned = scans["labelled"]
    session.keep_inputs({"images": scanned.fingerprint})
    device = best_device()
    with session.stage("plan"):
        recipe = _resolved(session, sources, scanned)
        precision = choose_precision(recipe.train.precision, device)
        keep_large_blocks()
        plan, reason = _counted(session, recipe, sources, scans), ""
        frozen = build_frozen(recipe, scanned.channels)
        described = describe_device(device, precision)
        if "finetune" in recipe.stages:
            backbone = trainable_backbone(recipe, scanned.channels, precision)
            plan, reason = settle_mode(session, plan, backbone, device)
        decode = seconds_to_decode(sources.labelled, scanned, stored_size(recipe)) / usable_cores()
        plan = replace(plan, decode=decode)
        classes = len(sources.labelled.classes)
        if frozen is not None:
            speed = measure_speed(frozen.backbone, recipe.model.feature_size, precision)
            plan = replace(plan, features=speed, head_weights=frozen.backbone.num_features * classes)
        others = build_others(recipe, scanned.channels, session.context)
        for other, own in others:
            speed = measure_speed(other.backbone, own.model.feature_size, precision)
            plan = replace(plan, others=(*plan.others, (other.name, speed, other.backbone.num_features * classes)))
        if session.budget.is_limited:
            plan = _in_budget(session, plan)
            recipe = plan.recipe
            frozen = frozen if "head" in recipe.stages else None
            others = others if recipe.model.others else []
        expected = show_plan(session, sources, plan, frozen, others, reason, described)
    mode = plan.mode
    settled = {"expected_seconds": dict(expected), "resolved": flat(recipe), "device": described}
    settled["after_seconds"] = session.record.get("seconds")  # what is expected comes after them
    session.record.set("plan", {**settled, "mode": None if mode is None else mode.as_dict()})
    found = _store(session, sources, scans, recipe)
    data = found["labelled"]
    folds = make_folds(data, sources, session.context)
    session.keep_inputs({"validation images": digest_of(*(fold.valid.tobytes() for fold in folds))})
    _record_data(session, sources, found, folds, scanned.fingerprint)
    features = None if frozen is None else _features(session, "features", frozen, data, recipe, precision)
    more = [_features(session, f"features of {one.name}", one, data, own, precision) for one, own in others]
    near = None if mode is None else on_device(session, recipe, data)
    return Prepared(
        recipe,
        data,
        found.get("test"),
        found.get("unlabelled"),
        folds,
        features,
        precision,
        mode,
        plan.pace,
        near,
        tuple(more),
        plan,
    )


def _features(
    session: Session, stage_name: str, frozen: Frozen, data: Dataset, recipe: Recipe, precision: str
) -> FrozenFeatures:
    with session.stage(stage_name) as stage:
        features = compute_features(frozen, data, recipe, precision, session.context)
        stage.note("reused", features.reused)
    return features


def _in_budget(session: Session, plan: Plan) -> Plan:
    """Return the plan of what fits into the run's budget; a resumed run keeps what it began with."""
    pinned, begun = session.request.changes, session.record.get("budget")
    found = fitted(plan, session.budget.left(), pinned) if begun is None else with_changes(plan, [begun["changes"]])
    words = described(plan.recipe, found.recipe)
    if begun is None:
        before, after = flat(plan.recipe), flat(found.recipe)
        changes = {key: value for key, value in after.items() if before[key] != value}
        session.record.set("budget", {"seconds": session.budget.seconds, "changes": changes, "fitted": words})
    return replace(found, budget=f"{rough_duration(session.budget.seconds)}: {words}")


def _resolved(session: Session, sources: Sources, scanned: Scan) -> Recipe:
    side = scanned.median_short_side
    request, sides = session.request, sides_of(sources.recipe.model.backbone)
    unlabelled = request.unlabeled is not None and not request.teachers  # a teacher labels them
    facts = ImageFacts(side, scanned.channels, sources.train_count, *sides, unlabelled)
    recipe = resolve(sources.recipe, facts, session.warn)
    if "finetune" in recipe.stages:
        for text in timeline_warnings(recipe, side, given=sources.recipe):
            session.warn(text)
    return recipe


def _counted(session: Session, recipe: Recipe, sources: Sources, scans: Mapping[str, Scan]) -> Plan:
    """Return the plan as far as the images alone decide it."""
    scanned = scans["labelled"]
    try:
        train, valid = planned_split(sources, scanned, session.context)
        refuse_single_images(recipe, train)
    except EtudeError:  # what cannot be read may be why, and the list has not been written yet
        _list_bad(session, scanned.bad, len(scanned))
        raise
    test, unlabelled = (len(scans.get(name, ())) for name in ("test", "unlabelled"))
    chosen = backbone_reason(sources.recipe, scanned.median_short_side)
    request = session.request
    drawn = request.valid is None and sources.labelled.split is None
    return Plan(recipe, len(scanned), train, valid, test, unlabelled, request.folds or 1, drawn=drawn, chosen=chosen)


def on_device(session: Session, recipe: Recipe, data: Dataset) -> DeviceStore | None:
    """Copy the images to the device that trains, when the recipe asks for it or they fit with room to spare."""
    asked, device = recipe.data.on_device, best_device()
    if asked == "never" or (asked == "auto" and (device.type != "cuda" or recipe.augment.transform)):
        return None
    if recipe.augment.transform:
        raise EtudeError(
            "data.on_device=always keeps the images where augment.transform cannot work on them: leave one of them out"
        )
    fits, reason = fits_on_device(data.build.store, device)
    if not fits and asked == "always":
        raise EtudeError(f"{reason}: data.on_device=always asks for more than there is, leave it at auto")
    session.screen.say(reason)
    return DeviceStore(data.build.store, device, session.context) if fits else None


def _store(session: Session, sources: Sources, scans: Mapping[str, Scan], recipe: Recipe) -> dict[str, Dataset]:
    with session.stage("store") as stage:
        limits = {"kind": recipe.data.store, "limit": recipe.data.cache_limit}
        found = store_sources(sources, scans, stored_size(recipe), session.context, **limits)
        build = found["labelled"].build
        stage.note("reused", build.reused)
        stage.note("kind", build.kind_reason)
    session.screen.say(f"geometry: {build.fit_reason}")
    session.screen.say(f"stored: {build.kind_reason}")
    bad = [file for one in found.values() for file in one.build.bad]
    left_out = [file for one in found.values() for file in one.images.left_out()]
    _list_bad(session, bad, sum(map(len, found.values())), left_out)
    if (test := found.get("test")) is not None:
        _check_submission(session, test, found["labelled"].images.classes)
        warn_of_known(session, found["labelled"], test)
    for what in sources.others:
        if scans[what].channels > build.store.channels:
            session.warn(f"{what} images have colours, training images are grey: the {what} images are taken as grey")
    return found


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
    holds = check_submission(session.request, test.images, classes, session.context.quiet(), unreadable)
    if holds is not None:
        session.screen.say(f"submission: {holds}")
        session.record.set("submission", {"sample": session.request.sample_submission, "holds": holds})


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
    session: Session, sources: Sources, found: Mapping[str, Dataset], folds: Sequence[Fold], fingerprint: str
) -> None:
    images, build = found["labelled"].images, found["labelled"].build
    counts = np.bincount(found["labelled"].labels, minlength=len(images.classes))
    described = {
        "train": session.request.train,
        "described": sources.labelled.described,
        "fingerprint": fingerprint,
        "images": len(images),
        "classes": dict(zip(images.classes, counts.tolist(), strict=True)),
        "sample": session.request.sample,
        "split": None if images.split is None else images.split.described,
        "test_images": len(found.get("test", ())),
        "fit": build.fit,
        "fit_reason": build.fit_reason,
        "stored_size": build.store.size,
        "channels": build.store.channels,
        "value_range": build.value_range,
        "folds": [{"train": len(fold.train), "valid": len(fold.valid)} for fold in folds],
    }
    session.record.set("data", described)
