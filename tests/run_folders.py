"""Run folders with everything that a report shows, made without training."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from etude.core.files import write_json
from etude.core.predictions import Predictions
from etude.core.seeds import rng_for
from etude.journal.record import RunRecord
from etude.timeline import RunSize, Shape, preset, step_progress, timeline_to_tree
from picture_folders import picture

CLASSES = ("round", "striped", "dotted")
STEPS = 400
SETTINGS = {"name": "default", "train.lr": "auto", "train.epochs": 8, "data.fit": "auto"}
HOSTILE = (
    "<script>document.title = 'hit'</script>",
    '"><img src="https://example.org/x.png" onerror="document.title = \'hit\'">',
    "</style></title></svg><b>bold & {{ 7 * 7 }} {% raise %}</b>",
)


def write_run(
    folder: Path,
    classes: Sequence[str] = CLASSES,
    *,
    count: int = 120,
    seed: int = 0,
    tags: Sequence[str] = (),
    tags_of_data: str = "",
) -> Path:
    """Write a finished run: record, history, predictions, gallery and health; the numbers are drawn by ``seed``."""
    record = RunRecord.open(
        folder, command=["etude", "fit", f"train {tags_of_data}/"], recipe="default", settings=SETTINGS,
        changed={"train.lr": 0.001}, seed=seed, tags=tags,
    )  # fmt: skip
    timeline = preset("default", Shape(1e-3, 32, 64)).resolved(RunSize(STEPS, 50))
    used = {**SETTINGS, "data.fit": "squash", "train.lr": 0.001}
    record.set("plan", {"expected_seconds": {"head": 3.0, "fine-tune": 60.0}, "resolved": used, "device": "CPU"})
    record.set("timelines", {".": {"timeline": timeline_to_tree(timeline), "steps": STEPS, "epoch_steps": 50}})
    fold = {"train": 4 * count, "valid": count}
    data = {"described": f"class folders {tags_of_data}", "fingerprint": f"c880{tags_of_data}", "images": 5 * count}
    data |= {"classes": dict.fromkeys(classes, 5 * count // len(classes)), "test_images": count, "folds": [fold]}
    record.set("data", {**data, "stored_size": 64, "channels": 3, "fit": "squash", "fit_reason": "nearly square"})
    for name, right in (("head", 0.8), ("fine-tune", 0.9)):
        with record.stage(name) as stage:
            stage.score("accuracy", right)
            stage.score("log_loss", 1.2 - right)
    record.warn(f"a warning about {classes[0]}")
    valid, test = drawn_predictions(classes, count, seed, "v"), drawn_predictions(classes, count, seed + 1, "t", False)
    valid.save(folder / "valid.npz")
    test.save(folder / "test.npz")
    history = [(step, timeline.at(step_progress(step, STEPS))) for step in range(50, STEPS + 1, 50)]
    rows = [
        {
            **{"epoch": step / 50, "step": step, "seconds": step / 10, "phase": moment.phase, "lr": moment.lr},
            **{"image_size": moment.image_size, "train_loss": 2.0 * 0.99**step},
            **{"valid_accuracy": 1 - 0.5 * 0.993**step, "valid_loss": 0.2 + 0.99**step},
        }
        for step, moment in history
    ]
    with (folder / "history.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    written = [name.encode("utf-8", "backslashreplace").decode("utf-8") for name in classes]
    write_json(folder / "model.json", {"backbone": "tiny", "classes": written, "precision": "fp32", "tta": 1})
    write_gallery(folder, valid, written)
    write_health(folder, valid, written)
    result = {"models": ["."], "kept": ["finetune"], "accuracy": accuracy(valid), "log_loss": 0.3}
    record.set("result", {**result, "validation_images": count})
    record.close("finished")
    return folder


def drawn_predictions(classes: Sequence[str], count: int, seed: int, prefix: str, labelled: bool = True) -> Predictions:
    """Return predictions that are mostly right."""
    rng = rng_for(seed, "predictions")
    labels = rng.integers(0, len(classes), count)
    logits = 3.0 * np.eye(len(classes))[labels] + rng.normal(0, 1.4, (1, count, len(classes)))
    ids = tuple(
        f"{classes[label].replace('/', '_')}/{prefix}{row:04d}.png" for row, label in enumerate(labels.tolist())
    )
    return Predictions(ids, tuple(classes), logits.astype(np.float32), labels=labels if labelled else None)


def accuracy(valid: Predictions) -> float:
    """Return the share that is right."""
    return float((valid.predicted() == valid.labels).mean())


def write_gallery(
    folder: Path, valid: Predictions, classes: Sequence[str], *, count: int = 24, padding: int = 0
) -> None:
    """Write thumbnails of ``count`` validation images, wrong ones first, and of twice as many training images.

    Each is made larger by ``padding`` bytes that a decoder passes over.
    """
    assert valid.labels is not None
    order = np.argsort(valid.predicted() == valid.labels, kind="stable")[:count]
    ids = [valid.ids[row] for row in order] + [f"train/{row:03d}.png" for row in range(2 * count)]
    labels = [*valid.labels[order].tolist(), *(row % len(classes) for row in range(2 * count))]
    pictures: list[bytes] = []
    for row, label in enumerate(labels):
        encoded = io.BytesIO()
        picture(label, row, 48).save(encoded, "webp" if row % 2 else "jpeg", quality=80)
        pictures.append(encoded.getvalue() + bytes(padding))
    np.savez(
        folder / "gallery.npz",
        ids=np.array(ids),
        split=np.array([1] * count + [0] * 2 * count, np.uint8),
        labels=np.array(labels, np.int64),
        thumb_offsets=np.cumsum([0, *map(len, pictures)]).astype(np.int64),
        thumb_bytes=np.frombuffer(b"".join(pictures), np.uint8),
    )
    half, quarter = count // 2, count // 4
    told = {
        "confident_errors": list(range(quarter)),
        "confused_pairs": [{"label": labels[0], "predicted": 0, "count": 3, "rows": [0, 1, 2]}],
        "samples": list(range(half, count)),
        "neighbours": {str(row): [count + row, count + row + 1, count + row + 2] for row in range(half, count)},
        "near_duplicates": [[0, count]],
        "label_errors": [{"row": count + 1, "suggested": classes[-1], "score": 0.9}],
        "augmentation": {
            strength: [2 * count + row for row in range(quarter)] for strength in ("0", "0.5", "1")
        },
    }  # fmt: skip
    write_json(folder / "gallery.json", told)


def write_health(folder: Path, valid: Predictions, classes: Sequence[str]) -> None:
    """Write a ``health.json`` with one of each finding."""
    first = valid.ids[0].encode("utf-8", "backslashreplace").decode("utf-8")
    pair = {"a": first, "b": "train/000.png", "similarity": 0.991, "splits": ["valid", "train"], "exact": False}
    suspect = {"id": "train/001.png", "label": classes[1], "suggested": classes[-1], "score": 0.93}
    leak = {"kind": "name pattern", "summary": f"the name tells {classes[0]}", "accuracy": 0.98, "chance": 1 / 3}
    shift = {"auc": 0.712, "interval": [0.68, 0.74], "images": [80, 40], "summary": "test images differ slightly"}
    write_json(
        folder / "health.json",
        {
            "images": 600,
            "looked_at": 600,
            "notes": ["600 of 600 labelled images were looked at"],
            "corrupt": [{"id": "broken.png", "reason": "cut short"}],
            "tiny": [{"id": "small.png", "width": 8, "height": 9}],
            "near_duplicates": [{**pair, "labels": [classes[0], classes[1]]}],
            "label_errors": [suspect],
            "imbalance": {"classes": {}, "summary": f"there are few images of {classes[2]}"},
            "shift": shift,
            "leaks": [leak],
            "counts": {"label_errors": 7, "near_duplicates": 1, "across_splits": 1, "corrupt": 1, "tiny": 1},
        },
    )
