"""Teachers of a student: runs, and files of probabilities, brought to the student's images and classes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from etude.core.errors import EtudeError, listed
from etude.core.files import digest_of, hash_of_file, read_json, reading
from etude.core.ids import match_ids, spelled_as
from etude.core.predictions import Predictions
from etude.data.batches import TrainingRows
from etude.data.compact import Digests
from etude.data.dataset import Dataset, open_dataset
from etude.data.scan import scan_images
from etude.inference.predict import predict
from etude.journal.record import read_run
from etude.journal.runs import model_files, models_of, verify
from etude.models.classifier import Classifier, ModelCard, load_model
from etude.refine.tables import read_probabilities
from etude.study.run.finish import TRAINED_ON
from etude.study.run.network import Extras
from etude.study.run.prepare import Prepared
from etude.study.run.session import Session
from etude.study.unlabelled.pool import Pool
from etude.training.batches import Teacher

Models = list[tuple[Classifier, ModelCard]]


@dataclass(frozen=True, slots=True)
class Teachers:
    """What ``--teacher`` names: the models of each run and the predictions of each file, with their paths."""

    runs: tuple[tuple[Path, Models], ...]
    files: tuple[tuple[Path, Predictions], ...]


def open_teachers(session: Session, prepared: Prepared) -> Teachers | None:
    """Return the teachers that the request names, or None without any."""
    runs: list[tuple[Path, Models]] = []
    files: list[tuple[Path, Predictions]] = []
    classes = prepared.data.images.classes
    for path in session.request.teachers:
        if path.is_dir():
            models = trained_models(path)
            runs.append(
                (path, [(one, replace(card, classes=spelled_as(card.classes, classes))) for one, card in models])
            )
            _check_classes(path, runs[-1][1][0][1].classes, classes)
            _warn_of_seen_labels(session, prepared, path)
        else:
            said = read_probabilities(path, classes=classes, warn=session.warn)
            files.append((path, replace(said, classes=spelled_as(said.classes, classes))))
            _check_classes(path, files[-1][1].classes, classes)
    if files and prepared.recipe.distill.views == "same":
        raise EtudeError(
            f"--teacher {files[0][0]} is a file of probabilities, which cannot look at the views of a student: "
            "--set distill.views=cached"
        )
    if not runs and not files:
        return None
    session.keep_inputs({"teachers": digest_of(*map(hash_of_file, _files_of(session.request.teachers)))})
    return Teachers(tuple(runs), tuple(files))


def trained_models(folder: Path) -> Models:
    """Return the models of a run: one, or one a fold."""
    record = read_run(folder)
    names = models_of(record) or ["."]
    verify(folder, model_files(names), record)
    return [load_model(folder / name) for name in names]


def _files_of(teachers: Sequence[Path]) -> Iterator[Path]:
    """Yield the files that the teachers' predictions depend on."""
    for path in teachers:
        if path.is_dir():
            yield from (path / name for name in model_files(models_of(read_run(path)) or ["."]))
        else:
            yield path


def distilled(session: Session, prepared: Prepared, teachers: Teachers, pool: Pool | None) -> Extras:
    """Return what the student learns from its teachers, on labelled and unlabelled images.

    With cached views each teacher predicts every image once, averaged over its own views; several teachers are
    averaged; the mean is kept in the run's folder. With the same views the networks themselves take part.
    """
    classes = prepared.data.images.classes
    whole = np.arange(0 if pool is None else len(pool))
    if prepared.recipe.distill.views == "same":
        networks = [_at_views_of_student(model, card, classes) for _, models in teachers.runs for model, card in models]
        rows = () if pool is None else tuple(pool.training_rows(whole, len(classes)))
        return Extras(rows, teachers=tuple(networks))
    with session.stage("teachers"):
        labelled = _taught(session, prepared, teachers, "labelled", prepared.data, np.arange(len(prepared.data)))
        unknown = np.isnan(labelled).max(axis=1)
        if unknown.any():
            first = prepared.data.images.ids[int(unknown.argmax())]
            raise EtudeError(
                f"--teacher {', '.join(map(str, session.request.teachers))} says nothing about "
                f"{int(unknown.sum()):,} of {len(unknown):,} labelled images, {first!r} for one: give probabilities of "
                "all of them, or the run that made them"
            )
        rows = () if pool is None else tuple(_pool_rows(session, prepared, teachers, pool))
    return Extras(rows, teacher=labelled)


def _pool_rows(session: Session, prepared: Prepared, teachers: Teachers, pool: Pool) -> list[TrainingRows]:
    """Return the pool's images that the teachers know, with what they say."""
    said = np.concatenate(
        [_taught(session, prepared, teachers, part.name, part.data, part.rows) for part in pool.parts]
    )
    known = np.flatnonzero(~np.isnan(said).any(axis=1))
    if len(known) < len(said):
        session.warn(f"the teachers' files say nothing about {len(said) - len(known):,} unlabelled images: left out")
    return pool.training_rows(known, said.shape[1], teacher=said[known])


def _taught(
    session: Session, prepared: Prepared, teachers: Teachers, name: str, data: Dataset, rows: np.ndarray
) -> np.ndarray:
    """Return the mean of the teachers' probabilities, float32 (N, C); NaN for images that a file does not know."""
    kept = session.folder / "teacher" / f"{name}.npz"
    classes, ids = prepared.data.images.classes, [data.images.ids[row] for row in rows]
    if session.request.resume and kept.is_file():
        return _of_file(Predictions.load(kept), ids, classes)
    each: list[np.ndarray] = []
    for _, models in teachers.runs:
        seen = [_predicted(session, prepared, model, card, data, rows) for model, card in models]
        each.append(np.mean([_of_file(one, ids, classes) for one in seen], axis=0))
    each += [_of_file(predictions, ids, classes) for _, predictions in teachers.files]
    mean = np.mean(each, axis=0).astype(np.float32)
    known = np.flatnonzero(~np.isnan(mean).any(axis=1))
    if len(known):
        Predictions.from_probabilities([ids[row] for row in known], classes, mean[known]).save(kept)
    return mean


def _predicted(
    session: Session, prepared: Prepared, model: Classifier, card: ModelCard, data: Dataset, rows: np.ndarray
) -> Predictions:
    """Return what a network says about images, decoded anew where it wants them otherwise than the student does."""
    shape, store = card.preprocessing, data.build.store
    context, gather, ids = session.context, store.gather, [data.images.ids[row] for row in rows]
    own_range = data.build.value_range
    if (shape.stored_size, shape.fit, shape.channels, shape.value_range) != (
        store.size, data.build.fit, store.channels, own_range,
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


def _at_views_of_student(model: Classifier, card: ModelCard, classes: tuple[str, ...]) -> Teacher:
    return Teacher(model, card.preprocessing, [card.classes.index(name) for name in classes], card.precision)


def _check_classes(path: Path, given: tuple[str, ...], wanted: tuple[str, ...]) -> None:
    if set(given) == set(wanted):
        return
    lacks, more = sorted(set(wanted) - set(given)), sorted(set(given) - set(wanted))
    differs = [f"lacks {listed(lacks)}"] if lacks else []
    differs += [f"knows {listed(more)} besides"] if more else []
    raise EtudeError(
        f"--teacher {path} {' and '.join(differs)}: teacher and student must have the same classes: train it on these"
    )


def _warn_of_seen_labels(session: Session, prepared: Prepared, path: Path) -> None:
    """Say so where a teacher was trained on labels of images that validate here: the scores are then too high."""
    fingerprint = (session.record.get("data") or {}).get("fingerprint")
    if seen := seen_in_training(path, prepared, fingerprint):
        session.warn(
            f"--teacher {path} was trained on {seen:,} of the images that validate here, so the validation scores are "
            "too high: train it by the same --seed and without --folds, or validate on other images with --valid"
        )


def seen_in_training(folder: Path, prepared: Prepared, fingerprint: str | None) -> int:
    """Return how many of the validation images a run was trained on.

    Files are compared by their contents; those of older runs, which did not write what they were trained on, by name.

    Args:
        fingerprint: of the images that validate and train here.
    """
    data, valid = prepared.data, np.unique(np.concatenate([fold.valid for fold in prepared.folds]))
    verify(folder, [TRAINED_ON, "train.npz", "valid.npz"])
    if (file := folder / TRAINED_ON).is_file():
        with reading(file, "a list of trained images", "train the teacher again, or delete the file"):
            trained = Digests.from_hex(read_json(file)["files"])
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
