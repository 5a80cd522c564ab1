"""The thumbnails that a report shows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from etude.core.predictions import Predictions
from etude.data.dataset import Dataset
from etude.data.split import Fold
from etude.functional.augment import POLICIES, augment
from etude.health.summary import examine_health
from etude.study.diagnostics import write_gallery
from study.small_data import features_of, labelled, one_fold, write_faulty


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    root = tmp_path_factory.mktemp("faulty")
    return labelled(write_faulty(root / "train"), root / "cache")


def judged(data: Dataset, folds: list[Fold], wrong: int = 6) -> Predictions:
    """Validation predictions of which the first ``wrong`` are wrong, the first of them the surest."""
    rows = np.concatenate([fold.valid for fold in folds])
    labels = data.labels[rows]
    sure = np.linspace(0.99, 0.6, len(rows))
    guess = np.where(np.arange(len(rows)) < wrong, 1 - labels, labels)
    probs = np.where(np.arange(2) == guess[:, None], sure[:, None], 1 - sure[:, None])
    return Predictions.from_probabilities([data.images.ids[row] for row in rows], data.images.classes, probs, labels)


def change(images: np.ndarray, strength: float, rng: np.random.Generator, size: int) -> np.ndarray:
    return augment(images, POLICIES["photos"], strength, rng, size)


def read(folder: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    with np.load(folder / "gallery.npz", allow_pickle=False) as archive:
        arrays = dict(archive)
    return arrays, json.loads((folder / "gallery.json").read_text(encoding="utf-8"))


def picture_at(arrays: dict[str, np.ndarray], row: int) -> np.ndarray:
    start, stop = arrays["thumb_offsets"][row : row + 2]
    return cv2.imdecode(arrays["thumb_bytes"][start:stop], cv2.IMREAD_UNCHANGED)


def test_everything_that_a_report_shows_is_there(data: Dataset, tmp_path: Path):
    folds, features = one_fold(data), features_of(data)
    health = examine_health(data, features, folds)
    valid = judged(data, folds)
    write_gallery(tmp_path, data, valid, folds, features=features, health=health, augment=change)
    arrays, shown = read(tmp_path)
    ids = arrays["ids"].tolist()
    assert [ids[row] for row in shown["confident_errors"]] == list(valid.ids[:6])
    assert sum(pair["count"] for pair in shown["confused_pairs"]) == 6
    first = shown["confused_pairs"][0]
    assert {int(arrays["labels"][row]) for row in first["rows"]} == {first["label"]}
    assert set(shown["neighbours"]) >= {str(row) for row in shown["confident_errors"]}
    for row, near in shown["neighbours"].items():
        assert arrays["split"][int(row)] == 1
        assert len(near) == 3
        assert arrays["split"][near].tolist() == [0, 0, 0]
    named = {frozenset((ids[a], ids[b])) for a, b in shown["near_duplicates"]}
    assert frozenset(("round/003.png", "round/near.png")) in named
    assert {ids[one["row"]] for one in shown["label_errors"]} == {one["id"] for one in health["label_errors"][:24]}
    assert [len(rows) for rows in shown["augmentation"].values()] == [6, 6, 6]
    assert list(shown["augmentation"]) == ["0", "0.5", "1"]
    known = dict(zip(data.images.ids, data.labels.tolist(), strict=True))
    assert arrays["labels"].tolist() == [known[name] for name in ids]


def test_thumbnails_show_the_images_they_belong_to(data: Dataset, tmp_path: Path):
    write_gallery(tmp_path, data, judged(data, one_fold(data)), one_fold(data), augment=change)
    arrays, shown = read(tmp_path)
    place = {name: row for row, name in enumerate(data.images.ids)}
    made = {row for strength in ("0.5", "1") for row in shown["augmentation"][strength]}
    everything = data.build.store.gather(np.arange(len(data)), 32).astype(float)
    differ = {True: [], False: []}
    for row, name in enumerate(arrays["ids"].tolist()):
        found = picture_at(arrays, row)[..., ::-1].astype(float)
        far = np.abs(everything - found).mean(axis=(1, 2, 3))
        assert row in made or data.images.ids[int(far.argmin())] == name  # not equal: JPEG takes some
        differ[row in made].append(far[place[name]])
    assert np.mean(differ[True]) > 2 * np.mean(differ[False])
