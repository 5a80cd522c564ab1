"""The images of a run: read, sampled, scanned, and split into folds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from etude.core.context import Context
from etude.core.errors import EtudeError, listed
from etude.core.files import digest_of, hash_of_file
from etude.core.seeds import derive_seed
from etude.core.submission import check_sample, checked_positive
from etude.data.dataset import Dataset, concatenated_sets, open_dataset
from etude.data.scan import Scan, scan_images
from etude.data.sources import ImageSet, read_unlabelled
from etude.data.split import Fold, Split, hold_out, k_folds, sample
from etude.data.tables import shared_groups
from etude.journal.screen import Screen
from etude.recipe.settings import Recipe, value_range
from etude.study.run.request import Request


@dataclass(frozen=True, slots=True)
class Sources:
    """All images that a request names, before any pixel is read."""

    request: Request
    recipe: Recipe  # its open settings undecided
    labelled: ImageSet  # training images, then those of --valid
    train_count: int  # how many of them are training images
    others: dict[str, ImageSet]  # images without labels, by their name: test or unlabelled


def read_sources(request: Request, recipe: Recipe, context: Context) -> Sources:
    """Read what the request names; a sample is taken before anything is decoded."""
    train = _by_request(request.read_train(recipe.data, context), request, context)
    if request.sample is not None:
        assert train.labels is not None
        strata = train.labels
        if train.split is not None:  # so that the sample has validation rows too
            _, strata = np.unique(np.stack([strata, train.split.fold_of]), axis=1, return_inverse=True)
        train = train.take(sample(strata, request.sample, context))
    valid = request.read_valid(train.classes, recipe.data, context)
    labelled = train if valid is None else concatenated_sets(train, valid)
    others: dict[str, ImageSet] = {}
    if request.test is not None:
        others["test"] = read_unlabelled(request.test)
    if request.probabilities and request.sample_submission is None and "id" in train.classes:
        raise EtudeError(
            "a class is called 'id', which is the name of the column of ids too; give --sample-submission with "
            "another name for that column, or leave out --probabilities"
        )
    if "test" in others:
        check_submission(request, others["test"], train.classes, context)
    if request.unlabeled is not None:
        others["unlabelled"] = read_unlabelled(request.unlabeled)
    return Sources(request, recipe, labelled, len(train), others)


def _by_request(train: ImageSet, request: Request, context: Context) -> ImageSet:
    """Return the training images without the split of their table where the request asks for another one."""
    split = train.split
    if split is None or (request.valid is None and request.folds in (None, len(split.folds))):
        return train
    given = request.valid is not None
    option, rows = ("--valid", "all of its rows train") if given else (f"--folds {request.folds}", "its rows are dealt")
    context.warn(f"{option} goes before column {split.column!r} of {request.train}, which is not used: {rows}")
    return replace(train, split=None)


def inputs_of(recipe: Recipe, images: ImageSet, train_count: int) -> dict[str, str]:
    """Return fingerprints of what is known of a run's inputs before image files are read, and a description."""
    assert images.labels is not None
    train, valid = images.labels[:train_count], images.labels[train_count:]
    inputs = {
        "described": images.described,
        "classes": digest_of(*images.classes),
        "labels": digest_of(*images.classes, train.tobytes()),
        "validation labels": digest_of(*images.classes, valid.tobytes()),
        "weights": digest_of(b"" if images.weights is None else images.weights.tobytes()),
    }
    if recipe.augment.transform:
        from etude.functional.transforms import code_digest  # which imports torch

        if (code := code_digest(recipe.augment.transform)) is not None:
            inputs["code of augment.transform"] = code
    if (weights := Path(recipe.model.weights)).is_file():
        inputs["file of model.weights"] = hash_of_file(weights)
    return inputs


def scan_sources(sources: Sources, screen: Screen) -> dict[str, Scan]:
    """Read every file's header and content hash, and settle the range of values by the images ``labelled``."""
    asked = value_range(sources.recipe.data.range)
    scans = {"labelled": scan_images(sources.labelled, screen).in_range(asked, screen.say)}
    return scans | {name: scan_images(images, screen) for name, images in sources.others.items()}


def store_sources(
    sources: Sources, scans: Mapping[str, Scan], size: int, context: Context, **options: Any
) -> dict[str, Dataset]:
    """Store all images; those without labels are read like those ``labelled``: geometry, channels, range of values."""
    data = open_dataset(sources.labelled, scans["labelled"], size, context, fit=sources.recipe.data.fit, **options)
    found, build = {"labelled": data}, data.build
    for name, images in sources.others.items():
        like = scans[name].like(build.store.channels, build.value_range, f"{name} images", context)
        found[name] = open_dataset(images, like, size, context, fit=build.fit, **options)
    return found


def make_folds(data: Dataset, sources: Sources, context: Context) -> list[Fold]:
    """Return the splits of the readable images: a hold-out, k folds, or the given validation images."""
    splits, seed = _splits(data.images, data.build.kept, data.build.content_hashes, sources, context), context.seed
    seeds = [seed] if len(splits) == 1 else [derive_seed(seed, "fold", number) for number in range(len(splits))]
    return [
        Fold(np.asarray(train), np.asarray(valid), seed) for (train, valid), seed in zip(splits, seeds, strict=True)
    ]


def planned_split(sources: Sources, scanned: Scan, context: Context) -> tuple[int, int]:
    """Return how many images of the first fold train and validate, if all that could be scanned can be decoded."""
    images = sources.labelled.take(scanned.kept)
    train, valid = _splits(images, scanned.kept, scanned.content_hashes, sources, context.quiet())[0]
    return len(train), len(valid)


def _splits(
    images: ImageSet, kept: np.ndarray, hashes: Sequence[str], sources: Sources, context: Context
) -> list[Split]:
    assert images.labels is not None
    labels, classes, request = images.labels, images.classes, sources.request
    present = np.unique(labels)
    if len(present) < 2:
        raise EtudeError(
            f"only class {classes[present[0]]!r} has readable images; a classifier needs two classes or more"
        )
    if len(present) < len(classes):
        lost = [name for label, name in enumerate(classes) if label not in present]
        context.warn(f"no image of {listed(lost)} can be read: the model will know these classes by name only")
    if images.split is not None:
        pairs = images.split.pairs(all_folds=request.folds is not None)
        splits = [_given(images, train, valid, hashes, context) for train, valid in pairs]
    elif request.folds is not None:
        splits = k_folds(labels, hashes, request.folds, context, classes=classes)
    elif request.valid is not None:
        is_train = kept < sources.train_count
        splits = [_given(images, np.flatnonzero(is_train), np.flatnonzero(~is_train), hashes, context)]
    else:
        splits = [hold_out(labels, hashes, sources.recipe.data.valid, context, classes=classes)]
    _warn_of_groups(images, splits[0], context)
    return splits


def _warn_of_groups(images: ImageSet, split: Split, context: Context) -> None:
    """Say so where images that may belong together, such as a patient's, stand on both sides of the split."""
    for name, values in images.groups.items():
        shared, count = shared_groups(values, *split)
        if shared:
            context.warn(
                f"validation shares {shared:,} of {count:,} values of {name!r} with training: if rows of one value are "
                "alike, the validation score is too high; mark whole values for validation in a column 'is_valid'"
            )


def check_submission(
    request: Request, test: ImageSet, classes: tuple[str, ...], context: Context, unreadable: Sequence[str] = ()
) -> str | None:
    """Refuse a sample submission that does not fit these images and classes; return what it will hold."""
    if request.positive is not None:
        checked_positive(request.positive, classes)
    if request.sample_submission is None:
        return None
    return check_sample(
        request.sample_submission, test.ids, classes,
        probabilities=request.probabilities, positive=request.positive, unreadable=unreadable, warn=context.warn,
    )  # fmt: skip


def _given(images: ImageSet, train: np.ndarray, valid: np.ndarray, hashes: Sequence[str], context: Context) -> Split:
    if not len(train) or not len(valid):
        raise EtudeError(
            "no readable image is left on one side of the split; see bad_files.csv and mend or replace them"
        )
    assert images.labels is not None
    if len(known := np.unique(images.labels[train])) < 2:
        raise EtudeError(
            f"only class {images.classes[known[0]]!r} has readable training images; a classifier needs two "
            "classes or more: see bad_files.csv and mend or replace them"
        )
    if len(lost := np.setdiff1d(images.labels[valid], known)):
        context.warn(
            f"validation holds {int(np.isin(images.labels[valid], lost).sum()):,} images of "
            f"{listed((images.classes[one] for one in lost), 3)}, and no training image is of such a class: they count "
            "as errors, so mark some of them for training"
        )
    trained = {hashes[row] for row in train.tolist()}
    copies = [images.ids[row] for row in valid.tolist() if hashes[row] in trained]
    if copies:
        context.warn(
            f"{len(copies):,} of {len(valid):,} validation images are copies of training images ({listed(copies, 3)}): "
            "the validation score is too high by that much"
        )
    return train, valid
