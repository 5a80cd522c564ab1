"""The end of a run: the health of its images, a gallery of them, the report, the notebook, and MLflow."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from etude.core.errors import EtudeError, error_text, listed
from etude.core.files import write_json
from etude.core.predictions import Predictions
from etude.data.dataset import same_files_as
from etude.functional.augment import policy_named
from etude.health.summary import examine_health
from etude.journal.mlflow import log_to_mlflow
from etude.journal.notebook import write_notebook
from etude.journal.record import RunRecord
from etude.journal.report.report import write_report
from etude.journal.screen import Screen
from etude.study.gallery import write_gallery
from etude.study.run.network import Candidate
from etude.study.run.prepare import Prepared
from etude.study.run.session import Session
from etude.training.batches import changes_of

T = TypeVar("T")

_WORTH_A_WARNING = 0.01  # of the images: fewer near-duplicates cannot move a score by more than one point


def write_diagnostics(session: Session, prepared: Prepared, kept: Sequence[tuple[str, Candidate]], policy: str) -> None:
    """Write ``health.json``, ``gallery.npz`` and ``gallery.json``, and the network's figures into the record.

    All results of the run are on the disk by now: what fails here is a warning, and the rest is written
    all the same. ``kept`` is the model of each fold, by its folder; ``policy`` the augmentation that the gallery shows.
    """
    candidates, folder, seed = [candidate for _, candidate in kept], session.folder, session.request.seed
    data, folds, test = prepared.data, prepared.folds, prepared.test
    features = None if prepared.features is None else prepared.features.values
    own = prepared.recipe.augment.transform
    augments = "finetune" in prepared.recipe.stages and (own or not policy_named(policy).changes_nothing)

    def health_of_images() -> dict[str, Any]:
        found = examine_health(
            data, features, folds,
            test=test, test_features=_test_features(folder, candidates), context=session.context,
        )  # fmt: skip
        write_json(folder / "health.json", found)
        return found

    with session.stage("diagnostics"):
        _tried(
            session, "the network's figures", lambda: session.record.set("architecture", architecture(candidates[0]))
        )
        health = _tried(session, "the health of the images", health_of_images)
        if health is not None:
            valid = Predictions.load(folder / "valid.npz")
            _tried(session, "a warning of near-duplicates", lambda: _warn_of_copies(session, health, valid, prepared))
        _tried(session, "pictures", lambda: write_gallery(
            folder, data, Predictions.load(folder / "valid.npz"), folds,
            features=features, health=health, test=test,
            augment=changes_of(policy_named(policy), own) if augments else None, seed=seed,
        ))  # fmt: skip


def report(folder: Path, screen: Screen) -> None:
    """Write ``report.html`` of a run that has ended, however it did; one that cannot be written is a warning."""
    try:
        write_report(folder)
    except Exception as problem:  # the run's own outcome must not be lost for it
        screen.warn(f"no report: {error_text(problem)}")


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


def _warn_of_copies(session: Session, health: Mapping[str, Any], valid: Predictions, prepared: Prepared) -> None:
    """Warn of validation and test images that are near-duplicates of training images, where they may change a score."""
    copied: Mapping[str, list[str]] = health["copied"]
    sampled = f"; {', '.join(health['notes'])}" if health["looked_at"] < health["images"] else ""
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
    data, test = prepared.data, prepared.test
    if test is None or len(copied["test"]) / len(test) < _WORTH_A_WARNING:
        return
    if len(copied["test"]) > same_files_as(data, test).sum():  # identical files have been warned of at the beginning
        session.warn(
            f"{len(copied['test']):,} of {len(test):,} test images are near-duplicates of training images "
            f"({listed(copied['test'], 3)}): scores on them say little about new images{sampled}"
        )


def _tried(session: Session, what: str, make: Callable[[], T]) -> T | None:
    """Return what ``make`` returns; None, and a warning, where it fails."""
    try:
        return make()
    except Exception as problem:  # of any library that reads images: the run is done, and is not lost for a picture
        session.warn(f"the report does without {what}: {error_text(problem)}")
        return None


def _test_features(folder: Path, candidates: Sequence[Candidate]) -> Any:
    """Return the test images' features where the kept model has those of the frozen network, else None."""
    if len(candidates) > 1 or candidates[0].stage != "head" or not (folder / "test.npz").is_file():
        return None
    return Predictions.load(folder / "test.npz").features


def export_run(record: RunRecord, uri: str | None, screen: Screen) -> None:
    """Write ``notebook.ipynb``, and send the run to the MLflow server at ``uri``, if any.

    The run is complete by now: what fails is a warning, in its record and its report too.
    """
    try:
        write_notebook(record.folder)
    except (EtudeError, OSError) as problem:
        _warn(record, f"no notebook: {problem}", screen)
    if uri is not None:
        send(record, uri, screen)


def send(record: RunRecord, uri: str, screen: Screen) -> None:
    """Send a run and all that is part of it to the MLflow server at ``uri``; where that fails it is a warning."""
    try:
        screen.say(log_to_mlflow(record.folder, uri).text)
    except (EtudeError, OSError) as problem:
        later = shlex.join(["etude", "journal", "send", str(record.folder), "--mlflow", uri])
        text = f"the run is whole, but not on the MLflow server: {problem}. To send it later: {later}"
        _warn(record, text, screen)


def _warn(record: RunRecord, text: str, screen: Screen) -> None:
    screen.warn(text)
    record.warn(text)
    report(record.folder, screen)
