"""The data's health as a report shows it: what ``health.json`` found, with pictures where there are any."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from etude.core.arrays import load_arrays
from etude.core.errors import EtudeError
from etude.core.files import read_json
from etude.core.predictions import Predictions
from etude.core.text import percent
from etude.journal.report.html import data_uri, kind_of

SPLITS = ("train", "valid", "test")
BUDGET = 1_900_000  # bytes of thumbnails; base64 makes a third more of them, and the page is to stay below 3 MB
_MOST = 24  # findings of each kind are shown
_MADE = "augmentation"  # sections of changed images, which keep the ids of those they were made of
_ARRAYS = ("ids", "split", "labels", "thumb_offsets", "thumb_bytes")


@dataclass(frozen=True, eq=False)
class Gallery:
    ids: tuple[str, ...]
    split: tuple[int, ...]  # of each its place in SPLITS
    labels: tuple[int, ...]  # -1 where unknown
    offsets: NDArray[np.int64]  # (K + 1,) where each thumbnail begins in pixels, and where the last one ends
    pixels: bytes
    groups: dict[str, list[list[int]]]  # by section, places in ids
    neighbours: dict[int, list[int]]  # the nearest training images of a place

    @classmethod
    def load(cls, path: Path) -> Gallery:
        arrays, sections = load_arrays(path, "thumbnails", _ARRAYS), read_json(path.with_suffix(".json"))
        kinds = {"ids": "U", "thumb_bytes": "u"}
        if any(array.ndim != 1 or array.dtype.kind not in kinds.get(name, "iu") for name, array in arrays.items()):
            raise EtudeError(f"{path} is not a gallery: its arrays have other types")
        count, offsets, pixels = len(arrays["ids"]), arrays["thumb_offsets"], arrays["thumb_bytes"].tobytes()
        lengths = {len(arrays["split"]), len(arrays["labels"]), len(offsets) - 1}
        rising = len(offsets) > 0 and offsets[0] >= 0 and (np.diff(offsets) > 0).all() and offsets[-1] <= len(pixels)
        if lengths != {count} or not rising or not set(arrays["split"].tolist()) <= set(range(len(SPLITS))):
            raise EtudeError(f"{path} is damaged: its lists do not fit together")
        try:
            groups, neighbours = _groups_of(sections, count)
        except (TypeError, ValueError, KeyError, AttributeError):
            raise EtudeError(f"{path.with_suffix('.json')} does not belong to {path.name}: it was damaged") from None
        ids, split, labels = (tuple(arrays[name].tolist()) for name in ("ids", "split", "labels"))
        gallery = cls(ids, split, labels, offsets.astype(np.int64), pixels, groups, neighbours)
        try:
            for row in range(count):
                kind_of(gallery.thumbnail(row))
        except EtudeError as error:
            raise EtudeError(f"{path}: {error}") from None
        return gallery

    def thumbnail(self, row: int) -> bytes:
        return self.pixels[int(self.offsets[row]) : int(self.offsets[row + 1])]


@dataclass(frozen=True, slots=True)
class Picture:
    source: str  # a data URI, or empty where the page has no room for it
    id: str
    label: str
    guess: str
    confidence: float | None
    split: str
    neighbours: tuple[Picture, ...] = ()

    @property
    def is_wrong(self) -> bool:
        return bool(self.label and self.guess) and self.label != self.guess

    @property
    def described(self) -> str:
        label = f", label {self.label}" if self.label else ""
        return f"{self.id}{label}{f', predicted {self.guess}' if self.guess else ''}"


class Album:
    """The pictures of a page until it is full; those that were left out are counted."""

    def __init__(self, gallery: Gallery, known: Sequence[Predictions], classes: Sequence[str]) -> None:
        self._gallery = gallery
        self._classes = tuple(known[0].classes if known else classes)
        self._guesses: dict[str, tuple[str, float]] = {}
        wanted = set(gallery.ids)
        for predictions in reversed(known):
            rows = [row for row, name in enumerate(predictions.ids) if name in wanted]
            if rows:
                few = predictions.take(rows)
                guesses, sure = few.predicted(), few.probabilities().max(axis=1)
                names = (few.classes[k] for k in guesses.tolist())
                self._guesses |= dict(zip(few.ids, zip(names, sure.tolist(), strict=True), strict=True))
        made = {
            row for name, rows in gallery.groups.items() if name.startswith(_MADE) for row in itertools.chain(*rows)
        }
        plain = [row for row in range(len(gallery.ids)) if row not in made]
        self._places = {(gallery.ids[row], SPLITS[gallery.split[row]] == "test"): row for row in plain}
        self._room = BUDGET
        self.left_out = 0

    def shown(self, section: str) -> list[list[Picture]]:
        """Return the section's groups of pictures; those of single images are groups of one."""
        return [[self._picture(row) for row in group] for group in self._gallery.groups.get(section, [])]

    def of(self, name: str, split: str) -> Picture | None:
        row = self._places.get((name, split == "test"))
        return None if row is None else self._picture(row, with_neighbours=False)

    def _picture(self, row: int, with_neighbours: bool = True) -> Picture:
        gallery, taken = self._gallery, self._gallery.thumbnail(row)
        source = data_uri(taken) if len(taken) <= self._room else ""
        self._room -= len(taken) if source else 0
        self.left_out += not source
        label, split = gallery.labels[row], SPLITS[gallery.split[row]]
        guess, sure = self._guesses.get(gallery.ids[row], ("", None)) if split != "train" else ("", None)
        near = gallery.neighbours.get(row, []) if with_neighbours else []
        name = self._classes[label] if 0 <= label < len(self._classes) else ""
        shown = tuple(self._picture(other, with_neighbours=False) for other in near)
        return Picture(source, gallery.ids[row], name, guess, sure, split, shown)


def _groups_of(sections: Any, count: int) -> tuple[dict[str, list[list[int]]], dict[int, list[int]]]:
    """Read the sections: an entry is a place, a list of places, or a table with ``row`` or ``rows``."""

    def place(value: Any) -> int:
        if not isinstance(value, int) or not 0 <= value < count:
            raise ValueError
        return value

    def group(entry: Any) -> list[int]:
        if isinstance(entry, Mapping):
            entry = entry["rows"] if "rows" in entry else entry["row"]
        return [place(one) for one in entry] if isinstance(entry, list) else [place(entry)]

    found: dict[str, list[list[int]]] = {}
    for section, entries in sections.items():
        if section == _MADE:
            found |= {f"{_MADE} {strength}": [group(row) for row in rows] for strength, rows in entries.items()}
        elif section != "neighbours":
            found[section] = [group(entry) for entry in entries]
    near = {place(int(row)): group(rows) for row, rows in sections.get("neighbours", {}).items()}
    return found, near


def health_of(found: Mapping[str, Any], album: Album | None) -> dict[str, Any]:
    """Return ``health.json`` as the page shows it; lists are cut to what a page can hold."""
    try:
        lists = {name: list(found.get(name) or []) for name in ("corrupt", "tiny", "near_duplicates", "label_errors")}
        across = sum(pair["splits"][0] != pair["splits"][1] for pair in lists["near_duplicates"])
        counts = {name: len(entries) for name, entries in lists.items()} | {"across_splits": across}
        leaks = [_leak(one) for one in found.get("leaks") or []]
        return {
            "counts": counts | (found.get("counts") or {}),
            "corrupt": [f"{one['id']}: {one['reason']}" for one in lists["corrupt"][:_MOST]],
            "tiny": [f"{one['id']}: {one['width']} × {one['height']} px" for one in lists["tiny"][:_MOST]],
            "duplicates": [_duplicates(pair, album) for pair in lists["near_duplicates"][:_MOST]],
            "suspects": [
                (_picture(str(one["id"]), album, "train", str(one["label"])), str(one["suggested"]), one["score"])
                for one in lists["label_errors"][:_MOST]
            ],
            "labels": sentence_of(found.get("labels")),
            "shift": _shift(found.get("shift") or {}),
            "leaks": leaks,
            "imbalance": sentence_of(found.get("imbalance")),
            "notes": [str(note) for note in found.get("notes") or []],
            "is_clean": not (leaks or any(lists.values())),
        }
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise EtudeError(f"health.json is damaged ({type(error).__name__}: {error}), so it is not shown") from None


def contradicts(pair: Mapping[str, Any]) -> bool:
    """Whether two images that are nearly the same have two labels."""
    first, second = _labels_of(pair)
    return None not in (first, second) and first != second


def _labels_of(pair: Mapping[str, Any]) -> tuple[str | None, str | None]:
    return pair.get("labels") or (None, None)


def _duplicates(pair: Mapping[str, Any], album: Album | None) -> tuple[list[Picture], str]:
    """Return two images that are nearly the same, and how they relate."""
    splits, labels = [str(split) for split in pair["splits"]], _labels_of(pair)
    pictures = [
        _picture(str(pair[end]), album, split, label or "")
        for end, split, label in zip("ab", splits, labels, strict=True)
    ]
    words = ["identical files" if pair.get("exact") else f"similarity {pair['similarity']:.3f}"]
    words.append(" and ".join(splits) if splits[0] != splits[1] else f"both {splits[0]}")
    if contradicts(pair):
        words.append(f"labelled {labels[0]} and {labels[1]}")
    return pictures, ", ".join(words)


def _picture(name: str, album: Album | None, split: str, label: str) -> Picture:
    found = None if album is None else album.of(name, split)
    return found or Picture("", name, label, "", None, split)


def _shift(shift: Mapping[str, Any]) -> str:
    if not shift:
        return ""
    low, high = shift["interval"]
    text = sentence_of(shift) or "A classifier was trained to distinguish them."
    return f"{text} AUC {shift['auc']:.3f}, 95% interval {low:.3f} to {high:.3f}; 0.5 is chance."


def _leak(leak: Mapping[str, Any]) -> str:
    text, accuracy = _summary(leak), leak.get("accuracy")
    if accuracy is None or "%" in text:
        return text
    return f"{text} ({percent(accuracy)} right where guessing gets {percent(leak['chance'])})"


def sentence_of(found: Mapping[str, Any] | None) -> str:
    text = _summary(found) if found else ""
    return f"{text[:1].upper()}{text[1:]}." if text else ""


def _summary(found: Mapping[str, Any]) -> str:
    """Return the summary of a finding; an etude before 0.2 wrote it as ``told``."""
    return str(found.get("summary") or found.get("told") or "")
