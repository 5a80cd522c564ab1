"""Copies among the images of a run: identical files, and near-duplicates by their pixels."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from etude.data.alike import SIDE, coarse, differences, reliefs
from etude.data.dataset import Dataset
from etude.data.health import same_files
from etude.refine.neighbours import NeighbourIndex
from etude.refine.ridge import whitened

_NEAREST = 4  # neighbours of each image that are compared with it
_FEWEST = 8  # images below which there is no neighbourhood to compare with
_AXES = 128
# Chosen on copies of digits that were planted with other seeds than those of benchmarks/data_health.py:
_SAME = 0.01  # difference that files of one picture have: JPEG, light, other size, a small crop
_CLOSER = 0.22  # of the usual difference from a neighbour
_HARDLY, _NEARLY_AS_CLOSE = 0.002, 0.4  # the same for pictures that differ less than light and JPEG alone explain
_BOTH = 5e-4  # product of the two: what is a little farther must stand out more
_ROUNDING = 2e-4

Gather = Callable[[np.ndarray, int], np.ndarray]
"""``gather(places, size)`` returns uint8 (B, size, size, channels)."""


@dataclass(frozen=True, slots=True)
class Looked:
    """The images that are looked at, of one set or of two.

    Args:
        ids: of the N images.
        splits: of each: ``train``, ``valid``, ``test``, or ``fold 1`` and so on.
        hashes: of each file's bytes.
        labels: the class names, None where unknown.
        gather: ``gather(places, size)`` returns the pixels of images by their place here.
    """

    ids: tuple[str, ...]
    splits: tuple[str, ...]
    hashes: tuple[str, ...]
    labels: tuple[str | None, ...]
    gather: Gather

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def of(cls, data: Dataset, rows: np.ndarray, splits: Sequence[str]) -> Looked:
        """Return the images at ``rows`` of a set, by the splits (N,) of all its images."""
        images, places = data.images, list(map(int, rows))
        labels = [None] * len(data) if images.labels is None else [images.classes[label] for label in images.labels]
        return cls(
            ids=tuple(images.ids[row] for row in rows),
            splits=tuple(splits[row] for row in places),
            hashes=tuple(data.build.content_hashes[row] for row in rows),
            labels=tuple(labels[row] for row in rows),
            gather=lambda places, size: data.build.store.gather(rows[places], size),
        )

    def beside(self, other: Looked) -> Looked:
        """Return these images and, after them, others whose pixels have as many channels."""
        count = len(self)

        def gather(places: np.ndarray, size: int) -> np.ndarray:
            parts = [self.gather(places[places < count], size), other.gather(places[places >= count] - count, size)]
            pixels = np.empty((len(places), *parts[0].shape[1:]), np.uint8)
            pixels[places < count], pixels[places >= count] = parts
            return pixels

        return Looked(
            (*self.ids, *other.ids),
            (*self.splits, *other.splits),
            (*self.hashes, *other.hashes),
            (*self.labels, *other.labels),
            gather,
        )


def find_copies(everything: Looked, drawn: Looked) -> list[dict[str, Any]]:
    """Return pairs of copies: those across splits first, then those of different labels, then by similarity.

    Each is ``{"a", "b", "similarity", "splits", "labels", "exact"}``: two ids, how alike their pixels are (1 for
    identical files), the split and label of each, and whether the files are identical.

    Args:
        everything: where identical files are looked for.
        drawn: where near-duplicates are looked for.
    """
    told = [_told(everything, a, b, 1.0, exact=True) for a, b in same_files(everything.hashes)]
    told += [_told(drawn, a, b, similarity, exact=False) for a, b, similarity in _near(drawn)]
    told.sort(key=lambda pair: (not is_across(pair), not is_contradiction(pair), -pair["similarity"], pair["a"]))
    return told


def is_across(pair: dict[str, Any]) -> bool:
    """Whether the pair stands on two sides of the split."""
    return pair["splits"][0] != pair["splits"][1]


def is_contradiction(pair: dict[str, Any]) -> bool:
    """Whether both labels are known and differ."""
    return None not in pair["labels"] and pair["labels"][0] != pair["labels"][1]


def copied_images(pairs: Sequence[dict[str, Any]]) -> dict[str, list[str]]:
    """Return the ids of ``validation`` and ``test`` images that are copies of images which are trained on.

    Copies of copies count too. In a cross-validation an image is trained on by the other folds.

    >>> pair = {"a": "x", "b": "y", "splits": ["train", "valid"]}
    >>> copied_images([pair, {"a": "y", "b": "x", "splits": ["valid", "test"]}])
    {'validation': ['y'], 'test': ['x']}
    """
    places: dict[tuple[str, str], int] = {}  # a test image may have the name of another
    ends = [
        [places.setdefault(end, len(places)) for end in zip((pair["a"], pair["b"]), pair["splits"], strict=True)]
        for pair in pairs
    ]
    first, second = np.array(ends, np.int64).reshape(-1, 2).T
    links = coo_array((np.ones(len(pairs), bool), (first, second)), shape=(len(places), len(places)))
    groups: list[int] = connected_components(links, directed=False)[1].tolist()
    splits: dict[int, set[str]] = defaultdict(set)
    for group, (_, split) in zip(groups, places, strict=True):
        splits[group].add(split)
    found: dict[str, list[str]] = {"validation": [], "test": []}
    for group, (name, split) in zip(groups, places, strict=True):
        if split != "train" and splits[group] - {split, "valid", "test"}:
            found["test" if split == "test" else "validation"].append(name)
    return found


def _near(images: Looked) -> list[tuple[int, int, float]]:
    """Return (place, place, similarity) of near-duplicates among the images, one for each content.

    Candidates are the nearest of each image by coarse structure. A pair are copies when their pixels differ hardly at
    all, and by far less than either image differs from its other neighbours.
    """
    places = np.sort(np.unique(images.hashes, return_index=True)[1])
    if len(places) < _FEWEST:
        return []
    pictures = images.gather(places, SIDE)
    relief = reliefs(pictures)
    # With as many axes as rows, whitening would put all rows equally far from each other.
    first, second = _candidates(whitened(coarse(relief), min(_AXES, len(places) // _FEWEST)))
    found = differences(pictures, relief, first, second)
    around = _usual_difference(first, second, found, len(places))
    least = np.minimum(around[first], around[second])
    ratio = (found + _ROUNDING) / (least + _ROUNDING)
    stands_out = (ratio <= _CLOSER) & (found * ratio <= _BOTH)
    kept = (found <= _SAME) & (stands_out | ((found <= _HARDLY) & (ratio <= _NEARLY_AS_CLOSE)))
    pairs = zip(places[first[kept]].tolist(), places[second[kept]].tolist(), found[kept].tolist(), strict=True)
    return [(a, b, round(1 - apart, 4)) for a, b, apart in pairs]


def _candidates(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return each row paired with its nearest others: (P,) and (P,), each pair once, the smaller row first."""
    count = len(rows)
    near = NeighbourIndex(rows).among_themselves(min(_NEAREST, count - 1)).positions
    own, other = np.repeat(np.arange(count), near.shape[1]), near.ravel()
    keys = np.unique(np.minimum(own, other) * count + np.maximum(own, other))
    return np.divmod(keys, count)


def _usual_difference(first: np.ndarray, second: np.ndarray, found: np.ndarray, count: int) -> np.ndarray:
    """Return the median difference of each image from the neighbours that it was compared with, (N,)."""
    rows, values = np.concatenate([first, second]), np.concatenate([found, found])
    order = np.lexsort((values, rows))
    starts = np.searchsorted(rows[order], np.arange(count + 1))
    return values[order][(starts[:-1] + starts[1:]) // 2]


def _told(images: Looked, a: int, b: int, similarity: float, *, exact: bool) -> dict[str, Any]:
    return {
        "a": images.ids[a],
        "b": images.ids[b],
        "similarity": similarity,
        "splits": [images.splits[a], images.splits[b]],
        "labels": [images.labels[a], images.labels[b]],
        "exact": exact,
    }
