"""``etude doctor TRAIN --data``: the health of the images, without training anything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from etude.core.context import Context
from etude.core.text import counted
from etude.data.dataset import Dataset
from etude.health.summary import MOST, examine_health
from etude.journal.screen import Screen
from etude.models.backbones import sides_of
from etude.models.device import best_device, choose_precision
from etude.recipe import ImageFacts, resolve
from etude.study.run.frozen import build_frozen, compute_features
from etude.study.run.sources import Sources, make_folds, scan_sources, store_sources

_MAXIMUM = 4 * MOST  # images examined: nobody waits for a run's end here, and twenty thousand take about a minute
_SHOWN = 10


def examine_data(sources: Sources, screen: Screen) -> dict[str, Any]:
    request, recipe = sources.request, sources.recipe
    context = Context(screen, screen.warn, request.cache, request.seed)
    scans = scan_sources(sources, screen)
    side, channels = scans["labelled"].median_short_side, scans["labelled"].channels
    recipe = resolve(recipe, ImageFacts(side, channels, sources.train_count, *sides_of(recipe.model.backbone)))
    precision = choose_precision(recipe.train.precision, best_device())

    def features(images: Dataset | None) -> np.ndarray | None:
        if frozen is None or images is None:
            return None
        return compute_features(frozen, images, recipe, precision, context).values

    found = store_sources(sources, scans, recipe.model.feature_size, context)
    data, test = found["labelled"], found.get("test")
    folds = make_folds(data, sources, context)
    frozen = build_frozen(recipe, data.build.store.channels)
    return examine_health(
        data, features(data), folds,
        test=test, test_features=features(test), most=_MAXIMUM, context=context,
    )  # fmt: skip


def show_health(screen: Screen, health: Mapping[str, Any]) -> None:
    """Show a line for each kind of finding, then the first entries of each that found anything."""
    screen.plan("Your images", _rows(health))
    for note in health["notes"]:
        screen.say(f"note: {note}")
    duplicates = [
        {
            **pair,
            "similarity": "same file" if pair["exact"] else f"{pair['similarity']:.3f}",
            "splits": " / ".join(dict.fromkeys(pair["splits"])),
            "labels": " / ".join(dict.fromkeys(label for label in pair["labels"] if label is not None)),
        }
        for pair in health["near_duplicates"]
    ]
    _show_table(screen, "Near-duplicates", duplicates, ("a", "b", "similarity", "splits", "labels"))
    _show_table(screen, "Suspected label errors", health["label_errors"], ("id", "label", "suggested", "score"))
    _show_table(screen, "Files that cannot be used", health["corrupt"], ("id", "reason"))
    _show_table(screen, "Tiny images", health["tiny"], ("id", "width", "height"))
    if health["leaks"]:
        screen.say("")
        screen.plan("Leaks", [(leak["kind"], leak["summary"]) for leak in health["leaks"]])


def _rows(health: Mapping[str, Any]) -> list[tuple[str, str]]:
    counts, balance, shift, labels = (health[name] for name in ("counts", "imbalance", "shift", "labels"))
    classes = counted(len(balance["classes"]), "class", "classes")
    suspected = f"{counted(counts['label_errors'], 'label')} suspected to be wrong"
    pairs = f"{counted(counts['near_duplicates'], 'pair')}, {counts['across_splits']:,} of them across splits"
    ratio = f"the largest has {balance.get('ratio', 1):.1f} × the images of the smallest"
    rows = [
        ("images", f"{counted(health['images'], 'image')} in {classes}"),
        ("cannot be used", counted(counts["corrupt"], "file")),
        ("tiny", counted(counts["tiny"], "image")),
        ("near-duplicates", pairs),
        ("labels", suspected if labels is None else f"{suspected}: {labels['summary']}"),
        ("classes", balance.get("summary", ratio)),
        ("leaks", ", ".join(leak["kind"] for leak in health["leaks"]) or "none found"),
    ]
    if shift is not None:
        low, high = shift["interval"]
        rows.append(("test images", f"{shift['summary']} (AUC {shift['auc']:.2f}, 95% {low:.2f} to {high:.2f})"))
    return rows


def _show_table(screen: Screen, title: str, entries: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    if entries:
        more = f", the first {_SHOWN}" if len(entries) > _SHOWN else ""
        screen.say("")
        screen.table(title + more, columns, [[entry[name] for name in columns] for entry in entries[:_SHOWN]])
