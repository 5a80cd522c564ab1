"""Ids of the same images as two files write them: with or without folders and endings."""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import PurePosixPath


@dataclass(frozen=True, slots=True)
class IdMatch:
    """Which of our ids the wanted ones are."""

    rows: list[int]  # for each wanted id its position among ours, -1 where it is missing
    missing: list[str]  # wanted ids that are none of ours
    extra: list[str]  # ids of ours that are not wanted


def match_ids(ours: Sequence[str], wanted: Sequence[str], *, folders: bool = True) -> IdMatch:
    """Find the wanted ids among ours: exactly as they are, else without ending, else without folders, else neither.

    One way is taken for all ids: the strictest of those that leave the fewest over. A way that makes two ids of one
    side the same is never taken. Both sides hold unique ids. With ``folders``, images in different folders may be the
    same; not where some may rightly be missing, since different images with equal names are then found instead.
    """
    closest: IdMatch | None = None
    for own_key, wanted_key in _WAYS if folders else _WAYS[:3]:
        own_keys, wanted_keys = [own_key(name) for name in ours], [wanted_key(name) for name in wanted]
        position = {key: index for index, key in enumerate(own_keys)}
        distinct = set(wanted_keys)
        if len(position) < len(ours) or len(distinct) < len(wanted):
            continue
        rows = [position.get(key, -1) for key in wanted_keys]
        found = IdMatch(
            rows,
            missing=[name for name, row in zip(wanted, rows, strict=True) if row < 0],
            extra=[name for name, key in zip(ours, own_keys, strict=True) if key not in distinct],
        )
        if closest is None or len(found.missing) + len(found.extra) < len(closest.missing) + len(closest.extra):
            closest = found
        if not closest.missing and not closest.extra:
            break
    assert closest is not None  # the first way compares unique ids, so it is never ambiguous
    return closest


def _path_of(name: str) -> PurePosixPath:
    return PurePosixPath(name.replace("\\", "/"))


def _same(name: str) -> str:
    return name


def _without_suffix(name: str) -> str:
    return str(_path_of(name).with_suffix("")) if _path_of(name).name else name


def _file_name(name: str) -> str:
    return _path_of(name).name


def _stem(name: str) -> str:
    return _path_of(name).stem


# How an id of ours and a wanted one may come to be the same text, from the strictest way on.
_WAYS: tuple[tuple[Callable[[str], str], Callable[[str], str]], ...] = (
    (_same, _same),
    (_without_suffix, _same),
    (_same, _without_suffix),
    (_file_name, _file_name),
    (_stem, _file_name),
    (_file_name, _stem),
    (_stem, _stem),
)


# The positive word of a pair, and its counterpart.
_COUNTERPARTS = {"true": "false", "yes": "no", "positive": "negative", "pos": "neg", "t": "f", "y": "n"}


def tidy_label(label: str) -> str:
    """Return a label without outer white space and with accents as single characters (NFC)."""
    return unicodedata.normalize("NFC", label).strip()


def spellings(labels: Iterable[str], classes: Sequence[str] | None = None) -> dict[str, str]:
    """Return the labels that differ from another only by outer white space or Unicode form, and what they mean.

    ``classes`` are the texts that labels must have, where they are known; a text that is a class stays as it is.
    """
    texts: defaultdict[str, set[str]] = defaultdict(set)
    for label in sorted(set(labels if classes is None else classes)):
        texts[tidy_label(label)].add(label)
    if classes is None:
        shared = {key: same for key, same in texts.items() if len(same) > 1}
        return {text: key for key, same in shared.items() for text in sorted(same) if text != key}
    exact, only = set(classes), {key: next(iter(same)) for key, same in texts.items() if len(same) == 1}
    return {
        label: only[tidy_label(label)]
        for label in sorted(set(labels))
        if label not in exact and tidy_label(label) in only
    }


def spelled_as(names: Sequence[str], classes: Sequence[str]) -> tuple[str, ...]:
    """Return unique ``names`` with the texts that ``classes`` have for them, where only white space or form differ."""
    known = spellings(names, classes)
    return tuple(name if known.get(name, name) in names else known[name] for name in names)


def similar_labels(classes: Iterable[str]) -> list[tuple[str, ...]]:
    """Return the classes that differ only by case, white space, width of characters or how a number is written."""
    similar: defaultdict[str, list[str]] = defaultdict(list)
    for name in sorted(set(classes)):
        key = " ".join(unicodedata.normalize("NFKC", name).casefold().split())
        with suppress(ValueError):
            key = str(float(key))
        similar[key].append(name)
    return [tuple(names) for names in similar.values() if len(names) > 1]


def positive_class(classes: Sequence[str]) -> str | None:
    """Return the class of two whose probability a single column holds: 1, true, yes or positive; None if unclear."""
    if len(classes) != 2:
        return None
    for positive, other in (tuple(classes), tuple(reversed(classes))):
        word, counterpart = tidy_label(positive).casefold(), tidy_label(other).casefold()
        if _COUNTERPARTS.get(word) == counterpart or (word in ("1", "1.0") and counterpart in ("0", "0.0", "-1")):
            return positive
    return None
