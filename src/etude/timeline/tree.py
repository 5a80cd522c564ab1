"""Timelines as plain tables, lists, numbers and text: the form that recipes (TOML), checkpoints and run.json hold.

Reader and writer follow the fields of the dataclasses and their type hints, so a new curve needs no code here, but an
entry in ``curves.CURVES``. A mistake raises a ValueError, one sentence that says in which phase and quantity (or in
``where``), what was received and what is accepted.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, fields
from typing import Any, Literal, TypeVar, cast, get_args, get_origin, get_type_hints

from etude.timeline.curves import CURVES, Constant, Curve
from etude.timeline.lengths import MAX_PARTS, Length, parse_length
from etude.timeline.phase import Phase
from etude.timeline.plan import Timeline
from etude.timeline.plateau import Event, Plateau

T = TypeVar("T")

_KEYS = {"curve": "of"}  # by field: `curve` is the key of a curve's name, so the curve that is scaled has another

_A_CURVE = "a number or a table such as {curve = 'linear', start = 0.0, end = 1.0}"
_TABLES: dict[type[Any], str] = {
    Timeline: "a table with the key 'phases'",
    Phase: "a table such as {name = 'warmup', length = 0.1, lr = 0.001}",
    Plateau: "a table such as {metric = 'valid_loss', patience = 2}",
    Event: "a table",
}
_PART = tuple[Length, Curve]
# By type of an entry: what a list of them is called, how many entries it has at most, and what one is called.
_LISTS: dict[Any, tuple[str, int, str | None]] = {
    Phase: ("a list of tables, one a phase", MAX_PARTS, "phase"),
    Event: ("a list of tables, one an event", 10_000, "event"),
    _PART: ("a list of tables such as {length = 0.5, of = {curve = 'linear', start = 0, end = 1}}", MAX_PARTS, None),
    float: ("a list of numbers in [0, 1]", 10_000, None),
}
_SCALARS: dict[type[Any], str] = {int: "a whole number", str: "text", bool: "true or false"}


def timeline_from_tree(value: object) -> Timeline:
    """Return the timeline that a table describes: ``phases``, a list of tables, and the timeline's other fields.

    >>> timeline_from_tree({"phases": [{"name": "all", "length": 1.0, "lr": 0.1}]}).at(0.5).lr
    0.1
    """
    return _read_table(Timeline, value, "timeline")


def phase_from_tree(value: object, where: str = "phase") -> Phase:
    """Return the phase that a table describes: its name, length, quantities, plateau and jump.

    >>> phase_from_tree({"name": "finish", "length": 0.2, "lr": {"curve": "cosine", "start": 1e-3, "end": 0}}).lr
    Cosine(start=0.001, end=0.0)
    """
    return _read_table(Phase, value, where)


def curve_from_tree(value: object, where: str = "curve") -> Curve:
    """Return the curve that ``value`` describes: a number (constant) or a table with the key ``curve``.

    The other keys are the curve's own fields. A curve inside another is written the same way: ``after`` of a warmup,
    ``of`` of a scaled curve, and ``parts`` of a joined one, a list of ``{length = ..., of = ...}``.

    >>> curve_from_tree({"curve": "warmup", "after": {"curve": "cosine", "start": 1, "end": 0}, "length": "2ep"})
    Warmup(after=Cosine(start=1.0, end=0.0), length='2ep', start=0.0)
    """
    if _is_number(value):
        return _read_fields(Constant, {"value": value}, where)
    table = dict(_table(value, where, _A_CURVE))
    if "curve" not in table:
        raise ValueError(f"{where}: the key 'curve' is missing; {_choices('', CURVES)}")
    name = table.pop("curve")
    if not isinstance(name, str) or name not in CURVES:
        raise ValueError(f"{where}: there is no curve {name!r}; {_choices(name, CURVES)}")
    return cast(Curve, _read_fields(CURVES[name], table, f"{where} ({name})"))


def timeline_to_tree(timeline: Timeline) -> dict[str, Any]:
    """Return ``timeline`` as :func:`timeline_from_tree` reads it: a table that JSON and TOML can hold.

    A curve of a class of your own, which no file can name, is refused by a ValueError.
    """
    return _tree_of(timeline)


def tree_of_curve(curve: Curve) -> float | dict[str, Any]:
    """Return ``curve`` as :func:`curve_from_tree` reads it.

    >>> tree_of_curve(CURVES["linear"](0.0, 1.0)), tree_of_curve(Constant(0.9))
    ({'curve': 'linear', 'start': 0.0, 'end': 1.0}, 0.9)
    """
    return _tree_of(curve)


def _tree_of(value: Any) -> Any:
    if isinstance(value, Constant):
        return value.value
    if isinstance(value, tuple):
        entries = cast(tuple[Any, ...], value)
        return [
            {"length": one[0], "of": _tree_of(one[1])} if isinstance(one, tuple) else _tree_of(one) for one in entries
        ]
    if type(value) in CURVES.values():
        tree = {"curve": value.name}
    elif type(value) in _TABLES:
        tree = {}
    elif callable(getattr(value, "at", None)):
        raise ValueError(f"the curve {value!r} cannot be written to a file; write one of {', '.join(CURVES)} instead")
    else:
        return value
    held = {field.name: getattr(value, field.name) for field in fields(value) if field.init}
    # None is left out, since TOML has no word for it.
    return tree | {_KEYS.get(name, name): _tree_of(one) for name, one in held.items() if one is not None}


def _read_table(kind: type[T], value: object, where: str) -> T:
    """Return the dataclass ``kind``, one of those in ``_TABLES``, from the table of its fields."""
    table = _table(value, "a timeline" if kind is Timeline else where, _TABLES[kind])
    name = table.get("name")
    return _read_fields(kind, table, f"phase {name!r}" if kind is Phase and name and isinstance(name, str) else where)


def _read_fields(kind: type[T], table: Mapping[str, object], where: str) -> T:
    found = {_KEYS.get(field.name, field.name): field for field in fields(cast(Any, kind)) if field.init}
    required = [key for key, field in found.items() if field.default is MISSING]
    for key in table:
        if key not in found:
            raise ValueError(f"{where}: unknown key {key!r}; {_choices(key, found)}")
    for key in required:
        if key not in table:
            raise ValueError(f"{where}: the key {key!r} is missing; required are {', '.join(map(repr, required))}")
    hints, names = get_type_hints(kind), {key: field.name for key, field in found.items()}
    values = {names[key]: _read(hints[names[key]], value, f"{where}, {key}") for key, value in table.items()}
    try:
        return kind(**values)
    except ValueError as error:
        message = str(error)
        raise ValueError(message if message.startswith(where) else f"{where}: {message}") from None


def _read(hint: Any, value: object, where: str) -> object:
    """Return ``value`` if it is what the type ``hint`` of a field allows; ValueError otherwise."""
    options = get_args(hint)
    if hint == Length:
        try:
            parse_length(cast(Length, value))
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        return value
    if hint == _PART:
        part = _table(value, where, "a table with the keys 'length' and 'of'")
        if set(part) != {"length", "of"}:
            raise ValueError(f"{where} must have the keys 'length' and 'of' and no other, got {sorted(part)}")
        return _read(Length, part["length"], f"{where}, length"), curve_from_tree(part["of"], f"{where}, of")
    if get_origin(hint) is tuple:
        accepted, most, entry = _LISTS[options[0]]
        if not isinstance(value, list | tuple):
            raise ValueError(f"{where} must be {accepted}, got {value!r}")
        entries = cast(Sequence[object], value)
        if len(entries) > most:
            raise ValueError(f"{where} has {len(entries):,} entries, and at most {most:,} are accepted")
        return tuple(_read(options[0], one, f"{entry or where} {count}") for count, one in enumerate(entries, 1))
    if get_origin(hint) is Literal:
        if value not in options:
            raise ValueError(f"{where} is {value!r}; {_choices(value, options)}")
        return value
    if hint is Curve or Curve in options:
        return curve_from_tree(value, where)
    kind = options[0] if options else hint  # of `int | None` and `Plateau | None` the first
    if kind in _TABLES:
        return _read_table(kind, value, where)
    if value is None and options:
        return None
    if kind is float and _is_number(value):
        return float(cast(float, value))
    if type(value) is not kind:
        raise ValueError(f"{where} must be {_SCALARS.get(kind, 'a number')}, got {value!r}")
    return value


def _table(value: object, where: str, accepted: str) -> Mapping[str, object]:
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in cast(Mapping[object, object], value)):
        return cast(Mapping[str, object], value)
    raise ValueError(f"{where} must be {accepted}, got {value!r}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _choices(received: object, known: Iterable[object]) -> str:
    names = [str(name) for name in known]
    near = difflib.get_close_matches(str(received), names, n=1, cutoff=0.6)
    accepted = ", ".join(map(repr, names))
    return f"accepted are {accepted}" + (f"; did you mean {near[0]!r}?" if near else "")
