"""``etude doctor TRAIN --data``: the health of the images, without training anything."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from etude.core.context import default_cache
from etude.core.text import counted
from etude.data.dataset import Dataset, open_dataset
from etude.data.scan import SurveyResult
from etude.data.sources import ImageSet
from etude.health.summary import MOST, examine_health
from etude.journal.screen import Screen
from etude.models.backbones import required_size
from etude.models.device import best_device, choose_precision
from etude.recipe import ImageFacts, Recipe, load_recipe, resolve
from etude.study.run.frozen import Frozen, build_frozen, compute_features
from etude.study.run.request import Request
from etude.study.run.sources import make_folds, read_sources, survey_sources

MOST_HERE = 4 * MOST
"""Images looked at: nobody waits for a run's end here, and twenty thousand take about a minute."""

_SHOWN = 10

Say = Callable[[str], None]


def examine_data(request: Request, screen: Screen, warn: Say, *, most: int = MOST_HERE) -> dict[str, Any]:
    """Read, store and examine the images as a run with this request would meet them.

    Raises:
        EtudeError: the images cannot be read, or the recipe is unknown.
    """
    request.check()
    recipe = load_recipe(request.recipe, request.settings)
    sources = read_sources(request, recipe, warn)
    surveys = survey_sources(sources, recipe, screen)
    surveyed = surveys.labelled
    needed = required_size(recipe.model.backbone)
    facts = ImageFacts(surveyed.median_short_side, surveyed.channels, count=sources.train_count, required_size=needed)
    recipe = resolve(recipe, facts)
    cache = request.cache or default_cache()

    def opened(images: ImageSet, survey: SurveyResult, fit: str) -> Dataset:
        size = recipe.model.feature_size
        return open_dataset(images, survey, size, fit=fit, cache=cache, progress=screen, warn=warn)

    data = opened(sources.labelled, surveyed, recipe.data.fit)
    folds = make_folds(data, sources, request, recipe, warn)
    frozen = build_frozen(recipe, data.build.store.channels)
    test = None
    if sources.test is not None and surveys.test is not None:
        # Test images are read like the training images, as in a run.
        alike = surveys.test.like(data.build.store.channels, data.build.value_range, "test images", warn)
        test = opened(sources.test, alike, data.build.fit)
    values = [_features(frozen, one, recipe, cache, screen) for one in (data, test)]
    return examine_health(
        data, values[0], folds, test=test, test_features=values[1], most=most, seed=request.seed, progress=screen
    )


def _features(
    frozen: Frozen | None, data: Dataset | None, recipe: Recipe, cache: Path, screen: Screen
) -> np.ndarray | None:
    if frozen is None or data is None:
        return None
    precision = choose_precision(recipe.train.precision, best_device())
    return compute_features(frozen, data, recipe, precision=precision, cache=cache, progress=screen).values


def health_json(health: Mapping[str, Any], warnings: Sequence[str]) -> str:
    """Return health and warnings as one JSON object."""
    return json.dumps({**health, "warnings": list(warnings)}, indent=2, allow_nan=False)


def show_health(screen: Screen, health: Mapping[str, Any]) -> None:
    """Show what was found: a line for each kind, then the first entries of each that found anything."""
    screen.plan("Your images", health_rows(health))
    for note in health["notes"]:
        screen.say(f"note: {note}")
    _show_copies(screen, health["near_duplicates"])
    _show_table(screen, "Suspected label errors", health["label_errors"], ("id", "label", "suggested", "score"))
    _show_table(screen, "Files that cannot be used", health["corrupt"], ("id", "reason"))
    _show_table(screen, "Tiny images", health["tiny"], ("id", "width", "height"))
    if health["leaks"]:
        screen.say("")
        screen.plan("Leaks", [(leak["kind"], leak["told"]) for leak in health["leaks"]])


def health_rows(health: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return one line for each kind of finding, as names and values."""
    counts, uneven, shift = health["counts"], health["imbalance"], health["shift"]
    classes = len(uneven["classes"])
    size = f"{counted(health['images'], 'image')} in {counted(classes, 'class', 'classes')}"
    copies = counts["near_duplicates"]
    rows = [
        ("images", size),
        ("cannot be used", counted(counts["corrupt"], "file")),
        ("tiny", counted(counts["tiny"], "image")),
        ("copies", f"{counted(copies, 'pair')}, {counts['across_splits']:,} of them across splits"),
        ("labels", _suspicion(health)),
        ("classes", uneven.get("told", f"the largest has {uneven.get('ratio', 1):.1f} times as many as the smallest")),
        ("leaks", ", ".join(leak["kind"] for leak in health["leaks"]) or "none found"),
    ]
    if shift is not None:
        low, high = shift["interval"]
        rows.append(("test images", f"{shift['told']} (AUC {shift['auc']:.2f}, 95% {low:.2f} to {high:.2f})"))
    return rows


def _suspicion(health: Mapping[str, Any]) -> str:
    """Return how many labels are suspected, and how far that is to be believed."""
    told = f"{counted(health['counts']['label_errors'], 'label')} under suspicion"
    judged = health["labels"]
    return told if judged is None else f"{told}: {judged['told']}"


def _show_copies(screen: Screen, pairs: Sequence[Mapping[str, Any]]) -> None:
    rows = [
        {
            "a": pair["a"],
            "b": pair["b"],
            "alike": "same file" if pair["exact"] else f"{pair['similarity']:.3f}",
            "splits": " / ".join(dict.fromkeys(pair["splits"])),
            "labels": " / ".join(dict.fromkeys(label for label in pair["labels"] if label is not None)),
        }
        for pair in pairs
    ]
    _show_table(screen, "Copies", rows, ("a", "b", "alike", "splits", "labels"))


def _show_table(screen: Screen, title: str, entries: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    if not entries:
        return
    more = f", the first {_SHOWN}" if len(entries) > _SHOWN else ""
    screen.say("")
    screen.table(title + more, columns, [[entry[name] for name in columns] for entry in entries[:_SHOWN]])
