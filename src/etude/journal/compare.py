"""Runs compared: the settings that differ, the differences in score with their intervals, and the seconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from etude.core.errors import EtudeError, listed
from etude.core.metrics import metric_named
from etude.core.paired import Gain, paired_bootstrap
from etude.core.predictions import Predictions
from etude.journal.index import RunSummary
from etude.journal.runs import read_run, verify

METRICS = ("accuracy", "log_loss")
LEVEL = 0.95  # of the intervals
_DRAWS, _SEED = 2000, 0


@dataclass(frozen=True, slots=True)
class Contrast:
    """What a run gains over the first one, by metric, on the images that both have validated; or why nobody can say."""

    images: int = 0
    gains: dict[str, Gain] | None = None
    reason: str | None = None
    cautions: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Comparison:
    """K runs: by name the K values of each setting that differs and K seconds of each stage, None where missing."""

    runs: tuple[RunSummary, ...]
    settings: dict[str, list[Any]]
    stages: dict[str, list[float | None]]
    contrasts: tuple[Contrast, ...]  # of each run but the first against the first

    def to_json(self) -> dict[str, Any]:
        return {
            "level": LEVEL,
            "runs": [asdict(run) for run in self.runs],
            "settings": self.settings,
            "stages": self.stages,
            "against_first": [asdict(contrast) for contrast in self.contrasts],
        }


def compare_runs(folders: Sequence[Path]) -> Comparison:
    """Compare each run with the first, by a paired bootstrap over the images that both validated: no seed is in it."""
    places = [folder.resolve() for folder in folders]
    if len(folders) < 2 or len({*places}) < len(places):
        given = listed(str(folder) for folder in folders)
        raise EtudeError(f"comparing takes two different runs or more, and {given} came: give their folders or ids")
    records = [read_run(folder) for folder in folders]
    names = [folder.name for folder in folders]
    paths = [str(folder) for folder in folders] if len({*names}) < len(names) else names
    runs = tuple(RunSummary.of(path, record) for path, record in zip(paths, records, strict=True))
    contrasts = tuple(
        _contrast(folders[0], folder, runs[0].fingerprint == run.fingerprint)
        for folder, run in zip(folders[1:], runs[1:], strict=True)
    )
    seconds = _by_name([{stage["name"]: stage["seconds"] for stage in record["stages"]} for record in records])
    return Comparison(runs, differing_settings(records), seconds, contrasts)


def differing_settings(records: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    """Return the values of the settings that are not the same in all ``records``, as resolved where all of them are."""
    resolved = all((record.get("plan") or {}).get("resolved") for record in records)
    values = _by_name([_settings(record, resolved) for record in records])
    return {name: found for name, found in values.items() if any(value != found[0] for value in found)}


def _settings(record: dict[str, Any], resolved: bool) -> dict[str, Any]:
    data, plan, environment = record.get("data") or {}, record.get("plan") or {}, record["environment"]
    git = environment.get("git") or {}
    packages = environment.get("packages") or {}
    around = {"recipe": record["recipe"], "seed": record["seed"], "data": data.get("fingerprint")}
    around |= {"sample": data.get("sample"), "folds": None if data.get("folds") is None else len(data["folds"])}
    machine = {
        **{f"mode.{name}": value for name, value in (plan.get("mode") or {}).items()},
        **{"device": plan.get("device"), "cpu": environment.get("cpu"), "etude": environment.get("etude")},
        **{name: packages.get(name) for name in ("torch", "timm", "lightning")},
        **{f"git {name}": git.get(name) for name in ("commit", "diff")},
    }
    settings = plan["resolved"] if resolved else record["settings"]
    return {**around, **{name: value for name, value in settings.items() if name != "name"}, **machine}


def _by_name(tables: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    names = dict.fromkeys(name for table in tables for name in table)
    return {name: [table.get(name) for table in tables] for name in names}


def _validation(folder: Path) -> Predictions:
    file = folder / "valid.npz"
    if not file.is_file():
        raise EtudeError(f"{folder.name} holds no {file.name}")
    verify(folder, [file.name])
    found = Predictions.load(file)
    if found.labels is None or not (found.labels >= 0).any():
        raise EtudeError(f"{file} holds no labels")
    return found.take(np.flatnonzero(found.labels >= 0))


def _contrast(first: Path, folder: Path, same_data: bool) -> Contrast:
    try:
        before, after = _validation(first), _validation(folder)
        one, other = _on_the_same_images(before, after)
    except EtudeError as error:
        return Contrast(reason=str(error))
    assert one.labels is not None
    sides = one.log_probabilities(), other.log_probabilities()
    gains = {
        name: paired_bootstrap(metric_named(name), *sides, one.labels, _DRAWS, _SEED, level=LEVEL) for name in METRICS
    }
    cautions: list[str] = []
    if len(one) < min(len(before), len(after)):
        cautions.append(f"only {len(one):,} of their {len(before):,} and {len(after):,} validation images are the same")
    if not same_data:
        cautions.append("their data differ: images were paired by their names")
    return Contrast(len(one), gains, cautions=tuple(cautions))


def _on_the_same_images(before: Predictions, after: Predictions) -> tuple[Predictions, Predictions]:
    """Return both on the images that they share, in one order of images and of classes."""
    if {*before.classes} != {*after.classes}:
        only = {*before.classes} ^ {*after.classes}
        raise EtudeError(f"their classes differ: only one of them has {listed(sorted(only))}")
    rows = {name: row for row, name in enumerate(after.ids)}
    shared = [row for row, name in enumerate(before.ids) if name in rows]
    if not shared:
        raise EtudeError("they have no validation image in common: give both the same --seed or the same --valid")
    one = before.take(shared)
    other = after.take([rows[name] for name in one.ids])
    order = [after.classes.index(name) for name in before.classes]
    assert one.labels is not None
    assert other.labels is not None
    labels = np.argsort(order)[other.labels]
    if (unlike := int((labels != one.labels).sum())) > 0:
        raise EtudeError(f"{unlike:,} of their {len(one):,} common validation images have another label in each")
    return one, Predictions(other.ids, one.classes, other.logits[:, :, order], labels=one.labels)
