"""The tables of a report: settings, data, network, environment, and the contribution and cost of each step."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from etude.core.text import duration, file_size, in_words, moment, percent, plain_name
from etude.journal.report.charts import chart
from etude.journal.report.folder import Model, RunFolder
from etude.journal.runs import IN_NO_STAGE, KILLED, seconds_in_no_stage, stopped_at, was_kept

_MOST_PARTS = 24  # of a network, listed one by one
_DEPTH = 3  # of the names by which weights are put together
FOLD = re.compile(r" \(fold (\d+)/\d+\)$")  # the end of a stage's name
_CHANNELS = {1: "1 (grey)", 3: "3 (RGB)"}

Facts = list[tuple[str, str]]
Stages = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Setting:
    name: str
    requested: str
    used: str
    changed: bool


@dataclass(frozen=True, slots=True)
class Architecture:
    facts: Facts
    parts: list[tuple[str, int, int]]  # name, tensors and parameters, in the order of the file
    parameters: int


def settings_of(record: Mapping[str, Any]) -> dict[str, list[Setting]]:
    """Return all settings by their section; those of the top level stand under ``recipe``."""
    used = (record.get("plan") or {}).get("resolved") or {}
    found: dict[str, list[Setting]] = {}
    for name in [*record["settings"], *(name for name in used if name not in record["settings"])]:
        section, _, last = name.rpartition(".")
        requested = in_words(record["settings"].get(name))
        one = Setting(last, requested, in_words(used[name]) if name in used else requested, name in record["changed"])
        found.setdefault(section or "recipe", []).append(one)
    return found


def data_facts(record: Mapping[str, Any]) -> Facts:
    data = record.get("data") or {}
    if not data:
        return []
    folds = data.get("folds") or []
    splits = [f"{fold['train']:,} to train, {fold['valid']:,} to validate" for fold in folds]
    augmentation = record.get("augmentation") or {}
    return _known(
        ("images", data.get("described")),
        ("read from", data.get("train")),
        ("test images", f"{data['test_images']:,}" if data.get("test_images") else None),
        ("split", splits[0] if len(splits) == 1 else f"{len(splits)} folds of {splits[0]}" if splits else None),
        ("sample", data.get("sample")),
        ("decoded to", f"{data['stored_size']} px" if data.get("stored_size") else None),
        ("channels", _CHANNELS.get(data.get("channels", 0))),
        ("geometry", data.get("fit_reason")),
        ("fingerprint", data.get("fingerprint")),
        ("augmentation", f"{augmentation['policy']}: {augmentation['reason']}" if augmentation else None),
    )


def _known(*facts: tuple[str, Any]) -> Facts:
    return [(name, str(value)) for name, value in facts if value is not None]


def architecture_of(run: RunFolder) -> Architecture | None:
    """Return the kept network in numbers, from ``model.json``, the weights' file and the record."""
    model = next((model for model in run.models if model.card or model.tensors), None)
    if model is None:
        return None
    recorded, card = run.record.get("architecture") or {}, model.card
    shape = card.get("preprocessing") or {}
    counted = sum(map(math.prod, model.tensors.values()))
    parameters = int(recorded.get("parameters") or counted)
    trainable, flops = recorded.get("trainable"), recorded.get("flops")
    size = f" at {recorded['image_size']} px" if recorded.get("image_size") else ""
    count = shape.get("in_channels", 0)
    channels = _CHANNELS.get(count, str(count))
    facts = _known(
        ("backbone", card.get("backbone")),
        ("parameters", f"{parameters:,}" if parameters else None),
        ("trained of them", None if trainable is None else f"{int(trainable):,}"),
        ("FLOPs an image", None if flops is None else f"{_prefixed(float(flops))}{size}"),
        ("input", f"{shape['size']} × {shape['size']} px, channels: {channels}" if shape else None),
        ("normalised by", f"mean {in_words(shape['mean'])}, std {in_words(shape['std'])}" if shape else None),
        ("classes", f"{len(card['classes']):,}" if card.get("classes") else None),
        ("precision", card.get("precision")),
        ("views a prediction (TTA)", card.get("tta")),
        ("models", len(run.models) if len(run.models) > 1 else None),
    )
    return Architecture(facts, _parts(model), counted)


def environment_facts(record: Mapping[str, Any]) -> Facts:
    around = record["environment"]
    git = around.get("git") or {}
    commit = f"{git['commit']}{', with uncommitted changes' if git.get('dirty') else ''}" if git.get("commit") else None
    named = {"etude", "python", "platform", "cpu", "cores", "memory_bytes", "git", "packages"}
    return _known(
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
        *((name.replace("_", " "), in_words(value)) for name, value in around.items() if name not in named),
        *(around.get("packages") or {}).items(),
    )


def recipe_to_reproduce(record: Mapping[str, Any]) -> str:
    around = record["environment"]
    git, packages = around.get("git") or {}, around.get("packages") or {}
    dirty = "  # and the changes that were not committed" if git.get("dirty") else ""
    lines = [f"git checkout {git['commit']}{dirty}"] if git.get("commit") else []
    if pins := [f"{name}=={str(version).partition('+')[0]}" for name, version in packages.items()]:
        commit = f"  # at commit {around['etude_commit']}" if around.get("etude_commit") else ""
        own = around.get("etude_from") or f"etude=={around.get('etude')}"
        lines.append(f"pip install {shlex.join([own, *pins])}{commit}")
    return "\n".join([*lines, shlex.join(map(str, record["command"]))])


def budget_of(record: Mapping[str, Any]) -> str:
    """Return the time that a run was given, and what of its recipe fitted; nothing where it was given none."""
    if not (budget := record.get("budget")):
        return ""
    given = f"The run was given {duration(float(budget['seconds']))}"
    return f"{given}: {budget['fitted']}." if budget.get("fitted") else f"{given}."


def rounds_table(record: Mapping[str, Any]) -> tuple[list[str], list[list[str]]] | None:
    rounds = record.get("rounds")
    if not isinstance(rounds, list) or not rounds or not all(isinstance(one, dict) for one in rounds):
        return None
    columns = ["round", "pseudo-labels", "labels that changed", "off the expected class shares", "verdict"]
    rows = [
        (
            *(one.get("name", ""), one.get("pseudo_labels") or "made in training", percent(one.get("changed"))),
            *(percent(one.get("from_prior")), one.get("verdict", one.get("told", ""))),  # told before 0.2
        )
        for one in rounds
    ]
    return columns, [[*map(str, row)] for row in rows]


def _parts(model: Model) -> list[tuple[str, int, int]]:
    """Put the weights together by the first parts of their names, fewer of them while there are too many groups."""

    def natural(name: str) -> list[tuple[bool, int, str]]:
        return [(part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in name.split(".")]

    shapes, groups = sorted(model.tensors.items(), key=lambda item: natural(item[0])), dict[str, list[int]]()
    for depth in range(_DEPTH, 0, -1):
        groups.clear()
        for name, shape in shapes:
            parts = name.split(".")
            groups.setdefault(".".join(parts[: min(depth, len(parts) - 1)]) or name, []).append(math.prod(shape))
        if len(groups) <= _MOST_PARTS:
            break
    return [(name, len(sizes), sum(sizes)) for name, sizes in groups.items()]


def _prefixed(value: float) -> str:
    for size, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if value >= size:
            return f"{value / size:.3g} {prefix}FLOPs"
    return f"{value:,.0f}"


@dataclass(frozen=True, slots=True)
class Step:
    """A stage, or the same stage of all folds together."""

    name: str
    state: str
    count: int  # folds it ran on
    seconds: float
    planned: float | None
    accuracy: float | None
    log_loss: float | None
    gained: float | None  # accuracy over what was kept before
    saved: float | None  # log loss below what was kept before
    notes: str
    error: str | None
    share: Markup  # a bar of its share of the seconds
    kept: bool = True


def steps_of(record: Mapping[str, Any]) -> list[Step]:
    """Return the stages in order, folds as one step by their means, and last the seconds that no stage took."""
    stages: dict[str, list[Mapping[str, Any]]] = {}
    for stage in record["stages"]:
        stages.setdefault(FOLD.sub("", stage["name"]), []).append(stage)
    planned = (record.get("plan") or {}).get("expected_seconds") or {}
    state, each_builds_up, before = record["state"], builds_up(record), _Kept(record)
    rest = seconds_in_no_stage(record)
    whole = rest + sum(float(stage["seconds"]) for stage in record["stages"])
    steps: list[Step] = []
    for name, group in stages.items():
        seconds = sum(float(stage["seconds"]) for stage in group)
        gains = [before.gain(group, score) if each_builds_up else None for score in ("accuracy", "log_loss")]
        step = Step(
            *(name, state_of_all(group, state), len(group), seconds, planned.get(name), _mean(group, "accuracy")),
            *(_mean(group, "log_loss"), *gains),
            notes=_notes(group),
            error=next((stage["error"] for stage in group if stage.get("error")), None),
            share=_share_bar(seconds, whole),
            kept=before.goes_on_from(group),
        )
        steps.append(step)
    if rest > 0.0:
        bar = _share_bar(rest, whole)
        steps.append(Step(IN_NO_STAGE, "finished", 1, rest, None, None, None, None, None, "", None, bar))
    return steps


class _Kept:
    """The scores of what is kept of each fold, as a run goes through its stages; fold 0 is a run without folds."""

    def __init__(self, record: Mapping[str, Any]) -> None:
        self._rounds = {one["name"]: one["kept"] for one in record.get("rounds") or []}
        self._scores: dict[int, Mapping[str, Any]] = {}

    def gain(self, group: Stages, score: str) -> float | None:
        """Return what stages have more than what is kept of their folds, or less for a loss: positive is better."""
        known = [
            (value, base)
            for stage in group
            if (value := stage["scores"].get(score)) is not None and (base := self._before(stage, score)) is not None
        ]
        more = _average([value - base for value, base in known])
        return -more if more is not None and score == "log_loss" else more

    def goes_on_from(self, group: Stages) -> bool:
        """Take the scores of the stages that were kept, and return whether any was."""
        kept = [stage for stage in group if self._was_kept(stage)]
        self._scores |= {_fold_of(stage): stage["scores"] for stage in kept if stage["scores"]}
        return bool(kept)

    def _was_kept(self, stage: Mapping[str, Any]) -> bool:
        """Older records do not say: rounds have a verdict of their own, and stage 2 was kept where it was better."""
        if "kept" in stage or not was_kept(stage):
            return was_kept(stage)
        if stage["name"] in self._rounds:
            return self._rounds[stage["name"]]
        if FOLD.sub("", stage["name"]) != "fine-tune":
            return True
        more = [self.gain([stage], score) for score in ("accuracy", "log_loss")]
        return more == [None, None] or next((gain for gain in more if gain), 0.0) > 0.0

    def _before(self, stage: Mapping[str, Any], score: str) -> float | None:
        """Return the score of what is kept of a stage's fold; of all folds together where it is no fold's."""
        fold = _fold_of(stage)
        own = [self._scores[fold]] if fold in self._scores else [] if fold else list(self._scores.values())
        return _average([float(value) for scores in own if (value := scores.get(score)) is not None])


def _fold_of(stage: Mapping[str, Any]) -> int:
    return int(found[1]) if (found := FOLD.search(stage["name"])) else 0


def _share_bar(seconds: float, whole: float) -> Markup:
    share = seconds / (whole or 1.0)
    return chart("bar", share, f"{percent(share, 0)} of the time")


def builds_up(record: Mapping[str, Any]) -> bool:
    """Whether each stage goes on from the one before; those of a study are runs that stand side by side."""
    return record.get("kind", "fit") == "fit"


def last_words(record: Mapping[str, Any]) -> str:
    """Return where a run stands that has not finished."""
    state, where = record["state"], stopped_at(record["stages"])
    if state == "running":
        return f"It was running when this page was written, {duration(record['seconds'])} after its start: {where}."
    how = {"failed": "failed", "interrupted": "was interrupted"}.get(state, "was killed")
    cause = f": {record['error']}" if record["error"] else "."
    return "" if state == "finished" else f"It {how} {where}{cause}"


def _mean(group: Stages, score: str) -> float | None:
    return _average([float(value) for stage in group if (value := stage["scores"].get(score)) is not None])


def _average(known: Sequence[float]) -> float | None:
    return sum(known) / len(known) if known else None


def state_of_all(group: Stages, run: str) -> str:
    """Return the state of stages together: the worst, or finished when all are; those of a killed ``run`` ended too."""
    states = [stage["state"] for stage in group]
    worst = next((state for state in ("failed", "interrupted", "running") if state in states), "finished")
    return KILLED if worst == "running" and run == KILLED else worst


def _notes(group: Stages) -> str:
    facts: dict[str, str] = {}
    for stage in group:
        for key, value in stage["notes"].items():
            name = plain_name(key)
            text = name if value is True else f"{name} {in_words(value)}"
            if value is None or value is False or value == []:
                text = ""
            facts[key] = text if facts.get(key, text) == text else f"{name} differs by fold"
    begun = max((int(stage.get("attempts") or 1) for stage in group), default=1)
    return "; ".join(filter(None, [*facts.values(), f"begun {begun} times" if begun > 1 else ""]))
