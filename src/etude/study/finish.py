"""The end of a run: validation and test predictions, the submission, and what stands where."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from etude.core.predictions import Predictions
from etude.core.submission import write_submission
from etude.data.dataset import Dataset
from etude.inference.predict import predict
from etude.refine.blend import average
from etude.study.announce import Row
from etude.study.candidates import Candidate, score_of

if TYPE_CHECKING:
    from etude.study.job import Job


def finish(job: Job, kept: Sequence[tuple[str, Candidate]], data: Dataset, test: Dataset | None) -> None:
    """Write ``valid.npz`` (out-of-fold with several folds), ``test.npz`` and ``submission.csv``; record all files."""
    candidates = [candidate for _, candidate in kept]
    valid = _validation(job, candidates, data)
    valid.save(job.folder / "valid.npz")
    if test is not None:
        _test(job, candidates, test)
    right, negative_loss = score_of(valid)
    job.record.set(
        "result",
        {
            "models": [name for name, _ in kept],
            "kept": [candidate.stage for candidate in candidates],
            "notes": [candidate.notes for candidate in candidates],
            "accuracy": right,
            "log_loss": -negative_loss,
            "validation_images": len(valid),
        },
    )
    for path in sorted(_written(job.folder)):
        job.record.artefact(path)


def _validation(job: Job, candidates: Sequence[Candidate], data: Dataset) -> Predictions:
    """Return the kept models' predictions of their validation images, with TTA where the recipe asks for it."""
    if candidates[0].card.tta == 1:
        parts = [candidate.valid for candidate in candidates]
        if len(parts) > 1:
            job.rows.append(Row("out-of-fold", None, _stacked(parts)))
        return _stacked(parts)
    with job.stage("TTA") as stage:
        position = {name: row for row, name in enumerate(data.images.ids)}
        parts = [
            predict(
                candidate.model,
                candidate.card,
                data.build.store.gather,
                np.array([position[name] for name in candidate.valid.ids]),
                candidate.valid.ids,
                labels=candidate.valid.labels,
                tta=candidate.card.tta,
                known_features=candidate.valid.features,
                progress=job.screen,
                name="TTA",
            )
            for candidate in candidates
        ]
        whole = _stacked(parts)
        job.score(stage, whole)
        stage.note("views", whole.logits.shape[0])
    job.rows[-1] = replace(job.rows[-1], predictions=whole, stage=f"with TTA, {whole.logits.shape[0]} views")
    return whole


def _test(job: Job, candidates: Sequence[Candidate], test: Dataset) -> None:
    with job.stage("predict test"):
        parts = [
            predict(
                candidate.model,
                candidate.card,
                test.build.store.gather,
                np.arange(len(test)),
                test.images.ids,
                tta=candidate.card.tta,
                progress=job.screen,
            )
            for candidate in candidates
        ]
        predictions = parts[0] if len(parts) == 1 else average(parts)
        predictions.save(job.folder / "test.npz")
        write_submission(
            job.folder / "submission.csv",
            predictions,
            probabilities=job.request.probabilities,
            sample=job.request.sample_submission,
        )


def _stacked(parts: Sequence[Predictions]) -> Predictions:
    """Put the folds' validation predictions below each other; features are left out, as each fold has its own."""
    if len(parts) == 1:
        return parts[0]
    labels = [part.labels for part in parts if part.labels is not None]
    return Predictions(
        ids=tuple(name for part in parts for name in part.ids),
        classes=parts[0].classes,
        logits=np.concatenate([part.logits for part in parts], axis=1),
        labels=np.concatenate(labels),
    )


def _written(folder: Path) -> list[Path]:
    suffixes = (".safetensors", ".npz", ".csv")
    return [path for path in folder.rglob("*") if path.suffix in suffixes and path.is_file()]
