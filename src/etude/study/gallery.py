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
from etude.data.sources import ImageSet
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
Key = tuple[str, int]
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
    holds rows into it: ``confident_errors`` [row], the surest first; ``confused_pairs`` [{label, predicted, count,
    rows}], the most frequent first; ``samples`` [row]; ``neighbours`` {row: [row]}, nearest training image first;
    ``near_duplicates`` [[row, row]]; ``label_errors`` [{row, suggested, score}]; ``augmentation`` {strength: [row]}.

    Args:
        data: the labelled images.
        valid: labelled predictions of validation images, by the ids of ``data``.
        folds: the splits.
        features: (N, D) of all images of ``data``; None: no neighbours.
        health: what :func:`~etude.health.summary.examine_health` returned; None: no copies and suspects.
        test: test images, for copies that stand among them.
        augment: ``augment(images, strength, rng, size)`` as in training; None: no samples of it.
    """
    album = _Album(data, folds, test)
    shown = _judged(album, valid, seed)
    if features is not None:
        wrong = [row for group in shown["confused_pairs"] for row in group["rows"]]
        asked = dict.fromkeys([*shown["confident_errors"], *wrong, *shown["samples"]])
        shown["neighbours"] = _neighbours(album, list(asked), features, folds)
    if health is not None:
        shown |= _unhealthy(album, health)
    if augment is not None:
        shown["augmentation"] = _augmented(album, folds[0].train, augment, seed)
    album.write(folder / "gallery.npz")
    write_json(folder / "gallery.json", shown)


class _Album:
    """Collects images to show, each once, and their thumbnails."""

    def __init__(self, data: Dataset, folds: Sequence[Fold], test: Dataset | None) -> None:
        self.data, self.test = data, test
        self.position = {name: row for row, name in enumerate(data.images.ids)}
        self.test_position = {} if test is None else {name: row for row, name in enumerate(test.images.ids)}
        held = np.zeros(len(data), bool)
        for fold in folds:
            held[fold.valid] = True
        self.held = held
        self.side = min(SIDE, data.build.store.size)
        self.places: dict[Key, int] = {}
        self.keys: list[Key] = []
        self.made: dict[int, np.ndarray] = {}

    def place(self, row: int, test: bool = False) -> int:
        """Return the gallery's row of an image."""
        split = "test" if test else "valid" if self.held[row] else "train"
        key = (split, row)
        if key not in self.places:
            self.places[key] = len(self.keys)
            self.keys.append(key)
        return self.places[key]

    def place_made(self, row: int, pixels: np.ndarray) -> int:
        """Return the gallery's row of a changed image, (S, S, channels) uint8."""
        self.keys.append(("valid" if self.held[row] else "train", row))
        self.made[len(self.keys) - 1] = pixels
        return len(self.keys) - 1

    def named(self, name: str, split: str) -> int | None:
        """Return the gallery's row of an image by its id, None where it is not (or no longer) there."""
        row = (self.test_position if split == "test" else self.position).get(name)
        return None if row is None else self.place(row, test=split == "test")

    def write(self, path: Path) -> None:
        """Write the thumbnails."""
        thumbnails = self._thumbnails()
        labels = [-1 if split == "test" else int(self.data.labels[row]) for split, row in self.keys]
        arrays = {
            "ids": np.array([self._images(split).ids[row] for split, row in self.keys], dtype=np.str_),
            "split": np.array([_SPLITS.index(split) for split, _ in self.keys], np.uint8),
            "labels": np.array(labels, np.int64),
            "thumb_offsets": np.cumsum([0, *map(len, thumbnails)], dtype=np.int64),
            "thumb_bytes": np.frombuffer(b"".join(thumbnails), np.uint8),
        }
        save_arrays(path, arrays)

    def _images(self, split: str) -> ImageSet:
        source = self.data if split != "test" or self.test is None else self.test
        return source.images

    def _thumbnails(self) -> list[bytes]:
        pictures: dict[int, np.ndarray] = dict(self.made)
        for source, is_test in ((self.data, False), (self.test, True)):
            places = [
                place
                for place, (split, _) in enumerate(self.keys)
                if place not in self.made and (split == "test") == is_test
            ]
            if source is not None and places:
                rows = np.array([self.keys[place][1] for place in places])
                pictures |= dict(zip(places, source.build.store.gather(rows, self.side), strict=True))
        return [_encoded(pictures[place]) for place in range(len(self.keys))]


def _encoded(pixels: np.ndarray) -> bytes:
    ordered = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR) if pixels.shape[2] == 3 else pixels
    return cv2.imencode(".jpg", ordered, _JPEG)[1].tobytes()


def _judged(album: _Album, valid: Predictions, seed: int) -> Groups:
    """Return the surest errors, the most frequent confusions, and random validation images."""
    assert valid.labels is not None
    probabilities = valid.probabilities()
    predicted, sure = probabilities.argmax(axis=1), probabilities.max(axis=1)
    rows = np.array([album.position[name] for name in valid.ids])
    wrong = np.flatnonzero((predicted != valid.labels) & (valid.labels >= 0))
    wrong = wrong[np.argsort(-sure[wrong], kind="stable")]
    confusions = Counter(zip(valid.labels[wrong].tolist(), predicted[wrong].tolist(), strict=True))
    pairs: list[dict[str, Any]] = []
    for (label, guess), count in confusions.most_common(_CONFUSED):
        members = wrong[(valid.labels[wrong] == label) & (predicted[wrong] == guess)][:_EACH]
        shown = [album.place(int(row)) for row in rows[members]]
        pairs.append({"label": label, "predicted": guess, "count": count, "rows": shown})
    drawn = rng_for(seed, "gallery").permutation(len(rows))[:_SAMPLES]
    return {
        "confident_errors": [album.place(int(row)) for row in rows[wrong[:_ERRORS]]],
        "confused_pairs": pairs,
        "samples": [album.place(int(row)) for row in rows[np.sort(drawn)]],
    }


def _neighbours(
    album: _Album, asked: Sequence[int], features: np.ndarray, folds: Sequence[Fold]
) -> dict[str, list[int]]:
    """Return the nearest images that each one's model was trained on, by the gallery's rows."""
    index = NeighbourIndex(features, method="exact")
    found: dict[str, list[int]] = {}
    for fold in folds:
        held, train = set(fold.valid.tolist()), index.rows.take(fold.train)
        places = [place for place in asked if album.keys[place][1] in held]
        if not places or not len(fold.train):
            continue
        queries = index.rows.take(np.array([album.keys[place][1] for place in places]))
        similarity = queries.values @ train.values.T
        for place, row in zip(places, similarity, strict=True):
            near = fold.train[np.argsort(-row, kind="stable")[:_NEIGHBOURS]]
            found[str(place)] = [album.place(int(one)) for one in near]
    return found


def _unhealthy(album: _Album, health: Mapping[str, Any]) -> Groups:
    """Return the copies and the suspected labels that health tells of."""
    pairs: list[list[int]] = []
    for pair in health["near_duplicates"][:_PAIRS]:
        both = [album.named(pair[end], split) for end, split in zip("ab", pair["splits"], strict=True)]
        if all(place is not None for place in both):
            pairs.append([place for place in both if place is not None])
    suspects: list[dict[str, Any]] = []
    for entry in health["label_errors"][:_SUSPECTS]:
        place = album.named(entry["id"], "train")
        if place is not None:
            suspects.append({"row": place, "suggested": entry["suggested"], "score": entry["score"]})
    return {"near_duplicates": pairs, "label_errors": suspects}


def _augmented(album: _Album, train: np.ndarray, augment: Augment, seed: int) -> dict[str, list[int]]:
    """Return a few training images as they are, and changed with rising strength."""
    rng = rng_for(seed, "gallery augmentation")
    rows = np.sort(rng.permutation(train)[:_AUGMENTED])
    store = album.data.build.store
    pixels = store.gather(rows, store.source_size(album.side))
    found: dict[str, list[int]] = {}
    for strength in STRENGTHS:
        changed = augment(pixels, strength, rng_for(seed, "gallery augmentation", int(100 * strength)), album.side)
        found[f"{strength:g}"] = [album.place_made(int(row), one) for row, one in zip(rows, changed, strict=True)]
    return found
