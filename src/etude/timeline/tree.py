"""Timelines as plain tables, lists, numbers and text: as recipes (TOML), checkpoints and run.json hold them."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, cast

from etude.timeline.composed import Joined, Scaled, Warmup
from etude.timeline.curves import Constant, Cosine, Curve, Exponential, Linear, OneCycle, Steps
from etude.timeline.cyclic import ExpRange, Triangular, Triangular2
from etude.timeline.lengths import MOST_PARTS
from etude.timeline.moment import QUANTITIES
from etude.timeline.phase import Phase
from etude.timeline.plan import Timeline
from etude.timeline.plateau import Event, Plateau
from etude.timeline.reading import Reader, as_list, as_table, build, choices, is_number, length, number

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
