"""Labels as people write them: spellings of one class, classes that look alike, and the positive one of two."""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import suppress

# The positive word of a pair, and its counterpart.
_COUNTERPARTS = {"true": "false", "yes": "no", "positive": "negative", "pos": "neg", "t": "f", "y": "n"}


def tidy_label(label: str) -> str:
    """Return a label without outer white space and with accents as single characters (NFC).

    >>> tidy_label(" box ")
    'box'
    """
    return unicodedata.normalize("NFC", label).strip()


def spellings(labels: Iterable[str], classes: Sequence[str] | None = None) -> dict[str, str]:
    """Return the labels that differ from another only by outer white space or Unicode form, and what they stand for.

    Args:
        labels: any number of each.
        classes: the texts that labels must have, where they are known; a text that is a class stays as it is.

    >>> spellings(["box", "box ", " cat"])
    {'box ': 'box'}
    >>> spellings(["box ", "cat"], classes=["box", "cat"])
    {'box ': 'box'}
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
    """Return unique ``names`` with the texts that ``classes`` have for them, where only white space or form differ.

    >>> spelled_as(["dog", "box "], ["box", "cat"])
    ('dog', 'box')
    """
    known = spellings(names, classes)
    return tuple(name if known.get(name, name) in names else known[name] for name in names)


def look_alikes(classes: Iterable[str]) -> list[tuple[str, ...]]:
    """Return the classes that differ only by case, white space, width of characters or how a number is written.

    >>> look_alikes(["box", "Box", "polar bear", "polar  bear", "cat", "1", "1.0"])
    [('1', '1.0'), ('Box', 'box'), ('polar  bear', 'polar bear')]
    """
    alike: defaultdict[str, list[str]] = defaultdict(list)
    for name in sorted(set(classes)):
        key = " ".join(unicodedata.normalize("NFKC", name).casefold().split())
        with suppress(ValueError):
            key = str(float(key))
        alike[key].append(name)
    return [tuple(names) for names in alike.values() if len(names) > 1]


def positive_class(classes: Sequence[str]) -> str | None:
    """Return the class of two whose probability a single column holds: 1, true, yes or positive; None if unclear.

    >>> positive_class(["0", "1"]), positive_class(["No", "Yes"]), positive_class(["cat", "dog"])
    ('1', 'Yes', None)
    """
    if len(classes) != 2:
        return None
    for positive, other in (tuple(classes), tuple(reversed(classes))):
        word, counterpart = tidy_label(positive).casefold(), tidy_label(other).casefold()
        if _COUNTERPARTS.get(word) == counterpart or (word in ("1", "1.0") and counterpart in ("0", "0.0", "-1")):
            return positive
    return None
