"""Teachers of a student: runs, and files of probabilities, brought to the student's images and classes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from etude.core.context import Context
from etude.core.errors import EtudeError
from etude.core.files import digest_of, hash_of_file
from etude.core.ids import match_ids, spelled_as
from etude.core.predictions import Predictions
from etude.data.batches import TrainingRows
from etude.data.dataset import Dataset, open_dataset
from etude.data.scan import scan_images
from etude.inference.predict import predict
from etude.journal.record import read_run
from etude.journal.runs import model_files, models_of, validated, verify, weights_of
from etude.models.classifier import VALIDATED, Classifier, ModelCard, load_validated
from etude.refine.base import difference
from etude.refine.ensemble import mean_of_blends
from etude.refine.tables import read_probabilities
from etude.study.run.finish import TRAINED_ON, trained_files
from etude.study.run.network import Extras
from etude.study.run.prepare import Prepared
from etude.study.run.session import Session
from etude.study.unlabelled.pool import Pool
from etude.training.batches import BlendedTeacher, Teacher


class Models(NamedTuple):
    """The models of a run, and the weights of each fold's blend."""

    each: list[tuple[Classifier, ModelCard]]
    weights: list[list[float]]


@dataclass(frozen=True, slots=True)
class Teachers:
    """What ``--teacher`` names: the models of each run, and the predictions of each file."""

    session: Session
    prepared: Prepared
    runs: list[Models]
    files: list[Predictions]

    def distilled(self, pool: Pool | None) -> Extras:
        """Return what the student learns from its teachers, on labelled and unlabelled images.

        With cached views each teacher predicts every image once; with the same views the networks themselves take part.
        """
        data = self.prepared.data
        classes = data.images.classes
        if self.prepared.recipe.distill.views == "same":
            networks = tuple(network for models in self.runs for network in _networks(models, classes))
            rows = () if pool is None else tuple(pool.training_rows(np.arange(len(pool)), len(classes)))
            return Extras(rows, teachers=networks)
        with self.session.stage("teachers"):
            labelled = self._probabilities("labelled", data, np.arange(len(data)))
            unknown = np.isnan(labelled).max(axis=1)
            if unknown.any():
                raise EtudeError(
                    f"--teacher {', '.join(map(str, self.session.request.teachers))} says nothing about "
                    f"{int(unknown.sum()):,} of {len(unknown):,} labelled images, "
                    f"{data.images.ids[int(unknown.argmax())]!r} for one: give probabilities of all of them, or the "
                    "run that made them"
                )
            rows = () if pool is None else tuple(self._pool_rows(pool))
        return Extras(rows, teacher=labelled)

    def _pool_rows(self, pool: Pool) -> list[TrainingRows]:
        """Return the pool's images that the teachers know, with their probabilities."""
        found = np.concatenate([self._probabilities(part.name, part.data, part.rows) for part in pool.parts])
        known = np.flatnonzero(~np.isnan(found).any(axis=1))
        if left := len(found) - len(known):
            self.session.warn(f"the teachers' files say nothing about {left:,} unlabelled images: left out")
        return pool.training_rows(known, found.shape[1], teacher=found[known])

    def _probabilities(self, name: str, data: Dataset, rows: np.ndarray) -> np.ndarray:
        """Return the mean of the teachers' probabilities, float32 (N, C); NaN for images that a file does not know."""
        kept = self.session.folder / "teacher" / f"{name}.npz"
        classes, ids = self.prepared.data.images.classes, [data.images.ids[row] for row in rows]
        if self.session.request.resume and kept.is_file():
            return _of_file(Predictions.load(kept), ids, classes)
        each: list[np.ndarray] = []
        for models in self.runs:
            parts = [_predicted(model, card, data, rows, self.session.context) for model, card in models.each]
            each.append(_of_file(mean_of_blends(parts, models.weights), ids, classes))
        each += [_of_file(predictions, ids, classes) for predictions in self.files]
        mean = np.mean(each, axis=0).astype(np.float32)
        known = np.flatnonzero(~np.isnan(mean).any(axis=1))
        if len(known):
            Predictions.from_probabilities([ids[row] for row in known], classes, mean[known]).save(kept)
        return mean


def open_teachers(session: Session, prepared: Prepared) -> Teachers | None:
    """Return the teachers that the request names, or None without any."""
    if not session.request.teachers:
        return None
    runs: list[Models] = []
    files: list[Predictions] = []
    sources: list[Path] = []  # the files that the teachers' predictions depend on
    classes = prepared.data.images.classes
    for path in session.request.teachers:
        if path.is_dir():
            record = validated(read_run(path))
            names = models_of(record) or ["."]
            saved = [*model_files(names), *(Path(name, VALIDATED).as_posix() for name in names)]
            verify(path, saved, record)
            models = [load_validated(path / name) for name in names]
            each = [(one, replace(card, classes=spelled_as(card.classes, classes))) for one, card in models]
            runs.append(Models(each, weights_of(record) or [[1.0]] * len(each)))
            _check_classes(path, each[0][1].classes, classes)
            _warn_of_known_labels(session, prepared, path)
            sources += [path / name for name in saved if (path / name).is_file()]
        else:
            given = read_probabilities(path, classes=classes, warn=session.warn)
            files.append(replace(given, classes=spelled_as(given.classes, classes)))
            _check_classes(path, files[-1].classes, classes)
            sources.append(path)
            if prepared.recipe.distill.views == "same":
                raise EtudeError(
                    f"--teacher {path} is a file of probabilities, which cannot look at the views of a student: "
                    "--set distill.views=cached"
                )
    session.keep_inputs({"teachers": digest_of(*map(hash_of_file, sources))})
    return Teachers(session, prepared, runs, files)


def _networks(models: Models, classes: tuple[str, ...]) -> Iterator[Teacher | BlendedTeacher]:
    """Yield a network for each fold of a run."""
    each = iter(
        Teacher(model, card.preprocessing, [card.classes.index(name) for name in classes], card.precision)
        for model, card in models.each
    )
    for weights in models.weights:
        own = list(islice(each, len(weights)))
        yield own[0] if len(own) == 1 else BlendedTeacher(own, weights)


def _predicted(model: Classifier, card: ModelCard, data: Dataset, rows: np.ndarray, context: Context) -> Predictions:
    """Return a network's predictions of images, decoded anew where it wants them otherwise than the student does."""
    shape, store, ids = card.preprocessing, data.build.store, [data.images.ids[row] for row in rows]
    gather = store.gather
    if (shape.stored_size, shape.fit, shape.channels, shape.value_range) != (
        store.size, data.build.fit, store.channels, data.build.value_range,
    ):  # fmt: skip
        images = data.images.take(rows)
        scanned = scan_images(images, context).like(shape.channels, shape.value_range, "images", context)
        own = open_dataset(images, scanned, shape.stored_size, context, fit=shape.fit)
        gather, rows, ids = own.build.store.gather, np.arange(len(own)), list(own.images.ids)
    return predict(model, card, gather, rows, ids, tta=card.tta, context=context, name="teacher")


def _of_file(predictions: Predictions, ids: Sequence[str], classes: tuple[str, ...]) -> np.ndarray:
    """Return probabilities of the images in the student's order of classes, float64 (N, C); NaN where unknown."""
    rows = np.array(match_ids(predictions.ids, ids, folders=False).rows)
    found = predictions.probabilities()[rows][:, [predictions.classes.index(name) for name in classes]]
    return np.where(rows[:, None] >= 0, found, np.nan)


def _check_classes(path: Path, given: tuple[str, ...], wanted: tuple[str, ...]) -> None:
    if differs := difference(wanted, given):
        raise EtudeError(
            f"--teacher {path} {differs}: teacher and student must have the same classes: train it on these"
        )


def _warn_of_known_labels(session: Session, prepared: Prepared, path: Path) -> None:
    """Warn where a teacher was trained on labels of images that validate here: the scores are then too high."""
    fingerprint = (session.record.get("data") or {}).get("fingerprint")
    if known := known_labels(path, prepared, fingerprint):
        session.warn(
            f"--teacher {path} was trained on {known:,} of the images that validate here, so the validation scores are "
            "too high: train it by the same --seed and without --folds, or validate on other images with --valid"
        )


def known_labels(folder: Path, prepared: Prepared, fingerprint: str | None) -> int:
    """Return how many of the validation images a run was trained on, by content, of older runs by name."""
    data, valid = prepared.data, np.unique(np.concatenate([fold.valid for fold in prepared.folds]))
    verify(folder, [TRAINED_ON, "train.npz", "valid.npz"])
    if (trained := trained_files(folder)) is not None:
        return int(np.isin(data.build.content_hashes.take(valid).keys(), trained.keys()).sum())
    held = "train.npz" if (folder / "train.npz").is_file() else "valid.npz"
    ids = {data.images.ids[row] for row in valid}
    if held == "train.npz":
        return len(ids & {*Predictions.load(folder / held).ids})
    described = read_run(folder).get("data") or {}
    if not (folder / held).is_file() or described.get("fingerprint") != fingerprint:
        return 0
    folds = len(described.get("folds") or [None])
    return len(ids if folds > 1 else ids - {*Predictions.load(folder / held).ids})
