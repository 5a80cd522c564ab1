"""``gallery.npz`` and ``gallery.json``: thumbnails of the images that a report shows, and which of them show what."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from etude.core.arrays import save_arrays
from etude.core.files import write_json
from etude.core.predictions import Predictions
from etude.core.seeds import rng_for
from etude.data.dataset import Dataset
from etude.data.split import Fold
from etude.models.features import Augment
from etude.refine.neighbours.index import NeighbourIndex

SIDE = 96
"""Most pixels on a side of a thumbnail; images that are stored smaller stay as they are."""

STRENGTHS = (0.0, 0.5, 1.0)

_SPLITS = ("train", "valid", "test")
_ERRORS = 24
_CONFUSED = 6  # pairs of classes, with so many images each:
_EACH = 4
_SAMPLES = 24
_PAIRS = 12
_SUSPECTS = 24
_NEIGHBOURS = 3
_AUGMENTED = 6

_JPEG = [cv2.IMWRITE_JPEG_QUALITY, 82]
Groups = dict[str, Any]


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
    seed: int = 0,
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
    shown = _evaluated(album, valid, seed)
    if features is not None:
        wrong = [row for group in shown["confused_pairs"] for row in group["rows"]]
        rows = dict.fromkeys([*shown["confident_errors"], *wrong, *shown["samples"]])
        shown["neighbours"] = _neighbours(album, list(rows), features, folds)
    if health is not None:
        shown |= _unhealthy(album, health)
    if augment is not None:
        shown["augmentation"] = _augmented(album, folds[0].train, augment, seed)
    album.write(folder / "gallery.npz")
    write_json(folder / "gallery.json", shown)


class _Album:
    """Collects images to show, each once; their rows in the gallery are those of ``keys``: a split, and a row of it."""

    def __init__(self, data: Dataset, folds: Sequence[Fold], test: Dataset | None) -> None:
        self.data, self.test = data, data if test is None else test
        self.rows = {name: row for row, name in enumerate(data.images.ids)}
        self.test_rows = {} if test is None else {name: row for row, name in enumerate(test.images.ids)}
        self.is_valid = np.zeros(len(data), bool)
        for fold in folds:
            self.is_valid[fold.valid] = True
        self.side = min(SIDE, data.build.store.size)
        self.keys: list[tuple[str, int]] = []
        self.known: dict[tuple[str, int], int] = {}
        self.changed: dict[int, np.ndarray] = {}

    def add(self, row: int, *, test: bool = False, pixels: np.ndarray | None = None) -> int:
        """Return the gallery's row of an image; with ``pixels`` (S, S, channels) uint8 of a changed one, a new row."""
        key = ("test" if test else "valid" if self.is_valid[row] else "train"), row
        if pixels is None and key in self.known:
            return self.known[key]
        self.keys.append(key)
        number = len(self.keys) - 1
        if pixels is None:
            self.known[key] = number
        else:
            self.changed[number] = pixels
        return number

    def add_named(self, name: str, split: str) -> int | None:
        """Return the gallery's row of an image by its id, None where it is not (or no longer) there."""
        row = (self.test_rows if split == "test" else self.rows).get(name)
        return None if row is None else self.add(row, test=split == "test")

    def write(self, path: Path) -> None:
        """Write the thumbnails."""
        pictures = dict(self.changed)
        for source, tests in ((self.data, False), (self.test, True)):
            wanted = [
                number for number, (split, _) in enumerate(self.keys)
                if number not in self.changed and (split == "test") == tests
            ]  # fmt: skip
            if wanted:
                rows = np.array([self.keys[number][1] for number in wanted])
                pictures |= dict(zip(wanted, source.build.store.gather(rows, self.side), strict=True))
        thumbnails = [_encoded(pictures[number]) for number in range(len(self.keys))]
        ids = [(self.test if split == "test" else self.data).images.ids[row] for split, row in self.keys]
        labels = [-1 if split == "test" else int(self.data.labels[row]) for split, row in self.keys]
        save_arrays(path, {
            "ids": np.array(ids, dtype=np.str_),
            "split": np.array([_SPLITS.index(split) for split, _ in self.keys], np.uint8),
            "labels": np.array(labels, np.int64),
            "thumb_offsets": np.cumsum([0, *map(len, thumbnails)], dtype=np.int64),
            "thumb_bytes": np.frombuffer(b"".join(thumbnails), np.uint8),
        })  # fmt: skip


def _encoded(pixels: np.ndarray) -> bytes:
    ordered = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR) if pixels.shape[2] == 3 else pixels
    return cv2.imencode(".jpg", ordered, _JPEG)[1].tobytes()


def _evaluated(album: _Album, valid: Predictions, seed: int) -> Groups:
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
    drawn = rng_for(seed, "gallery").permutation(len(rows))[:_SAMPLES]
    return {
        "confident_errors": [album.add(int(row)) for row in rows[wrong[:_ERRORS]]],
        "confused_pairs": pairs,
        "samples": [album.add(int(row)) for row in rows[np.sort(drawn)]],
    }


def _neighbours(
    album: _Album, wanted: Sequence[int], features: np.ndarray, folds: Sequence[Fold]
) -> dict[str, list[int]]:
    """Return the nearest of the images that each one's model was trained on, by the gallery's rows."""
    index = NeighbourIndex(features, method="exact")
    found: dict[str, list[int]] = {}
    for fold in folds:
        valid, train = set(fold.valid.tolist()), index.rows.take(fold.train)
        numbers = [number for number in wanted if album.keys[number][1] in valid]
        if not numbers or not len(fold.train):
            continue
        queries = index.rows.take(np.array([album.keys[number][1] for number in numbers]))
        similarity = queries.values @ train.values.T
        for number, row in zip(numbers, similarity, strict=True):
            near = fold.train[np.argsort(-row, kind="stable")[:_NEIGHBOURS]]
            found[str(number)] = [album.add(int(one)) for one in near]
    return found


def _unhealthy(album: _Album, health: Mapping[str, Any]) -> Groups:
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


def _augmented(album: _Album, train: np.ndarray, augment: Augment, seed: int) -> dict[str, list[int]]:
    """Return a few training images as they are, and changed with rising strength."""
    rows = np.sort(rng_for(seed, "gallery augmentation").permutation(train)[:_AUGMENTED])
    store = album.data.build.store
    pixels = store.gather(rows, store.source_size(album.side))
    found: dict[str, list[int]] = {}
    for strength in STRENGTHS:
        changed = augment(pixels, strength, rng_for(seed, "gallery augmentation", int(100 * strength)), album.side)
        found[f"{strength:g}"] = [album.add(int(row), pixels=one) for row, one in zip(rows, changed, strict=True)]
    return found
