"""The end of a run: predictions of validation, training and test images, the submission, and the list of files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from etude.core.files import read_json, reading, write_json
from etude.core.metrics import score_of, wilson
from etude.core.predictions import Predictions
from etude.core.submission import Unreadable, write_submission
from etude.core.text import counted, percent
from etude.data.compact import Digests
from etude.data.dataset import Dataset, same_files_as
from etude.data.sources import stated_labels
from etude.inference.views import many_views
from etude.refine.ensemble import average
from etude.refine.views import gain_by_views, sharpness_of_views
from etude.study.run.blend import Kept
from etude.study.run.prepare import Prepared
from etude.study.run.session import Session

TRAINED_ON = "trained_on.json"  # content hashes of the images that a run was trained on, and of those that validated


def trained_files(folder: Path, side: str = "files") -> Digests | None:
    """Return the content hashes of the images that a run was trained on, or of those that have ``validated`` it.

    None where it has no list of them.
    """
    if not (file := folder / TRAINED_ON).is_file():
        return None
    with reading(file, "a list of trained images", "train the model again, or delete the file"):
        held = read_json(file)
        return Digests.from_hex(held[side]) if side in held or side == "files" else None


def finish(session: Session, kept: list[Kept], prepared: Prepared) -> list[Kept]:
    """Write predictions (of validation images out-of-fold), features and submission, and record all files.

    Return the models; where views did harm on the validation images, their cards ask for the plain one alone.
    """
    data, folder = prepared.data, session.folder
    valid, kept, harm = _validation(session, kept, data, prepared.recipe.predict.tta_if)
    if harm:
        valid, kept = replace(valid, logits=valid.logits[:1]), _with_plain_view(session, kept, harm)
    validated = _models_of(kept)
    kept = [fold.refitted(session) for fold in kept]
    written = [folder / name for name in ("valid.npz", "train.npz", "test.npz", "submission.csv")]
    session.record.forget(written)
    valid.save(written[0])
    _train(session, kept, data)
    sides = {"files": [fold.train for fold in prepared.folds], "validated": [fold.valid for fold in prepared.folds]}
    known = {name: np.unique(np.concatenate(rows)) for name, rows in sides.items()}
    write_json(folder / TRAINED_ON, {name: data.build.content_hashes.take(rows).hex() for name, rows in known.items()})
    align = prepared.recipe.predict.align == "auto"
    tested = None if prepared.test is None else _test(session, kept, prepared.test, data, align)
    accuracy, negative_loss = score_of(valid)
    result = {
        **_models_of(kept),
        "validated": validated,
        "kept": [fold.stage for fold in kept],
        "notes": [fold.main.notes for fold in kept],
        "accuracy": accuracy,
        "log_loss": -negative_loss,
        "validation_images": len(valid),
        "test": tested,
    }
    session.record.set("result", result)
    endings = (".safetensors", ".npz", ".csv", ".png")
    found = (path for path in folder.rglob("*") if path.suffix in endings and path.is_file())
    for path in sorted([*(path for path in found if "checkpoints" not in path.parts), folder / TRAINED_ON]):
        session.record.artefact(path)
    return kept


def _models_of(kept: Sequence[Kept]) -> dict[str, Any]:
    """Return the folders of all models, and the weights of each fold's."""
    return {"models": [name for fold in kept for name in fold.folders], "weights": [fold.weights for fold in kept]}


def _validation(
    session: Session, kept: list[Kept], data: Dataset, tta_if: str
) -> tuple[Predictions, list[Kept], tuple[str, ...]]:
    """Return predictions of the validation images, with TTA where the recipe has it, and metrics that it harms.

    A mean over views is less sure than each of them, so with TTA the models are calibrated anew.
    """
    card = kept[0].main.card
    if len(many_views(card.policy, card.tta)) == 1:
        whole = _stacked([fold.valid for fold in kept])
        if len(kept) > 1:
            session.scores["out-of-fold"] = "out-of-fold", whole
        return whole, kept, ()
    with session.stage("TTA") as stage:
        plain = _stacked([fold.validate(data, session.context) for fold in kept])
        factor = sharpness_of_views(plain)
        whole = replace(plain, logits=plain.logits * factor)
        gains = gain_by_views(whole, alone=plain)
        stage.note("views", whole.logits.shape[0])
        stage.note("views that are enough", gains.enough)
    session.screen.say(f"views: {gains.described}")
    session.scored(stage, whole, f"with TTA, {whole.logits.shape[0]} views")
    harm = gains.harm if tta_if == "harmless" else ()
    stage.keep(not harm)
    if harm:
        return plain, kept, harm
    return whole, [fold.sharpened(factor, session) for fold in kept] if factor != 1.0 else kept, ()


def _with_plain_view(session: Session, kept: Sequence[Kept], harm: Sequence[str]) -> list[Kept]:
    words = {"log_loss": "raise the log loss", "accuracy": "lower the accuracy beyond noise"}
    session.warn(
        f"the views {' and '.join(words[name] for name in harm)} on validation images, so images are predicted by the "
        "plain view alone (predict.tta_if=always averages over them all the same)"
    )
    plain = [fold.with_tta(1, fold.main.card.policy) for fold in kept]
    for fold in plain:
        fold.save(session)
    return plain


def _train(session: Session, kept: Sequence[Kept], data: Dataset) -> None:
    """Write ``train.npz``: the plain view of the training images, their features and labels."""
    train = kept[0].main.train
    if train is None:
        return
    if len(kept) > 1:
        session.warn("predict.train_features=always saves nothing with several folds: the model of each has its own")
        return
    rows, features = train
    known = None if features is None else features[rows]
    with session.stage("train features"):
        found = kept[0].main.predict(data, rows, session.context, known_features=known, name="train features")
        found.save(session.folder / "train.npz")


def _test(session: Session, kept: Sequence[Kept], test: Dataset, data: Dataset, align: bool) -> dict[str, Any] | None:
    """Write predictions and submission; return scores where the images stand in class folders, or have a label column.

    The labels are read when all is decided.
    """
    rows, request = np.arange(len(test)), session.request
    with session.stage("predict test"):
        parts = [fold.predict(test, rows, session.context, align) for fold in kept]
        predictions = parts[0] if len(parts) == 1 else average(parts)
        predictions.save(session.folder / "test.npz")
        write_submission(
            session.folder / "submission.csv", predictions,
            probabilities=request.probabilities, sample=request.sample_submission, positive=request.positive,
            unreadable=Unreadable([bad.id for bad in test.build.bad], session.record.get("data")["classes"]),
            warn=session.warn,
        )  # fmt: skip
        assert request.test is not None
        labels, named_by = None, ""
        if request.test != request.sample_submission:
            settings = (request.label_column, str(session.record.get("settings")["data.labels"]))
            labels, named_by = stated_labels(request.test, test.images, predictions.classes, *settings)
    if labels is None:
        return None
    accuracy, negative_loss = score_of(replace(predictions, labels=labels))
    low, high = wilson(accuracy * len(labels), len(labels))
    known = int(same_files_as(data, test).sum())
    seen = f"; {known:,} of them are among the labelled images, too" if known else ", which no choice has used"
    session.screen.say(
        f"test accuracy {percent(accuracy)} (95% interval {percent(low)} to {percent(high)}), log loss "
        f"{-negative_loss:.4f} on {counted(len(labels), 'image')} with labels by {named_by}{seen}"
    )
    return {"accuracy": accuracy, "low": low, "high": high, "log_loss": -negative_loss, "images": len(labels)}


def _stacked(parts: Sequence[Predictions]) -> Predictions:
    """Put the folds' validation predictions below each other; features are left out, as each fold has its own."""
    if len(parts) == 1:
        return parts[0]
    return Predictions(
        ids=tuple(name for part in parts for name in part.ids),
        classes=parts[0].classes,
        logits=np.concatenate([part.logits for part in parts], axis=1),
        labels=np.concatenate([part.labels for part in parts if part.labels is not None]),
    )
