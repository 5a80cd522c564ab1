"""Timelines as plain tables, lists, numbers and text: as recipes (TOML), checkpoints and run.json hold them."""

from __future__ import annotations

import difflib
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, Field, fields
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from etude.timeline.curves import (
    Constant,
    Cosine,
    Curve,
    Exponential,
    ExpRange,
    Joined,
    Linear,
    OneCycle,
    Scaled,
    Steps,
    Triangular,
    Triangular2,
    Warmup,
)
from etude.timeline.lengths import MOST_PARTS, Length, parse_length
from etude.timeline.phase import QUANTITIES, Phase
from etude.timeline.plan import Timeline
from etude.timeline.plateau import Event, Plateau

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


CURVES: dict[str, type[Any]] = {
    "constant": Constant,
    "linear": Linear,
    "cosine": Cosine,
    "exponential": Exponential,
    "steps": Steps,
    "one_cycle": OneCycle,
    "triangular": Triangular,
    "triangular2": Triangular2,
    "exp_range": ExpRange,
    "warmup": Warmup,
    "joined": Joined,
    "scaled": Scaled,
}
"""The curves by the name they have under the key ``curve``."""

# `curve` names the kind of curve, so the curve that is scaled stands under another key.
_KEYS = {"curve": "of"}
_A_CURVE = "a number or a table such as {curve = 'linear', start = 0.0, end = 1.0}"


def curve_from_tree(value: object, where: str = "curve") -> Curve:
    """Return the curve that ``value`` describes: a number (constant) or a table with the key ``curve``.

    The other keys are the curve's own fields. A curve inside another is written the same way: ``after`` of a warmup,
    ``of`` of a scaled curve, and ``parts`` of a joined one, a list of ``{length = ..., of = ...}``.

    Args:
        value: what was read from TOML or JSON.
        where: names the place in messages.

    Raises:
        ValueError: one sentence that says where, what was received and what is accepted.

    >>> curve_from_tree({"curve": "warmup", "after": {"curve": "cosine", "start": 1, "end": 0}, "length": "2ep"})
    Warmup(after=Cosine(start=1.0, end=0.0), length='2ep', start=0.0)
    """
    if is_number(value):
        return build(Constant, {"value": value}, where)
    table = as_table(value, where, _A_CURVE)
    if "curve" not in table:
        raise ValueError(f"{where}: the key 'curve' is missing; {choices('', CURVES)}")
    name = table["curve"]
    if not isinstance(name, str) or name not in CURVES:
        raise ValueError(f"{where}: there is no curve {name!r}; {choices(name, CURVES)}")
    settings = {key: setting for key, setting in table.items() if key != "curve"}
    readers: dict[str, Reader] = {
        "after": curve_from_tree,
        "curve": curve_from_tree,
        "parts": _parts,
        "milestones": _milestones,
    }
    return cast(Curve, build(CURVES[name], settings, f"{where} ({name})", readers, _KEYS))


def tree_of_curve(curve: Curve) -> float | dict[str, Any]:
    """Return ``curve`` as :func:`curve_from_tree` reads it.

    Raises:
        ValueError: the curve is of a class of your own, which no file can name.

    >>> tree_of_curve(Linear(0.0, 1.0)), tree_of_curve(Constant(0.9))
    ({'curve': 'linear', 'start': 0.0, 'end': 1.0}, 0.9)
    """
    if isinstance(curve, Constant):
        return curve.value
    name = next((name for name, kind in CURVES.items() if type(curve) is kind), None)
    if name is None:
        raise ValueError(f"the curve {curve!r} cannot be written to a file; write one of {', '.join(CURVES)} instead")
    tree: dict[str, Any] = {"curve": name}
    for field in fields(cast(Any, curve)):
        value: Any = getattr(curve, field.name)
        if field.name == "parts":
            value = [{"length": part_length, "of": tree_of_curve(part)} for part_length, part in value]
        elif field.name in ("after", "curve"):
            value = tree_of_curve(value)
        tree[_KEYS.get(field.name, field.name)] = list(value) if field.name == "milestones" else value
    return tree


def phase_from_tree(value: object, where: str = "phase") -> Phase:
    """Return the phase that a table describes: its name, length, quantities, plateau and jump.

    Args:
        value: what was read from TOML or JSON.
        where: names the place in messages for as long as the phase's own name is not known.

    Raises:
        ValueError: one sentence that says where, what was received and what is accepted.

    >>> phase_from_tree({"name": "finish", "length": 0.2, "lr": {"curve": "cosine", "start": 1e-3, "end": 0}}).lr
    Cosine(start=0.001, end=0.0)
    """
    table = as_table(value, where, "a table such as {name = 'warmup', length = 0.1, lr = 0.001}")
    name = table.get("name")
    if isinstance(name, str) and name:
        where = f"phase {name!r}"
    readers: dict[str, Reader] = dict.fromkeys(QUANTITIES, curve_from_tree)
    return build(Phase, table, where, readers | {"plateau": plateau_from_tree})


def tree_of_phase(phase: Phase) -> dict[str, Any]:
    """Return ``phase`` as :func:`phase_from_tree` reads it; quantities that are not scheduled are left out.

    Raises:
        ValueError: a curve is of a class of your own.
    """
    tree: dict[str, Any] = {"name": phase.name, "length": phase.length, "jump": phase.jump}
    tree |= {quantity: tree_of_curve(curve) for quantity, curve in phase.curves().items()}
    if phase.plateau is not None:
        tree["plateau"] = _flat(phase.plateau)
    return tree


def plateau_from_tree(value: object, where: str = "plateau") -> Plateau:
    """Return the :class:`Plateau` that a table of its fields describes.

    Raises:
        ValueError: one sentence that says where, what was received and what is accepted.
    """
    return build(Plateau, as_table(value, where, "a table such as {metric = 'valid_loss', patience = 2}"), where)


def timeline_from_tree(value: object) -> Timeline:
    """Return the timeline that a table describes: ``phases``, a list of tables, and the timeline's other fields.

    Raises:
        ValueError: one sentence that says which phase and quantity, what was received and what is accepted.

    >>> timeline_from_tree({"phases": [{"name": "all", "length": 1.0, "lr": 0.1}]}).at(0.5).lr
    0.1
    """
    table = as_table(value, "a timeline", "a table with the key 'phases'")
    return build(Timeline, table, "timeline", {"phases": _phases, "events": _events})


def timeline_to_tree(timeline: Timeline) -> dict[str, Any]:
    """Return ``timeline`` as :func:`timeline_from_tree` reads it: a table that JSON and TOML can hold.

    Raises:
        ValueError: a curve is of a class of your own, which no file can name.
    """
    tree = _flat(timeline)
    tree["phases"] = [tree_of_phase(phase) for phase in timeline.phases]
    tree["events"] = [_flat(event) for event in timeline.events]
    return tree


def _flat(settings: Timeline | Plateau | Event) -> dict[str, Any]:
    """Return the settings by name without those that are None, which TOML cannot say."""
    values = {field.name: getattr(settings, field.name) for field in fields(settings) if field.init}
    return {name: value for name, value in values.items() if value is not None}


def _parts(value: object, where: str) -> tuple[tuple[float | str, Curve], ...]:
    accepted = "a list of tables such as {length = 0.5, of = {curve = 'linear', start = 0.0, end = 1.0}}"
    parts: list[tuple[float | str, Curve]] = []
    for count, part in enumerate(as_list(value, where, accepted, MOST_PARTS), 1):
        place = f"{where} {count}"
        table = as_table(part, place, "a table with the keys 'length' and 'of'")
        if set(table) != {"length", "of"}:
            raise ValueError(f"{place} must have the keys 'length' and 'of' and no other, got {sorted(table)}")
        parts.append((length(table["length"], f"{place}, length"), curve_from_tree(table["of"], f"{place}, of")))
    return tuple(parts)


def _milestones(value: object, where: str) -> tuple[float, ...]:
    return tuple(number(item, where) for item in as_list(value, where, "a list of numbers in [0, 1]"))


def _phases(value: object, where: str) -> tuple[Phase, ...]:
    written = as_list(value, where, "a list of tables, one a phase", MOST_PARTS)
    return tuple(phase_from_tree(phase, f"phase {count}") for count, phase in enumerate(written, 1))


def _events(value: object, where: str) -> tuple[Event, ...]:
    written = as_list(value, where, "a list of tables, one an event")
    tables = (as_table(event, f"event {count}", "a table") for count, event in enumerate(written, 1))
    return tuple(build(Event, table, f"event {count}") for count, table in enumerate(tables, 1))
