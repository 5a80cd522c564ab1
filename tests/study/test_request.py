"""The options of a run: one declaration for the command line, Python, and the job."""

from __future__ import annotations

import inspect
import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

import etude
from etude.core.errors import EtudeError
from etude.recipe import ImageFacts, flat, load_recipe, resolve
from etude.recipe.timeline import ImageSizes, image_sizes
from etude.study.run.request import FitOptions, Options, Request


def test_the_python_call_takes_what_the_command_takes():
    taken = {name: one.default for name, one in inspect.signature(etude.fit).parameters.items() if name != "train"}
    assert taken == {one.name: one.default for one in fields(FitOptions)}


def test_every_option_is_documented_in_the_python_call():
    assert all(f"        {one.name}: " in (etude.fit.__doc__ or "") for one in fields(FitOptions))


def test_shortcuts_become_settings_once():
    request = Request(Path("in"), settings={"train.epochs": 2}, lr="auto", cache_limit="20GB", labels="strict")
    expected = {"train.epochs": 2, "train.find_lr": True, "data.cache_limit": "20GB", "data.labels": "strict"}
    assert request.settings == replace(request, seed=1).settings == expected


SIZES = ("timeline.start_size", "timeline.final_size", "model.feature_size")


@pytest.mark.each(
    ("given", "expected"),
    [
        ({"epochs": 20}, {"train.epochs": 20}),
        ({"epochs": 0.5, "batch_size": 8}, {"train.epochs": 0.5, "train.batch_size": 8}),
        ({"backbone": "resnet18.a1_in1k"}, {"model.backbone": "resnet18.a1_in1k"}),
        ({"size": 320}, dict.fromkeys(SIZES, 320)),
        ({"settings": ["train.lr=1", "train.clip=2"], "lr": 2}, {"train.lr": 2, "train.clip": 2}),
        ({"settings": ["train.epochs=1", "train.clip=2"], "epochs": 2}, {"train.epochs": 2, "train.clip": 2}),
        ({"settings": {"model.backbone": "tiny"}, "backbone": "auto"}, {"model.backbone": "auto"}),
    ],
)
def test_options_short_for_settings_go_before_them(given: dict[str, Any], expected: dict[str, Any]):
    settings = Request(train=Path("x"), **given).settings
    assert settings == expected
    recipe = flat(load_recipe("default", settings))
    assert {key: recipe[key] for key in expected} == expected


@pytest.mark.each(
    ("recipe", "size", "first"),
    [("default", 320, 320), ("default", 64, 64), ("progressive", 128, 64)],
)
def test_a_size_is_that_of_features_and_of_the_end_of_training(recipe: str, size: int, first: int):
    asked = load_recipe(recipe, Options(size=size).settings)
    found = resolve(asked, ImageFacts(median_side=300, channels=3))
    assert found.model.feature_size == size
    assert image_sizes(found) == ImageSizes(first, size, size)


@pytest.mark.each("given", [{"epochs": 0}, {"size": 4}, {"batch_size": 0}, {"labels": "loose"}, {"cache_limit": ""}])
def test_bad_values_of_such_options_are_refused(given: dict[str, Any]):
    with pytest.raises(EtudeError, match="received"):
        load_recipe("default", Request(train=Path("x"), **given).settings)


def test_the_record_gives_the_same_request_again(tmp_path: Path):
    asked = Request(
        Path("in"), test=Path("test"), teachers=[Path("one")], settings=["train.lr=0.1", 'stages=["head"]'], lr="auto",
        image_root=tmp_path, sample="10%", folds=3, seed=7,
    )  # fmt: skip
    kept = json.loads(json.dumps(asked.as_record()))
    assert kept.pop("cwd") == str(Path.cwd())
    assert Request(**kept) == asked


def test_paths_of_the_users_home_are_expanded():
    request = Request("~/in", out="~/run", teachers=["~/one"])
    assert (request.train, request.out, request.teachers) == (
        Path.home() / "in",
        Path.home() / "run",
        (Path.home() / "one",),
    )


def test_no_settings_may_be_none_and_a_size_on_disk_a_number():
    assert Request(train=Path("x"), settings=None).settings == ()
    assert Request(train=Path("x"), cache_limit="2e9").settings == {"data.cache_limit": 2e9}
