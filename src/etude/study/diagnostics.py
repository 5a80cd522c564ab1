"""The end of a run: the health of its images, a gallery of them, the notebook, and MLflow."""

from __future__ import annotations

import csv
import shlex
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from etude.core.arrays import save_arrays
from etude.core.context import Context
from etude.core.errors import EtudeError, error_text, listed
from etude.core.files import replacing, write_json
from etude.core.images import THUMBNAIL, thumbnail
from etude.core.predictions import Predictions
from etude.data.dataset import Dataset, same_files_as
from etude.data.split import Fold
from etude.functional.augment import policy_named
from etude.health.summary import examine_health
from etude.journal.mlflow import log_to_mlflow
from etude.journal.notebook import write_notebook
from etude.models.features import Augment
from etude.refine.neighbours.index import NeighbourIndex
from etude.study.run.blend import Kept
from etude.study.run.network import Candidate
from etude.study.run.prepare import Prepared
from etude.study.run.session import Session, report
from etude.training.batches import changes_of

T = TypeVar("T")

_WORTH_A_WARNING = 0.01  # of the images: fewer near-duplicates cannot move a score by more than one point


def write_diagnostics(session: Session, prepared: Prepared, kept: Sequence[Kept]) -> None:
    """Write ``health.json``, ``gallery.npz`` and ``gallery.json``, and the network's figures into the record.

    All results of the run are on the disk by now: what fails here is a warning, and the rest is written all the same.
    """
    folder, context, policy = session.folder, session.context, kept[0].main.card.policy
    data, folds, test = prepared.data, prepared.folds, prepared.test
    features = None if prepared.features is None else prepared.features.values
    own = prepared.recipe.augment.transform
    augments = "finetune" in prepared.recipe.stages and (own or not policy_named(policy).changes_nothing)

    def health_of_images() -> dict[str, Any]:
        # The first model has test features of the frozen network where it is a head, and of one fold.
        one_head = len(kept) == 1 and kept[0].main.stage == "head" and (folder / "test.npz").is_file()
        test_features = Predictions.load(folder / "test.npz").features if one_head else None
        found = examine_health(data, features, folds, test=test, test_features=test_features, context=context)
        write_json(folder / "health.json", found)
        write_suspects(folder / "suspects.csv", found["label_errors"])
        return found

    def pictures() -> None:
        augment = changes_of(policy_named(policy), own) if augments else None
        write_gallery(
            folder, data, Predictions.load(folder / "valid.npz"), folds,
            features=features, health=health, test=test, augment=augment, context=context,
        )  # fmt: skip

    with session.stage("diagnostics"):
        _tried(session, "the network's figures", lambda: session.record.set("architecture", architecture(kept[0].main)))
        health = _tried(session, "the health of the images", health_of_images)
        if health is not None:
            _tried(session, "a warning of near-duplicates", lambda: _warn_of_near_duplicates(session, health, prepared))
        _tried(session, "pictures", pictures)


def write_suspects(path: Path, errors: Sequence[Mapping[str, Any]]) -> None:
    """Write the labels that may be wrong as a table of id, label, suggested and score; no file where there are none."""
    path.unlink(missing_ok=True)
    if errors:
        with replacing(path) as temporary, temporary.open("w", -1, "utf-8", "backslashreplace", "") as file:
            writer = csv.DictWriter(file, [*errors[0]])
            writer.writeheader()
            writer.writerows(errors)


def architecture(candidate: Candidate) -> dict[str, Any]:
    """Return the network's parameters, those that were trained, and the FLOPs of one image (a multiply-add is two)."""
    model, shape = candidate.model.eval(), candidate.card.preprocessing
    parameters = list(model.parameters())
    trained = list(model.head.parameters()) if candidate.stage == "head" else parameters
    image = torch.zeros(1, shape.in_channels, shape.size, shape.size, device=parameters[0].device)
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model(image)
    return {
        "parameters": sum(weight.numel() for weight in parameters),
        "trainable": sum(weight.numel() for weight in trained if weight.requires_grad),
        "flops": counter.get_total_flops(),
        "image_size": shape.size,
    }


def _warn_of_near_duplicates(session: Session, health: Mapping[str, Any], prepared: Prepared) -> None:
    """Warn of validation and test images that are near-duplicates of training images, where they may change a score."""
    copied: Mapping[str, list[str]] = health["copied"]
    sampled = f"; {', '.join(health['notes'])}" if health["looked_at"] < health["images"] else ""
    valid = Predictions.load(session.folder / "valid.npz")
    own = np.isin(valid.ids, copied["validation"])
    if own.mean() >= _WORTH_A_WARNING:
        assert valid.labels is not None
        right = valid.predicted() == valid.labels
        without = f"{right[~own].mean():.1%} on the {(~own).sum():,} others" if not own.all() else "no others are left"
        session.warn(
            f"{own.sum():,} of {len(own):,} validation images are near-duplicates of training images "
            f"({listed(copied['validation'], 3)}), so their scores say little about new images: accuracy is "
            f"{right.mean():.1%} with them, {without}{sampled}"
        )
    data, test, repeated = prepared.data, prepared.test, copied["test"]
    if test is None or len(repeated) / len(test) < _WORTH_A_WARNING:
        return
    if len(repeated) > same_files_as(data, test).sum():  # identical files have been warned of at the beginning
        session.warn(
            f"{len(repeated):,} of {len(test):,} test images are near-duplicates of training images "
            f"({listed(repeated, 3)}): scores on them say little about new images{sampled}"
        )


def _tried(session: Session, what: str, make: Callable[[], T]) -> T | None:
    """Return what ``make`` returns; None, and a warning, where it fails."""
    try:
        return make()
    except Exception as problem:  # of any library that reads images: the run is done, and is not lost for a picture
        session.warn(f"the report does without {what}: {error_text(problem)}")
        return None


def export_run(session: Session) -> None:
    """Write ``notebook.ipynb``, and send the run to the MLflow server, if any is named; what fails is a warning."""
    try:
        write_notebook(session.folder)
    except (EtudeError, OSError) as problem:
        session.warn(f"no notebook: {problem}")
        report(session.folder, session.screen)
    send(session)


def send(session: Session) -> None:
    """Send a run and all that is part of it to the MLflow server that is asked for, if any; a failure is a warning."""
    if (uri := session.request.mlflow) is None:
        return
    try:
        session.screen.say(log_to_mlflow(session.folder, uri).text)
    except (EtudeError, OSError) as problem:
        later = shlex.join(["etude", "journal", "send", str(session.folder), "--mlflow", uri])
        session.warn(f"the run is whole, but not on the MLflow server: {problem}. To send it later: {later}")
        report(session.folder, session.screen)


_STRENGTHS = (0.0, 0.5, 1.0)  # of augmentation
_SPLITS = ("train", "valid", "test")
_ERRORS = 24
_CONFUSED = 6  # pairs of classes, with so many images each:
_EACH = 4
_SAMPLES = 24
_PAIRS = 12
_SUSPECTS = 24
_NEIGHBOURS = 3
_AUGMENTED = 6


def write_gallery(
    folder: Path,
    data: Dataset,
    valid: Predictions,
    folds: Sequence[Fold],
    *,
    features: np.ndarray | None = None,
    health: Mapping[str, Any] | None = None,
    test: Dataset | None = None,
    augment: Augment | None = None,
    context: Context = Context(),
) -> None:
    """Write thumbnails for a report into ``folder``, at most about 350 of them, a few kilobytes each.

    ``gallery.npz`` holds ``ids`` (unicode), ``split`` (0 train, 1 valid, 2 test), ``labels`` (int64, -1 unknown),
    ``thumb_offsets`` (int64, one more than images) and ``thumb_bytes`` (uint8: JPEG after JPEG). ``gallery.json``
    holds rows into it: ``confident_errors`` [row], the most confident first; ``confused_pairs`` [{label, predicted,
    count, rows}], the most frequent first; ``samples`` [row]; ``neighbours`` {row: [row]}, nearest training image
    first; ``near_duplicates`` [[row, row]]; ``label_errors`` [{row, suggested, score}]; ``augmentation`` {strength:
    [row]}. Without ``features`` (N, D) there are no neighbours, and without ``health`` no near-duplicates and suspects.
    """
    album = _Album(data, folds, test)
    shown = _evaluated(album, valid, context)
    if features is not None:
        wrong = [row for group in shown["confused_pairs"] for row in group["rows"]]
        rows = dict.fromkeys([*shown["confident_errors"], *wrong, *shown["samples"]])
        shown["neighbours"] = _neighbours(album, list(rows), features, folds)
    if health is not None:
        shown |= _unhealthy(album, health)
    if augment is not None:
        shown["augmentation"] = _augmented(album, folds[0].train, augment, context)
    album.write(folder / "gallery.npz")
    write_json(folder / "gallery.json", shown)


class _Album:
    """Collects images to show, each once, by their split and row there; changed ones have keys of their own."""

    def __init__(self, data: Dataset, folds: Sequence[Fold], test: Dataset | None) -> None:
        self.data, self.side = data, min(THUMBNAIL, data.build.store.size)
        self.sources = {"train": data, "valid": data} | ({} if test is None else {"test": test})
        self.rows = {name: row for row, name in enumerate(data.images.ids)}
        self.test_rows = {} if test is None else {name: row for row, name in enumerate(test.images.ids)}
        self.is_valid = np.zeros(len(data), bool)
        for fold in folds:
            self.is_valid[fold.valid] = True
        self.numbers: dict[tuple[str, int, int], int] = {}  # rows in the gallery, in order
        self.changed: dict[int, np.ndarray] = {}

    def add(self, row: int, *, test: bool = False, pixels: np.ndarray | None = None) -> int:
        """Return the gallery's row of an image; with ``pixels`` (S, S, channels) uint8 of a changed one, a new row."""
        number = len(self.numbers)
        if pixels is not None:
            self.changed[number] = pixels
        split = "test" if test else "valid" if self.is_valid[row] else "train"
        return self.numbers.setdefault((split, row, -1 if pixels is None else number), number)

    def add_named(self, name: str, split: str) -> int | None:
        """Return the gallery's row of an image by its id, None where it is not (or no longer) there."""
        row = (self.test_rows if split == "test" else self.rows).get(name)
        return None if row is None else self.add(row, test=split == "test")

    def write(self, path: Path) -> None:
        pictures, keys = dict(self.changed), list(self.numbers)
        for split, source in self.sources.items():
            wanted = [n for n, key in enumerate(keys) if key[0] == split and n not in self.changed]
            if wanted:
                rows = np.array([keys[number][1] for number in wanted])
                pictures |= dict(zip(wanted, source.build.store.gather(rows, self.side), strict=True))
        thumbnails = [thumbnail(pictures[number]) for number in range(len(keys))]
        ids = [self.sources[split].images.ids[row] for split, row, _ in keys]
        labels = [-1 if split == "test" else int(self.data.labels[row]) for split, row, _ in keys]
        save_arrays(path, {
            "ids": np.array(ids, dtype=np.str_),
            "split": np.array([_SPLITS.index(split) for split, _, _ in keys], np.uint8),
            "labels": np.array(labels, np.int64),
            "thumb_offsets": np.cumsum([0, *map(len, thumbnails)], dtype=np.int64),
            "thumb_bytes": np.frombuffer(b"".join(thumbnails), np.uint8),
        })  # fmt: skip


def _evaluated(album: _Album, valid: Predictions, context: Context) -> dict[str, Any]:
    """Return the most confident errors, the most frequent confusions, and random validation images."""
    assert valid.labels is not None
    probabilities = valid.probabilities()
    predicted, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    rows = np.array([album.rows[name] for name in valid.ids])
    wrong = np.flatnonzero((predicted != valid.labels) & (valid.labels >= 0))
    wrong = wrong[np.argsort(-confidence[wrong], kind="stable")]
    confusions = Counter(zip(valid.labels[wrong].tolist(), predicted[wrong].tolist(), strict=True))
    pairs: list[dict[str, Any]] = []
    for (label, guess), count in confusions.most_common(_CONFUSED):
        members = wrong[(valid.labels[wrong] == label) & (predicted[wrong] == guess)][:_EACH]
        shown = [album.add(int(row)) for row in rows[members]]
        pairs.append({"label": label, "predicted": guess, "count": count, "rows": shown})
    drawn = context.rng("gallery").permutation(len(rows))[:_SAMPLES]
    return {
        "confident_errors": [album.add(int(row)) for row in rows[wrong[:_ERRORS]]],
        "confused_pairs": pairs,
        "samples": [album.add(int(row)) for row in rows[np.sort(drawn)]],
    }


def _neighbours(
    album: _Album, wanted: Sequence[int], features: np.ndarray, folds: Sequence[Fold]
) -> dict[str, list[int]]:
    """Return the nearest of the images that each one's model was trained on, by the gallery's rows."""
    index, keys = NeighbourIndex(features, method="exact"), list(album.numbers)
    found: dict[str, list[int]] = {}
    for fold in folds:
        valid, train = set(fold.valid.tolist()), index.rows.take(fold.train)
        numbers = [number for number in wanted if keys[number][1] in valid]
        if not numbers or not len(fold.train):
            continue
        queries = index.rows.take(np.array([keys[number][1] for number in numbers]))
        similarity = queries.values @ train.values.T
        for number, row in zip(numbers, similarity, strict=True):
            near = fold.train[np.argsort(-row, kind="stable")[:_NEIGHBOURS]]
            found[str(number)] = [album.add(int(one)) for one in near]
    return found


def _unhealthy(album: _Album, health: Mapping[str, Any]) -> dict[str, Any]:
    """Return the near-duplicates and the suspected labels that ``health`` lists."""
    pairs = [
        [album.add_named(pair[end], split) for end, split in zip("ab", pair["splits"], strict=True)]
        for pair in health["near_duplicates"][:_PAIRS]
    ]
    suspects = [(album.add_named(one["id"], "train"), one) for one in health["label_errors"][:_SUSPECTS]]
    return {
        "near_duplicates": [pair for pair in pairs if None not in pair],
        "label_errors": [
            {"row": number, "suggested": one["suggested"], "score": one["score"]}
            for number, one in suspects if number is not None
        ],
    }  # fmt: skip


def _augmented(album: _Album, train: np.ndarray, augment: Augment, context: Context) -> dict[str, list[int]]:
    rows = np.sort(context.rng("gallery augmentation").permutation(train)[:_AUGMENTED])
    store = album.data.build.store
    pixels = store.gather(rows, store.source_size(album.side))
    found: dict[str, list[int]] = {}
    for strength in _STRENGTHS:
        changed = augment(pixels, strength, context.rng("gallery augmentation", int(100 * strength)), album.side)
        found[f"{strength:g}"] = [album.add(int(row), pixels=one) for row, one in zip(rows, changed, strict=True)]
    return found
