"""Reading dataclasses from tables (of TOML or JSON), so that every mistake is told in one sentence with its place."""

from __future__ import annotations

import difflib
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, Field, fields
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from etude.timeline.lengths import Length, parse_length

T = TypeVar("T")
Reader = Callable[[object, str], object]
"""Takes a value as written and the place where it stands; returns what the dataclass holds."""

_TOLD: dict[type[object], str] = {int: "a whole number", str: "text", bool: "true or false"}


def build(
    kind: type[T],
    table: Mapping[str, object],
    where: str,
    readers: Mapping[str, Reader] | None = None,
    keys: Mapping[str, str] | None = None,
) -> T:
    """Return the dataclass ``kind`` from a table of its fields; fields left out keep their defaults.

    Args:
        kind: a dataclass.
        table: key to value.
        where: names the place in messages, such as ``"phase 'warmup', lr"``.
        readers: by field name, for fields that are more than a number, a string, a flag or a length.
        keys: by field name, the key where it is not the field's own name.

    Raises:
        ValueError: an unknown or missing key, a value of the wrong type, or one that ``kind`` refuses.
    """
    found: list[Field[Any]] = [field for field in fields(cast(Any, kind)) if field.init]
    named = {(keys or {}).get(field.name, field.name): field for field in found}
    for key in table:
        if key not in named:
            raise ValueError(f"{where}: unknown key {key!r}; {choices(key, named)}")
    hints = get_type_hints(kind)
    values: dict[str, object] = {}
    for key, field in named.items():
        if key in table:
            reader = (readers or {}).get(field.name)
            place = f"{where}, {key}"
            values[field.name] = reader(table[key], place) if reader else scalar(hints[field.name], table[key], place)
        elif field.default is MISSING and field.default_factory is MISSING:
            raise ValueError(f"{where}: the key {key!r} is missing; required are {_listed(_required(named))}")
    try:
        return kind(**values)
    except ValueError as error:
        said = str(error)
        raise ValueError(said if said.startswith(where) else f"{where}: {said}") from None


def as_table(value: object, where: str, accepted: str) -> Mapping[str, object]:
    """Return ``value`` if it is a table with text keys.

    Raises:
        ValueError: it is not.
    """
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in cast(Mapping[object, object], value)):
        return cast(Mapping[str, object], value)
    raise ValueError(f"{where} must be {accepted}, got {value!r}")


def as_list(value: object, where: str, accepted: str, most: int = 10_000) -> Sequence[object]:
    """Return ``value`` if it is a list or a tuple of at most ``most`` entries.

    Raises:
        ValueError: it is not.
    """
    if isinstance(value, list | tuple):
        entries = cast(Sequence[object], value)
        if len(entries) > most:
            raise ValueError(f"{where} has {len(entries):,} entries, and at most {most:,} are accepted")
        return entries
    raise ValueError(f"{where} must be {accepted}, got {value!r}")


def scalar(hint: object, value: object, where: str) -> object:
    """Return ``value`` if it is what the type ``hint`` of a field says: a number, text, a flag, a choice or a length.

    Raises:
        ValueError: it is not.
    """
    if hint == Length:
        return length(value, where)
    if get_origin(hint) in (Union, types.UnionType):
        inner = [part for part in get_args(hint) if part is not type(None)]
        return None if value is None else scalar(inner[0], value, where)
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            raise ValueError(f"{where} is {value!r}; {choices(value, get_args(hint))}")
        return value
    if hint is float:
        return number(value, where)
    kind = cast(type[object], hint)
    if type(value) is not kind:
        raise ValueError(f"{where} must be {_TOLD[kind]}, got {value!r}")
    return value


def number(value: object, where: str) -> float:
    """Return ``value`` as a float if it is a number.

    Raises:
        ValueError: it is not.
    """
    if is_number(value):
        return float(cast(float, value))
    raise ValueError(f"{where} must be a number, got {value!r}")


def is_number(value: object) -> bool:
    """Return whether ``value`` is an int or a float; True and False are flags, not numbers."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def length(value: object, where: str) -> Length:
    """Return ``value`` if it can be read as a length.

    Raises:
        ValueError: it cannot.
    """
    try:
        parse_length(cast(Length, value))
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    return cast(Length, value)


def choices(received: object, known: Iterable[object]) -> str:
    """Return what is accepted, and the nearest of it to what was received.

    >>> choices("cosin", ["linear", "cosine"])
    "accepted are 'linear', 'cosine'; did you mean 'cosine'?"
    """
    names = [str(name) for name in known]
    near = difflib.get_close_matches(str(received), names, n=1, cutoff=0.6)
    return f"accepted are {_listed(names)}" + (f"; did you mean {near[0]!r}?" if near else "")


def _listed(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in names)


def _required(named: Mapping[str, Field[Any]]) -> list[str]:
    return [key for key, field in named.items() if field.default is MISSING and field.default_factory is MISSING]
