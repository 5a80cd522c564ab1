"""The settings with what they accept, found by words; and what a name that is no setting may mean."""

from __future__ import annotations

import re
from difflib import SequenceMatcher
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from etude.core.errors import did_you_mean, plain
from etude.core.text import toml
from etude.recipe.settings import Recipe, Settings

SECTIONS = {name: type(one.default) for name, one in Recipe.model_fields.items() if isinstance(one.default, Settings)}

FIELDS: dict[str, FieldInfo] = {
    **{name: field for name, field in Recipe.model_fields.items() if name not in SECTIONS and field.description},
    **{f"{name}.{leaf}": one for name, section in SECTIONS.items() for leaf, one in section.model_fields.items()},
}
"""The field of every setting by its dotted name."""

# Words of other tools that share no letters with ours.
_OTHER_WORDS = {
    "size imagesize imgsize imgsz inputsize resolution": "timeline.final_size model.feature_size",
    "arch architecture network net modelname": "model.backbone",
    "pretrained": "model.weights",
    "learningrate": "train.lr",
    "bs batch": "train.batch_size",
    "wd": "train.weight_decay",
    "amp fp16": "train.precision",
    "ensemble": "train.networks",
    "steps maxsteps": "timeline.length",
    "scheduler lrscheduler schedule earlystopping": "timeline.preset",
    "validsplit validationsplit validpct": "data.valid",
    "flip rotate rotation": "augment.policy",
    "budget timelimit": "--budget",
    "out output": "--out",
    "recipe": "--recipe",
    "seed": "--seed",
    "teacher": "--teacher",
}
_ALIKE, _AKIN = 0.76, 0.7  # of two words, as difflib counts: typing errors, and longer forms of a section's name
_MOST = 3  # names of a suggestion
_MEANT = {word: names.split() for words, names in _OTHER_WORDS.items() for word in words.split()}


def accepted(field: FieldInfo) -> str:
    """Return the words or the limits of a setting; nothing where its description alone says what it takes."""
    if get_origin(field.annotation) is Literal:
        return ", ".join(map(str, get_args(field.annotation)))
    if field.annotation is bool:
        return "true, false"
    words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    limits = {name: getattr(one, name) for one in field.metadata for name in words if hasattr(one, name)}
    if limits.keys() == {"ge", "le"}:
        return f"{limits['ge']:,g} to {limits['le']:,g}"
    return ", ".join(f"{words[name]} {limit:,g}" for name, limit in limits.items())


def as_given(name: str, value: Any) -> str:
    """Return the value of a setting as ``--set`` takes it."""
    if value is None:  # TOML has no word for it: each such setting takes one of its own
        return "auto" if "auto" in (FIELDS[name].description or "") else "none"
    return value if isinstance(value, str) and value else toml(value)


def found(words: str) -> list[str]:
    """Return the settings of a section, or those with the words in their names or descriptions; all for no words."""
    if words in SECTIONS:
        return [name for name in FIELDS if name.startswith(f"{words}.")]
    if words and not plain(words):
        return []
    sought, described = plain(words), re.compile(rf"\b{re.escape(_spaced(words))}")
    return [
        name
        for name, field in FIELDS.items()
        if sought in plain(name) or described.search(_spaced(field.description or ""))
    ]


def meant(name: str) -> list[str]:
    """Return the settings that a name which is no setting may mean, at most three, the likeliest first."""
    section, _, leaf = name.rpartition(".")
    if plain(leaf) in _MEANT:
        return _MEANT[plain(leaf)]
    leaves = {key: key.rpartition(".")[2] for key in FIELDS}
    same = [key for key, one in leaves.items() if plain(one) == plain(leaf)]
    if section and same:
        return [max(same, key=lambda key: _likeness(key, name))]
    if plain(section.rpartition(".")[2]) in map(plain, leaves.values()):  # such as mixup.alpha
        return meant(section)
    first = {one: next(key for key in FIELDS if key.startswith(f"{one}.")) for one in SECTIONS}
    likely = {key: max(_likeness(one, leaf), 0 if section else _likeness(key, leaf)) for key, one in leaves.items()}
    best, words, short = max(likely.values()), {*_spaced(leaf).split()}, plain(leaf)
    tries = [[first[name]] if name in first else [], same]
    tries.append([key for key, like in likely.items() if like >= max(_ALIKE, best)])
    if len(short) > 2:
        if not section:
            tries.append([first[one] for one in SECTIONS if one.startswith(short) or _likeness(one, leaf) > _AKIN])
        tries.append([key for key, one in leaves.items() if short in plain(one) or {*_spaced(one).split()} <= words])
        if not section:
            tries.append(found(leaf))
    return next((names for names in tries if 0 < len(names) <= _MOST), [])


def hint(name: str) -> str:
    """Return a sentence on how to go on from a name that is no setting."""
    return did_you_mean(meant(name)) or " etude settings lists them all."


def _likeness(one: str, other: str) -> float:
    return SequenceMatcher(None, plain(one), plain(other)).ratio()


def _spaced(text: str) -> str:
    return re.sub(r"[-_.\s]+", " ", text.lower()).strip()
