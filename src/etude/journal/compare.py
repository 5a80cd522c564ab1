"""Runs beside each other: the settings that differ, what the differences in score are worth, and what they cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from etude.core.errors import EtudeError, listed
from etude.core.metrics import metric_named
from etude.core.paired import Gain, paired_bootstrap
from etude.core.predictions import Predictions
from etude.journal.index import RunSummary, summary_of_run
from etude.journal.runs import read_run, verify

METRICS = ("accuracy", "log_loss")
_FILE = "valid.npz"


@dataclass(frozen=True, slots=True)
class Contrast:
    """What a run gains over the first one, on the images that both have validated.

    Args:
        images: how many these are.
        gains: by metric; empty when the two cannot be compared.
        reason: why they cannot, else None.
        cautions: what to keep in mind, in sentences.
    """

    images: int = 0
    gains: dict[str, Gain] | None = None
    reason: str | None = None
    cautions: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Comparison:
    """K runs beside each other.

    Args:
        runs: what the lists say of each.
        settings: by name, the K values of each setting that is not the same in all; None where a run has none.
        stages: by name, the seconds that each run spent in it; None where it has no such stage.
        contrasts: of each run but the first against the first.
        level: of the intervals.
    """

    runs: tuple[RunSummary, ...]
    settings: dict[str, list[Any]]
    stages: dict[str, list[float | None]]
    contrasts: tuple[Contrast, ...]
    level: float

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return {
            "level": self.level,
            "runs": [run.to_json() for run in self.runs],
            "settings": self.settings,
            "stages": self.stages,
            "against_first": [asdict(contrast) for contrast in self.contrasts],
        }


def compare_runs(folders: Sequence[Path], level: float = 0.95, draws: int = 2000, seed: int = 0) -> Comparison:
    """Return the runs in ``folders`` beside each other, each against the first.

    The intervals come from a paired bootstrap over the images that both have validated, or from the exact test where
    fewer than 30 of these differ: they tell what another draw of images would change, not another seed.

    Args:
        level: of each interval.
        draws: number of resamples.
        seed: of the resamples.

    Raises:
        EtudeError: fewer than two folders, one twice, or one that holds no readable run.
    """
    places = [folder.resolve() for folder in folders]
    if len(folders) < 2 or len({*places}) < len(places):
        told = listed(str(folder) for folder in folders)
        raise EtudeError(f"comparing takes two different runs or more, and {told} came: give their folders or ids")
    records = [read_run(folder) for folder in folders]
    names = [folder.name for folder in folders]
    paths = [str(folder) for folder in folders] if len({*names}) < len(names) else names
    runs = tuple(summary_of_run(path, record) for path, record in zip(paths, records, strict=True))
    first = _validation(folders[0])
    contrasts = tuple(
        _contrast(first, _validation(folder), (runs[0], run), level, draws, seed)
        for folder, run in zip(folders[1:], runs[1:], strict=True)
    )
    return Comparison(runs, differing_settings(records), _seconds_by_stage(records), contrasts, level)


def differing_settings(records: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    """Return, by name, the values of the settings that are not the same in all ``records``.

    They are compared as each run resolved them, or as they were asked for when one of the runs did not come so far.
    """
    resolved = all((record.get("plan") or {}).get("resolved") for record in records)
    tables = [_settings(record, resolved) for record in records]
    names = dict.fromkeys(name for table in tables for name in table)
    values = {name: [table.get(name) for table in tables] for name in names}
    return {name: found for name, found in values.items() if any(value != found[0] for value in found)}


def _settings(record: dict[str, Any], resolved: bool) -> dict[str, Any]:
    data, plan, environment = record.get("data") or {}, record.get("plan") or {}, record["environment"]
    git = environment.get("git") or {}
    packages = environment.get("packages") or {}
    around = {
        "recipe": record["recipe"],
        "seed": record["seed"],
        "data": data.get("fingerprint"),
        "sample": data.get("sample"),
        "folds": None if data.get("folds") is None else len(data["folds"]),
    }
    machine = {
        **{f"mode.{name}": value for name, value in (plan.get("mode") or {}).items()},
        "device": plan.get("device"),
        "cpu": environment.get("cpu"),
        "etude": environment.get("etude"),
        **{name: packages.get(name) for name in ("torch", "timm", "lightning")},
        "git commit": git.get("commit"),
        "git diff": git.get("diff"),
    }
    settings = plan["resolved"] if resolved else record["settings"]
    return {**around, **{name: value for name, value in settings.items() if name != "name"}, **machine}


def _seconds_by_stage(records: Sequence[dict[str, Any]]) -> dict[str, list[float | None]]:
    tables = [{stage["name"]: stage["seconds"] for stage in record["stages"]} for record in records]
    names = dict.fromkeys(name for table in tables for name in table)
    return {name: [table.get(name) for table in tables] for name in names}


def _validation(folder: Path) -> Predictions | EtudeError:
    """Return the run's labelled validation predictions, or what is wrong with them."""
    if not (folder / _FILE).is_file():
        return EtudeError(f"{folder.name} holds no {_FILE}")
    try:
        verify(folder, [_FILE])
        found = Predictions.load(folder / _FILE)
    except EtudeError as error:
        return error
    if found.labels is None or not (found.labels >= 0).any():
        return EtudeError(f"{folder / _FILE} holds no labels")
    return found.take(np.flatnonzero(found.labels >= 0))


def _contrast(
    before: Predictions | EtudeError,
    after: Predictions | EtudeError,
    runs: tuple[RunSummary, RunSummary],
    level: float,
    draws: int,
    seed: int,
) -> Contrast:
    for side in (before, after):
        if isinstance(side, EtudeError):
            return Contrast(reason=str(side))
    assert isinstance(before, Predictions)
    assert isinstance(after, Predictions)
    try:
        one, other = _on_the_same_images(before, after)
    except EtudeError as error:
        return Contrast(reason=str(error))
    assert one.labels is not None
    sides = one.log_probabilities(), other.log_probabilities()
    gains = {
        name: paired_bootstrap(metric_named(name), *sides, one.labels, draws, seed, level=level)
        for name in METRICS
    }  # fmt: skip
    return Contrast(len(one), gains, cautions=tuple(_cautions(before, after, len(one), runs)))


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


def _cautions(before: Predictions, after: Predictions, shared: int, runs: tuple[RunSummary, RunSummary]) -> list[str]:
    told: list[str] = []
    if shared < min(len(before), len(after)):
        told.append(f"only {shared:,} of their {len(before):,} and {len(after):,} validation images are the same")
    if runs[0].fingerprint != runs[1].fingerprint:
        told.append("their data differ: images were paired by their names")
    return told
