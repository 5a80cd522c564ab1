"""The data's health as a report shows it: what ``health.json`` found, with pictures where there are any."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from etude.core.errors import EtudeError
from etude.journal.quantities import percent
from etude.journal.report_gallery import Album, Picture

_MOST = 24  # of each kind are shown


@dataclass(frozen=True, slots=True)
class Duplicates:
    """Two images that are nearly the same, and in a few words how they stand to each other."""

    pictures: tuple[Picture, Picture]
    told: str


@dataclass(frozen=True, slots=True)
class Suspect:
    """An image whose label may be wrong, with the class that images like it suggest, and how sure that is."""

    picture: Picture
    suggested: str
    score: float


@dataclass(frozen=True, slots=True)
class Health:
    """What was found; lists are cut to what a page can show.

    Args:
        counts: how many of each kind were found; a kind that was not looked for is missing.
        corrupt: files that cannot be read, with the reason.
        tiny: images too small to tell much.
        duplicates: copies, those across splits first.
        suspects: suspected label errors, the most suspicious first.
        labels: how far they are to be believed; may be empty.
        shift: how training and test images differ; empty when it was not measured.
        leaks: what gives the label away.
        imbalance: what is to be said of the sizes of the classes; may be empty.
        notes: what was left out.
    """

    counts: dict[str, int]
    corrupt: list[str]
    tiny: list[str]
    duplicates: list[Duplicates]
    suspects: list[Suspect]
    labels: str
    shift: str
    leaks: list[str]
    imbalance: str
    notes: list[str]

    @property
    def is_clean(self) -> bool:
        """Whether nothing was found."""
        return not (self.corrupt or self.tiny or self.duplicates or self.suspects or self.leaks)


def health_of(told: Mapping[str, Any], album: Album | None) -> Health:
    """Return what ``health.json`` says.

    Raises:
        EtudeError: it says something else than a run writes.
    """
    try:
        return _health_of(told, album)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise EtudeError(f"health.json is damaged ({type(error).__name__}: {error}), so it is not shown") from None


def _health_of(told: Mapping[str, Any], album: Album | None) -> Health:
    lists = {name: list(told.get(name) or []) for name in ("corrupt", "tiny", "near_duplicates", "label_errors")}
    across = sum(pair["splits"][0] != pair["splits"][1] for pair in lists["near_duplicates"])
    counts = {name: len(found) for name, found in lists.items()} | {"across_splits": across}
    return Health(
        counts=counts | (told.get("counts") or {}),
        corrupt=[f"{one['id']}: {one['reason']}" for one in lists["corrupt"][:_MOST]],
        tiny=[f"{one['id']}: {one['width']} × {one['height']} px" for one in lists["tiny"][:_MOST]],
        duplicates=[_duplicates(pair, album) for pair in lists["near_duplicates"][:_MOST]],
        suspects=[_suspect(one, album) for one in lists["label_errors"][:_MOST]],
        labels=_sentence((told.get("labels") or {}).get("told")),
        shift=_shift(told.get("shift") or {}),
        leaks=[_leak(one) for one in told.get("leaks") or []],
        imbalance=_sentence((told.get("imbalance") or {}).get("told")),
        notes=[str(note) for note in told.get("notes") or []],
    )


def _duplicates(pair: Mapping[str, Any], album: Album | None) -> Duplicates:
    splits, labels = [str(split) for split in pair["splits"]], pair.get("labels") or (None, None)
    one, other = (
        _picture(str(pair[end]), album, split, label or "")
        for end, split, label in zip("ab", splits, labels, strict=True)
    )
    words = ["identical files" if pair.get("exact") else f"similarity {pair['similarity']:.3f}"]
    words.append(" and ".join(splits) if splits[0] != splits[1] else f"both {splits[0]}")
    if None not in labels and labels[0] != labels[1]:
        words.append(f"labelled {labels[0]} and {labels[1]}")
    return Duplicates((one, other), ", ".join(words))


def _suspect(one: Mapping[str, Any], album: Album | None) -> Suspect:
    return Suspect(_picture(str(one["id"]), album, "train", str(one["label"])), str(one["suggested"]), one["score"])


def _picture(name: str, album: Album | None, split: str, label: str) -> Picture:
    found = None if album is None else album.of(name, split)
    return found or Picture("", name, label, "", None, split)


def _shift(shift: Mapping[str, Any]) -> str:
    if not shift:
        return ""
    low, high = shift["interval"]
    told = _sentence(shift.get("told") or "a classifier was asked to tell them apart")
    return f"{told} AUC {shift['auc']:.3f}, 95% interval {low:.3f} to {high:.3f}; 0.5 is chance."


def _leak(leak: Mapping[str, Any]) -> str:
    """Return the leak's own words, with its figures where these lack them."""
    told, accuracy = str(leak["told"]), leak.get("accuracy")
    if accuracy is None or "%" in told:
        return told
    return f"{told} ({percent(accuracy)} right where guessing gets {percent(leak['chance'])})"


def _sentence(told: Any) -> str:
    return f"{str(told)[:1].upper()}{str(told)[1:]}." if told else ""
