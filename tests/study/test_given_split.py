"""Splits that a table's column gives: what trains and what validates, and which option goes before it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from etude.core.context import Context
from etude.data.dataset import Dataset
from etude.journal.screen import Screen
from etude.recipe import load_recipe
from etude.study.run.request import Request
from etude.study.run.sources import make_folds, planned_split, read_sources, scan_sources
from picture_folders import picture

Folds = list[tuple[list[str], list[str]]]


@pytest.fixture
def split(tmp_path: Path) -> Callable[..., tuple[Folds, list[str]]]:
    """``split({column: cells}, folds=...)`` returns the ids that train and validate in each fold, and the warnings."""

    def run(columns: dict[str, Sequence[str]], **asked: Any) -> tuple[Folds, list[str]]:
        count = len(next(iter(columns.values())))
        labels = asked.pop("labels", "xy" * count)
        rows = [["image", "label", *columns]]
        for row, cells in enumerate(zip(*columns.values(), strict=True)):
            picture(row % 2, row, 8).save(tmp_path / f"{row:02}.png")
            rows.append([f"{row:02}.png", labels[row], *cells])
        table = tmp_path / "t.csv"
        table.write_text("".join(",".join(row) + "\n" for row in rows))
        told: list[str] = []
        request, recipe = Request(table, **asked), load_recipe("quick")
        sources = read_sources(request, recipe, Context(warn=told.append))
        scanned = scan_sources(sources, Screen(quiet=True))["labelled"]
        images = sources.labelled.take(scanned.kept)
        build = SimpleNamespace(kept=scanned.kept, content_hashes=scanned.content_hashes)
        data = cast("Dataset", SimpleNamespace(images=images, build=build))
        folds = make_folds(data, sources, Context(warn=told.append))
        sizes = planned_split(sources, scanned, Context())
        assert sizes == (len(folds[0].train), len(folds[0].valid))
        assert asked.get("sample") or len(images) == count + len(sources.labelled) - sources.train_count
        ids = [([images.ids[row] for row in fold.train], [images.ids[row] for row in fold.valid]) for fold in folds]
        return ids, told

    return run


def names(*rows: int) -> list[str]:
    return [f"{row:02}.png" for row in rows]


FLAGS = ["1", "1", *"0000000000"]


def test_marked_rows_validate_and_shared_groups_are_named(split):
    folds, told = split({"is_valid": FLAGS, "patient_id": [*"abab", *"cccc", *"dddd"]})
    assert folds == [(names(*range(2, 12)), names(0, 1))]
    assert ["2 of 2 values of 'patient_id'" in text for text in told] == [True]
    _, told = split({"is_valid": FLAGS, "patient_id": [*"abcb", *"cccc", *"dddd"]})
    assert ["1 of 2 values of 'patient_id'" in text for text in told] == [True]
    _, told = split({"is_valid": FLAGS, "patient_id": [*"abcc", *"cccc", *"dddd"]})
    assert told == []


def test_groups_are_looked_for_in_a_split_by_chance_too(split):
    _, told = split({"site": [*"ababababbaba"]})
    assert ["'site'" in text for text in told] == [True]


def test_the_first_fold_validates_and_as_many_folds_as_there_are_each(split):
    cells = [str(row // 2 % 3) for row in range(12)]
    valid = [names(*(row for row in range(12) if row // 2 % 3 == fold)) for fold in range(3)]
    assert [fold[1] for fold in split({"fold": cells})[0]] == valid[:1]
    folds, told = split({"fold": cells}, folds=3)
    assert ([fold[1] for fold in folds], told) == (valid, [])
    assert all(sorted(train + valid) == names(*range(12)) for train, valid in folds)


@pytest.mark.parametrize("column", [{"fold": [*"012012012012"]}, {"is_valid": FLAGS}])
def test_another_number_of_folds_goes_before_the_column(split, column: dict[str, list[str]]):
    folds, told = split(column, folds=2)
    assert [len(valid) for _, valid in folds] == [6, 6]
    assert [next(iter(column)) in text and "--folds 2" in text for text in told] == [True]


def test_validation_images_go_before_the_column(split, tmp_path):
    for number in range(2):
        (tmp_path / "valid" / "xy"[number]).mkdir(parents=True)
        picture(number, 50, 8).save(tmp_path / "valid" / "xy"[number] / "v.png")
    folds, told = split({"is_valid": FLAGS}, valid=tmp_path / "valid")
    assert folds == [(names(*range(12)), ["x/v.png", "y/v.png"])]
    assert ["--valid" in text and "'is_valid'" in text for text in told] == [True]


def test_a_sample_has_validation_rows_too(split):
    folds, _ = split({"is_valid": FLAGS * 3}, sample="12")
    assert [(len(train), len(valid)) for train, valid in folds] == [(8, 4)]  # two of each class on either side


def test_a_class_that_only_validates_is_named(split):
    valid = ["True" if row in (1, 3) else "False" for row in range(12)]
    _, told = split({"is_valid": valid}, labels="xzxyxyxyxyxy")
    assert any("'z'" in text for text in told)
