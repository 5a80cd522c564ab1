"""What a report says about a run's settings, data, architecture and surroundings."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from etude.journal.quantities import duration, file_size, in_words, moment, percent
from etude.journal.report_folder import Model, RunFolder

_MOST_PARTS = 24  # of a network, listed one by one
_DEPTH = 3  # of the names by which weights are put together
_CHANNELS = {1: "1 (grey)", 3: "3 (RGB)"}

Facts = list[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting: as asked for and as used; ``changed`` from what the recipe says."""

    name: str
    asked: str
    used: str
    changed: bool


@dataclass(frozen=True, slots=True)
class Architecture:
    """The network in numbers.

    Args:
        facts: pairs of what and how much.
        parts: name, tensors and parameters of each part, in the order of the file.
        parameters: of the whole network.
    """

    facts: Facts
    parts: list[tuple[str, int, int]]
    parameters: int


def settings_of(record: Mapping[str, Any]) -> dict[str, list[Setting]]:
    """Return all settings by their section; those of the top level stand under ``recipe``."""
    used = (record.get("plan") or {}).get("resolved") or {}
    found: dict[str, list[Setting]] = {}
    for name in [*record["settings"], *(name for name in used if name not in record["settings"])]:
        section, _, last = name.rpartition(".")
        asked = in_words(record["settings"].get(name))
        one = Setting(last, asked, in_words(used[name]) if name in used else asked, name in record["changed"])
        found.setdefault(section or "recipe", []).append(one)
    return found


def data_facts(record: Mapping[str, Any]) -> Facts:
    """Return what the run was trained on; empty before the images were read."""
    data = record.get("data") or {}
    if not data:
        return []
    folds = data.get("folds") or []
    splits = [f"{fold['train']:,} to train, {fold['valid']:,} to validate" for fold in folds]
    facts: Iterable[tuple[str, Any]] = (
        ("images", data.get("described")),
        ("read from", data.get("train")),
        ("test images", f"{data['test_images']:,}" if data.get("test_images") else None),
        ("split", splits[0] if len(splits) == 1 else f"{len(splits)} folds of {splits[0]}" if splits else None),
        ("sample", data.get("sample")),
        ("decoded to", f"{data['stored_size']} px" if data.get("stored_size") else None),
        ("channels", _CHANNELS.get(data.get("channels", 0))),
        ("geometry", data.get("fit_reason")),
        ("fingerprint", data.get("fingerprint")),
    )
    augmentation = record.get("augmentation") or {}
    policy = f"{augmentation['policy']}: {augmentation['reason']}" if augmentation else None
    return [(name, str(value)) for name, value in (*facts, ("augmentation", policy)) if value is not None]


def architecture_of(run: RunFolder) -> Architecture | None:
    """Return the kept network in numbers, from ``model.json``, the weights' file, and what ``run.json`` adds.

    ``architecture`` of the record may hold ``parameters``, ``trainable`` and ``flops`` (of one image at
    ``image_size``).
    """
    model = next((model for model in run.models if model.card or model.tensors), None)
    if model is None:
        return None
    told, card = run.record.get("architecture") or {}, model.card
    shape = card.get("preprocessing") or {}
    counted = sum(map(math.prod, model.tensors.values()))
    parameters = int(told.get("parameters") or counted)
    trainable, flops = told.get("trainable"), told.get("flops")
    facts: Iterable[tuple[str, Any]] = (
        ("backbone", card.get("backbone")),
        ("parameters", f"{parameters:,}" if parameters else None),
        ("trained of them", None if trainable is None else f"{int(trainable):,}"),
        ("FLOPs an image", None if flops is None else f"{_prefixed(float(flops))}{_at(told.get('image_size'))}"),
        ("input", _input(shape) if shape else None),
        ("normalised by", f"mean {in_words(shape['mean'])}, std {in_words(shape['std'])}" if shape else None),
        ("classes", f"{len(card['classes']):,}" if card.get("classes") else None),
        ("precision", card.get("precision")),
        ("views a prediction (TTA)", card.get("tta")),
        ("models", len(run.models) if len(run.models) > 1 else None),
    )
    return Architecture([(name, str(value)) for name, value in facts if value is not None], _parts(model), counted)


def environment_facts(record: Mapping[str, Any]) -> Facts:
    """Return the machine, the versions, the state of the code, and when the run took place."""
    around = record["environment"]
    git = around.get("git") or {}
    commit = f"{git['commit']}{', with uncommitted changes' if git.get('dirty') else ''}" if git.get("commit") else None
    facts: Iterable[tuple[str, Any]] = (
        ("started", moment(record["started"])),
        ("ended", moment(record["ended"]) if record["ended"] else None),
        ("resumed", ", ".join(map(moment, record["resumed"])) or None),
        ("trained on", (record.get("plan") or {}).get("device")),
        ("processor", around.get("cpu")),
        ("cores", around.get("cores")),
        ("memory", file_size(around["memory_bytes"]) if around.get("memory_bytes") else None),
        ("platform", around.get("platform")),
        ("Python", around.get("python")),
        ("etude", around.get("etude")),
        ("git commit", commit),
        ("uncommitted changes", git.get("diff")),
    )
    named = {"etude", "python", "platform", "cpu", "cores", "memory_bytes", "git", "packages"}
    others = ((name.replace("_", " "), in_words(value)) for name, value in around.items() if name not in named)
    packages = ((name, version) for name, version in (around.get("packages") or {}).items())
    return [(name, str(value)) for name, value in (*facts, *others, *packages) if value is not None]


def recipe_to_reproduce(record: Mapping[str, Any]) -> str:
    """Return the shell commands that make the run again."""
    around = record["environment"]
    git, packages = around.get("git") or {}, around.get("packages") or {}
    lines: list[str] = []
    if git.get("commit"):
        dirty = "  # and the changes that were not committed" if git.get("dirty") else ""
        lines.append(f"git checkout {git['commit']}{dirty}")
    pins = [f"{name}=={str(version).partition('+')[0]}" for name, version in packages.items()]
    if pins:
        lines.append("pip install " + shlex.join([f"etude=={around.get('etude')}", *pins]))
    lines.append(shlex.join(map(str, record["command"])))
    return "\n".join(lines)


def planned_against_taken(record: Mapping[str, Any]) -> str:
    """Return how long the plan had said that the run would take, or nothing."""
    planned = sum(((record.get("plan") or {}).get("expected_seconds") or {}).values())
    unbroken = duration(planned).replace(" ", "\N{NO-BREAK SPACE}")
    return f"planned {unbroken}" if planned else ""


def rounds_table(record: Mapping[str, Any]) -> tuple[list[str], list[list[str]]] | None:
    """Return columns and rows of the rounds with unlabelled images that were judged, or None."""
    rounds = record.get("rounds")
    if not isinstance(rounds, list) or not rounds or not all(isinstance(one, dict) for one in rounds):
        return None
    columns = ["round", "pseudo-labels", "labels that changed", "off the expected class shares", "verdict"]
    return columns, [
        [
            str(one.get("name", "")),
            str(one.get("pseudo_labels") or "made in training"),
            percent(one.get("changed")),
            percent(one.get("from_prior")),
            str(one.get("told", "")),
        ]
        for one in rounds
    ]


def _parts(model: Model) -> list[tuple[str, int, int]]:
    """Put the weights together by the first parts of their names, fewer of them while there are too many groups."""
    groups: dict[str, list[int]] = {}
    for depth in range(_DEPTH, 0, -1):
        groups = {}
        for name, shape in sorted(model.tensors.items(), key=lambda item: _natural(item[0])):
            parts = name.split(".")
            groups.setdefault(".".join(parts[: min(depth, len(parts) - 1)]) or name, []).append(math.prod(shape))
        if len(groups) <= _MOST_PARTS:
            break
    return [(name, len(sizes), sum(sizes)) for name, sizes in groups.items()]


def _natural(name: str) -> list[tuple[bool, int, str]]:
    return [(part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in name.split(".")]


def _input(shape: Mapping[str, Any]) -> str:
    count = shape["in_channels"]
    return f"{shape['size']} × {shape['size']} px, channels: {_CHANNELS.get(count, count)}"


def _at(size: Any) -> str:
    return f" at {size} px" if size else ""


def _prefixed(value: float) -> str:
    for size, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if value >= size:
            return f"{value / size:.3g} {prefix}FLOPs"
    return f"{value:,.0f}"
